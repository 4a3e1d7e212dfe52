"""The five tables a second time, by other means: Python decides what is JSON, DuckDB SQL does all the rest.

It shares no code with the job it checks. Read it beside the README's rules: each view below is one of them.
"""

import gzip
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import duckdb
import xxhash

COLUMNS = {
    "songplays": "songplay_id, start_time, user_id, level, song_id, artist_id, session_id, location, user_agent, "
    "song_title, artist_name, song_length, year, month",
    "users": "user_id, first_name, last_name, gender, level",
    "songs": "song_id, title, artist_id, duration, year",
    "artists": "artist_id, name, location, latitude, longitude",
    "time": "start_time, hour, day, week, weekday, year, month",
}

# ---------------------------------------------------------------------------------------------------------------------
# Lines
# ---------------------------------------------------------------------------------------------------------------------


def files(folder: Path) -> list:
    """The JSON files under the folder; nothing whose name, or whose folder's name, starts with _ or a dot."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name.endswith((".json", ".json.gz"))
        and not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
    )


def lines(path: Path) -> list:
    """The file's lines that are not blank, without line ends and the byte order marks before them."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.name.endswith(".gz") else content).decode("utf-8", errors="replace")
    found = [line.lstrip("\ufeff") for line in re.split("\r\n|\n|\r", text)]
    return [line for line in found if line.strip(" \t\v\f")]


def no_json(literal: str) -> None:
    raise ValueError(f"{literal} is not JSON")


def is_object(line: str) -> bool:
    """True when the line is exactly one JSON object, by the letter of RFC 8259."""
    try:
        return isinstance(json.loads(line, parse_constant=no_json), dict)
    except (ValueError, RecursionError):
        return False


def songplay_id(ts: int, user: int, session: int, item: int) -> int:
    """XXH64 of the four numbers as 8 little-endian bytes each, every hash the seed of the next, the first seed 42."""
    state = 42
    for number in (ts, user, session, item):
        state = xxhash.xxh64_intdigest(number.to_bytes(8, "little", signed=True), seed=state)
    return state - 2**64 if state >= 2**63 else state


# ---------------------------------------------------------------------------------------------------------------------
# Rules
# ---------------------------------------------------------------------------------------------------------------------

MACROS = """
-- The kind of the value; absent is NULL too.
create macro kind(line, key) as coalesce(json_type(line, key), 'NULL');
create macro is_number(line, key) as kind(line, key) in ('NULL', 'BIGINT', 'UBIGINT', 'DOUBLE');
create macro exact(number) as case when number % 1 = 0 and abs(number) < 9e15 then try_cast(number as bigint) end;
-- A whole number may have a point or an exponent: 7.0, 1.5E12. That makes it a double, which is exact below 9e15.
create macro whole(line, key) as case kind(line, key)
    when 'BIGINT' then try_cast(line ->> key as bigint)
    when 'UBIGINT' then try_cast(line ->> key as bigint)
    when 'DOUBLE' then exact(try_cast(line ->> key as double)) end;
create macro is_integer(line, key) as kind(line, key) = 'NULL' or whole(line, key) is not null;
create macro is_small_integer(line, key) as kind(line, key) = 'NULL' or try_cast(whole(line, key) as int) is not null;
create macro is_infinite(line, key) as coalesce(isinf(try_cast(line ->> key as double)), false);
-- A user id as text. It may be a number, too, and then have a point or an exponent like any whole number.
create macro user_number(line, id) as case
    when kind(line, 'userId') = 'DOUBLE' or regexp_full_match(id, '[0-9.]+E[0-9]+')
        then coalesce(case when id not like '-%' then exact(try_cast(id as double)) end::varchar, 'not a number')
    else trim(id, ' ') end;
-- Whether a value is missing.
create macro lacks(line, keys) as len(list_filter(keys, lambda key: line ->> key is null)) > 0;
-- Whether a key differs from one of these in upper and lower case alone.
create macro has_misspelt(line, keys) as len(list_filter(json_keys(line), lambda other: other not in keys
    and lower(other) in list_transform(keys, lambda key: lower(key)))) > 0;
-- A text that is only white space becomes null.
create macro known(value) as case when regexp_matches(value, '[^ \\t\\n\\x0b\\f\\r]') then value end;
"""

SONGS = """
create macro song_keys() as
['title', 'duration', 'year', 'artist_id', 'artist_name', 'artist_location', 'artist_latitude', 'artist_longitude'];

create view song_line as
select *, case
    when not is_object then 'broken JSON'
    when not is_number(json, 'duration') then 'wrong type: duration'
    when not is_small_integer(json, 'year') then 'wrong type: year'
    when not is_number(json, 'artist_latitude') then 'wrong type: artist_latitude'
    when not is_number(json, 'artist_longitude') then 'wrong type: artist_longitude'
    when is_infinite(json, 'duration') or is_infinite(json, 'artist_latitude')
        or is_infinite(json, 'artist_longitude') then 'infinite number'
    when known(json ->> 'song_id') is null then 'no song id'
    when whole(json, 'year') not between 0 and 2099 then 'impossible year'
    when lacks(json, song_keys()) and has_misspelt(json, song_keys()) then 'key in the wrong case'
    end as reason
from (select line, is_object, if(is_object, line, '{}')::json as json from song_text);

create view song_version as
select
    json ->> 'song_id' as song_id, json ->> 'title' as title, known(json ->> 'artist_id') as artist_id,
    (json ->> 'duration')::double as duration, coalesce(whole(json, 'year'), 0)::int as year,
    json ->> 'artist_name' as artist_name, json ->> 'artist_location' as artist_location,
    (json ->> 'artist_latitude')::double as artist_latitude, (json ->> 'artist_longitude')::double as artist_longitude
from song_line where reason is null;

-- One song per song_id: the greatest version.
create table song as
select * from song_version
qualify row_number() over (partition by song_id order by
    year desc nulls last, duration desc nulls last, title desc nulls last, artist_id desc nulls last,
    artist_name desc nulls last, artist_location desc nulls last, artist_latitude desc nulls last,
    artist_longitude desc nulls last) = 1;
"""

LOGS = """
create macro event_keys() as ['level', 'firstName', 'lastName', 'gender', 'itemInSession'];
create macro play_keys() as ['artist', 'song', 'length', 'location', 'userAgent'];

create view log_line as
select *, case
    when not is_object then 'broken JSON'
    when not is_integer(json, 'ts') then 'wrong type: ts'
    when not is_integer(json, 'sessionId') then 'wrong type: sessionId'
    when not is_integer(json, 'itemInSession') then 'wrong type: itemInSession'
    when not is_number(json, 'length') then 'wrong type: length'
    when is_infinite(json, 'length') then 'infinite number'
    when page is null then 'no page'
    when json ->> 'ts' is null then 'no time'
    when whole(json, 'ts') < epoch_ms(timestamp '2000-01-01') or whole(json, 'ts') >= epoch_ms(timestamp '2100-01-01')
        then 'impossible time'
    when user_text is null then 'no user id'
    when user_text <> '' and not regexp_full_match(user_text, '[0-9]{1,18}([.]0+)?') then 'user id is not a number'
    when page = 'NextSong' and user_text = '' then 'play without a user'
    when page = 'NextSong' and json ->> 'sessionId' is null then 'play without a session'
    when page = 'NextSong' and json ->> 'itemInSession' is null then 'play without an item'
    when (lacks(json, event_keys()) or page = 'NextSong' and lacks(json, play_keys()))
        and has_misspelt(json, event_keys() || play_keys()) then 'key in the wrong case'
    end as reason
from (
    select line, is_object, if(is_object, line, '{}')::json as json, json ->> 'page' as page,
        user_number(json, json ->> 'userId') as user_text
    from log_text);

create table event as
select
    whole(json, 'ts') as ts, try_cast(split_part(user_text, '.', 1) as bigint) as user_id,
    whole(json, 'sessionId') as session_id, whole(json, 'itemInSession') as item, page,
    json ->> 'level' as level, json ->> 'location' as location,
    json ->> 'userAgent' as user_agent, json ->> 'artist' as artist, json ->> 'song' as song,
    (json ->> 'length')::double as length, json ->> 'firstName' as first_name, json ->> 'lastName' as last_name,
    json ->> 'gender' as gender
from log_line where reason is null;

-- One play per (ts, user_id, session_id, item): the greatest copy.
create table play as
select * from event where page = 'NextSong'
qualify row_number() over (partition by ts, user_id, session_id, item order by
    level desc nulls last, location desc nulls last, user_agent desc nulls last, artist desc nulls last,
    song desc nulls last, length desc nulls last) = 1;
"""

TABLES = """
create view songs as select song_id, title, artist_id, duration, year from song;

-- The name is the latest one known. The place is one fact: all of it comes from the latest song that has any of it.
create view artists as
select artist_id, name, place.location, place.latitude, place.longitude
from (
    select
        artist_id,
        first(artist_name order by year desc, song_id desc) filter (known(artist_name) is not null) as name,
        first({'location': known(artist_location), 'latitude': artist_latitude, 'longitude': artist_longitude}
            order by year desc, song_id desc) filter (coalesce(known(artist_location), artist_latitude::text,
            artist_longitude::text) is not null) as place
    from song where artist_id is not null group by artist_id);

create table match as
select
    title, artist_name, round(duration, 5) as seconds, min(song_id) as song_id,
    first(artist_id order by song_id) as artist_id
from song group by title, artist_name, seconds;

create view songplays as
select
    songplay_id, make_timestamp(ts * 1000) as start_time, user_id, level, match.song_id, match.artist_id, session_id,
    location, user_agent, play.song as song_title, play.artist as artist_name, play.length as song_length,
    year(start_time)::int as year, month(start_time)::int as month, day(start_time)::int as day
from play
join songplay_key using (ts, user_id, session_id, item)  -- hashed in Python, one row a play
left join match
    on play.song = match.title and play.artist = match.artist_name and round(play.length, 5) = match.seconds;

-- Each value of a user is by itself the latest one known, on plays and on other pages.
create view user_event as
select *, least(greatest(coalesce(item, 0), 0), 2097151) as place from event where user_id is not null;

create view users as
select
    user_id,
    first(first_name order by ts desc, place desc, first_name desc) filter (known(first_name) is not null)
        as first_name,
    first(last_name order by ts desc, place desc, last_name desc) filter (known(last_name) is not null) as last_name,
    first(gender order by ts desc, place desc, gender desc) filter (known(gender) is not null) as gender,
    first(level order by ts desc, place desc, level desc) filter (known(level) is not null) as level
from user_event group by user_id;

create view time as
select
    start_time, hour(start_time)::int as hour, day(start_time)::int as day, week(start_time)::int as week,
    dayofweek(start_time)::int + 1 as weekday, year(start_time)::int as year, month(start_time)::int as month
from (select distinct make_timestamp(ts * 1000) as start_time from play);
"""

# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------


def lake(input_dir: str) -> duckdb.DuckDBPyConnection:
    """A database in memory with the lake's lines, and all the views over them."""
    db = duckdb.connect(config={"threads": 2})
    for kind in ("song", "log"):
        text = [line for path in files(Path(input_dir) / f"{kind}_data") for line in lines(path)]
        db.execute(
            f"create table {kind}_text as select unnest($1::varchar[]) as line, unnest($2::boolean[]) as is_object",
            [text, [is_object(line) for line in text]],
        )
    for script in (MACROS, SONGS, LOGS):
        db.execute(script)
    add_songplay_ids(db)
    db.execute(TABLES)
    return db


def add_songplay_ids(db: duckdb.DuckDBPyConnection) -> None:
    """Create the table songplay_key: the hash of each play's key."""
    keys = db.execute("select ts, user_id, session_id, item from play").fetchall()
    columns = [[key[n] for key in keys] for n in range(4)] + [[songplay_id(*key) for key in keys]]
    names = ("ts", "user_id", "session_id", "item", "songplay_id")
    values = ", ".join(f"unnest(${n}::bigint[]) as {name}" for n, name in enumerate(names, start=1))
    db.execute(f"create table songplay_key as select {values}", columns)


def in_order(rows: list) -> list:
    """The rows sorted, null before everything else."""
    return sorted(rows, key=lambda row: [(value is not None, value) for value in row])


def five_tables(input_dir: str, by_day: bool = False) -> "dict[str, list[tuple]]":
    """Each table's rows in order, columns as in COLUMNS; times are naive datetimes in UTC. by_day adds a play's day."""
    columns = {**COLUMNS, "songplays": COLUMNS["songplays"] + (", day" if by_day else "")}
    with lake(input_dir) as db:
        return {
            table: in_order(db.execute(f'select {names} from "{table}"').fetchall()) for table, names in columns.items()
        }


def rejected_lines(input_dir: str) -> "dict[tuple[str, str], int]":
    """How many lines are unusable, by kind ("song" or "log") and reason."""
    with lake(input_dir) as db:
        return {
            (kind, reason): count
            for kind, reason, count in db.execute("""
            select 'song' as kind, reason, count(*) from song_line where reason is not null group by reason union all
            select 'log' as kind, reason, count(*) from log_line where reason is not null group by reason
            order by kind, reason""").fetchall()
        }


def judged_lines(input_dir: str) -> "list[tuple[str, str, str | None]]":
    """Each line: its file, by the name below the input, its text, and why it is unusable, or None."""
    with lake(input_dir) as db:
        reasons = {
            kind: dict(db.execute(f"select line, reason from {kind}_line").fetchall()) for kind in ("song", "log")
        }
    return [
        (path.relative_to(input_dir).as_posix(), line, reasons[kind][line])
        for kind in ("song", "log")
        for path in files(Path(input_dir) / f"{kind}_data")
        for line in lines(path)
    ]


def fates(input_dir: str) -> "dict[str, Counter]":
    """What must become of the lines, by file. Of lines that are one play or one song the first by file is accepted."""
    found, seen = defaultdict(Counter), set()
    for file, line, reason in sorted(judged_lines(input_dir), key=lambda judged: judged[0]):
        key = None if reason else key_of(json.loads(line))
        fate = "quarantined" if reason else "no_play" if not key else "duplicates" if key in seen else "accepted"
        found[file][fate] += 1
        seen.add(key)
    return dict(found)


def key_of(row: dict) -> "tuple | None":
    """Lines that share it are one play, or one song; None for an event that is no play."""
    if "song_id" in row:
        return ("song", str(row["song_id"]))
    user = int(str(row["userId"]).split(".")[0] or 0)
    return (row["ts"], user, row["sessionId"], row["itemInSession"]) if row["page"] == "NextSong" else None


def usable_lines(input_dir: str) -> "dict[str, int]":
    """How many lines are usable, by kind ("song" or "log")."""
    with lake(input_dir) as db:
        return {
            kind: db.execute(f"select count(*) from {kind}_line where reason is null").fetchone()[0]
            for kind in ("song", "log")
        }
