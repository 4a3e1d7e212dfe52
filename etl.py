#!/usr/bin/env python3
"""Sparkify's data lake job: song and log JSON in, a star schema of five Parquet tables out.

    table      grain: one row per                        partitions
    songplays  play: a log line with page = NextSong     year, month
    users      user                                      -
    songs      song                                      year
    artists    artist                                    -
    time       distinct start time of a play             year, month

    spark-submit --master yarn etl.py        on a cluster; master, memory and packages are the submitter's
    python etl.py                            on a laptop; a local session, no AWS needed

Input: newline-delimited JSON, *.json or *.json.gz at any depth under INPUT/song_data and INPUT/log_data.
Output: OUTPUT/<table>/ in Hive layout. dl.cfg sets INPUT, OUTPUT and the AWS keys. All times are UTC.

Terms:
    event       a log line; a play is an event with page = NextSong
    version     one combination of a user's facts: name, gender, level
    source      the place that INPUT names
    lake        the place that OUTPUT names
    partition   a month or a day of plays; songplays and time are rebuilt one partition at a time
    state       OUTPUT/_state: the usable lines of earlier runs as Parquet, so that no JSON is parsed twice
    ledger      OUTPUT/_state/ledger/<number>.json: the files of the lake, and the input that they were built from
    staging     OUTPUT/_staging: where a run writes until it commits
    commit      create the next ledger
    settle      make the lake match the newest ledger
    quarantine  OUTPUT/_quarantine: the lines that cannot be used, each with its file and the reason

A run reads the files that are new since the newest ledger, rebuilds the partitions that they touch, and leaves the
same tables as one run over all input. A run that fails before its commit leaves the published tables untouched.
OUTPUT/_runs has a report of each run that found its input.
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import configparser
import json
import logging
import os
import platform
import re
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import NamedTuple
from urllib.parse import unquote

try:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql import functions as F
    from pyspark.version import __version__ as spark_version
except ImportError as error:
    sys.exit(f"{error}: run `make setup` once and `source .venv/bin/activate`, then try again")

log = logging.getLogger("etl")


# ------------------------------------------------------------------------------------------------------------------
# What the data is
# ------------------------------------------------------------------------------------------------------------------

# Only the fields that the tables need. Other fields of a song line (num_songs) and of a log line (auth, method,
# registration - a float, status) are not read, so they cannot be wrong.
SONG_FIELDS = """
    song_id STRING, title STRING, duration DOUBLE,
    year INT,                                          -- 0 when unknown
    artist_id STRING, artist_name STRING,
    artist_location STRING,                            -- often ""
    artist_latitude DOUBLE, artist_longitude DOUBLE    -- often null
"""
LOG_FIELDS = """
    ts BIGINT,                                         -- epoch milliseconds, UTC
    page STRING,                                       -- NextSong is a play
    userId STRING,                                     -- a number as text; "" when logged out
    sessionId BIGINT, itemInSession BIGINT,
    firstName STRING, lastName STRING, gender STRING,
    level STRING,                                      -- free or paid; a user's changes over time, on any page
    location STRING, userAgent STRING,
    artist STRING, song STRING, length DOUBLE          -- names and seconds, not ids; null unless a play
"""


def field_types(ddl: str) -> dict[str, str]:
    """The types of a DDL string's fields, by name."""
    return dict(column.split() for column in re.sub("--.*", "", ddl).split(","))


def wrong_case(fields: str, of_plays: str = "") -> str:
    """SQL that is true if a field is missing, and the line has a field's name in another case: Level for level."""
    missing = [f"{name} IS NULL" for name in fields.split()]
    missing += [f"page = 'NextSong' AND {name} IS NULL" for name in of_plays.split()]
    names = "|".join(f"{fields} {of_plays}".split())
    # Few lines lack a field. The other test looks at the line's own keys, not at those of nested objects.
    keys = r"concat_ws('\n', json_object_keys(value))"
    return rf"({' OR '.join(missing)}) AND {keys} RLIKE '(?m)^(?!({names})$)(?i)({names})$'"


# Why a line cannot be used: the first rule that it breaks. `checked` adds the rules for broken JSON and wrong types.
SONG_RULES = {
    "infinite number": "CAST('Infinity' AS DOUBLE) IN (abs(duration), abs(artist_latitude), abs(artist_longitude))",
    "no song id": r"song_id IS NULL OR NOT song_id RLIKE '\\S'",
    "impossible year": "year NOT BETWEEN 0 AND 2099",  # Athena's projection would silently skip the row
    "key in the wrong case": wrong_case(
        "title duration year artist_id artist_name artist_location artist_latitude artist_longitude"
    ),
}
LOG_RULES = {
    "infinite number": "abs(length) = CAST('Infinity' AS DOUBLE)",  # what Spark makes of 1e400
    "no page": "page IS NULL",
    "no time": "ts IS NULL",
    # 2000-01-01 to 2099-12-31. Seconds or microseconds instead of milliseconds fall outside.
    "impossible time": "ts NOT BETWEEN 946684800000 AND 4102444799999",
    "no user id": "userId IS NULL",
    "user id is not a number": r"NOT userId RLIKE '^ *([0-9]{1,18}([.]0+)?)? *\\z' AND NOT ("
    r"userId RLIKE '^[0-9][.][0-9]+E[0-9]+\\z' AND try_cast(userId AS DOUBLE) % 1 = 0"
    " AND try_cast(userId AS DOUBLE) < 9e15D)",
    "play without a user": "page = 'NextSong' AND trim(userId) = ''",
    "play without a session": "page = 'NextSong' AND sessionId IS NULL",
    "play without an item": "page = 'NextSong' AND itemInSession IS NULL",
    "key in the wrong case": wrong_case(
        "level firstName lastName gender itemInSession", of_plays="artist song length location userAgent"
    ),
}


class Table(NamedTuple):
    """One table. It drives the writing, the audit, the catalogue, the README and the tests."""

    name: str
    columns: str  # as DDL, in order
    key: str = ""
    partitions: tuple[str, ...] = ()
    order: tuple[str, ...] = ()  # of the rows in a file
    references: dict[str, str] = {}  # column -> the table whose key it holds; null is allowed

    def names(self) -> list[str]:
        return list(field_types(self.columns))

    def partitioned_by(self, *partitions: str) -> Table:
        missing = "".join(f", {name} INT" for name in partitions if name not in self.names())
        return self._replace(columns=self.columns + missing, partitions=partitions)


TABLES = {table.name: table for table in (
    Table(
        "songplays",
        "songplay_id BIGINT, start_time TIMESTAMP, user_id BIGINT, level STRING, song_id STRING, artist_id STRING,"
        " session_id BIGINT, location STRING, user_agent STRING,"
        " song_title STRING, artist_name STRING, song_length DOUBLE,"  # as the app logged them
        " year INT, month INT",
        "songplay_id", ("year", "month"), ("start_time", "songplay_id"),
        {"user_id": "users", "song_id": "songs", "artist_id": "artists", "start_time": "time"},
    ),
    Table(
        "users",
        "user_id BIGINT, first_name STRING, last_name STRING, gender STRING, level STRING",
        "user_id", (), ("user_id",),
    ),
    Table(
        "songs",
        "song_id STRING, title STRING, artist_id STRING, duration DOUBLE, year INT",
        # By year alone: year and artist would make a file of a few hundred bytes of nearly every song.
        "song_id", ("year",), ("artist_id", "song_id"), {"artist_id": "artists"},
    ),
    Table(
        "artists",
        "artist_id STRING, name STRING, location STRING, latitude DOUBLE, longitude DOUBLE",
        "artist_id", (), ("artist_id",),
    ),
    Table(
        "time",
        "start_time TIMESTAMP, hour INT, day INT, week INT, weekday INT, year INT, month INT",
        "start_time", ("year", "month"), ("start_time",),
    ),
)}  # fmt: skip

# The state. Each row is one delivered line with the name of its file, copies included, so that the lines of one file
# can be taken out later.
EVENTS = Table(
    "_state/events",  # one row per log line that is a play or names a user; the staging has the other lines, too
    "file STRING, value STRING, problem STRING, is_play BOOLEAN, ts BIGINT, user_id BIGINT, session_id BIGINT,"
    " item BIGINT, first_name STRING, last_name STRING, gender STRING, level STRING, location STRING,"
    " user_agent STRING, artist STRING, title STRING, length DOUBLE, year INT, month INT",
    partitions=("year", "month"),
)
SONG_LINES = Table("_state/songs", f"file STRING, value STRING, problem STRING, {SONG_FIELDS}")  # one row per line
VERSIONS = Table(
    "_state/users",  # one row per version of a user's facts; nth is the position of the latest event that shows it
    "user_id BIGINT, first_name STRING, last_name STRING, gender STRING, level STRING, nth BIGINT",
)
# The number of the rules and transforms in this file. Raise it when a change to them changes the rows: the next run
# then rebuilds all tables.
MEANING = 4


# ------------------------------------------------------------------------------------------------------------------
# Configuration
# ------------------------------------------------------------------------------------------------------------------


class JobError(Exception):
    """Stops the job, with one line that names the file, key or value, and says what to do."""

    exit_code = 1


class UsageError(JobError):
    """The command line, dl.cfg or a place that they name is wrong. The run published nothing."""

    exit_code = 2


@dataclass(frozen=True)
class Settings:
    """The settings in dl.cfg. The repr does not show the keys."""

    input: str
    output: str
    songs_partition_by: tuple[str, ...] = ("year",)
    plays_partition_by: tuple[str, ...] = ("year", "month")
    max_bad_ratio: float = 0.05
    max_shrink: float = 0.1
    endpoint: str = ""
    region: str = ""
    aws_access_key_id: str = field(default="", repr=False)
    aws_secret_access_key: str = field(default="", repr=False)
    aws_session_token: str = field(default="", repr=False)


SECTIONS = {
    "AWS CREDS": [name for name in Settings.__annotations__ if name.startswith("aws_")],
    "LAKE": [name for name in Settings.__annotations__ if not name.startswith("aws_")],
}
# Java parses the bucket as a host name: no underscore, and the part after the last dot begins with a letter.
# Spark and shells give * ? { } [ ] \ # $ ; ~ a special meaning.
BUCKET = r"(?=[^/]{3,63}(/|$))(?![^/]*(\.\.|-\.|\.-))(?![^/]*\.[^a-z/][^./]*(/|$))[a-z0-9][a-z0-9.-]*[a-z0-9]"
PLACE = (
    rf"(?!.*[*?{{}}\[\]\\#$;\x00-\x1f])(s3[an]?://{BUCKET}(/+(?!\.\.?(/|$))[^/]+)?(/(?!\.\.?(/|$))[^/]+)*/?|(?![~'\"]|\w+:).+)",
    "give a directory or s3://BUCKET/PREFIX, with a bucket of 3 to 63 lower-case letters, digits and hyphens (for an"
    " access point use its alias), no empty part, and none of * ? { } [ ] \\ # $ ; ~",
)
SHARE = (r"0(\.\d*)?|0?\.\d+|1(\.0*)?", "give a number from 0 to 1")
FORMS = {  # how the text of a value must look, and what to do if it does not
    **dict.fromkeys(("input", "output"), PLACE),
    "songs_partition_by": ("year(, artist_id)?", "give: year, or: year, artist_id"),
    "plays_partition_by": ("year, month(, day)?", "give: year, month, or: year, month, day"),
    **dict.fromkeys(("max_bad_ratio", "max_shrink"), SHARE),
    "endpoint": (r"(https?://[^\s/]+/?)?", "give http://HOST:PORT or https://HOST, or leave it out"),
    "region": (r"[a-z0-9-]*", "give a name like us-west-2, or leave it out"),
    **dict.fromkeys(SECTIONS["AWS CREDS"], (r"[^\s\"']*", "it has a space or a quote; write the bare value")),
}


def read_settings(path: str, **overrides: str | None) -> Settings:
    """The settings in the file at `path`; overrides that are not None win. UsageError names what is wrong."""
    parser, texts = parsed_config(path), {}
    for section, known in SECTIONS.items():
        if not parser.has_section(section):
            raise UsageError(f"{path}: section [{section}] is missing; copy it from the project's dl.cfg")
        for name, text in parser.items(section):
            if name not in known:
                raise UsageError(
                    f"{path}: [{section}] {name.upper()} is not a setting; delete the line; known are"
                    f" {', '.join(known).upper()}"
                )
            texts[name] = text
    texts.update({name: text for name, text in overrides.items() if text is not None})
    for name in ("input", "output"):
        texts[name] = os.path.expanduser(texts.get(name, ""))
    for name, text in texts.items():
        form, remedy = FORMS[name]
        if not re.fullmatch(form, text):
            shown = "" if name in SECTIONS["AWS CREDS"] else f" = {text!r}"
            raise UsageError(f"{path}: {name.upper()}{shown}: {remedy}")
        default = getattr(Settings, name, "")  # has the setting's type
        texts[name] = tuple(text.split(", ")) if isinstance(default, tuple) else type(default)(text)
    settings = Settings(**texts)
    check_settings(path, settings)
    return settings


def parsed_config(path: str) -> configparser.ConfigParser:
    """The file's sections. Errors name the line, never its text: it may hold a key."""
    if "://" in path:
        raise UsageError(f"{path}: the configuration must be a local file; copy it here first with `aws s3 cp`")
    parser = configparser.ConfigParser(interpolation=None)  # a % in a secret is a %
    try:
        with open(path, encoding="utf-8-sig") as file:
            parser.read_file(file)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name the configuration with --config FILE") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except configparser.Error as error:
        line = getattr(error, "lineno", None) or (getattr(error, "errors", None) or [["?"]])[0][0]
        raise UsageError(f"{path}: line {line} is not 'KEY = value' under a [SECTION], or repeats a key") from None
    return parser


def check_settings(path: str, settings: Settings) -> None:
    """UsageError if a run would read what it writes, or keys are incomplete; a warning if others can read the keys."""
    source, lake = (
        s3_path(place) if on_s3(place) else os.path.realpath(place) for place in (settings.input, settings.output)
    )
    if f"{lake}/".startswith((f"{source}/song_data/", f"{source}/log_data/")):
        raise UsageError(f"{path}: OUTPUT is inside the input; choose a place outside song_data and log_data")
    if f"{source}/".startswith((f"{lake}/_", *(f"{lake}/{name}/" for name in TABLES))):
        raise UsageError(f"{path}: INPUT is inside a table; choose a place outside OUTPUT's tables")
    access, secret, token = (getattr(settings, name) for name in SECTIONS["AWS CREDS"])
    if bool(access) != bool(secret) or token and not access:
        raise UsageError(f"{path}: [AWS CREDS] is incomplete; set both keys, or leave all blank")
    if access and os.name == "posix" and os.stat(path).st_mode & 0o077:
        log.warning("%s contains keys and other users of this machine can read it; run: chmod 600 %s", path, path)


def on_s3(address: str) -> bool:
    return address.startswith(("s3://", "s3a://", "s3n://"))


def s3_path(address: str) -> str:
    """s3://bucket//a/prefix/ -> bucket/a/prefix"""
    return re.sub("^s3[an]?://([^/]+)/*", r"\1/", address).rstrip("/")


def tables_for(settings: Settings) -> dict[str, Table]:
    """The five tables, with the partitions that the settings choose."""
    by = {"songs": settings.songs_partition_by, **dict.fromkeys(("songplays", "time"), settings.plays_partition_by)}
    return {name: table.partitioned_by(*by.get(name, ())) for name, table in TABLES.items()}


# ------------------------------------------------------------------------------------------------------------------
# What each table means: DataFrame in, DataFrame out
# ------------------------------------------------------------------------------------------------------------------

UNITS = {"year": "year({0})", "month": "month({0})", "day": "dayofmonth({0})"}  # of the partitions of plays
PLAY_KEY = ["ts", "user_id", "session_id", "item"]  # what makes two plays different
ITEMS = 2**21  # places in a session; they leave 42 bits for a time in ms: until 2109


def star_schema(songs: DataFrame, plays: DataFrame, versions: DataFrame) -> dict[str, DataFrame]:
    """The five tables, by name, of clean songs and plays and of the versions of the users' facts."""
    return {
        "songplays": songplays_table(plays, songs),
        "users": users_table(versions),
        "songs": songs.select(*TABLES["songs"].names()),
        "artists": artists_table(songs),
        "time": time_table(plays),
    }


def checked(lines: DataFrame, ddl: str, rules: dict[str, str]) -> DataFrame:
    """One row per line: file, value (its text), problem (the first rule that it breaks, or null), and its fields.

    The line is parsed as the only element of an array. Spark's parser stops after the first object, and `cat` of files
    without a last newline puts two objects on one line: without the array the second would be silently lost.
    """
    types = field_types(ddl)
    # A generator, because Spark pushes a filter below a projection and would then parse every line twice.
    parsed = lines.select("file", "value", F.inline(F.array(parsed_line(ddl))))
    # pandas writes 7 as 7.0, which Spark rejects for a BIGINT. Only such lines are parsed again.
    again = F.when(F.expr("closed AND corrupt IS NOT NULL"), parsed_line(re.sub(r"\b(BIGINT|INT)\b", "DOUBLE", ddl)))
    parsed = parsed.select("*", F.expr("get(line, 0)").alias("a"), again.alias("again"))
    parsed = parsed.select("*", F.expr("get(again.line, 0)").alias("b"))
    whole = "coalesce(a.{0}, if(b.{0} % 1 = 0 AND abs(b.{0}) < 9e15, try_cast(b.{0} AS {1}), NULL)) AS {0}"
    numbers = ("BIGINT", "INT")
    parsed = parsed.selectExpr(
        "*", *(whole.format(name, type) if type in numbers else f"a.{name}" for name, type in types.items())
    )
    wrong_type = "corrupt IS NOT NULL AND {0} IS NULL AND get_json_object(value, '$.{0}') IS NOT NULL"
    reasons = {
        "broken JSON": "closed IS NULL OR size(line) != 1 OR a IS NULL"
        " OR again.corrupt IS NOT NULL AND json_object_keys(value) IS NULL",  # [,] in the place of text
        **{f"wrong type: {name}": wrong_type.format(name) for name, type in types.items() if type != "STRING"},
        "a key twice": "again.corrupt IS NOT NULL",  # one value is right, and the other has a wrong type
        **rules,
    }
    broken = [F.when(F.expr(rule), F.lit(reason)) for reason, rule in reasons.items()]
    return parsed.select("file", "value", F.coalesce(*broken).alias("problem"), *types)


def parsed_line(ddl: str) -> Column:
    """line ARRAY<STRUCT<ddl>>, closed: false of broken JSON, corrupt: not null if a value has another type."""
    wrapped = F.concat(F.lit('{"line":['), "value", F.lit('],"closed":true}'))
    options = {"columnNameOfCorruptRecord": "corrupt", "allowSingleQuotes": "false", "allowNonNumericNumbers": "false"}
    return F.from_json(wrapped, f"line ARRAY<STRUCT<{ddl}>>, closed BOOLEAN, corrupt STRING", options)


def log_events(lines: DataFrame, partitions: Iterable[str] = EVENTS.partitions) -> DataFrame:
    """One row per checked line of a log, in the columns of EVENTS.

    The partition is null for a line that the state does not need: it has a problem, or is not a play and has no user.
    """
    # "7" and 7.0 give 7, "" gives null. Spark turns the number 12345678.0 into the text 1.2345678E7.
    user_id = "try_cast(substring_index(userId, '.', 1) AS BIGINT)"
    user_id = f"if(contains(userId, 'E'), try_cast(try_cast(userId AS DOUBLE) AS BIGINT), {user_id})"
    rows = lines.selectExpr(
        "file", "value", "problem",
        "problem IS NULL AND page = 'NextSong' AS is_play", "ts", f"if(problem IS NULL, {user_id}, NULL) AS user_id",
        "sessionId AS session_id", "itemInSession AS item", "firstName AS first_name", "lastName AS last_name",
        "gender", "level", "location", "userAgent AS user_agent", "artist", "song AS title", "length",
    )  # fmt: skip
    at = "if(is_play OR user_id IS NOT NULL, timestamp_millis(ts), NULL)"
    return rows.selectExpr("*", *(f"{UNITS[unit].format(at)} AS {unit}" for unit in partitions))


def clean_songs(lines: DataFrame) -> DataFrame:
    """One row per song_id, of the usable lines. Of several, the greatest wins; year is compared first."""
    songs = lines.where("problem IS NULL").select(
        "song_id", F.expr("coalesce(year, 0) AS year"), "duration", "title", known("artist_id").alias("artist_id"),
        "artist_name", "artist_location", "artist_latitude", "artist_longitude",
    )  # fmt: skip
    return greatest(songs, ["song_id"])


def clean_plays(events: DataFrame) -> DataFrame:
    """One row per play, however often its line was delivered. Where copies differ, the greatest wins."""
    facts = ["level", "location", "user_agent", "artist", "title", "length"]
    key = [*PLAY_KEY, *(name for name in UNITS if name in events.columns)]
    return greatest(events.where("is_play").select(*key, *facts), key)


def user_versions(events: DataFrame, earlier: DataFrame | None = None) -> DataFrame:
    """One row per version of a user's facts, with the position of its latest event. `earlier`: versions to add."""
    # By time, then by place in the session. One number: Spark aggregates numbers by hash, and structs by sorting.
    nth = f"ts * {ITEMS} + least(greatest(coalesce(item, 0), 0), {ITEMS - 1}) AS nth"
    facts = [name for name in VERSIONS.names() if name != "nth"]
    versions = events.where("user_id IS NOT NULL").selectExpr(*facts, nth)
    versions = versions.unionByName(earlier) if earlier is not None else versions
    return versions.groupBy(*facts).agg(F.max("nth").alias("nth"))


def songplays_table(plays: DataFrame, songs: DataFrame) -> DataFrame:
    """One row per play: its song where title, artist and duration agree, and what the app logged of the song."""
    lookup = song_lookup(songs)
    matched = plays.withColumn("duration", F.round("length", 5)).join(lookup, on=SONG_KEY, how="left")
    return matched.select(
        songplay_id().alias("songplay_id"), F.timestamp_millis("ts").alias("start_time"), "user_id", "level",
        "song_id", "artist_id", "session_id", "location", "user_agent", F.col("title").alias("song_title"),
        F.col("artist").alias("artist_name"), F.col("length").alias("song_length"),
        *(name for name in UNITS if name in plays.columns),
    )  # fmt: skip


def songplay_id() -> Column:
    """The XXH64 of a play's key: the same on every run and machine. Two plays may share one by chance."""
    return F.xxhash64(*PLAY_KEY)


# A match by title alone is wrong three times in four. A duration is a float: 218.93179 may be 218.931790000001.
SONG_KEY = ["title", "artist", "duration"]


def song_lookup(songs: DataFrame) -> DataFrame:
    """One row per title, artist name and duration to 5 decimals: the smallest song_id, and its artist_id."""
    keyed = songs.selectExpr("title", "artist_name AS artist", "round(duration, 5) AS duration", "song_id", "artist_id")
    smallest = keyed.groupBy(*SONG_KEY).agg(F.min(F.struct("song_id", "artist_id")).alias("song"))
    return smallest.select(*SONG_KEY, "song.*")


def users_table(versions: DataFrame) -> DataFrame:
    """One row per user: every event counts, not only plays; each fact is the latest known."""
    facts = [latest(fact, "nth") for fact in ("first_name", "last_name", "gender", "level")]
    return versions.groupBy("user_id").agg(*facts)


def artists_table(songs: DataFrame) -> DataFrame:
    """One row per artist: the latest known name, and the place of the latest song that has one, by year, then song_id.

    A place is one fact: its location, latitude and longitude come from one song.
    """
    facts = [F.col(f"artist_{fact}").alias(fact) for fact in ("latitude", "longitude")]
    place = F.struct("year", "song_id", known("artist_location").alias("location"), *facts)
    has_place = r"artist_location RLIKE '\\S' OR artist_latitude IS NOT NULL OR artist_longitude IS NOT NULL"
    artists = songs.where("artist_id IS NOT NULL").groupBy("artist_id")
    name = latest("artist_name", "year", "song_id").alias("name")
    found = artists.agg(name, F.max(F.when(F.expr(has_place), place)).alias("place"))
    return found.select("artist_id", "name", "place.location", "place.latitude", "place.longitude")


def time_table(plays: DataFrame) -> DataFrame:
    """One row per distinct start time of a play, in UTC. week is ISO's, weekday 1 is Sunday."""
    return plays.select(F.timestamp_millis("ts").alias("start_time")).distinct().selectExpr(
        "start_time", "hour(start_time) AS hour", "dayofmonth(start_time) AS day", "weekofyear(start_time) AS week",
        "dayofweek(start_time) AS weekday", "year(start_time) AS year", "month(start_time) AS month",
    )  # fmt: skip


def greatest(rows: DataFrame, key: list[str]) -> DataFrame:
    """One row per key: where rows compete, the greatest by all other columns in their order, nulls lowest."""
    others = [column for column in rows.columns if column not in key]
    return rows.groupBy(*key).agg(F.max(F.struct(*others)).alias("row")).select(*key, "row.*")


def latest(column: str, *order: str) -> Column:
    """Aggregate: the known value of `column` that is last by `order`, ties broken by the value itself."""
    value = known(column).alias("value")
    return F.max(F.when(value.isNotNull(), F.struct(*order, value)))["value"].alias(column)


def known(column: str) -> Column:
    """The column, with null for text that is blank."""
    return F.when(F.col(column).rlike(r"\S"), F.col(column))


# ------------------------------------------------------------------------------------------------------------------
# Spark and S3
# ------------------------------------------------------------------------------------------------------------------

TASK_BYTES, TASK_FILES = 128 * 2**20, 500  # a task's share of bytes, and of tiny files: each is a request to S3
SESSION = {
    "spark.sql.session.timeZone": "UTC",  # the machine's zone must not move an hour
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",  # the default, INT96, is out of date
    "spark.sql.parquet.compression.codec": "zstd",  # a fifth smaller than snappy, in the same time
    # Whatever the submitter sets: no file is skipped, and a wrong type leaves the other fields of its line readable.
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.json.enablePartialResults": "true",
    "mapreduce.input.linerecordreader.line.maxlength": str(2**31 - 1),  # Hadoop silently drops longer lines
    "parquet.page.verify-checksum.enabled": "true",  # else flipped bits are read as other values
    "spark.sql.files.maxPartitionBytes": str(TASK_BYTES),
    "spark.sql.files.openCostInBytes": str(TASK_BYTES // TASK_FILES),
    "spark.sql.files.maxRecordsPerFile": "10000000",  # S3 copies an object of up to 5 GB
    # Files of a good size matter more than tasks for every core: a file is written once and read for years.
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
}
PARALLEL_REQUESTS = 32
# A store that fails one request in ten does no harm. One that stops answering ends the run after some minutes.
PATIENCE = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 6}}
S3A_PATIENCE = {  # in ms; S3A raises shorter times to 15 s
    **dict.fromkeys(("connection.establish.timeout", "connection.timeout"), "15000"),
    **dict.fromkeys(("attempts.maximum", "retry.limit"), "1"),
}
SMALL_INPUT = 128 * 2**20  # below it, a local run ends before Java's second compiler saves any time


def spark_session(settings: Settings, size: int = 0) -> SparkSession:
    """The submitter's session as it is, or a local one of our own. `size`: bytes that the run works on."""
    for name in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "SPARK_API_MODE"):
        if os.environ.get(name, "classic") not in ("", "classic"):
            raise UsageError(f"the job needs a Spark session of its own, not Spark Connect; unset {name}")
    builder = SparkSession.builder.appName("sparkify-etl")
    if "PYSPARK_GATEWAY_PORT" not in os.environ and SparkSession.getActiveSession() is None:  # not spark-submit's
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # avoids two warnings about the machine's name
        os.environ["LC_ALL"] = "C.UTF-8"  # under another locale Java cannot read every file name
        if uses_s3(settings) and spark_version != S3A_SPARK:
            raise UsageError(f"S3 needs Spark {S3A_SPARK}, not {spark_version}, or spark-submit --packages")
        builder.config(map={**local_session(size < SMALL_INPUT), **(S3A_SESSION if uses_s3(settings) else {})})
    spark = builder.getOrCreate()
    tasks = max(spark.sparkContext.defaultParallelism, 2 * size // TASK_BYTES)
    counts = dict.fromkeys(("spark.sql.shuffle.partitions", "spark.sql.files.minPartitionNum"), tasks)
    for key, value in {**SESSION, **counts}.items():
        spark.conf.set(key, value)
    connect_s3(spark, settings)
    return spark


def local_session(small: bool) -> dict[str, str]:
    """Half of the machine's memory, at most 8 GB. Listens on 127.0.0.1 only."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "spark.master": "local[*, 4]",  # a task may fail three times, as on a cluster
        "spark.driver.memory": f"{max(1, min(8, memory // 2**31))}g",
        "spark.driver.host": "127.0.0.1",
        # Pauses do not matter to a batch job, and it has few cores.
        "spark.driver.defaultJavaOptions": "-XX:+UseParallelGC" + " -XX:TieredStopAtLevel=1" * small,
        "spark.ui.enabled": "false",
        "spark.log.level": "OFF",  # `main` logs an error in one line; Spark would add two stack traces a failed task
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
    }


# S3A for a local session: 9 MB from Maven Central instead of the AWS bundle's 500. Its committer uploads files that all
# appear when a write commits, instead of copying them. A cluster's submitter brings its own; EMR has them.
S3A_SPARK = "4.0.2"
S3A_SESSION = {
    "spark.jars.packages": f"org.apache.hadoop:hadoop-aws:3.4.1,org.apache.spark:spark-hadoop-cloud_2.13:{S3A_SPARK},"
    "software.amazon.awssdk:s3:2.25.53,software.amazon.awssdk:s3-transfer-manager:2.25.53",
    "spark.jars.excludes": "software.amazon.awssdk:bundle,org.apache.hadoop:hadoop-client-runtime,io.netty:*,"
    "org.apache.hadoop:hadoop-azure,org.apache.hadoop:hadoop-cloud-storage,org.eclipse.jetty:*,org.slf4j:*,"
    "com.google.*:*,com.squareup.*:*,com.fasterxml.*:*,commons-*:*",
    "spark.hadoop.fs.s3a.committer.name": "magic",
    "spark.hadoop.fs.s3a.committer.magic.track.commits.in.memory.enabled": "true",  # fewer requests, as the next
    "spark.hadoop.fs.s3a.performance.flags": "create,mkdir",
    "spark.sql.sources.commitProtocolClass": "org.apache.spark.internal.io.cloud.PathOutputCommitProtocol",
    "spark.sql.parquet.output.committer.class": "org.apache.spark.internal.io.cloud.BindingParquetOutputCommitter",
}


def uses_s3(settings: Settings) -> bool:
    return on_s3(settings.input) or on_s3(settings.output)


def connect_s3(spark: SparkSession, settings: Settings) -> None:
    """Gives S3A the keys, the endpoint and the time-outs. Does nothing where EMR's own connector is used.

    All at run time: a key given to the builder shows in `ps`, in the Spark UI and in YARN's copy of the configuration.
    """
    if not uses_s3(settings) or amazons_own(spark, settings):
        return
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = aws_session(settings).get_credentials()
        keys = found and found.get_frozen_credentials()
    except (BotoCoreError, ClientError) as error:
        raise StoreError("AWS keys", error) from None
    values = dict(S3A_PATIENCE)
    if found and found.method not in ("env", "iam-role", "container-role"):  # S3A finds those, and not the others
        provider = "TemporaryAWSCredentialsProvider" if keys.token else "SimpleAWSCredentialsProvider"
        values["aws.credentials.provider"] = f"org.apache.hadoop.fs.s3a.{provider}"
        values.update(zip(("access.key", "secret.key", "session.token"), (part or "" for part in keys)))
    endpoint = s3_client(settings).meta.endpoint_url  # dl.cfg's, the environment's, the profile's or Amazon's
    amazons = re.match(r"https://s3[.-].*amazonaws\.com(\.cn)?$", endpoint)
    if not amazons:
        values.update({"endpoint": endpoint, "path.style.access": "true"})
    if settings.region or not amazons:
        values["endpoint.region"] = settings.region or "us-east-1"
    for key, value in values.items():
        spark._jsc.hadoopConfiguration().set(f"fs.s3a.{key}", value)


def amazons_own(spark: SparkSession, settings: Settings) -> bool:
    """Whether to use EMR's own connector and role: on EMR, unless dl.cfg has other keys or another store."""
    return "amzn" in spark.version and not (settings.endpoint or settings.aws_access_key_id)


def aws_session(settings: Settings):
    """boto3's session: dl.cfg's keys, or the AWS default chain (environment, profile, SSO, instance)."""
    try:
        import boto3  # not needed for a lake on a disk
    except ImportError:
        raise UsageError(f"S3 needs boto3 here: {sys.executable} -m pip install boto3") from None
    keys = {name: getattr(settings, name) or None for name in SECTIONS["AWS CREDS"]}
    return boto3.Session(**keys, region_name=settings.region or None)


def s3_client(settings: Settings, **config: object):
    """boto3's S3 client for the lake; keywords go to botocore's Config."""
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    style = {"s3": {"addressing_style": "path"}} if settings.endpoint else {}
    try:
        config = Config(**{**style, **PATIENCE, "max_pool_connections": PARALLEL_REQUESTS, **config})
        return aws_session(settings).client("s3", endpoint_url=settings.endpoint or None, config=config)
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"S3: {error}; correct the profile, the keys or [LAKE] ENDPOINT") from None


def address(spark: SparkSession, settings: Settings, place: str) -> str:
    """The place as Hadoop writes it: s3:// by Amazon's own connector, else s3a://; file:// for a directory."""
    if on_s3(place):
        return ("s3://" if amazons_own(spark, settings) else "s3a://") + s3_path(place)
    if not spark.sparkContext.master.startswith("local"):
        raise UsageError(f"{place}: the machines of a cluster do not share a directory; give an s3:// address")
    return f"file://{os.path.abspath(place)}"


def read_lines(spark: SparkSession, source: str, kind: str, names: dict[str, File]) -> DataFrame:
    """One row per line that is not blank: file (its name below the source), value. JobError if Spark misses a file.

    Spark lists the directory again, in Java. Java silently skips names that it cannot represent or that it confuses. So
    every listed file that is not empty must be in Spark's list. A file that is not in `names` is not read.
    """
    reader = spark.read.option("recursiveFileLookup", True).option("pathGlobFilter", "*.{json,json.gz}")
    lines = reader.text(f"{source}/{kind}")
    addresses = {unquote(address)[len(source) + 1 :]: address for address in lines.inputFiles()}
    for name, file in sorted(names.items()):
        if file.size and name not in addresses:
            why = "it is gone, a link to nowhere, or has a name for which Java needs LC_ALL=C.UTF-8 (or another name)"
            raise JobError(f"{source}/{name}: Spark does not find this file; {why}; nothing was published")
    wanted = [re.sub("^file:/+", "file:/", addresses[name]) for name in names if name in addresses]
    if len(wanted) < len(addresses):  # Spark applies this filter to its list of files
        lines = lines.where(F.col("_metadata.file_path").isin(wanted))
    path = "_metadata.file_path"
    path = f"if(contains({path}, '%'), url_decode(replace({path}, '+', '%2B')), {path})"  # + would be a space
    file = f"substring({path}, {len(source.replace('file://', 'file:')) + 2})"
    text = r"if(startswith(value, '\uFEFF'), regexp_replace(value, '^\uFEFF+', ''), value)"  # of joined files
    rows = lines.selectExpr(f"{file} AS file", f"{text} AS value")
    return rows.where(r"contains(value, '{') OR value RLIKE '\\S'")  # the first is quick, and nearly always true


def write_rows(spark: SparkSession, table: Table, rows: DataFrame, directory: str) -> None:
    """Adds the rows to the directory, in Hive layout. JobError if the columns are not those declared."""
    rows = rows.select(*table.names())
    declared = [(name, type.lower()) for name, type in field_types(table.columns).items()]
    wrong = ", ".join(" ".join(column) for column in rows.dtypes if column not in declared)
    if wrong:
        raise JobError(f"{table.name}: the columns are not those declared in TABLES: {wrong}; nothing was published")
    # Adaptive execution sizes the files: it merges small ones and splits a large partition. The other tables come from
    # groupings. It merges small parts of those without being asked, and there are no large ones: a hash spreads groups.
    if table.partitions or table == SONG_LINES:
        by = f"({', '.join(table.partitions)})" if table.partitions else ""
        rows = spark.sql(f"SELECT /*+ REBALANCE{by} */ * FROM {{rows}}", rows=rows)
    ordered = rows.sortWithinPartitions(*table.partitions, *table.order) if table.order else rows
    ordered.write.mode("append").partitionBy(*table.partitions).parquet(directory)


# ------------------------------------------------------------------------------------------------------------------
# Storage: a directory or a prefix in a bucket, with the same six calls. Names are relative, with slashes
# ------------------------------------------------------------------------------------------------------------------


class File(NamedTuple):
    """A file's bytes, and a mark that changes with its content: size and time in ns on a disk, size and ETag on S3."""

    size: int
    mark: str


Inputs = dict[str, dict[str, File]]  # by kind, song_data and log_data, and name below the source


class Disk:
    """A directory."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def at(self, name: str) -> str:
        return os.path.join(self.root, name)

    def files(self, below: str) -> dict[str, File]:
        """The files at any depth below a directory; none if it does not exist."""
        found = {}
        for directory, _, names in os.walk(self.at(below), onerror=unless_missing, followlinks=True):
            for path in (os.path.join(directory, name) for name in names):
                with suppress(FileNotFoundError):  # another run has moved it
                    facts = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link to nowhere counts, too
                    mark = f"{facts.st_size} {facts.st_mtime_ns}"
                    found[os.path.relpath(path, self.root)] = File(facts.st_size, mark)
        return found

    def read(self, name: str) -> str | None:
        """The text of a file; None if it does not exist."""
        try:
            with open(self.at(name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """All of the text or nothing: a reader never finds half of it."""
        os.replace(self.draft(f"{os.path.dirname(name)}/.{uuid.uuid4().hex}.tmp", text, name), self.at(name))

    def create(self, name: str, text: str, draft: str) -> bool:
        """Like write, but False if the file exists. If several runs try at once, one succeeds.

        The text appears under its name by a hard link to the draft. A power cut must not lose a file that a ledger
        names, so the disk is synced before, nor a ledger whose files are moved, so it is synced after.
        """
        path = self.draft(draft, text, name)
        os.sync()
        with suppress(FileExistsError):
            os.link(path, self.at(name))
            os.sync()
            return True
        return False

    def draft(self, draft: str, text: str, name: str) -> str:
        for path in (self.at(name), self.at(draft)):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileNotFoundError):  # an earlier draft may be linked: to write into it would change the ledger
            os.unlink(path)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def move(self, moves: dict[str, str]) -> bool:
        """Renames sources to targets. False if a source does not exist."""
        if moves:
            os.sync()  # another process may have linked the ledger that names these files
        complete = True
        for source, target in moves.items():
            while os.path.exists(self.at(source)):
                with suppress(FileNotFoundError):  # another run has removed the directory, or moved the file
                    os.makedirs(os.path.dirname(self.at(target)), exist_ok=True)
                    os.replace(self.at(source), self.at(target))
                    break
            else:
                complete = False
        return complete

    def delete(self, names: Iterable[str]) -> None:
        """The files, and the directories that this leaves empty. A missing file is not an error."""
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(self.at(name))
            with suppress(OSError):  # not empty
                while name := os.path.dirname(name):
                    os.rmdir(self.at(name))


class Bucket:
    """A prefix in a bucket, by boto3: Hadoop has no conditional PUT, and needs six requests to move a file."""

    def __init__(self, root: str, settings: Settings) -> None:
        self.root = root
        self.bucket, _, prefix = s3_path(root).partition("/")
        self.prefix = f"{prefix}/".lstrip("/")
        self.client = s3_client(settings)

    def ask(self, operation: str, *expected: str, **arguments: object) -> dict | None:
        """The answer to one request; None for an expected error. StoreError says what is wrong and what to do."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = getattr(self.client, operation)(Bucket=self.bucket, **arguments)
            return {**answer, "Body": answer["Body"].read()} if "Body" in answer else answer
        except (BotoCoreError, ClientError) as error:
            failure = StoreError(self.root, error)
        if failure.code in expected:
            return None
        raise failure

    def files(self, below: str) -> dict[str, File]:
        """Like Disk's. Keys that end in a slash only mark a directory."""
        found, arguments = {}, {"Prefix": self.prefix + f"{below}/".lstrip("/")}
        while arguments:
            page = self.ask("list_objects_v2", **arguments)
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    found[entry["Key"][len(self.prefix) :]] = File(entry["Size"], f"{entry['Size']} {entry['ETag']}")
            token = page.get("NextContinuationToken")
            arguments = {**arguments, "ContinuationToken": token} if token else {}
        return found

    def read(self, name: str) -> str | None:
        answer = self.ask("get_object", "NoSuchKey", Key=self.prefix + name)
        return answer and answer["Body"].decode("utf-8", errors="replace")

    def write(self, name: str, text: str, *expected: str, **condition: str) -> dict | None:
        return self.ask("put_object", *expected, Key=self.prefix + name, Body=text.encode("utf-8"), **condition)

    def create(self, name: str, text: str, draft: str) -> bool:
        """Like Disk's, by a conditional PUT, which needs no draft."""
        taken = ("PreconditionFailed", "ConditionalRequestConflict")
        return self.write(name, text, *taken, IfNoneMatch="*") is not None

    def move(self, moves: dict[str, str]) -> bool:
        """Like Disk's, by copies. Each appears whole. The sources are deleted when the staging is cleared."""

        def copy(source: str, target: str) -> dict | None:
            where = {"Bucket": self.bucket, "Key": self.prefix + source}
            return self.ask("copy_object", "NoSuchKey", "404", Key=self.prefix + target, CopySource=where)

        return None not in side_by_side(copy, moves.keys(), moves.values())

    def delete(self, names: Iterable[str]) -> None:
        """One request per file: some stores reject bulk deletes, and S3 does not charge for deletes."""
        side_by_side(lambda name: self.ask("delete_object", Key=self.prefix + name), names)


def storage(place: str, settings: Settings) -> Disk | Bucket:
    return Bucket(place, settings) if on_s3(place) else Disk(place)


def unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def side_by_side(call: Callable, *arguments: Iterable) -> list:
    """Like list(map(call, ...)), in threads: a request to S3 mostly waits, and a small Spark job leaves cores idle."""
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        return list(pool.map(call, *arguments))


def is_hidden(name: str) -> bool:
    """Whether a part of the name begins with _ or ., by Spark's rule."""
    return re.search(r"(^|/)(\.|_[^/=]*(/|$))", name) is not None


def is_input(name: str) -> bool:
    """Whether the job reads a file of this name below INPUT."""
    return name.endswith((".json", ".json.gz")) and not is_hidden(name)


def json_files(source: Disk | Bucket, kind: str) -> dict[str, File]:
    """The JSON files below INPUT/<kind>. UsageError if there are none."""
    found = source.files(kind)
    files = {name: file for name, file in found.items() if is_input(name)}
    others = [name for name in found if name not in files and not is_hidden(name)]
    for name in found:
        if name.endswith((".json", ".json.gz")) and os.path.normpath(name) != name:
            raise JobError(f"{source.root}/{name}: Hadoop takes it for {os.path.normpath(name)}; rename or remove it")
    if others:
        text = "%s: %s files are ignored, because their names do not end in .json or .json.gz; the first is %s"
        log.warning(text, kind, f"{len(others):,}", min(others))
    if not files:
        raise UsageError(f"{source.root}/{kind} has no *.json or *.json.gz file; set INPUT to its parent directory")
    return files


# ------------------------------------------------------------------------------------------------------------------
# The ledger: what the lake holds. To create the next number is to commit
#
# _state/ledger/000000042.json lists every file of the tables and the state. A run reads the newest ledger, N. It writes
# to _staging/<N>-<run>/, where no reader looks. Then it creates ledger N+1: by a hard link on a disk, by If-None-Match
# on S3. Both fail if N+1 exists. This step is the commit. If several runs build on N, one of them creates N+1. The
# others clear their own staging and change nothing.
#
# settle() makes the lake match the newest ledger. It moves missing files in, then deletes replaced files. In between,
# readers see old and new rows together; they never miss a row. A run that is killed before its commit has published
# nothing. A run that is killed later has committed, and the next run settles first. Several runs may settle at once. A
# run that gets no answer to its commit leaves its staging, because it may have committed. The next run finds out. The
# next run that commits clears the staging of a killed run.
#
# A run that sleeps while others commit does no harm:
# - It cannot create a number twice: old ledgers are cut to a stub, and never deleted.
# - It cannot overwrite a file: each name contains a random id and is used once.
# - It cannot delete a committed file in a staging: settle(N) clears only stagings numbered below N.
# - Before it calls a file missing, it looks for the file again, and then for a newer ledger.
# - On S3 it may copy a replaced file in again. The next run deletes it, because ten ledgers remember its name.
# Any other file among the tables stops the run, which names the file and deletes nothing.
# ------------------------------------------------------------------------------------------------------------------

STAGING, QUARANTINE, RUNS, STATE = "_staging", "_quarantine", "_runs", "_state"  # readers ignore these names
LEDGER = f"{STATE}/ledger"
VERSION_1 = (f"{STATE}/ledger.json", "_lock/")  # what version 1 of this job left there besides tables and state
OVERTAKEN = "another run published first; this run changed nothing; run it again"
REMEMBERED = 10  # ledgers that still name a file as the job's own after it was replaced


class Ledger(NamedTuple):
    """What the lake holds after a run, and the input that it was built from. Number 0: nothing yet."""

    number: int = 0
    run: str = ""
    rules: dict = {}  # what must be the same for the rows of two runs to lie in one table
    inputs: dict[str, dict[str, str]] = {}  # kind -> file of the source -> its mark
    files: dict[str, list] = {}  # file of a table or the state -> bytes, and rows if it is a table's
    retire: dict[str, int] = {}  # file that was replaced -> number of the ledger that replaced it
    report: dict = {}

    def of_table(self, name: str, partitions: Iterable[str] | None = None) -> list[str]:
        """The table's files, of some partitions or all."""
        files = [file for file in self.files if file.startswith(f"{name}/")]
        return files if partitions is None else [file for file in files if partition_of(file) in partitions]

    def facts(self) -> dict[str, dict[str, int]]:
        """Rows, files and bytes of each of the five tables."""
        found = {name: [self.files[file] for file in self.of_table(name)] for name in TABLES}
        return {
            name: {"rows": sum(r or 0 for _, r in files), "files": len(files), "bytes": sum(size for size, _ in files)}
            for name, files in found.items()
        }


def partition_of(file: str) -> str:
    """songplays/year=2018/month=11/part-0.parquet -> year=2018/month=11"""
    return "/".join(part for part in file.split("/")[:-1] if "=" in part)


def ledger_name(number: int) -> str:
    return f"{LEDGER}/{number:09}.json"


def newest_number(lake: Disk | Bucket) -> int:
    """The greatest number of a ledger, 0 if there is none."""
    return max((int(name[-14:-5]) for name in lake.files(LEDGER) if re.fullmatch(r".*/\d{9}\.json", name)), default=0)


def content_of(lake: Disk | Bucket, name: str) -> dict | None:
    """The object in a JSON file; {} if the file is damaged, None if it does not exist."""
    text = lake.read(name)
    with suppress(ValueError):
        content = json.loads(text or "")
        return content if isinstance(content, dict) else {}
    return None if text is None else {}


def newest_ledger(lake: Disk | Bucket) -> Ledger:
    """The newest ledger. JobError if it is damaged."""
    while True:
        number = newest_number(lake)
        content = content_of(lake, ledger_name(number)) if number else version_1(lake)
        if content and content.keys() == set(Ledger._fields):
            return Ledger(**content)
        if newest_number(lake) == number:  # else a newer one exists, and this one was cut to a stub
            raise JobError(f"{lake.root}/{ledger_name(number)} is damaged; restore it, or choose another OUTPUT")


def version_1(lake: Disk | Bucket) -> dict:
    """A ledger with number 0: it lists the files that version 1 of this job left, if it did."""
    sizes = (content_of(lake, VERSION_1[0]) or {}).get("files")
    sizes = {**dict.fromkeys([VERSION_1[0], *lake.files("_lock")], 0), **sizes} if sizes else {}
    return Ledger(files={file: [size, None] for file, size in sizes.items()})._asdict()


def opened(lake: Disk | Bucket) -> tuple[Ledger, dict[str, int]]:
    """The newest ledger, settled, and the files of the lake. UsageError names a file that is not the job's."""
    while True:
        ledger = newest_ledger(lake)
        if ledger.number:
            settle(lake, ledger)
        files = lake_files(lake)
        if newest_number(lake) == ledger.number:  # else these are the files of a newer one
            break
    others = sorted(files.keys() - ledger.files.keys() - ledger.retire.keys())
    if others:
        count = f" (and {len(others) - 1:,} more)" if others[1:] else ""
        where = f"{lake.root}/{others[0]}{count}"
        raise UsageError(f"{where}: is among the tables, but no ledger lists it; move it, or change OUTPUT")
    return ledger, files


def lake_files(lake: Disk | Bucket) -> dict[str, int]:
    """The visible files of the tables and the state, and their bytes."""
    names = [*TABLES, EVENTS.name, SONG_LINES.name, VERSIONS.name]
    found = zip(names, side_by_side(lake.files, names))
    return {f: file.size for name, files in found for f, file in files.items() if not is_hidden(f[len(name) + 1 :])}


def settle(lake: Disk | Bucket, ledger: Ledger) -> bool:
    """Makes the lake match the ledger, unless a newer one exists. False if a listed file cannot be found."""
    before, staging = lake_files(lake), f"{STAGING}/{ledger.number - 1:09}-{ledger.run}"
    lake.write(f"{RUNS}/{ledger.run}.json", json.dumps(ledger.report))
    moves = {f"{staging}/{file}": file for file in ledger.files if file not in before}
    if not lake.move(moves):  # a file was in neither place: look again, and only then for a newer ledger
        missing = set(moves.values()) - lake_files(lake).keys()
        superseded = newest_number(lake) != ledger.number
        if missing or superseded:
            return superseded
    lake.delete([file for file in ledger.retire if file in before or file.startswith(VERSION_1)])
    old = {file: re.match(rf"{STAGING}/(\d{{9}})-", file) for file in lake.files(STAGING)}
    lake.delete([file for file, found in old.items() if found and int(found[1]) < ledger.number])
    stub, number = ledger_name(ledger.number - 3), ledger.number - 3  # the first three find none
    old = content_of(lake, stub) or {}
    if "files" in old:  # a late commit needs only an old ledger's number and its run
        lake.write(stub, json.dumps({"number": number, "run": old["run"]}))
    return True


def next_ledger(base: Ledger, run: str, rules: dict, inputs: Inputs, files: dict[str, list]) -> Ledger:
    """The ledger that commits these files instead of those of `base`."""
    number = base.number + 1
    recent = {file: retired for file, retired in base.retire.items() if retired > number - REMEMBERED}
    dropped = dict.fromkeys(base.files.keys() - files.keys(), number)
    marks = {kind: {name: file.mark for name, file in found.items()} for kind, found in inputs.items()}
    return Ledger(number, run, rules, marks, files, {**recent, **dropped})


def commit(lake: Disk | Bucket, ledger: Ledger, staging: str) -> None:
    """Creates the ledger. JobError if another run was first; UncertainError if the store gives no certain answer."""
    name, text, errors = ledger_name(ledger.number), json.dumps(ledger._asdict()), []
    for _ in range(10):
        try:
            if lake.create(name, text, f"{staging}/ledger.json"):
                return
            holder = content_of(lake, name)  # None: the store is busy creating it for somebody, so ask again
            if holder is not None and holder.get("run") == ledger.run:
                return  # the answer to an earlier try was lost
            if holder is not None:
                raise JobError(f"{lake.root}: {OVERTAKEN}")
        except (StoreError, OSError) as error:
            errors.append(one_line(error))
            if len(errors) == 2:
                break
    why = errors[-1] if errors else "other requests keep creating it"
    raise UncertainError(f"{lake.root}/{name}: {why}; this run may have published; the next run will find out")


# ------------------------------------------------------------------------------------------------------------------
# Accounting and audit: every line in is counted, every row out is checked
# ------------------------------------------------------------------------------------------------------------------

FATES = ("accepted", "duplicates", "no_play", "quarantined")  # what becomes of a line


class Account(NamedTuple):
    """What became of the new lines of one kind."""

    files: dict[str, dict]  # by file of the source: file, bytes, and its lines by fate
    problems: Counter  # reason -> lines
    lines: int  # old and new lines that are a song, or a play of the touched partitions
    keys: int  # different songs or plays among them
    ids: int  # different surrogate keys among them: fewer than keys if two share one by chance

    def total(self, *fates: str) -> int:
        return sum(file[fate] for file in self.files.values() for fate in fates or FATES)


def account(
    new: DataFrame, old: DataFrame, names: dict[str, File], usable: str, key: list[str], surrogate: Column
) -> Account:
    """Counts the new lines by file and fate. Of the usable lines with the same key one is accepted: an old one if there
    is one, else the one in the file with the smallest name."""
    files = {name: {"file": name, "bytes": file.size, **dict.fromkeys(FATES, 0)} for name, file in names.items()}
    problems = Counter()
    for row in new.groupBy("file", "problem", F.expr(usable).alias("usable")).count().collect():
        files[row.file]["quarantined" if row.problem else "accepted" if row.usable else "no_play"] += row["count"]
        problems.update({row.problem: row["count"]} if row.problem else {})
    rows = new.where(usable).select("file", *key)
    rows = rows.unionByName(old.where(usable).select(F.lit("").alias("file"), *key))
    lines, ids = rows.agg(F.count("*"), F.countDistinct(surrogate)).first()
    if lines == ids:  # then there are no copies, and the slower grouping by key is not needed
        return Account(files, problems, lines, lines, lines)
    firsts = rows.groupBy(*key).agg(F.min("file").alias("file")).groupBy("file").count()
    accepted = {row.file: row["count"] for row in firsts.collect()}
    for name, file in files.items():
        file["duplicates"] = file["accepted"] - accepted.get(name, 0)
        file["accepted"] -= file["duplicates"]
    return Account(files, problems, lines, sum(accepted.values()), ids)


def check_limit(kind: str, account: Account, settings: Settings, where: str) -> None:
    """Logs the count of the lines. JobError if too many of them cannot be used."""
    lines, bad = account.total(), account.total("quarantined")
    if account.files:
        log.info("%-9s %s lines in %s new files", kind, f"{lines:,}", f"{len(account.files):,}")
    for problem, count in sorted(account.problems.items()):
        log.warning("%s: %s lines quarantined: %s; they are in %s", kind, f"{count:,}", problem, where)
    empty = [name for name, file in account.files.items() if not any(map(file.get, FATES))]
    if empty:
        log.warning("%s: %s files have no line; the first is %s", kind, f"{len(empty):,}", min(empty))
        texts = [name for name in empty if name.endswith(".json")]
        for name, text in zip(texts, side_by_side(storage(settings.input, settings).read, texts)):
            if re.search(r"[^\s\ufeff]", text or ""):
                raise JobError(f"{settings.input}/{name}: Spark read no line from it; nothing was published")
    if bad > lines * settings.max_bad_ratio:
        reasons = ", ".join(f"{count:,} {problem}" for problem, count in account.problems.most_common())
        hint = " (each line must be one JSON object)" * ("broken JSON" in account.problems)
        raise JobError(
            f"{kind}: {bad:,} of {lines:,} lines cannot be used: {reasons}{hint}; they are in {where}; correct the"
            f" files or raise MAX_BAD_RATIO = {settings.max_bad_ratio}; nothing was published"
        )


def audit(
    tables: dict[str, DataFrame], due: Iterable[str], expected: dict[str, tuple[int, int]]
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Checks the tables that are due. Returns the rows and different keys of each, and the rows of each file.

    JobError if a key is null or not unique, a reference is not in its table, or there are not as many rows and keys as
    `expected` says, which is the account of the input. tables: all five. Those that are due are read from their files.
    """
    by_file, audits = {}, {name: {"rows": 0, "keys": 0} for name in due}
    for name, what, count in audit_counts(tables, due):
        if what == "keys":
            audits[name]["keys"] = count
        elif what not in TABLES[name].references:
            by_file[what] = count
            audits[name]["rows"] += count
        elif count:
            other = TABLES[name].references[what]
            raise JobError(f"{name}: in {count:,} rows the {what} is not in {other}; nothing was published")
    for name, found in audits.items():
        rows, keys = expected.get(name, (found["rows"], found["rows"]))
        if found != {"rows": rows, "keys": keys}:
            raise JobError(
                f"{name}: {found['rows']:,} rows with {found['keys']:,} different values of {TABLES[name].key};"
                f" the input has {rows:,} and {keys:,}; nothing was published"
            )
    return audits, by_file


def audit_counts(tables: dict[str, DataFrame], due: Iterable[str]) -> list[tuple[str, str, int]]:
    """By table: the different keys, the rows of each file, and for each reference the rows whose key is missing."""
    checks, tables = [], {**tables, **{name: tables[name].select("*", "_metadata.file_path") for name in due}}
    if "songs" in due:
        tables["songs"].persist()  # it has a file for each year: read them once, and not once for each check
    for name in due:
        table, rows = TABLES[name], tables[name]
        checks.append(rows.selectExpr(f"'{name}'", "'keys'", f"count(DISTINCT {table.key})"))
        by_path = rows.groupBy("file_path").agg(F.count("*").alias("rows"))
        checks.append(by_path.selectExpr(f"'{name}'", "file_path", "rows"))
        for column, other in table.references.items():
            keys = tables[other].selectExpr(f"{TABLES[other].key} AS {column}")
            orphans = rows.where(f"{column} IS NOT NULL").join(keys, on=column, how="left_anti")
            checks.append(orphans.selectExpr(f"'{name}'", f"'{column}'", "count(*)"))
    counts = [row for rows in side_by_side(DataFrame.collect, checks) for row in rows]
    tables["songs"].unpersist()
    return counts


def check_shrink(base: Ledger, after: Ledger, settings: Settings) -> None:
    """JobError if a table would lose all of its rows, or more than the settings allow."""
    for name, before in base.facts().items():
        rows, was = after.facts()[name]["rows"], before["rows"]
        if was and not rows:
            raise JobError(f"{name} would become empty and has {was:,} rows; check the input; nothing was published")
        if rows < was * (1 - settings.max_shrink):
            raise JobError(
                f"{name}: {rows:,} rows instead of {was:,}, and MAX_SHRINK = {settings.max_shrink}; is the input"
                " complete? If it is, add --allow-shrink once; nothing was published"
            )


# ------------------------------------------------------------------------------------------------------------------
# A run: what is new, and the partitions that it touches
# ------------------------------------------------------------------------------------------------------------------

KINDS = {"song_data": (SONG_FIELDS, SONG_RULES), "log_data": (LOG_FIELDS, LOG_RULES)}
MANY_CHANGES = 100  # changed or vanished files; with more, a rebuild is simpler and not slower


class Changes(NamedTuple):
    """The input against the ledger, by kind."""

    new: Inputs  # files to read
    gone: dict[str, set[str]]  # files that have changed or vanished: the lines that they brought no longer count

    def of(self, kind: str) -> bool:
        return bool(self.new[kind] or self.gone[kind])


def changes_since(base: Ledger, inputs: Inputs) -> Changes:
    """What is new in the input, and what has changed or vanished."""
    new, gone = {}, {}
    for kind, files in inputs.items():
        marks = base.inputs.get(kind, {})
        new[kind] = {name: file for name, file in files.items() if marks.get(name) != file.mark}
        gone[kind] = {name for name, mark in marks.items() if name not in files or files[name].mark != mark}
    return Changes(new, gone)


def why_rebuild(newest: Ledger, rules: dict, files: dict[str, int], changes: Changes, full: bool) -> str:
    """Why the run cannot build on this ledger; "" if it can, or if there is nothing yet."""
    if not newest.files:
        return ""
    if full or not newest.number:
        return "--full" if full else "version 1 of this job wrote the lake"
    for rule, value in rules.items():
        if newest.rules.get(rule) != value:
            return f"{rule} was {newest.rules.get(rule)!r} in the last run and is {value!r}"
    for file, (size, _) in sorted(newest.files.items()):
        if files.get(file) != size:
            return f"{file} is missing, or not as the last run left it"
    count = sum(map(len, changes.gone.values()))
    return f"{count:,} files of the input have changed or vanished" if count > MANY_CHANGES else ""


class Work(NamedTuple):
    """What a run works with. The files in its staging are all that changes while it works."""

    spark: SparkSession
    lake: Disk | Bucket
    tables: dict[str, Table]  # with the partitions that the settings choose
    source: str  # as Spark writes it
    root: str  # of the lake, as Spark writes it
    base: Ledger  # without files if the run rebuilds everything
    staging: str
    report: dict  # a log: written to as the run goes on, so that the report of a failed run says how far it got

    def old(self, name: str, partitions: Iterable[str] | None = None, without: Iterable[str] = ()) -> DataFrame:
        """The table's rows of earlier runs, of some partitions or all, without the lines of some files."""
        columns, paths = self.tables[name].columns, [f"{self.root}/{f}" for f in self.base.of_table(name, partitions)]
        if not paths:
            return self.spark.createDataFrame([], columns).where("false")
        rows = self.spark.read.schema(columns).option("basePath", f"{self.root}/{name}").parquet(*paths)
        return rows.where(~F.col("file").isin([*without])) if without else rows

    def stage(self, table: str, rows: DataFrame) -> DataFrame:
        """Writes the rows to the staging, and hands back what was written."""
        directory = f"{self.root}/{self.staging}/{table}"
        with self.timed(table):
            write_rows(self.spark, self.tables[table], rows, directory)
        return self.spark.read.schema(self.tables[table].columns).parquet(directory)

    def staged_files(self) -> dict[str, int]:
        """The staged files that go into the lake, by their final names, and their bytes."""
        found = {f[len(self.staging) + 1 :]: file.size for f, file in self.lake.files(self.staging).items()}
        unused = f"{EVENTS.name}/year=__HIVE_DEFAULT_PARTITION__"  # lines that are counted and not needed again
        visible = {f: size for f, size in found.items() if not is_hidden(f.removeprefix(f"{STATE}/"))}  # no __magic
        return {f: size for f, size in visible.items() if f.endswith(".parquet") and not f.startswith(unused)}

    def partitions_of(self, rows: DataFrame) -> set[str]:
        """The partitions of plays in which the rows lie."""
        names = self.tables["songplays"].partitions
        return {"/".join(f"{name}={row[name]}" for name in names) for row in rows.select(*names).distinct().collect()}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        since, seconds = time.monotonic(), self.report["seconds"]
        yield
        seconds[stage] = round(seconds.get(stage, 0) + time.monotonic() - since, 3)  # the state is staged twice
        log.debug("%s in %.1f s", stage, seconds[stage])


def run(settings: Settings, full: bool = False) -> None:
    """The whole job: settle, list, find what is new, build it, commit, settle."""
    source, lake, since = storage(settings.input, settings), storage(settings.output, settings), time.monotonic()
    layouts = {name: ", ".join(getattr(settings, name)) for name in ("songs_partition_by", "plays_partition_by")}
    rules, report = {"meaning": MEANING, "input": s3_path(source.root), **layouts}, new_report(settings)
    newest, files = opened(lake)
    # Listed after the ledger is read: else a file that another run has just published would look as if it had vanished.
    inputs = {kind: json_files(source, kind) for kind in KINDS}
    why = why_rebuild(newest, rules, files, changes_since(newest, inputs), full)
    if why:
        log.warning("%s: all tables are rebuilt", why)
    base = Ledger(newest.number) if why else newest
    changes = changes_since(base, inputs)
    if not any(map(changes.of, KINDS)):
        log.info("nothing is new since the last run, which left these tables:")
        report.update(outcome="nothing new", tables=base.facts())
        lake.write(f"{RUNS}/{report['run']}.json", json.dumps(report))
        log_tables(lake, report, since)
        return
    staging = f"{STAGING}/{newest.number:09}-{report['run']}"
    with cleared_on_failure(lake, newest.number, staging, report):
        sign(lake, newest.number, staging, report)
        spark = spark_session(settings, bytes_of_work(base, changes))
        places = (address(spark, settings, place) for place in (settings.input, settings.output))
        events = EVENTS.partitioned_by(*settings.plays_partition_by)
        state = {EVENTS.name: events, SONG_LINES.name: SONG_LINES, VERSIONS.name: VERSIONS}
        work = Work(spark, lake, {**tables_for(settings), **state}, *places, base, staging, report)
        after = next_ledger(newest, report["run"], rules, inputs, build(work, settings, changes))
        check_shrink(newest, after, settings)
        after = after._replace(report={**report, "outcome": "published", "tables": after.facts()})
        commit(lake, after, staging)
    settle_own(lake, after)
    log_tables(lake, after.report, since)


def bytes_of_work(base: Ledger, changes: Changes) -> int:
    """The bytes of the new input, and of the old events that are read again: those of one partition, unless the run may
    touch any."""
    partitions = Counter()
    for file in base.of_table(EVENTS.name):
        partitions[partition_of(file)] += base.files[file][0]
    events = sum if changes.of("song_data") or changes.gone["log_data"] else max
    return sum(file.size for new in changes.new.values() for file in new.values()) + events([0, *partitions.values()])


def build(work: Work, settings: Settings, changes: Changes) -> dict[str, list]:
    """Builds, stages and audits the new files. Returns the files of the lake after the run: bytes and rows by name.

    A touched partition is computed from all of its events, old and new, and its files are replaced. So copies, better
    versions of a play and late songs need no special rules, and a first run is a run on an empty lake.
    """
    new_songs, new_events = side_by_side(lambda kind: stage_lines(work, kind, changes.new[kind]), KINDS)
    old_songs = work.old(SONG_LINES.name, without=changes.gone["song_data"])
    songs = clean_songs(new_songs.unionByName(old_songs))
    touched = touched_partitions(work, changes, songs)
    old_events = work.old(EVENTS.name, touched, without=changes.gone["log_data"])
    events = new_events.unionByName(old_events)
    accounts = accounts_of(work, changes, (new_songs, new_events), (old_songs, old_events))
    for kind, account in accounts.items():
        check_limit(kind, account, settings, f"{settings.output}/{QUARANTINE}/run={work.report['run']}")
    logs, replaced = accounts["log_data"], replaced_tables(changes, touched)
    plays = events.where("is_play") if logs.keys == logs.lines else clean_plays(events)
    versions = versions_after(work, changes, new_events)
    tables = star_schema(songs, plays, versions)
    # The old lines that still count join the new ones in the staging: together they replace the state.
    old = {SONG_LINES.name: old_songs, EVENTS.name: old_events}
    rows = {**tables, **old}
    due = [name for name in rows if name in replaced and (name not in old or work.base.of_table(name, replaced[name]))]
    staged = dict(zip(due, side_by_side(lambda name: stage_table(work, name, rows[name], versions), due)))
    return files_after(work, replaced, audited(work, accounts, tables, staged))


def stage_lines(work: Work, kind: str, names: dict[str, File]) -> DataFrame:
    """The new lines of one kind, parsed, checked and staged, as columns: to write and read these back is cheaper than
    to parse twice, or to cache. The usable ones are the new part of the state."""
    table = work.tables[SONG_LINES.name if kind == "song_data" else EVENTS.name]
    if not names:
        return work.old(table.name, partitions=())
    lines = checked(read_lines(work.spark, work.source, kind, names), *KINDS[kind])
    rows = lines.withColumn("value", F.expr("if(problem IS NULL, NULL, value)"))
    return work.stage(table.name, rows if kind == "song_data" else log_events(rows, table.partitions))


def stage_table(work: Work, name: str, rows: DataFrame, versions: DataFrame) -> DataFrame:
    """Stages the rows of a table. For `users` it stages the versions first and reads them back: they are merged once.

    A cache would be wrong: the old events are written to a directory that the versions read, and when Spark writes to a
    directory that a cached frame reads, all frames of that read see the new files, too.
    """
    return work.stage(name, users_table(work.stage(VERSIONS.name, versions)) if name == "users" else rows)


def touched_partitions(work: Work, changes: Changes, songs: DataFrame) -> set[str]:
    """The partitions of plays to rebuild: those of new lines, those of lines of log files that have changed or
    vanished, and those of plays that have another song now."""
    touched = {partition_of(file) for file in work.staged_files() if file.startswith(EVENTS.name)}
    if changes.gone["log_data"]:
        touched |= work.partitions_of(work.old(EVENTS.name).where(F.col("file").isin([*changes.gone["log_data"]])))
    if changes.of("song_data") and work.base.of_table("songplays"):
        before, after = song_lookup(clean_songs(work.old(SONG_LINES.name))), song_lookup(songs)
        changed = before.exceptAll(after).union(after.exceptAll(before)).select(*SONG_KEY).distinct()
        logged = ("song_title AS title", "artist_name AS artist", "round(song_length, 5) AS duration")
        plays = work.old("songplays").selectExpr(*logged, *work.tables["songplays"].partitions)
        touched |= work.partitions_of(plays.join(changed, on=SONG_KEY, how="left_semi"))
    return touched


def accounts_of(work: Work, changes: Changes, new: tuple[DataFrame, ...], old: tuple) -> dict[str, Account]:
    """What became of the new lines, by kind. The lines that cannot be used go into the quarantine, as JSON: file,
    reason, line. They stay there even if the run fails."""
    usable, keys = ("problem IS NULL", "is_play"), (["song_id"], PLAY_KEY)
    with work.timed("accounting"):
        found = side_by_side(account, new, old, changes.new.values(), usable, keys, (F.col("song_id"), songplay_id()))
    accounts = dict(zip(KINDS, found))
    totals = {kind: {fate: account.total(fate) for fate in FATES} for kind, account in accounts.items()}
    work.report["lines"] = {kind: {"lines": sum(counts.values()), **counts} for kind, counts in totals.items()}
    work.report["problems"] = {kind: dict(account.problems) for kind, account in accounts.items()}
    work.report["files"] = [file for account in found for file in account.files.values()]
    if any(account.problems for account in found):
        songs, logs = (rows.where("problem IS NOT NULL").select("file", "problem", "value") for rows in new)
        bad = songs.union(logs).toDF("file", "reason", "line")
        bad.write.json(f"{work.root}/{QUARANTINE}/run={work.report['run']}")
    return accounts


def versions_after(work: Work, changes: Changes, new: DataFrame) -> DataFrame:
    """The versions of all users' facts. new: the events of this run's files."""
    if not changes.gone["log_data"]:
        return user_versions(new, work.old(VERSIONS.name))
    # The versions of a file that is gone may be gone, too, so all events are read.
    return user_versions(new.unionByName(work.old(EVENTS.name, without=changes.gone["log_data"])))


def replaced_tables(changes: Changes, touched: set[str]) -> dict[str, set[str] | None]:
    """The tables whose files the run replaces, and of which partitions; None for all."""
    by_partition = ("songplays", "time", EVENTS.name) if touched else ()
    of_users = ("users", VERSIONS.name) if changes.of("log_data") else ()
    of_songs = ("songs", "artists", SONG_LINES.name) if changes.of("song_data") else ()
    return {**dict.fromkeys(by_partition, touched), **dict.fromkeys((*of_users, *of_songs))}


def audited(
    work: Work, accounts: dict[str, Account], tables: dict[str, DataFrame], staged: dict[str, DataFrame]
) -> dict[str, int]:
    """Audits the staged tables. Returns the rows of each of their files, by final name."""
    due, (songs, logs) = tables.keys() & staged.keys(), accounts.values()
    with work.timed("audit"):
        expected = {"songplays": (logs.keys, logs.ids), "songs": (songs.keys, songs.ids)}
        work.report["audits"], by_file = audit({**tables, **staged}, sorted(due), expected)
    if logs.ids < logs.keys:
        log.warning("songplays: %s ids are shared by two plays, by chance; see docs/decisions.md", logs.keys - logs.ids)
    return {unquote(file).split(f"/{work.staging}/")[1]: rows for file, rows in by_file.items()}


def files_after(work: Work, replaced: dict[str, set[str] | None], rows: dict[str, int]) -> dict[str, list]:
    """The lake's files after the run: bytes and rows by name. rows: those of each staged file of a table."""
    dropped = {file for table, partitions in replaced.items() for file in work.base.of_table(table, partitions)}
    staged = {f: [size, None if f.startswith(STATE) else rows.get(f, 0)] for f, size in work.staged_files().items()}
    if gone := rows.keys() - staged.keys():
        raise JobError(f"{work.lake.root}/{work.staging}/{min(gone)}: it is gone; nothing was published; run it again")
    return {**{file: facts for file, facts in work.base.files.items() if file not in dropped}, **staged}


def new_report(settings: Settings) -> dict:
    """What a run reports, as one JSON object, so that engines read the reports as a table."""
    values, now = asdict(settings), datetime.now(timezone.utc)
    shown = {name: "***" if value and name in SECTIONS["AWS CREDS"] else value for name, value in values.items()}
    return {
        "run": f"{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:12]}",
        "outcome": "",
        "started": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "settings": shown,
        "versions": {"python": platform.python_version(), "spark": spark_version},
        **{part: {} for part in ("seconds", "lines", "problems", "tables", "audits")},
        "files": [],
    }


def log_tables(lake: Disk | Bucket, report: dict, since: float) -> None:
    """Logs what the tables hold."""
    for name, facts in report["tables"].items():
        rows, files, size = (f"{number:,}" for number in facts.values())
        log.info("%-9s %s rows in %s files, %s bytes, %s/%s", name, rows, files, size, lake.root, name)
    log.info("done in %.1f s; the report is %s/%s/%s.json", time.monotonic() - since, lake.root, RUNS, report["run"])


def sign(lake: Disk | Bucket, number: int, staging: str, report: dict) -> None:
    """Writes run.json to the staging of this run, and warns of those of others. It only warns: the commit decides.

    JobError if the store overwrites an existing file: with such a store two runs could both commit.
    """
    for name in lake.files(STAGING):
        if name.startswith(f"{STAGING}/{number:09}-") and name.endswith("/run.json"):
            text = "another run is active or was killed; of two active runs the first to finish publishes: %s"
            log.warning(text, lake.read(name) or name)
    name = f"{staging}/run.json"
    text = json.dumps({"run": report["run"], "host": socket.gethostname(), "process": os.getpid()})
    created = [lake.create(name, text, f"{staging}/run.draft") for _ in range(2)]
    if created[1]:  # unless another run has published and cleared this staging: `cleared_on_failure` finds out
        raise JobError(f"{lake.root}: the store ignores If-None-Match, so two runs could publish at once; use another")
    lake.delete([f"{staging}/run.draft"])  # this also tests the right to delete, which settle needs


@contextmanager
def cleared_on_failure(lake: Disk | Bucket, number: int, staging: str, report: dict) -> Iterator[None]:
    """If the block fails, writes the report and clears the staging, unless the run may have committed."""
    try:
        yield
    except UncertainError:
        raise
    except FAULTS as error:
        why = error
        with suppress(JobError, OSError):  # what failed first is what counts
            if newest_number(lake) > number:
                why = JobError(f"{lake.root}: {OVERTAKEN}")
            failed = {**report, "outcome": f"failed: {one_line(why)}", "tables": {}}
            lake.write(f"{RUNS}/{report['run']}.json", json.dumps(failed))
            lake.delete(lake.files(staging))
        raise why from None


def settle_own(lake: Disk | Bucket, ledger: Ledger) -> None:
    """Settles what this run has committed. A newer run may have done it already."""
    try:
        if settle(lake, ledger):
            return
        why = f"{lake.root}: staged files are missing"
    except (StoreError, OSError) as error:
        why = one_line(error)
    raise JobError(f"{why}; the run has committed, but readers may not see all of it: run the job again to finish it")


# ------------------------------------------------------------------------------------------------------------------
# The command line, and errors in one line
# ------------------------------------------------------------------------------------------------------------------


class StoreError(JobError):
    """S3 answered with an error, or not at all."""

    def __init__(self, place: str, error: Exception) -> None:
        super().__init__(explained(place, str(error), str(error)))
        answer = getattr(error, "response", None) or {}
        self.code = answer.get("Error", {}).get("Code", "")
        self.status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


class UncertainError(JobError):
    """The store gave no answer to the commit, so nobody knows yet whether it happened."""


FAULTS = (JobError, OSError, PySparkException, Py4JError)
# What a store, Spark or the system says, and what to do about it. The first match counts.
REMEDIES = {
    "NoSuchBucket|UnknownStoreException": "the bucket does not exist; create it or correct the address",
    "InvalidAccessKeyId": "the store does not know the access key; correct [AWS CREDS], the profile or the environment",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; correct [AWS CREDS]",
    "ExpiredToken|InvalidToken": "the temporary keys have expired; get new ones that last as long as a run",
    "Token has expired|TokenRetrieval|SSO": "the SSO session has expired; run `aws sso login`",
    "BadDigest|ChecksumMismatch": "the bytes were damaged on the way; run it again",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "InvalidObjectState|archived": "the object is archived; restore it, then run again",
    "PermanentRedirect|AuthorizationHeaderMalformed|AWSRedirectException|IllegalLocationConstraint": "the bucket is in"
    " another region; set [LAKE] REGION",
    "KMS": "the key that encrypts the object cannot be used; give the role kms:Decrypt and kms:GenerateDataKey",
    "NotImplemented|[Cc]ode: 501|\\(501\\)": "the store lacks conditional writes (If-None-Match), without"
    " which one writer overwrites another; use another store",
    "AccessDenied|Forbidden|[Cc]ode: 403|\\(403\\)": "access denied; the keys or the role lack a permission (iam/)",
    "NoAuthWithAWS|CredentialInitialization|Unable to (load|locate) credentials": "no AWS keys found; set"
    " [AWS CREDS], a profile or a role",
    "SlowDown|ServiceUnavailable|InternalError|[Cc]ode: 50\\d|\\(50\\d\\)|Throttl": "the store is overloaded or fails;"
    " run it again later",
    "SSL|UnknownHost|ConnectException|ConnectTimeout|Connect to .* failed|Could not connect|Connection was closed|"
    "[Tt]imed? ?out|Connection (was )?reset": "the store does not answer; check [LAKE] ENDPOINT, REGION, the network",
    "EOFException|ZipException|incorrect header check|not a gzip|invalid (block|stored|distance|code)": "a .gz file is"
    " cut short, damaged or padded; deliver it again, or if gzip -t passes it, rewrite it: zcat FILE | gzip > NEW",
    "No space left|Disk quota": "the disk is full; free some space",
    "(not permitted|not supported|not implemented).* -> ": "this disk has no hard links, which a commit needs; choose"
    " another OUTPUT",
    "Permission denied|Operation not permitted|Read-only file system|AccessControlException": "this user may not do"
    " this; chmod or chown the place",
    "Too many levels of symbolic links": "a link leads back to itself; remove it",
    "ParquetDecoding|not a Parquet file|FOOTER|footer|PARQUET_|parquet.format|ZstdIO": "a file of the lake is damaged;"
    " rebuild all tables with --full",
    "FileNotFound|No such file": "it vanished during the run, or is a link to nowhere; remove the link or run again",
    "cross-device": "a directory of the lake is a link to another disk; replace the link by a directory",
    "Not a directory|File exists": "a file stands where a directory is needed; move it or correct the address",
    "InvalidPathException": "Java cannot write this name under its locale; start it with LC_ALL=C.UTF-8",
    "Relative path in absolute URI": "Spark cannot read a file with a colon in its name from a disk; rename it",
    "UnsupportedClassVersion|getSubject is not supported|JAVA_GATEWAY_EXITED|JAVA_HOME": "Spark did not start, and the"
    " lines above say why; it needs Java 17 or 21 (`make setup`, or set JAVA_HOME), a name for"
    " the user in /etc/passwd, and for S3 Maven Central",
    "OutOfMemory|Java heap space": "Spark has too little memory; use spark-submit --driver-memory --executor-memory",
    "Answer from Java side is empty|Connection refused": "Spark's Java process died, perhaps for lack of memory",
}


def one_line(error: BaseException) -> str:
    """What went wrong in one line: the place, what to do if that is known, and the innermost cause."""
    if isinstance(error, JobError):
        return str(error)
    if isinstance(error, OSError):
        return explained(error.filename or "", str(error), error.strerror or str(error))
    cause = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    chain = [] if cause else [str(error)]
    while cause is not None:
        chain.append(cause.toString())
        cause = cause.getCause()
    said = re.sub(r"\n\s*(at|\.\.\.) .*", "", " ".join(chain))  # without Java's stack
    place = re.search(r"while reading file (\S+?)\.?\s", said) or re.search(r"(s3a?://[^\s:,]+)", said)
    return explained(place[1] if place else "", said, chain[-1].strip().split("\n")[0])


def explained(place: str, said: str, cause: str) -> str:
    """The place, what to do about what was said if that is known, and the cause."""
    said = re.sub(r"\S*/\S*", "", said)  # names of files may say anything
    remedy = next((remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, said)), "")
    return ": ".join(filter(None, [place, remedy, cause]))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="etl.py", description=__doc__, formatter_class=raw)
    parser.add_argument("--config", default="dl.cfg", metavar="FILE", help="the configuration (default: dl.cfg)")
    parser.add_argument("--input", metavar="PLACE", help="directory or s3:// address that holds song_data and log_data")
    parser.add_argument("--output", metavar="PLACE", help="directory or s3:// address for the five tables")
    shrink = {"dest": "max_shrink", "action": "store_const", "const": "1"}
    parser.add_argument("--allow-shrink", **shrink, help="publish tables that have lost rows")
    parser.add_argument("--full", action="store_true", help="rebuild all tables from all of the input")
    parser.add_argument("--verbose", action="store_true", help="also log the seconds of each stage")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the job and returns the exit code."""
    options = vars(arguments(argv))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.DEBUG if options.pop("verbose") else logging.INFO)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    for name in ("py4j", "DataFrameQueryContextLogger"):  # they log Spark's errors once more, as stack traces
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.root.addFilter(lambda record: record.module not in ("java_gateway", "clientserver"))  # so does py4j, here
    try:
        full = options.pop("full")
        run(read_settings(options.pop("config"), **options), full)
    except KeyboardInterrupt:
        log.error("interrupted; the tables are as before, or the next run finishes what this one has committed")
        return 130
    except FAULTS as error:
        log.error("%s", " ".join(one_line(error).splitlines()))  # a file name may contain a newline
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
