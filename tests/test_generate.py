"""Generated lakes hold all that the job's rules are about; the sample in data/ never changes."""

import gzip
import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

import oracle
import pytest

import etl

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
EVENT_KEYS = ["artist", "auth", "firstName", "gender", "itemInSession", "lastName", "length", "level", "location",
              "method", "page", "registration", "sessionId", "song", "status", "ts", "userAgent", "userId"]  # fmt: skip
SONG_KEYS = ["num_songs", "artist_id", "artist_latitude", "artist_longitude", "artist_location", "artist_name",
             "song_id", "title", "duration", "year"]  # fmt: skip


def generate(out: Path, *options: str) -> Path:
    """Runs the generator as a user would; returns OUT."""
    subprocess.run([sys.executable, ROOT / "benchmarks" / "generate.py", out, *options], check=True)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """All files by their path below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(files: list[Path]) -> list[dict]:
    return [json.loads(line) for path in files for line in oracle.lines(path) if oracle.is_object(line)]


def groups(rows: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """The rows by the values of the keys."""
    found = defaultdict(list)
    for row in rows:
        found[tuple(row.get(key) for key in keys)].append(row)
    return found


def day(event: dict) -> str:
    return f"{datetime.fromtimestamp(event['ts'] / 1000, timezone.utc):%Y-%m-%d}"


@pytest.fixture(scope="module", params=["sample", "generated"])
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return DATA if request.param == "sample" else generate(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("dirty"), "--dirty")


@pytest.fixture
def songs(lake: Path) -> list[dict]:
    return rows(sorted(lake.glob("song_data/*/*/*/TR*.json")))


@pytest.fixture
def events(lake: Path) -> list[dict]:
    """All events in the order of the files."""
    return rows(sorted(lake.glob("log_data/**/*.json")))


@pytest.fixture
def plays(events: list[dict]) -> list[dict]:
    return [event for event in events if event["page"] == "NextSong"]


# The files


def test_the_rows_of_the_sample_never_change():
    lines = [line for path in oracle.files(DATA) for line in oracle.lines(path)]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "b0fe9f29ac5b3235"


@pytest.mark.parametrize("options", [[], ["--dirty"]], ids=["clean", "dirty"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, options):
    one, again, other = (
        generate(tmp_path / name, "--seed", seed, "--events", "300", "--songs", "30", *options)
        for name, seed in (("one", "7"), ("again", "7"), ("other", "8"))
    )
    assert contents(one) == contents(again)
    logs, others = ({path.read_bytes() for path in oracle.files(lake / "log_data")} for lake in (one, other))
    assert not logs & others


def test_the_number_of_lines_songs_and_days_is_as_asked_for(tmp_path):
    out = generate(tmp_path, "--events", "500", "--scale", "3", "--songs", "40", "--days", "3", "--start", "2020-02-28")
    logs = sorted(out.glob("log_data/**/*.json"))
    assert [str(path.relative_to(out)) for path in logs] == [
        "log_data/2020/02/2020-02-28-events.json", "log_data/2020/02/2020-02-29-events.json",
        "log_data/2020/03/2020-03-01-events.json"]  # fmt: skip
    assert sum(len(oracle.lines(path)) for path in logs) == 1500
    assert len(list(out.glob("song_data/?/?/?/TR*.json"))) == 40


def test_a_directory_that_is_not_empty_stays_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, ROOT / "benchmarks" / "generate.py", tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, list(contents(tmp_path))) == (2, ["mine.txt"])
    assert "is not empty: name a new directory" in done.stderr


def test_songs_lie_in_directories_by_the_letters_of_their_track(lake):
    tracks = list(lake.glob("song_data/*/*/*/*.json"))
    assert all(list(track.stem[2:5]) == list(track.parts[-4:-1]) for track in tracks)
    assert len({track.parent for track in tracks}) > 1


def test_events_are_filed_by_utc_day_in_the_order_of_time(lake, events):
    logs = sorted(lake.glob("log_data/**/*.json"))
    assert len(logs) == 14
    for path in logs:
        assert path.name == f"{path.parts[-3]}-{path.parts[-2]}-{path.stem[8:10]}-events.json"
        assert {day(event) for event in rows([path])} == {path.stem[:10]}
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)


# What is in them


def test_songs_have_the_keys_and_types_of_real_ones(songs):
    assert len(songs) == len(groups(songs, "song_id")) == 60
    assert all(list(song) == SONG_KEYS for song in songs)
    assert {(type(song["year"]), type(song["duration"])) for song in songs} == {(int, float)}
    assert {type(song["artist_latitude"]) for song in songs} == {float, type(None)}


def test_events_have_the_keys_and_types_of_real_ones(events):
    assert len(events) == 560
    assert all(list(event) == EVENT_KEYS for event in events)
    assert {type(event[key]) for event in events for key in ("ts", "sessionId", "itemInSession", "status")} == {int}
    assert {type(event["userId"]) for event in events} == {str}
    assert {type(event["registration"]) for event in events} == {float, type(None)}


def test_items_count_up_through_each_session(events):
    for session in groups(events, "sessionId").values():
        assert [event["itemInSession"] for event in session] == list(range(len(session)))


def test_all_pages_are_visited_and_most_are_plays(events, plays):
    assert {event["page"] for event in events} == {
        "NextSong", "Home", "Login", "Logout", "Upgrade", "Submit Upgrade", "Downgrade", "Submit Downgrade", "Settings",
        "Save Settings", "Help", "About", "Error"}  # fmt: skip
    assert len(plays) > len(events) / 2
    assert all(event["song"] is None and event["length"] is None for event in events if event["page"] != "NextSong")


def test_sessions_run_over_midnight_and_the_end_of_a_month(events):
    spans = [sorted({day(event) for event in session}) for session in groups(events, "sessionId").values()]
    assert ["2018-10-31", "2018-11-01"] in spans
    assert sum(len(days) == 2 for days in spans) > 5


def test_logged_out_events_have_a_blank_user_and_no_names(events):
    out = [event for event in events if event["auth"] == "Logged Out"]
    facts = {(event["userId"], event["firstName"], event["registration"], event["userAgent"]) for event in out}
    assert facts == {("", None, None, None)}
    assert all(event["userId"] for event in events if event["auth"] == "Logged In")
    sessions = groups(events, "sessionId").values()
    assert any({event["auth"] for event in session} == {"Logged Out", "Logged In"} for session in sessions)


def test_levels_change_on_plays_and_on_other_pages(events):
    users = groups([event for event in events if event["userId"]], "userId").values()
    changes = [after for user in users for before, after in pairwise(user) if before["level"] != after["level"]]
    assert {event["page"] == "NextSong" for event in changes} == {True, False}
    assert {event["level"] for event in changes} == {"free", "paid"}


def test_some_events_of_a_user_share_their_millisecond(events):
    assert any(len(same) > 1 for (user, _), same in groups(events, "userId", "ts").items() if user)


def test_few_plays_match_a_song_and_one_matches_two(songs, plays):
    known = Counter((song["title"], song["artist_name"], song["duration"]) for song in songs)
    matches = [known[play["song"], play["artist"], play["length"]] for play in plays]
    assert 0 < sum(number > 0 for number in matches) < len(plays) / 3
    assert max(matches) > 1


def test_some_plays_come_close_to_a_song_and_are_not_of_it(songs, plays):
    for keys in (("title", "duration"), ("title", "artist_name")):
        near = groups(songs, *keys)
        names = {"title": "song", "artist_name": "artist", "duration": "length"}
        close = [play for play in plays if tuple(play[names[key]] for key in keys) in near]
        whole = groups(songs, "title", "artist_name", "duration")
        assert any((play["song"], play["artist"], play["length"]) not in whole for play in close)


def test_an_artists_name_and_place_change_with_the_years(songs):
    for key in ("artist_name", "artist_location"):
        assert any(len({song[key] for song in same}) > 2 for same in groups(songs, "artist_id").values())


def test_unknown_years_and_places_occur(songs, events):
    assert any(song["year"] == 0 for song in songs)
    assert {"", None} <= {song["artist_location"] for song in songs}
    assert {"", None} <= {event["location"] for event in events if event["userId"]}


@pytest.mark.parametrize("character", ['"', "'", "\\", "/", ",", "ü", "夜", "🎷"])
def test_awkward_characters_occur(songs, events, character):
    assert any(character in str(value) for song in songs for value in song.values())
    assert any(character in str(value) for event in events for value in event.values())


# Dirt


@pytest.mark.parametrize(
    "kind, ddl, rules", [("song", etl.SONG_FIELDS, etl.SONG_RULES), ("log", etl.LOG_FIELDS, etl.LOG_RULES)]
)
def test_dirt_breaks_every_rule_of_the_job(dirty, kind, ddl, rules):
    wrong_types = {f"wrong type: {name}" for name, type in etl.field_types(ddl).items() if type != "STRING"}
    reasons = {reason for one, reason in oracle.rejected_lines(dirty) if one == kind}
    assert reasons == {"broken JSON", *wrong_types, *rules}


def test_dirt_comes_in_every_kind_of_file(dirty):
    files = contents(dirty / "log_data")
    assert any(content.startswith(b"\xef\xbb\xbf") and b"}\r\n{" in content for content in files.values())
    assert any(b"}\r{" in content and b"\n" not in content for content in files.values())
    assert any(gzip.decompress(files[name]).endswith(b"}\n") for name in files if name.endswith(".json.gz"))
    assert any(b"\n\n" in content for content in files.values())
    copies = Counter(path.read_bytes() for path in oracle.files(dirty / "log_data"))
    assert max(copies.values()) == 2, "no file lies under two names"


def test_dirt_includes_files_that_no_reader_may_count(dirty):
    for folder in (dirty / "song_data", dirty / "log_data"):
        assert set(oracle.files(folder)) < {path for path in folder.rglob("*.json*") if path.is_file()}


def test_dirt_takes_no_clean_line_away(dirty, tmp_path):
    clean = {line for path in oracle.files(generate(tmp_path) / "log_data") for line in oracle.lines(path)}
    assert clean <= {line for path in oracle.files(dirty / "log_data") for line in oracle.lines(path)}


def test_dirt_holds_songs_and_plays_in_competing_copies(dirty):
    songs, events = (rows(oracle.files(dirty / name)) for name in ("song_data", "log_data"))
    assert any(len(set(map(json.dumps, same))) > 1 for same in groups(songs, "song_id").values())
    copies = groups(events, "ts", "userId", "sessionId", "itemInSession").values()
    for column in ("level", "location", "userAgent", "artist", "song", "length"):
        assert any(len({json.dumps(row.get(column)) for row in same}) > 1 for same in copies), column
