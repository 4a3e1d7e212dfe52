#!/usr/bin/env python3
"""Sparkify's data lake job: song and log JSON in, a star schema of five Parquet tables out.

    table      grain                                             partitions
    songplays  one row per play: a log line, page = NextSong     year, month
    users      one row per user                                  -
    songs      one row per song                                  year
    artists    one row per artist                                -
    time       one row per distinct start time of a play         year, month

    spark-submit --master yarn etl.py        on a cluster; master, memory and packages are the submitter's
    python etl.py                            on a laptop; a local session, no AWS needed

Input is newline-delimited JSON, at any depth under INPUT/song_data and INPUT/log_data, as *.json or *.json.gz.
Output is OUTPUT/<table>/, in Hive layout; lines that cannot be used go to OUTPUT/_quarantine/, and what a run has done
is told in OUTPUT/_runs/. INPUT, OUTPUT and the AWS keys stand in dl.cfg. All times are UTC.

A run adds what has come since the last one, which OUTPUT/_state/ tells, and the tables are those of one run over all.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. Of a run that has failed readers see
nothing, unless the line that tells why says that it is half published: the next one finishes it before all else.
"""

from __future__ import annotations

import argparse
import configparser
import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import reduce
from typing import NamedTuple

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.find_spark_home import _find_spark_home
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

log = logging.getLogger("etl")


# ------------------------------------------------------------------------------------------------------------------
# What the data is
# ------------------------------------------------------------------------------------------------------------------

# Only the fields that the tables need. What a song file also holds (num_songs) and a log line too (auth, method,
# registration - a float, status) is not read, and so cannot be wrong.
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

# Why a line cannot be used: the first rule that it breaks. `line`, `closed`, `fields`, `corrupt` come from `checked`.
JSON_RULES = {
    "broken JSON": "closed IS NULL OR size(line) != 1 OR fields IS NULL",
    "wrong type": "corrupt IS NOT NULL",
}
INFINITE = "CAST('Infinity' AS DOUBLE)"  # what becomes of 1e400


def wrong_case(names: str) -> str:
    """Whether one of the fields is there in other letters only: Spark's parser tells Level from level."""
    rule = """({0} IS NULL AND value RLIKE '"(?!{0}")(?i:{0})" *:')"""
    return " OR ".join(rule.format(name) for name in names.split())


SONG_RULES = {
    "infinite number": f"{INFINITE} IN (abs(duration), abs(artist_latitude), abs(artist_longitude))",
    "no song id": r"song_id IS NULL OR NOT song_id RLIKE '\\S'",
    "key in the wrong case": wrong_case(
        "title duration year artist_id artist_name artist_location artist_latitude artist_longitude"
    ),
}
LOG_RULES = {
    "infinite number": f"abs(length) = {INFINITE}",
    "no page": "page IS NULL",
    "no time": "ts IS NULL",
    # 2000-01-01 to 2099-12-31. Seconds or microseconds in place of milliseconds fall outside.
    "impossible time": "ts NOT BETWEEN 946684800000 AND 4102444799999",
    "no user id": "userId IS NULL",
    "user id is no number": r"NOT userId RLIKE '^ *[0-9]{0,18} *\\z'",
    "play without a user": "page = 'NextSong' AND trim(userId) = ''",
    "play without a session": "page = 'NextSong' AND sessionId IS NULL",
    "play without an item": "page = 'NextSong' AND itemInSession IS NULL",
    "key in the wrong case": wrong_case("level firstName lastName gender itemInSession")
    + f" OR page = 'NextSong' AND ({wrong_case('artist song length location userAgent')})",
}


class Table(NamedTuple):
    """One table of the star schema. It drives the writing, the checks, the catalogue, the README and the tests."""

    name: str
    columns: str  # as DDL, in order
    key: str = ""
    partitions: tuple[str, ...] = ()
    order: tuple[str, ...] = ()  # how rows lie inside a file
    references: dict[str, str] = {}  # column -> the table whose key it holds; null is allowed

    def names(self) -> list[str]:
        return [column.split()[0] for column in self.columns.split(",")]


TABLES = {
    table.name: table
    for table in (
        Table(
            "songplays",
            "songplay_id BIGINT, start_time TIMESTAMP, user_id BIGINT, level STRING, song_id STRING, artist_id STRING,"
            " session_id BIGINT, location STRING, user_agent STRING, year INT, month INT",
            key="songplay_id",
            partitions=("year", "month"),
            order=("start_time", "songplay_id"),
            references={"user_id": "users", "song_id": "songs", "artist_id": "artists", "start_time": "time"},
        ),
        Table(
            "users",
            "user_id BIGINT, first_name STRING, last_name STRING, gender STRING, level STRING",
            key="user_id",
            order=("user_id",),
        ),
        Table(
            "songs",
            "song_id STRING, title STRING, artist_id STRING, duration DOUBLE, year INT",
            key="song_id",
            # By year alone: year x artist makes a file of a few hundred bytes out of nearly every song.
            partitions=("year",),
            order=("artist_id", "song_id"),
            references={"artist_id": "artists"},
        ),
        Table(
            "artists",
            "artist_id STRING, name STRING, location STRING, latitude DOUBLE, longitude DOUBLE",
            key="artist_id",
            order=("artist_id",),
        ),
        Table(
            "time",
            "start_time TIMESTAMP, hour INT, day INT, week INT, weekday INT, year INT, month INT",
            key="start_time",
            partitions=("year", "month"),
            order=("start_time",),
        ),
    )
}

# What the job keeps for itself from one night to the next, so that it never reads a line of JSON twice. Rows are as
# they were delivered, copies too, each with its file: what a file has brought can be taken back.
EVENTS = Table(
    "_state/events",  # one row per line of a log that is a play or tells of a user; of others only in the staging
    "file STRING, value STRING, problem STRING, is_play BOOLEAN, ts BIGINT, user_id BIGINT, session_id BIGINT,"
    " item BIGINT, first_name STRING, last_name STRING, gender STRING, level STRING, location STRING,"
    " user_agent STRING, artist STRING, title STRING, length DOUBLE, year INT, month INT",
    partitions=("year", "month"),
)
VERSIONS = Table(
    "_state/users",  # one row per version of a user's facts: when it was seen last
    "user_id BIGINT, first_name STRING, last_name STRING, gender STRING, level STRING, nth BIGINT",
    order=("user_id",),
)
SONG_LINES = Table(
    "_state/songs",  # one row per line of a song file
    "file STRING, song_id STRING, title STRING, duration DOUBLE, year INT, artist_id STRING, artist_name STRING,"
    " artist_location STRING, artist_latitude DOUBLE, artist_longitude DOUBLE",
    order=("song_id",),
)
# The number of what is said above and under "What each table means". A change of it is a change of every row: raise
# the number, and the next run builds all tables anew.
MEANING = 1


# ------------------------------------------------------------------------------------------------------------------
# Configuration
# ------------------------------------------------------------------------------------------------------------------


class JobError(Exception):
    """What stops the job, told in one line that names the file, key or value and the remedy."""

    exit_code = 1


class UsageError(JobError):
    """The command line, dl.cfg or the places that it names are wrong. Nothing was read or written."""

    exit_code = 2


class StoreError(JobError):
    """What S3 has answered, with its code for it."""

    def __init__(self, place: str, error: Exception) -> None:
        super().__init__(explained(place, str(error), str(error)))
        answer = getattr(error, "response", None) or {}
        self.code = answer.get("Error", {}).get("Code", "")
        self.status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


@dataclass(frozen=True)
class Settings:
    """What dl.cfg says. The repr keeps the keys to itself."""

    input: str
    output: str
    songs_partition_by: str = "year"
    max_bad_lines: str = ""
    max_bad_ratio: str = "0.05"
    max_shrink: str = "0.1"
    lease_seconds: str = "180"
    endpoint: str = ""
    region: str = ""
    sse: str = ""
    kms_key_id: str = ""
    expected_bucket_owner: str = ""
    aws_access_key_id: str = field(default="", repr=False)
    aws_secret_access_key: str = field(default="", repr=False)
    aws_session_token: str = field(default="", repr=False)


SECTIONS = {
    "AWS CREDS": [name for name in Settings.__annotations__ if name.startswith("aws_")],
    "LAKE": [name for name in Settings.__annotations__ if not name.startswith("aws_")],
}
REQUIRED = {"AWS CREDS": SECTIONS["AWS CREDS"][:2], "LAKE": ("input", "output")}
ENCRYPTIONS = {"": "", "AES256": "AES256", "aws:kms": "SSE-KMS"}  # S3's names, and S3A's
LAYOUTS = {"year": ("year",), "year, artist_id": ("year", "artist_id")}
SHARE = r"0(\.\d+)?|1(\.0+)?", "give a number from 0 to 1"
FORMS = {
    "songs_partition_by": ("|".join(LAYOUTS), f"choose one of: {' | '.join(LAYOUTS)}"),
    "max_bad_lines": (r"\d*", "give a whole number, or none for no limit"),
    "max_bad_ratio": SHARE,
    "max_shrink": SHARE,
    "lease_seconds": (r"[1-9]\d{1,4}", "give a whole number of seconds, 10 to 99999"),
    "endpoint": (r"(https?://[^\s/]+/?)?", "give http://HOST:PORT or https://HOST, or leave it out"),
    "region": (r"[a-z0-9-]*", "give a name like us-west-2, or leave it out"),
    "sse": ("|".join(ENCRYPTIONS), f"choose one of: {' | '.join(filter(None, ENCRYPTIONS))}, or leave it out"),
    "expected_bucket_owner": (r"(\d{12})?", "give the 12 digits of an AWS account, or leave it out"),
}
PLACEHOLDER = re.compile(
    r"<.*>|.*\byour[-_ ]?(bucket|access|secret|aws|key|token).*|change[-_ ]?me|x{3,}|\.{3}", re.I
)


def read_settings(path: str, **overrides: str | None) -> Settings:
    """The settings in the file at `path`; overrides that are not None win. UsageError names what is wrong."""
    parser = parsed_config(path)
    for section, keys in REQUIRED.items():
        if not parser.has_section(section):
            raise UsageError(f"{path}: section [{section}] is missing; copy it from the project's dl.cfg")
        for key in keys:
            if not parser.has_option(section, key) and overrides.get(key) is None:
                raise UsageError(f"{path}: [{section}] {key.upper()} is missing; add the line '{key.upper()} = ...'")
    values = {}
    for section, keys in SECTIONS.items():
        for key, value in parser.items(section):
            if key not in keys:
                known = ", ".join(keys).upper()
                raise UsageError(f"{path}: [{section}] {key.upper()} is no setting; known are {known}")
            if PLACEHOLDER.fullmatch(value):
                raise UsageError(
                    f"{path}: [{section}] {key.upper()} still holds a placeholder; put your own value, or none"
                )
            values[key] = value
    values.update({key: value for key, value in overrides.items() if value is not None})
    settings = Settings(**values)
    for key, remedy in wrong_settings(settings):
        raise UsageError(f"{path}: [LAKE] {key.upper()} = {getattr(settings, key)!r}: {remedy}")
    check_keys(path, settings)
    return settings


def parsed_config(path: str) -> configparser.ConfigParser:
    """The file's sections. Errors name the line, never its text: it may hold a key."""
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
        raise UsageError(
            f"{path}: line {line} is no 'KEY = value' under a [SECTION], or is there twice; mend it"
        ) from None
    return parser


def wrong_settings(settings: Settings) -> Iterator[tuple[str, str]]:
    """The keys of [LAKE] that make no sense, and what to do about each."""
    for key in ("input", "output"):
        place = getattr(settings, key)
        if not place:
            yield key, "blank; give a directory or an s3:// address"
        if on_s3(place) and not s3_place(place)[0]:
            yield key, "names no bucket; write s3://BUCKET/PREFIX"
        if on_s3(place) and re.search(r"//|/\.{1,2}(/|$)", f"/{s3_place(place)[1]}"):
            yield key, "a part of it is empty, . or ..; write the plain prefix"
        if "://" in place and not on_s3(place):
            yield key, "give a directory or an s3:// address"
        if re.search(r"[*?{}\[\]\\#\x00-\x1f]", place):
            yield key, "to Spark * ? { } [ ] \\ # are more than a name; choose a place without them"
    source, lake = (
        s3_path(place) if on_s3(place) else os.path.realpath(place)
        for place in (settings.input, settings.output)
    )
    if f"{lake}/".startswith((f"{source}/song_data/", f"{source}/log_data/")):
        yield "output", "lies in what is read; choose a place outside of song_data and log_data"
    if f"{source}/".startswith((f"{lake}/_", *(f"{lake}/{name}/" for name in TABLES))):
        yield "input", "lies in what a run replaces; choose a place outside of OUTPUT's tables"
    for key, (form, remedy) in FORMS.items():
        if not re.fullmatch(form, getattr(settings, key)):
            yield key, remedy
    if settings.kms_key_id and settings.sse != "aws:kms":
        yield "kms_key_id", "serves SSE = aws:kms alone; set that, or leave it out"


def check_keys(path: str, settings: Settings) -> None:
    """UsageError if the AWS keys cannot be any, a warning if others can read them. Neither shows them."""
    access, secret, token = (getattr(settings, key) for key in SECTIONS["AWS CREDS"])
    if bool(access) != bool(secret) or token and not access:
        part = "a token and no keys" if token and not access and not secret else "one key of two"
        raise UsageError(f"{path}: [AWS CREDS] holds {part}; give both, or leave all blank for the AWS default chain")
    for key in SECTIONS["AWS CREDS"]:
        if re.search(r"[\s\"']", getattr(settings, key)):
            raise UsageError(f"{path}: [AWS CREDS] {key.upper()} holds a space or a quote; write the bare value")
    if access and os.name == "posix" and os.stat(path).st_mode & 0o077:
        log.warning("%s holds keys and others on this machine can read it: chmod 600 %s", path, path)


def on_s3(address: str) -> bool:
    return address.split("://")[0] in ("s3", "s3a", "s3n")


def s3_path(address: str) -> str:
    """s3://bucket/a/prefix/ -> bucket/a/prefix"""
    return "/".join(s3_place(address)).rstrip("/")


def s3_place(address: str) -> tuple[str, str]:
    """s3://bucket/a/prefix/ -> ("bucket", "a/prefix"); ("", "") for any other address."""
    found = re.fullmatch("s3[an]?://([^/]+)/*(.*?)/*", address)
    return (found[1], found[2]) if found else ("", "")


# ------------------------------------------------------------------------------------------------------------------
# What each table means: DataFrame in, DataFrame out
# ------------------------------------------------------------------------------------------------------------------


ITEMS = 2**21  # places in a session; they leave a time in ms 42 bits: to 2109
PLAY_KEY = ["ts", "user_id", "session_id", "item"]


def star_schema(
    songs: DataFrame, plays: DataFrame, versions: DataFrame, kept=lambda tables: tables
) -> dict[str, DataFrame]:
    """The five tables, by name. The job's `kept`, Desk.stage_all, writes tables and hands back what was written."""
    songplays = kept({"songplays": songplays_table(plays, songs)})
    dimensions = {
        "users": users_table(versions),
        "songs": songs_table(songs),
        "artists": artists_table(songs),
        "time": time_table(songplays["songplays"]),
    }
    return {**songplays, **kept(dimensions)}


def checked(lines: DataFrame, fields: str, rules: dict[str, str]) -> DataFrame:
    """One row per line: file, value (its text), problem (the first rule that it breaks, or null), and its fields.

    The line is parsed as the one element of an array: Spark's parser stops at the end of the first object, so two
    objects on one line - what `cat` makes of files without a last newline - would lose the second without a trace.
    """
    wrapped = F.concat(F.lit('{"line":['), "value", F.lit('],"closed":true}'))
    schema = f"line ARRAY<STRUCT<{fields}>>, closed BOOLEAN, corrupt STRING"
    options = {"columnNameOfCorruptRecord": "corrupt", "allowSingleQuotes": "false", "allowNonNumericNumbers": "false"}
    # A generator, since a filter is pushed below a projection and would then parse every line a second time.
    parsed = lines.select("file", "value", F.inline(F.array(F.from_json(wrapped, schema, options))))
    broken = [F.when(F.expr(rule), F.lit(reason)) for reason, rule in {**JSON_RULES, **rules}.items()]
    flat = parsed.select("*", F.get("line", F.lit(0)).alias("fields")).select("*", "fields.*")
    return flat.select("file", "value", F.coalesce(*broken).alias("problem"), "fields.*")


def song_lines(lines: DataFrame) -> DataFrame:
    """The checked lines of the song files, counted as the log's are; the text is kept of those with a problem alone."""
    bad = F.col("problem").isNotNull()
    counted = {"value": F.when(bad, F.col("value")), "is_play": ~bad, "ts": F.lit(None).cast("BIGINT")}
    return lines.withColumns(counted)


def clean_songs(lines: DataFrame) -> DataFrame:
    """One row per song_id, of lines that can be used. Where versions compete, the greatest wins, the year first."""
    songs = lines.select(
        "song_id",
        F.expr("coalesce(year, 0)").alias("year"),
        "duration",
        "title",
        known("artist_id").alias("artist_id"),
        "artist_name",
        "artist_location",
        "artist_latitude",
        "artist_longitude",
    )
    return greatest(songs, ["song_id"])


def clean_events(lines: DataFrame) -> DataFrame:
    """One row per log line: of one with a problem its file, text and problem, of any other all but the last two.

    year and month are those of what is kept: plays, and what else tells of a user.
    """
    facts = {
        "is_play": "page = 'NextSong'",
        "ts": "ts",
        "user_id": "try_cast(userId AS BIGINT)",  # blank: null, nobody
        "session_id": "sessionId",
        "item": "itemInSession",
        "first_name": "firstName",
        "last_name": "lastName",
        "gender": "gender",
        "level": "level",
        "location": "location",
        "user_agent": "userAgent",
        "artist": "artist",
        "title": "song",
        "length": "length",
    }
    usable = F.expr("problem IS NULL")
    columns = [F.when(usable, F.expr(fact)).alias(name) for name, fact in facts.items()]
    events = lines.select("file", F.when(~usable, F.col("value")).alias("value"), "problem", *columns)
    month = F.when(F.expr("is_play OR user_id IS NOT NULL"), F.timestamp_millis("ts"))
    return events.select("*", F.year(month).alias("year"), F.month(month).alias("month"))


def user_versions(events: DataFrame) -> DataFrame:
    """One row per version of a user's facts: which event was the latest of it."""
    # By time, then by place in the session. One number: Spark aggregates numbers by hash, and structs by sorting.
    nth = F.expr(f"ts * {ITEMS} + least(greatest(coalesce(item, 0), 0), {ITEMS - 1})")
    return latest_versions(events.where("user_id IS NOT NULL").withColumn("nth", nth))


def latest_versions(versions: DataFrame) -> DataFrame:
    """The same, of versions that were seen on several nights."""
    facts = [column for column in VERSIONS.names() if column != "nth"]
    return versions.groupBy(*facts).agg(F.max("nth").alias("nth"))


def clean_plays(events: DataFrame) -> DataFrame:
    """One row per play, however often its line was delivered. Where versions of a play compete, the greatest wins."""
    facts = ["level", "location", "user_agent", "artist", "title", "length"]
    return greatest(events.where("is_play").select(*PLAY_KEY, *facts), PLAY_KEY)


def songplays_table(plays: DataFrame, songs: DataFrame) -> DataFrame:
    """One row per play, with its song where title, artist and duration agree."""
    matched = plays.withColumn("duration", F.round("length", 5)).join(
        song_lookup(songs), on=["title", "artist", "duration"], how="left"
    )
    start_time = F.timestamp_millis("ts")
    return matched.select(
        songplay_id().alias("songplay_id"),
        start_time.alias("start_time"),
        "user_id",
        "level",
        "song_id",
        "artist_id",
        "session_id",
        "location",
        "user_agent",
        F.year(start_time).alias("year"),
        F.month(start_time).alias("month"),
    )


def songplay_id() -> Column:
    return F.xxhash64(*PLAY_KEY)


def song_lookup(songs: DataFrame) -> DataFrame:
    """One row per title, artist name and duration to 5 decimals: the smallest song_id, and its artist_id.

    A title alone matches wrongly three times in four, and a duration is a float: 218.93179 may be 218.931790000001.
    """
    keys = ("title", F.col("artist_name").alias("artist"), F.round("duration", 5).alias("duration"))
    return (
        songs.groupBy(*keys)
        .agg(F.min(F.struct("song_id", "artist_id")).alias("song"))
        .select("title", "artist", "duration", "song.*")
    )


def users_table(versions: DataFrame) -> DataFrame:
    """One row per user: every event counts, not only plays; each fact is the latest known."""
    facts = [latest(fact, "nth") for fact in ("first_name", "last_name", "gender", "level")]
    return versions.groupBy("user_id").agg(*facts)


def songs_table(songs: DataFrame) -> DataFrame:
    """One row per song; year is 0 when unknown."""
    return songs.select("song_id", "title", "artist_id", "duration", "year")


def artists_table(songs: DataFrame) -> DataFrame:
    """One row per artist; each fact is the latest known, by the year of the artist's songs."""
    facts = {
        "name": "artist_name",
        "location": "artist_location",
        "latitude": "artist_latitude",
        "longitude": "artist_longitude",
    }
    columns = [latest(column, "year", "song_id").alias(name) for name, column in facts.items()]
    return songs.where("artist_id IS NOT NULL").groupBy("artist_id").agg(*columns)


def time_table(songplays: DataFrame) -> DataFrame:
    """One row per distinct start time of a play, in UTC. week is ISO's, weekday 1 is Sunday."""
    return (
        songplays.select("start_time")
        .distinct()
        .select(
            "start_time",
            F.hour("start_time").alias("hour"),
            F.dayofmonth("start_time").alias("day"),
            F.weekofyear("start_time").alias("week"),
            F.dayofweek("start_time").alias("weekday"),
            F.year("start_time").alias("year"),
            F.month("start_time").alias("month"),
        )
    )


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
    return F.when(F.col(column).cast("string").rlike(r"\S"), F.col(column))


# ------------------------------------------------------------------------------------------------------------------
# The edges: the only functions that touch the world
# ------------------------------------------------------------------------------------------------------------------

SESSION = {
    "spark.sql.session.timeZone": "UTC",  # the machine's zone must not move an hour
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",  # the default, INT96, is out of date
    "spark.sql.parquet.compression.codec": "zstd",  # a fifth smaller than snappy, in the same time
    "spark.sql.files.ignoreCorruptFiles": "false",  # whatever the submitter says: nothing is lost in silence
    "spark.sql.files.ignoreMissingFiles": "false",
    # Files of a good size before tasks for every core: what is written once is read for years.
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
}
PARALLEL_REQUESTS = 32
PATIENCE = {  # a store that answers one request in ten with an error passes; one that is down is told in a minute or so
    "retries": {"mode": "standard", "total_max_attempts": 8},
    "connect_timeout": 5,
    "read_timeout": 30,
    "max_pool_connections": PARALLEL_REQUESTS,
}
# A task's share of bytes, and of tiny files: each is a request to S3. Adaptive execution merges what turns out small.
TASK_BYTES, TASK_FILES = 64 * 2**20, 500
# With less new JSON than this a local run is over before the second of Java's two compilers has paid for itself.
SMALL_INPUT = 128 * 2**20
JAVA_VERSIONS = (17, 21)
JAVA_REMEDY = (
    "install one (Debian: apt install openjdk-17-jre-headless; Fedora: dnf install java-21-openjdk-headless;"
    " macOS: brew install openjdk@17) and set JAVA_HOME to it"
)


def spark_session(settings: Settings, small: bool = False) -> SparkSession:
    """The submitter's session as it is, or a local one of our own, which for little input starts quicker."""
    builder = SparkSession.builder.appName("sparkify-etl")
    if not submitted():
        check_java()
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # spares two warnings about the machine's name
        for key, value in {**local_session(small), **s3a_packages(settings)}.items():
            builder = builder.config(key, value)
    spark = builder.getOrCreate()
    for key, value in SESSION.items():
        spark.conf.set(key, value)
    connect_s3(spark, settings)
    return spark


def submitted() -> bool:
    """Whether there is a session or a JVM already: spark-submit's, a notebook's, an earlier run's."""
    return "PYSPARK_GATEWAY_PORT" in os.environ or SparkSession.getActiveSession() is not None


def local_session(small: bool) -> dict[str, str]:
    """Half of the machine's memory, at most 8 GB; nothing listens beyond this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "spark.master": "local[*, 4]",  # a task may fail three times, as on a cluster
        "spark.driver.memory": f"{max(1, min(8, memory // 2**31))}g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        # A job minds no pauses, and has few cores.
        "spark.driver.defaultJavaOptions": "-XX:+UseParallelGC" + " -XX:TieredStopAtLevel=1" * small,
        "spark.ui.enabled": "false",
        "spark.log.level": "OFF",  # two stack traces a failed task; what they say is in the one line that main tells
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
    }


def check_java() -> None:
    """A clear line in place of the stack trace of a Spark that finds no Java, or one that it cannot run on."""
    home = os.environ.get("JAVA_HOME")
    where = f"JAVA_HOME={home}" if home else "the PATH"
    version = java_version(os.path.join(home, "bin", "java") if home else "java")
    if version not in JAVA_VERSIONS:
        found = f"holds Java {version}" if version else "holds no Java"
        raise UsageError(f"Spark needs Java {' or '.join(map(str, JAVA_VERSIONS))}, and {where} {found}: {JAVA_REMEDY}")


def java_version(java: str) -> int | None:
    """The major version of a java command; None if it does not start."""
    try:
        told = subprocess.run([java, "-version"], stderr=subprocess.PIPE, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return None
    version = re.search(r'version "(?:1\.)?(\d+)', told)
    return int(version.group(1)) if version else None


# S3A and its committer for a local session, by the Hadoop that Spark brings: the least that serves, 9 MB in place of
# the AWS bundle's 500. A submitter brings its own with --packages; on EMR they are there.
S3A_PACKAGES = {
    "3.3": "org.apache.spark:spark-hadoop-cloud_{scala}:3.5.5 com.amazonaws:aws-java-sdk-s3:1.12.262"
    " com.amazonaws:aws-java-sdk-sts:1.12.262 com.amazonaws:aws-java-sdk-dynamodb:1.12.262",  # 3.5.6 is not to be had
    "3.4": "org.apache.spark:spark-hadoop-cloud_{scala}:{spark} software.amazon.awssdk:s3:2.25.53"
    " software.amazon.awssdk:s3-transfer-manager:2.25.53",
}
S3A_EXCLUDES = (
    "software.amazon.awssdk:bundle com.amazonaws:aws-java-sdk-bundle org.apache.hadoop:hadoop-client-runtime"
    " org.apache.hadoop:hadoop-azure org.apache.hadoop:hadoop-cloud-storage org.eclipse.jetty:* io.netty:* org.slf4j:*"
    " com.google.*:* com.squareup.*:* com.fasterxml.*:* commons-*:*"
)


def s3a_packages(settings: Settings) -> dict[str, str]:
    """What a local session needs to reach S3; nothing if it does not."""
    if not uses_s3(settings):
        return {}
    jars = " ".join(os.listdir(os.path.join(_find_spark_home(), "jars")))
    hadoop = re.search(r"hadoop-client-api-([\d.]+)\.jar", jars).group(1)
    scala, spark = re.search(r"spark-core_([\d.]+)-([\d.]+)\.jar", jars).groups()
    sdk = next((packages for version, packages in S3A_PACKAGES.items() if hadoop.startswith(version)), None)
    if not sdk:
        raise UsageError(
            f"no S3 connector is known for Hadoop {hadoop}; start the job with spark-submit --packages ..."
        )
    packages = [f"org.apache.hadoop:hadoop-aws:{hadoop}", *sdk.format(scala=scala, spark=spark).split()]
    return {"spark.jars.packages": ",".join(packages), "spark.jars.excludes": ",".join(S3A_EXCLUDES.split())}


# Uploads that appear all at once when the job commits, in place of copies.
MAGIC_COMMITTER = {
    "spark.sql.sources.commitProtocolClass": "org.apache.spark.internal.io.cloud.PathOutputCommitProtocol",
    "spark.sql.parquet.output.committer.class": "org.apache.spark.internal.io.cloud.BindingParquetOutputCommitter",
}


def uses_s3(settings: Settings) -> bool:
    return on_s3(settings.input) or on_s3(settings.output)


def connect_s3(spark: SparkSession, settings: Settings) -> None:
    """Tells S3A the keys, the endpoint and the committer; on EMR nothing, Amazon's own serve.

    All at run time: a key given to the builder shows in `ps`, in the Spark UI and in YARN's copy of the configuration.
    """
    conf = spark._jsc.hadoopConfiguration()
    if not uses_s3(settings) or on_emr(spark):
        return
    keys = s3a_keys(settings)
    if keys:
        provider = "TemporaryAWSCredentialsProvider" if keys[2] else "SimpleAWSCredentialsProvider"
        conf.set("fs.s3a.aws.credentials.provider", f"org.apache.hadoop.fs.s3a.{provider}")
        for name, value in zip(("access.key", "secret.key", "session.token"), keys):
            conf.set(f"fs.s3a.{name}", value or "")
    if settings.endpoint:
        conf.set("fs.s3a.endpoint", settings.endpoint)
        conf.set("fs.s3a.path.style.access", "true")
    if settings.region or settings.endpoint:
        conf.set("fs.s3a.endpoint.region", settings.region or "us-east-1")
    if settings.sse:
        conf.set("fs.s3a.encryption.algorithm", ENCRYPTIONS[settings.sse])
        conf.set("fs.s3a.encryption.key", settings.kms_key_id)
    conf.set("fs.s3a.committer.name", "magic")
    for key, name in MAGIC_COMMITTER.items():
        try:
            spark._jvm.org.apache.spark.util.Utils.classForName(name, False, False)
        except Py4JError:
            log.warning("the submitter brought no spark-hadoop-cloud; tables are written by copies, which is slower")
            break
        spark.conf.set(key, name)


def on_emr(spark: SparkSession) -> bool:
    """Whether s3:// is served here: on EMR it is, by Amazon's own; elsewhere only s3a:// is."""
    return spark._jsc.hadoopConfiguration().get("fs.s3.impl") is not None


def s3a_keys(settings: Settings) -> tuple[str, str, str | None] | None:
    """Access key, secret key, token: dl.cfg's, or what boto3 finds and S3A would not; None where S3A finds them."""
    if settings.aws_access_key_id:
        return settings.aws_access_key_id, settings.aws_secret_access_key, settings.aws_session_token or None
    found = aws_session(settings).get_credentials()
    if found is None or found.method in ("env", "iam-role", "container-role"):
        return None
    return tuple(found.get_frozen_credentials())[:3]


def aws_session(settings: Settings):
    """boto3's session: dl.cfg's keys, or the AWS default chain (environment, profile, SSO, instance)."""
    try:
        import boto3  # not needed for tables on a disk
    except ImportError:
        raise UsageError(f"S3 needs boto3 here: {sys.executable} -m pip install boto3") from None
    return boto3.Session(
        aws_access_key_id=settings.aws_access_key_id or None,
        aws_secret_access_key=settings.aws_secret_access_key or None,
        aws_session_token=settings.aws_session_token or None,
        region_name=settings.region or None,
    )


def s3_client(settings: Settings, **config: object):
    """boto3's S3 client for the lake; keywords go to botocore's Config."""
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    style = {"s3": {"addressing_style": "path"}} if settings.endpoint else {}
    try:
        return aws_session(settings).client(
            "s3", endpoint_url=settings.endpoint or None, config=Config(**{**style, **PATIENCE, **config})
        )
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"S3: {error}; mend the profile, the keys or [LAKE] ENDPOINT") from None


def address(spark: SparkSession, place: str) -> str:
    """The place as Hadoop is to be told it: s3:// where it is served, else s3a://; file:// for a directory."""
    if on_s3(place):
        return ("s3://" if on_emr(spark) else "s3a://") + s3_path(place)
    if not spark.sparkContext.master.startswith("local"):
        raise UsageError(f"{place}: a cluster's machines do not share a directory; give an s3:// address")
    return f"file://{os.path.abspath(place)}"


def read_lines(spark: SparkSession, directory: str, names: Iterable[str] | None = None) -> DataFrame:
    """One row per line that is not blank: file, value. *.json and *.json.gz at any depth, or those of the names."""
    if names is None:
        paths = [directory]
    else:
        paths = [os.path.join(directory, re.sub(r"([*?{}\[\]\\])", r"\\\1", name)) for name in names]
    if not paths:
        return spark.sql("SELECT '' AS file, '' AS value WHERE false")
    reader = spark.read.option("recursiveFileLookup", True).option("pathGlobFilter", "*.{json,json.gz}")
    lines = reader.text(paths).select(F.col("_metadata.file_path").alias("file"), "value")
    return lines.where(r"contains(value, '{') OR value RLIKE '\\S'")  # the first is quick, and nearly always true


def tasks_for(spark: SparkSession, sizes: Iterable[int]) -> int:
    """In how many tasks to work on files of these sizes. A literal is too many for a sample, too few for a year."""
    sizes = list(sizes)
    return max(spark.sparkContext.defaultParallelism, sum(sizes) // TASK_BYTES, len(sizes) // TASK_FILES)


def write_table(spark: SparkSession, table: Table, rows: DataFrame, directory: str) -> DataFrame:
    """Writes the rows as the table's files and hands back what was written.

    REBALANCE lets adaptive execution size the files: small ones are merged, a large month is split.
    """
    by = f"({', '.join(table.partitions)})" if table.partitions else ""
    sized = spark.sql(f"SELECT /*+ REBALANCE{by} */ * FROM {{rows}}", rows=rows.select(*table.names()))
    ordered = sized.sortWithinPartitions(*table.partitions, *table.order)
    ordered.write.partitionBy(*table.partitions).parquet(directory)
    rows = spark.read.schema(table.columns).parquet(directory)
    if rows.inputFiles():  # a partitioned table without rows has none
        check_schema(table, rows, spark.read.parquet(directory))
    return rows


def rows_in(spark: SparkSession, table: Table, root: str, files: Iterable[str]) -> DataFrame:
    """The rows of the table that are in these files below the root."""
    reader, paths = spark.read.schema(table.columns), [f"{root}/{file}" for file in files]
    if not paths:
        return spark.createDataFrame([], table.columns).where("false")
    return reader.option("basePath", f"{root}/{table.name}").parquet(*paths)


def check_schema(table: Table, declared: DataFrame, written: DataFrame) -> None:
    """JobError if the files hold other columns than the table has. Those of its partitions are in their paths."""
    there, due = (
        [column for column in rows.dtypes if column[0] not in table.partitions] for rows in (written, declared)
    )
    if sorted(there) != sorted(due):
        other = ", ".join(sorted({" ".join(column) for column in {*there} ^ {*due}}))
        raise JobError(f"{table.name}: the columns written are not those declared: {other}; nothing was published")


# ------------------------------------------------------------------------------------------------------------------
# Storage: a directory on disk or a prefix in a bucket, with the same six calls. Names are relative, with slashes
# ------------------------------------------------------------------------------------------------------------------


class Size(int):
    """Bytes of a file. `mark` changes with its content: it has the time in ns on a disk, the ETag on S3."""

    def __new__(cls, size: int, mark: str) -> Size:
        self = super().__new__(cls, size)
        self.mark = f"{size} {mark}"
        return self


class Disk:
    """A directory."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def at(self, name: str) -> str:
        return os.path.join(self.root, name)

    def files(self, below: str) -> dict[str, Size]:
        """The files at any depth below a directory, and their sizes; none if it is not there."""
        top = self.at(below)
        walk = os.walk(top, onerror=raised, followlinks=True) if os.path.isdir(top) else ()
        paths = (os.path.join(directory, name) for directory, _, names in walk for name in names)
        told = ((os.path.relpath(path, self.root), os.stat(path)) for path in paths)
        return {name: Size(file.st_size, str(file.st_mtime_ns)) for name, file in told}

    def read(self, name: str) -> str | None:
        """The text of a file; None if it is not there."""
        try:
            with open(self.at(name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """All of the text, or nothing: a reader never finds half of it."""
        draft = self.draft(name, text)
        os.sync()  # nor, after a power cut, a journal of files that have never reached the disk
        os.replace(draft, self.at(name))

    def create(self, name: str, text: str) -> None:
        """As write, if there is no such file yet: of any number who try at once, one succeeds."""
        draft = self.draft(name, text)
        with suppress(FileExistsError, FileNotFoundError):  # the second: the winner has cleared the draft away
            os.link(draft, self.at(name))
        with suppress(FileNotFoundError):
            os.unlink(draft)

    def draft(self, name: str, text: str) -> str:
        path = f"{self.at(name)}.{uuid.uuid4().hex}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def move(self, source: str, target: str) -> None:
        """Done already is done: a publication that was cut short is repeated from its beginning."""
        os.makedirs(os.path.dirname(self.at(target)), exist_ok=True)
        if not os.path.exists(self.at(target)):
            os.replace(self.at(source), self.at(target))

    def delete(self, names: Iterable[str]) -> None:
        """The files, and the directories that this leaves empty; what is not there is no trouble."""
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(self.at(name))
            with suppress(OSError):  # not empty
                os.removedirs(os.path.dirname(self.at(name)))

    def clear(self, directory: str) -> None:
        """The directory and all that is in it."""
        if os.path.isdir(self.at(directory)):
            shutil.rmtree(self.at(directory))


class Bucket:
    """A prefix in a bucket, by boto3: Hadoop's file system has no conditional PUT, deletes objects one at a time, and
    needs six requests to move one."""

    def __init__(self, root: str, settings: Settings) -> None:
        self.root = root
        self.bucket, prefix = s3_place(root)
        self.prefix = f"{prefix}/".lstrip("/")
        self.client = s3_client(settings)
        self.encryption = {"ServerSideEncryption": settings.sse} if settings.sse else {}
        if settings.kms_key_id:
            self.encryption["SSEKMSKeyId"] = settings.kms_key_id

    def ask(self, operation: str, **arguments: object) -> dict:
        """The answer to one request. StoreError tells what is wrong and what to do."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = getattr(self.client, operation)(Bucket=self.bucket, **arguments)
            return {**answer, "Body": answer["Body"].read()} if "Body" in answer else answer
        except (BotoCoreError, ClientError) as error:
            raise StoreError(self.root, error) from None

    def files(self, below: str) -> dict[str, Size]:
        """As Disk's. Keys that end in a slash only mark a directory."""
        found = self.keys(f"{below}/".lstrip("/"))
        return {key[len(self.prefix) :]: size for key, size in found if not key.endswith("/")}

    def keys(self, prefix: str) -> Iterator[tuple[str, Size]]:
        arguments = {"Prefix": self.prefix + prefix}
        while arguments:
            page = self.ask("list_objects_v2", **arguments)
            yield from ((found["Key"], Size(found["Size"], found["ETag"])) for found in page.get("Contents", ()))
            token = page.get("NextContinuationToken")
            arguments = {**arguments, "ContinuationToken": token} if token else {}

    def read(self, name: str) -> str | None:
        try:
            return self.ask("get_object", Key=self.prefix + name)["Body"].decode("utf-8", errors="replace")
        except StoreError as error:
            if error.code == "NoSuchKey":
                return None
            raise

    def write(self, name: str, text: str, **condition: str) -> None:
        self.ask("put_object", Key=self.prefix + name, Body=text.encode("utf-8"), **self.encryption, **condition)

    def create(self, name: str, text: str) -> None:
        try:
            self.write(name, text, IfNoneMatch="*")
        except StoreError as error:
            if error.code not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise

    def move(self, source: str, target: str) -> None:
        """A copy, which appears whole or not at all; the source goes when its directory is cleared."""
        where = {"Bucket": self.bucket, "Key": self.prefix + source}
        self.ask("copy_object", Key=self.prefix + target, CopySource=where, **self.encryption)

    def delete(self, names: Iterable[str]) -> None:
        keys = [{"Key": self.prefix + name} for name in names]
        for first in range(0, len(keys), 1000):
            answer = self.ask("delete_objects", Delete={"Objects": keys[first : first + 1000], "Quiet": True})
            for error in answer.get("Errors", ()):
                raise JobError(f"{self.root}: cannot delete {error['Key']}: {error['Code']}; run the job again")

    def clear(self, directory: str) -> None:
        """As Disk's, with the uploads that a killed run has left open."""
        self.delete(key[len(self.prefix) :] for key, _ in list(self.keys(f"{directory}/")))
        try:
            while uploads := self.ask("list_multipart_uploads", Prefix=f"{self.prefix}{directory}/").get("Uploads"):
                for upload in uploads:
                    self.ask("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
        except StoreError as error:
            if error.code != "AccessDenied":
                raise
            log.warning("%s; uploads that a killed run has left open stay, and cost", error)


def storage(place: str, settings: Settings) -> Disk | Bucket:
    return Bucket(place, settings) if on_s3(place) else Disk(place)


def raised(error: OSError) -> None:
    raise error


def json_files(source: Disk | Bucket, kind: str) -> dict[str, Size]:
    """The JSON files below INPUT/<kind> and their sizes, by Spark's rule: what begins with _ or . is hidden."""
    hidden_in_spark = re.compile(r"/(\.|_[^/=]*(/|$))")
    visible = {name: size for name, size in source.files(kind).items() if not hidden_in_spark.search(name)}
    files = {name: size for name, size in visible.items() if name.endswith((".json", ".json.gz"))}
    others = visible.keys() - files.keys()
    if others:
        told = "%s: %s files are not read: their names do not end in .json or .json.gz; the first is %s"
        log.warning(told, kind, f"{len(others):,}", min(others))
    if not files:
        raise UsageError(
            f"{source.root}/{kind} does not exist or holds no *.json or *.json.gz file; set [LAKE] INPUT to what holds"
            " song_data and log_data"
        )
    return files


# ------------------------------------------------------------------------------------------------------------------
# One run at a time
# ------------------------------------------------------------------------------------------------------------------

LOCK = "_lock"


class Lease:
    """The right to write to the lake, held by one run. It ends by itself some time after its holder has died.

    Each state of it is a file of its own, and the one with the greatest number tells who holds it and until when. To
    take it, to keep it and to give it back is to create the next number, in which of all who try at once one succeeds:
    a compare-and-set on any storage.
    """

    def __init__(self, lake: Disk | Bucket, run: str, seconds: float, source: Disk | Bucket | None = None) -> None:
        """source: what the run reads. When it gives no answer any more the lease ends too, and the run with it."""
        self.lake, self.source, self.seconds, self.number = lake, source or lake, seconds, 0
        self.holder = {"run": run, "host": socket.gethostname(), "pid": os.getpid(), "since": now()}
        self.holder.update(machine=this_machine(), id=uuid.uuid4().hex)
        self.one_at_a_time, self.ended = threading.Lock(), threading.Event()

    def __enter__(self) -> Lease:
        self.number, state = self.newest()
        if running(state) or not self.advance(self.seconds):
            raise JobError(f"{self.lake.root}: {holder_of(self.newest()[1])}; this run has changed nothing")
        for duty in (self.keep, self.watch):
            threading.Thread(target=duty, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        try:
            self.advance(0)
        except (JobError, OSError) as error:
            log.warning("%s; the next run on another machine has to wait %s s", error, self.seconds)

    def newest(self) -> tuple[int, dict]:
        """The newest state and its number."""
        while True:
            with suppress(FileNotFoundError):  # a file that went while the directory was read
                numbers = [name[len(LOCK) + 1 : -5] for name in self.lake.files(LOCK) if name.endswith(".json")]
                if not numbers:
                    return 0, {"expires": 0}
                name = f"{LOCK}/{max(numbers)}.json"
                text = self.lake.read(name)
                if text is not None:  # else there is a newer one by now
                    return int(max(numbers)), parsed(self.lake, name, text, "run", "expires", "machine")

    def advance(self, seconds: float) -> bool:
        """Whether our next state has become the newest, which it does if the last that we know still was."""
        with self.one_at_a_time:
            if seconds and self.ended.is_set():  # given back while `keep` was on its way here
                return True
            number, expires = self.number + 1, time.time() + seconds if seconds else 0
            self.lake.create(f"{LOCK}/{number:012}.json", json.dumps({**self.holder, "expires": expires}))
            newest, state = self.newest()
            if newest != number or state.get("id") != self.holder["id"]:
                return False
            self.number, self.until = number, state["expires"] or float("inf")  # given back: nothing to watch
            with suppress(JobError, OSError):  # they are only in the way
                self.lake.delete([name for name in self.lake.files(LOCK) if name < f"{LOCK}/{number:012}"])
            return True

    def renew(self) -> None:
        if not self.advance(self.seconds):
            raise JobError(f"{self.lake.root}: {holder_of(self.newest()[1])}; this run was taken for dead and gives up")

    def keep(self) -> None:
        """Renews the lease while the run lives."""
        while not self.ended.wait(self.seconds / 3):
            try:
                self.look_at_source()
                self.renew()
            except (StoreError, OSError) as error:
                log.warning("%s; trying again", error)
            except JobError as error:
                give_up(str(error))

    def look_at_source(self) -> None:
        """StoreError if the input's store gives no answer. A refusal is one."""
        try:
            self.source.files(LOCK)  # any name serves; below this one there is little to list
        except StoreError as error:
            if not 400 <= error.status < 500:
                raise

    def watch(self) -> None:
        """Ends a run whose lease is over, whatever it is waiting for: another may have begun."""
        while not self.ended.wait(1):
            if time.time() > self.until:
                stores = " or ".join(sorted({self.source.root, self.lake.root}))
                give_up(f"{stores}: no answer for [LAKE] LEASE_SECONDS = {self.seconds:.0f}; run the job again")


def give_up(why: str) -> None:
    """Ends the process at once: what it did from now on could harm the next run, and what it leaves that one clears."""
    log.error("%s", why)
    os._exit(1)


def running(state: dict) -> bool:
    """Whether the holder of a lease may be alive. One that has died on this machine is known to be dead."""
    if state["expires"] < time.time():
        return False
    if state["machine"] != this_machine():
        return True
    try:
        os.kill(state["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, and alive
        pass
    return True


def this_machine() -> str:
    """Where a process id means one process: the machine since it was started, and the container."""
    marks = [socket.gethostname()]
    with suppress(OSError):
        marks.append(os.readlink("/proc/self/ns/pid"))
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            marks.append(file.read().strip())
    return " ".join(marks)


def holder_of(state: dict) -> str:
    if "run" not in state:
        return "another run has begun at the same moment"
    until = datetime.fromtimestamp(state["expires"], timezone.utc)
    who = "run {run} of process {pid} on {host}, since {since}".format(**state)
    return f"another run is at work: {who}; if it is dead, its lease ends by itself at {until:%H:%M:%S} UTC"


def now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


# ------------------------------------------------------------------------------------------------------------------
# Publishing: all of it or nothing
# ------------------------------------------------------------------------------------------------------------------

# Readers pass over names that begin with an underscore.
STAGING, JOURNAL, QUARANTINE, RUNS, STATE = "_staging", "_journal.json", "_quarantine", "_runs", "_state"
LEDGER = f"{STATE}/ledger.json"
AGAIN = "_again"  # where events are staged that come once more; that may happen twice in a run, hence numbers
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # of a partition
PUBLISHED = "published"  # the outcome of a run that did; of another it is "failed: ...", and why


def bad_lines_of(report: dict) -> str:
    """Where the lines lie that the run could not use."""
    return f"{QUARANTINE}/run={report['run']}"


def publish(lake: Disk | Bucket, lease: Lease, report: dict, staged: dict[str, int], past: Past) -> None:
    """Makes what is staged part of the lake, in the place of the files that the run retires. staged: rows by name.

    The journal says what is to be moved in and what is to be retired: until it is written readers see the old files,
    from then on nothing can stop the new ones. The run's report and the ledger of what the lake holds travel in it.
    """
    staging, retired = f"{STAGING}/{report['run']}", past.retired if report["outcome"] == PUBLISHED else ()
    moves, files = {}, {file: size for file, size in past.files.items() if file not in retired}
    for name, rows in {**staged, bad_lines_of(report): 0}.items():
        found = {file: size for file, size in lake.files(f"{staging}/{name}").items() if not hidden(file)}
        if rows and not found:
            raise JobError(f"{lake.root}/{staging}/{name} does not hold what was written there; nothing was published")
        targets = {file: re.sub(f"^{staging}/({AGAIN}[0-9]+/)?", "", file) for file in found}
        moves.update(targets)
        if name != bad_lines_of(report):
            files.update({targets[file]: size for file, size in found.items()})
    for name, table in report["tables"].items():
        sizes = [files[file] for file in of_table(files, name)]
        table.update(files=len(sizes), bytes=sum(sizes))
    journal = {"move": moves, "retire": sorted(retired), "report": report}
    if report["outcome"] == PUBLISHED:
        journal["ledger"] = past.ledger(files, report["tables"])
    lease.renew()
    lake.write(f"{staging}/{JOURNAL}", json.dumps(journal))
    finish(lake, staging)


def parsed(lake: Disk | Bucket, name: str, text: str, *keys: str) -> dict:
    """What a run has written of itself, with these keys at least. JobError if it is not that."""
    with suppress(ValueError):
        told = json.loads(text)
        if isinstance(told, dict) and told.keys() >= {*keys}:
            return told
    raise JobError(f"{lake.root}/{name}: not what a run has written; restore it, or remove it and run the job again")


def hidden(file: str) -> bool:
    """Whether a staged file is none of a table's: Spark's own marks, and the lines of logs that are not kept."""
    return os.path.basename(file).startswith(("_", ".")) or f"{EVENTS.name}/year={NO_VALUE}" in file


def finish(lake: Disk | Bucket, staging: str) -> None:
    """Does what the journal says, if there is one, and clears the staging. Doing it twice does no harm."""
    text = lake.read(f"{staging}/{JOURNAL}")
    if text is not None:
        journal = parsed(lake, f"{staging}/{JOURNAL}", text, "move", "retire", "report")
        try:
            carry_out(lake, journal, f"{staging}/{JOURNAL}")
        except (StoreError, OSError) as error:
            told = f"{one_line(error)}; the run is half published: run the job again now, which finishes it first"
            raise JobError(told) from None
    lake.clear(staging)


def carry_out(lake: Disk | Bucket, journal: dict, name: str) -> None:
    """Done twice it does no harm, and while the journal is there it is done again."""
    since, report = time.monotonic(), journal["report"]
    move_all(lake, journal["move"], name)
    lake.delete(journal["retire"])
    if "ledger" in journal:
        lake.write(LEDGER, json.dumps(journal["ledger"]))
    report["seconds"]["publish"] = round(time.monotonic() - since, 3)
    lake.write(f"{RUNS}/{report['run']}.json", json.dumps(report))
    lake.delete([name])


def move_all(lake: Disk | Bucket, moves: dict[str, str], journal: str) -> None:
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:  # where the store copies, most of a move is waiting
        try:
            list(pool.map(lake.move, moves.keys(), moves.values()))
        except (FileNotFoundError, StoreError) as error:
            if getattr(error, "code", "NoSuchKey") != "NoSuchKey":
                raise
            told = f"{lake.root}/{journal} names files that are gone; remove it and run the job again"
            raise JobError(told) from None


def recover(lake: Disk | Bucket) -> None:
    """Finishes what a killed run had begun to publish, and clears away what it had not."""
    for name in sorted({file.split("/")[1] for file in lake.files(STAGING) if file.count("/") > 1}):
        log.info("the run %s did not come to its end; cleaning up after it", name)
        finish(lake, f"{STAGING}/{name}")
    lake.clear(STAGING)


def last_published(lake: Disk | Bucket) -> dict:
    """The report of the last run that published tables; one without tables if there is none."""
    for name in sorted((name for name in lake.files(RUNS) if name.endswith(".json")), reverse=True):
        report = parsed(lake, name, lake.read(name) or "", "outcome", "tables")
        if report["outcome"] == PUBLISHED:
            return report
    return {"tables": {}}


# ------------------------------------------------------------------------------------------------------------------
# Accounting and audit: every line in is told, every row out is checked
# ------------------------------------------------------------------------------------------------------------------

FATES = ("accepted", "duplicates", "no_play", "quarantined")  # what becomes of a line


def name_below(source: str) -> Column:
    """The name below INPUT of the file that Spark tells by its address: of one place file:/ or file:///, s3:// or s3a://."""
    scheme = "^[^:]+:/*"
    decoded = "url_decode(replace(file, '+', '%2B'))"  # + would be a space
    return F.expr(f"substring(regexp_replace({decoded}, '{scheme}', ''), {len(re.sub(scheme, '', source)) + 2})")


class Account:
    """What became of the lines of one kind of input, by file. Lines are those that are not blank."""

    def __init__(self, kind: str, sizes: dict[str, int], source: str, rows: DataFrame) -> None:
        """sizes: bytes by file. rows: file, value, problem, is_play, ts, and the key column."""
        self.kind, self.name, self.rows = kind, name_below(source), rows
        self.problems, self.repeated = Counter(), 0
        self.files = {name: {"file": name, "bytes": size, **dict.fromkeys(FATES, 0)} for name, size in sizes.items()}
        counts = rows.groupBy("file", "problem", "is_play").agg(F.count("*").alias("lines"), F.min("ts"), F.max("ts"))
        counted = counts.withColumn("file", self.name).collect()
        times = [ts for row in counted if row.is_play for ts in row[-2:] if ts is not None]
        self.span = (min(times, default=None), max(times, default=None))  # the first and the last ts of a play
        for row in counted:
            fate = "quarantined" if row.problem else "accepted" if row.is_play else "no_play"
            late = {"file": row.file, "bytes": None, **dict.fromkeys(FATES, 0)}  # came after the listing
            self.files.setdefault(row.file, late)[fate] += row.lines
            if row.problem:
                self.problems[row.problem] += row.lines

    def tell_copies(self, key: str, there: DataFrame) -> None:
        """Which files hold copies: lines whose key is there already, or in other lines too. Of lines that share a key
        the one in the file with the smallest name is the original."""
        keys = self.rows.where("is_play").select("file", key)
        self.repeated_keys = already(there, keys, key)
        self.repeated = self.repeated_keys.count()
        if self.repeated or count_of(keys, key) < self.total("accepted"):
            new = keys.join(self.repeated_keys, on=key, how="left_anti")
            originals = new.groupBy(key).agg(F.min(self.name).alias("file")).groupBy("file").count()
            kept = {row.file: row["count"] for row in originals.collect()}
            for name, file in self.files.items():
                file["duplicates"] = file["accepted"] - kept.get(name, 0)
                file["accepted"] -= file["duplicates"]

    def quarantined(self) -> DataFrame:
        """The lines that cannot be used: file, reason, line (with U+FFFD for what is not UTF-8)."""
        named = {"file": self.name, "reason": F.col("problem"), "line": F.col("value")}
        return self.rows.where("problem IS NOT NULL").select(*(column.alias(name) for name, column in named.items()))

    def total(self, fate: str) -> int:
        return sum(file[fate] for file in self.files.values())

    def totals(self) -> dict[str, int]:
        fates = {fate: self.total(fate) for fate in FATES}
        return {"lines": sum(fates.values()), **fates}

    def check(self, settings: Settings, where: str) -> None:
        """Logs what cannot be used. JobError if that is more than the limits allow."""
        lines, bad = self.totals()["lines"], self.total("quarantined")
        log.info("%s: %s lines, %s of them quarantined", self.kind, f"{lines:,}", f"{bad:,}")
        for problem, count in sorted(self.problems.items()):
            log.warning("%s: %s lines quarantined: %s; they are in %s", self.kind, f"{count:,}", problem, where)
        empty = [name for name, file in self.files.items() if not any(file[fate] for fate in FATES)]
        if empty:
            told = "%s: %s files hold no line, or are gone; the first is %s"
            log.warning(told, self.kind, f"{len(empty):,}", min(empty))
        for key, value in (("max_bad_lines", bad), ("max_bad_ratio", bad / max(lines, 1))):
            if value > float(getattr(settings, key) or "inf"):
                raise JobError(
                    f"{self.kind}: {bad:,} of {lines:,} lines cannot be used, and [LAKE] {key.upper()} ="
                    f" {getattr(settings, key)}: {', '.join(f'{n:,} {why}' for why, n in self.problems.most_common())};"
                    f" they are in {where}; mend the input or raise the limit; nothing was published"
                )


def audit(tables: dict[str, DataFrame], expected: dict[str, int], plays: tuple[int, int]) -> dict[str, dict]:
    """By table, read back from what was written: how many rows, keys known, keys distinct. JobError if not as promised.

    expected: how many rows there must be, by what the input tells. plays: the first and the last ts of its plays.
    """
    keys = {name: rows.select(TABLES[name].key, *TABLES[name].references) for name, rows in tables.items()}
    found = {row.table: row for row in reduce(DataFrame.union, map(key_counts, [keys] * len(keys), keys)).collect()}
    span = keys["songplays"].selectExpr("unix_millis(min(start_time))", "unix_millis(max(start_time))").first()
    referred = {place: count for name, row in found.items() for place, count in zip(referring(name), row.referred)}
    artists, times = referred["songs", "artist_id"], referred["songplays", "start_time"]
    expected = {**expected, "artists": artists, "time": times}
    audited = {}
    for name, row in found.items():
        audited[name] = {"rows": row.rows, "known": row.known, "distinct": row.distinct, "expected": expected[name]}
        if len(set(audited[name].values())) != 1:
            told = ", ".join(f"{number:,} {what}" for what, number in audited[name].items())
            raise JobError(f"{name}: {TABLES[name].key}: {told}; did the input change meanwhile? Nothing was published")
    for name, row in found.items():
        for (other, column), lost in zip(referring(name), row.lost):
            if lost:
                raise JobError(f"{other}: a {column} is not in {name}; nothing was published")
    if tuple(span) != plays:
        raise JobError(f"songplays: times from {span[0]} to {span[1]}, in the input {plays}; nothing was published")
    return audited


def referring(name: str) -> list[tuple[str, str]]:
    """The tables and their columns that hold keys of this table."""
    return [(table.name, column) for table in TABLES.values() for column, to in table.references.items() if to == name]


def key_counts(keys: dict[str, DataFrame], name: str) -> DataFrame:
    """One row about a table's key: how many rows, known, distinct, and of the columns that refer to it, how many values
    there are, and how many that are not in the table. All in one shuffle, by value."""
    columns = [(name, TABLES[name].key), *referring(name)]
    places = range(len(columns))
    values = reduce(
        DataFrame.union,
        (
            keys[table].select(F.col(column).alias("value"), *(F.lit(int(n == here)).alias(f"n{n}") for n in places))
            for here, (table, column) in enumerate(columns)
        ),
    )
    by_value = values.groupBy("value").agg(*(F.sum(f"n{n}").alias(f"n{n}") for n in places))

    def counts(condition: str) -> Column:
        """Of how many values it is true, for each column that refers to the key."""
        found = (F.expr(f"count_if(value IS NOT NULL AND {condition.format(n)})") for n in places[1:])
        return F.array(*found).cast("ARRAY<BIGINT>")

    return by_value.agg(
        F.lit(name).alias("table"),
        F.expr("coalesce(sum(n0), 0)").alias("rows"),
        F.expr("coalesce(sum(n0) FILTER (WHERE value IS NOT NULL), 0)").alias("known"),
        F.expr("count_if(value IS NOT NULL AND n0 > 0)").alias("distinct"),
        counts("n{} > 0").alias("referred"),
        counts("n{} > 0 AND n0 = 0").alias("lost"),
    )


def check_shrink(lake: Disk | Bucket, tables: dict[str, dict], settings: Settings) -> None:
    """JobError if a table would be emptied, or has lost more of its rows since the last run than is allowed."""
    before = last_published(lake)["tables"]
    for name, table in tables.items():
        count, was = table["rows"], before[name]["rows"] if name in before else None
        if not count and was != 0 and lake.files(name):  # a table without rows may have a file
            raise JobError(f"{name} would be empty and is not now; look at the input; nothing was published")
        if count < (was or 0) * (1 - float(settings.max_shrink)):
            raise JobError(
                f"{name}: {count:,} rows, and {was:,} in the last run; [LAKE] MAX_SHRINK = {settings.max_shrink}: is"
                " the input whole? If it is, add --allow-shrink for once; nothing was published"
            )


# ------------------------------------------------------------------------------------------------------------------
# Every night: what is new, and what it touches
# ------------------------------------------------------------------------------------------------------------------

BY_MONTH = ("songplays", "time", EVENTS.name)
# A month with so many files so small is built anew when it is next added to, of which its files come out whole.
FEW_FILES, SMALL_FILE = 8, 32 * 2**20


@dataclass
class Past:
    """What earlier runs have left to build on, and what of the input has come, changed or gone since.

    The ledger tells both. Without one, or with one that does not fit the lake, nothing is left to build on: all of the
    input is new, and all that is there is retired.
    """

    rules: dict[str, str | int]  # what has to be the same for rows of two runs to lie in one table
    inputs: dict[str, dict[str, Size]]  # the files of the input, by kind and name
    read_before: dict[str, dict[str, str]]  # the marks that they had when they were read
    files: dict[str, int]  # of the tables and of the state
    rows: dict[str, int]  # of the tables
    retired: set[str] = field(default_factory=set)  # files that this run replaces

    @classmethod
    def of(cls, lake: Disk | Bucket, settings: Settings, inputs: dict[str, dict[str, Size]], full: bool) -> Past:
        there, ledger = lake_files(lake), None if full else read_ledger(lake)
        check_own(lake, there)
        place = s3_path(settings.input) if on_s3(settings.input) else os.path.abspath(settings.input)
        rules = {"meaning": MEANING, "input": place, "songs_partition_by": settings.songs_partition_by}
        why = unfit(ledger, rules, there) if there and not full else ""
        if why:
            log.warning("%s: everything is built anew", why)
        if why or full or not there:
            return cls(rules, inputs, dict.fromkeys(inputs, {}), files={}, rows={}, retired=set(there))
        return cls(rules, inputs, ledger["inputs"], there, ledger["rows"])

    def __post_init__(self) -> None:
        """new: files that are to be read. gone: files whose lines count no more; they have changed or vanished."""
        self.new, self.gone = {}, {}
        for kind, files in self.inputs.items():
            before = self.read_before[kind]
            self.new[kind] = {name: size for name, size in files.items() if before.get(name) != size.mark}
            self.gone[kind] = {name for name, mark in before.items() if name not in files or files[name].mark != mark}
            if self.gone[kind]:
                told = "%s: %s files, %s the first, have changed or vanished; what they touched is built anew"
                log.warning(told, kind, f"{len(self.gone[kind]):,}", min(self.gone[kind]))

    def changed(self, kind: str) -> bool:
        return bool(self.new[kind] or self.gone[kind])

    def files_of(self, name: str, months: Iterable[str] | None = None) -> list[str]:
        """The files of a table that stay, of some months or all."""
        files = (file for file in of_table(self.files, name) if file not in self.retired)
        return [file for file in files if months is None or month_of(file) in months]

    def ledger(self, files: dict[str, int], tables: dict[str, dict]) -> dict:
        """What the next run is to know: the input as it was read, the files of the lake, the rows of its tables."""
        marks = {kind: {name: size.mark for name, size in sizes.items()} for kind, sizes in self.inputs.items()}
        rows = {name: table["rows"] for name, table in tables.items()}
        told = {"rules": self.rules, "inputs": marks, "files": files, "rows": rows}
        return {"checksum": checksum(told), **told}


def lake_files(lake: Disk | Bucket) -> dict[str, int]:
    """The files of the tables and of the state that the ledger tells of, and their bytes."""
    files = {file: int(size) for name in (*TABLES, STATE) for file, size in lake.files(name).items()}
    return {file: size for file, size in files.items() if not file.startswith(LEDGER)}  # nor a draft of it


def check_own(lake: Disk | Bucket, there: dict[str, int]) -> None:
    """UsageError if a file lies where tables go that is of no run: what a run replaces it removes."""
    has_run = bool(lake.files(RUNS))
    for file, size in sorted(there.items()):
        if size and not (has_run and (file.endswith(".parquet") or hidden(file))):
            told = f"{lake.root}/{file} is of no run of this job and lies where its tables go"
            raise UsageError(f"{told}; move it, or set [LAKE] OUTPUT to another place")


def of_table(files: Iterable[str], name: str) -> list[str]:
    return [file for file in files if file.startswith(f"{name}/")]


def read_ledger(lake: Disk | Bucket) -> dict | None:
    """The ledger; None if it is missing or damaged."""
    text = lake.read(LEDGER) or ""
    with suppress(JobError):
        ledger = parsed(lake, LEDGER, text, "checksum")
        if ledger.pop("checksum") == checksum(ledger):
            return ledger
    return None


def checksum(told: dict) -> int:
    return zlib.crc32(json.dumps(told, sort_keys=True).encode())


def unfit(ledger: dict | None, rules: dict[str, str | int], there: dict[str, int]) -> str:
    """Why the lake is not what the ledger tells; "" if it is."""
    if ledger is None:
        return f"{LEDGER} is missing or damaged"
    for rule, value in rules.items():
        if ledger["rules"].get(rule) != value:
            return f"{rule} was {ledger['rules'].get(rule)!r} in the last run, and is {value!r}"
    for file in sorted(there.keys() | ledger["files"].keys()):
        if there.get(file) != ledger["files"].get(file):
            return f"{file} is not as the last run has left it"
    return ""


def month_of(file: str) -> str:
    """songplays/year=2018/month=11/part-0.parquet -> year=2018/month=11"""
    return "/".join(file.split("/")[-3:-1])


class Desk:
    """Where a run works: reads what is new and what is left of earlier runs, and stages what it makes of both."""

    def __init__(self, spark: SparkSession, settings: Settings, past: Past, report: dict) -> None:
        self.spark, self.past, self.report, self.staged = spark, past, report, {}
        self.source, self.lake = address(spark, settings.input), address(spark, settings.output)
        self.staging = f"{self.lake}/{STAGING}/{report['run']}"
        self.tables = dict(TABLES, songs=TABLES["songs"]._replace(partitions=LAYOUTS[settings.songs_partition_by]))
        self.touched: set[str] = set()  # the months that new lines are of
        self.again: set[str] = set()  # the months that are built anew
        report["versions"]["spark"] = spark.version
        self.sizes: list[int] = []  # of the files that the shuffles are to bear
        self.expect(past.new["log_data"].values())

    def expect(self, sizes: Iterable[int]) -> None:
        """Shuffles into as many tasks as these files, and those expected before, need."""
        self.sizes += sizes
        self.spark.conf.set("spark.sql.shuffle.partitions", tasks_for(self.spark, self.sizes))

    def new_lines(self, kind: str, fields: str, rules: dict[str, str]) -> DataFrame:
        new = self.past.new[kind]
        names = None if len(new) == len(self.past.inputs[kind]) else [name[len(kind) + 1 :] for name in new]
        return checked(read_lines(self.spark, f"{self.source}/{kind}", names), fields, rules)

    def there(self, table: Table, months: Iterable[str] | None = None) -> DataFrame:
        """The rows that earlier runs have left, less what this one has retired."""
        return rows_in(self.spark, table, self.lake, self.past.files_of(table.name, months))

    def still_valid(self, kind: str, table: Table, months: Iterable[str] | None = None) -> DataFrame:
        """As there, less the lines of files that are gone."""
        rows, gone = self.there(table, months), self.past.gone[kind]
        return rows.where(~self.is_of(gone)) if gone else rows

    def is_of(self, names: set[str]) -> Column:
        """Whether a row is of one of these files of the input."""
        return name_below(self.source).isin([*names])

    def stage_events(self, events: DataFrame) -> DataFrame:
        """The new events, as columns: to write them and read them is cheaper than to parse twice, or to cache."""
        if not self.past.new["log_data"]:
            return rows_in(self.spark, EVENTS, self.lake, [])
        self.write_events(events, EVENTS.name)
        rows = self.spark.read.schema(EVENTS.columns).parquet(f"{self.staging}/{EVENTS.name}")
        self.touched = {month_of(file) for file in rows.inputFiles()}
        return rows

    def write_events(self, events: DataFrame, name: str) -> None:
        events.write.partitionBy(*EVENTS.partitions).parquet(f"{self.staging}/{name}")
        self.staged[name] = 0

    def stage_again(self, months: set[str]) -> DataFrame:
        """The events of months that are to be built anew; what is there of these months is retired."""
        events = self.still_valid("log_data", EVENTS, months)
        if months:
            log.info("built anew: %s", ", ".join(sorted(months)))
            size = sum(self.past.files[file] for file in self.past.files_of(EVENTS.name, months))
            self.expect([size])
            self.write_events(events.coalesce(1 + size // TASK_BYTES), f"{AGAIN}{len(self.again)}/{EVENTS.name}")
            self.again |= months
        self.past.retired.update(file for name in BY_MONTH for file in self.past.files_of(name, months))
        return events

    def crowded(self) -> set[str]:
        """The months touched that have too many small files."""
        small = Counter(
            (name, month_of(file))
            for name in TABLES
            for file in self.past.files_of(name, self.touched)
            if self.past.files[file] < SMALL_FILE
        )
        return {month for (_, month), count in small.items() if count >= FEW_FILES}

    def plays_there(self, again: DataFrame) -> DataFrame:
        """The ids of the plays that are there, of the months that new lines are of."""
        there = self.there(TABLES["songplays"], self.touched).select("songplay_id")
        return there.union(with_id(again.where("is_play")).select("songplay_id"))

    def new_plays(self, events: DataFrame, copies: bool) -> DataFrame:
        """One row per play that is to be written: of those that are there already, none."""
        if not copies and not self.again:
            return events.where("is_play")  # as they are, which spares a shuffle of wide rows
        plays = with_id(clean_plays(events))
        known = already(self.there(TABLES["songplays"], self.touched), plays, "songplay_id")
        return plays.join(known, on="songplay_id", how="left_anti")

    def stage_versions(self, events: DataFrame, every_event: DataFrame) -> DataFrame:
        """The versions of the users' facts, of all nights. every_event: with those that come once more."""
        if self.past.gone["log_data"]:
            versions = user_versions(self.there(EVENTS).unionByName(every_event))
        else:
            versions = latest_versions(self.there(VERSIONS).unionByName(user_versions(events)))
        return self.stage(VERSIONS, versions)

    def stage_all(self, tables: dict[str, DataFrame]) -> dict[str, DataFrame]:
        """Stages some of the five tables side by side: one alone does not keep all cores at work."""
        with ThreadPoolExecutor(len(tables)) as pool:
            return dict(zip(tables, pool.map(self.stage_one, tables.keys(), tables.values())))

    def stage_one(self, name: str, rows: DataFrame) -> DataFrame:
        """Stages one of the five tables, and hands back what the audit is to see of it."""
        table = self.tables[name]
        if name in ("songs", "artists") and not self.past.changed("song_data"):
            return rows  # which are there already
        if name != "time":
            return self.stage(table, rows)
        known = already(self.there(table, self.touched), rows, "start_time")
        new = self.stage(table, rows.join(known, on="start_time", how="left_anti"))
        self.staged[name] = new.count()  # the audit counts the known ones, too
        return new.select("start_time").union(known)

    def stage(self, table: Table, rows: DataFrame) -> DataFrame:
        if table.name not in BY_MONTH:
            self.past.retired.update(self.past.files_of(table.name))
        with timed(self.report, table.name):
            staged = write_table(self.spark, table, rows, f"{self.staging}/{table.name}")
        self.staged[table.name] = 0
        return staged

    def tell_tables(self) -> None:
        """Tells by what was audited how many rows are staged, and how many the tables will have."""
        for name, audited in self.report["audits"].items():
            if name in self.staged and name != "time":
                self.staged[name] = audited["rows"]
            rows = audited["rows"]
            if name in BY_MONTH:
                retired = of_table(self.past.files.keys() & self.past.retired, name)
                before = self.past.rows.get(name, 0) - rows_in(self.spark, TABLES[name], self.lake, retired).count()
                rows = before + self.staged[name]
            self.report["tables"][name] = {"rows": rows}


def with_id(events: DataFrame) -> DataFrame:
    return events.withColumn("songplay_id", songplay_id())


def already(there: DataFrame, new: DataFrame, key: str) -> DataFrame:
    """The keys of new rows that are there. The new ones, fewer as a rule, are those that Spark keeps in memory."""
    return there.select(key).join(new.select(key), on=key, how="left_semi").distinct()


def months_of_gone_lines(desk: Desk) -> set[str]:
    """In which months lines lie of files that have changed or vanished."""
    gone = desk.past.gone["log_data"]
    if not gone:
        return set()
    return months(desk.there(EVENTS).where(desk.is_of(gone)))


def months_of_changed_songs(desk: Desk, songs: DataFrame) -> set[str]:
    """In which months plays lie that have another song now: one that came later, or a better version of one."""
    if not desk.past.changed("song_data") or not desk.past.files_of(EVENTS.name):
        return set()
    before, after = song_lookup(clean_songs(desk.there(SONG_LINES))), song_lookup(songs)
    key = ["title", "artist", "duration"]
    changed = before.exceptAll(after).union(after.exceptAll(before)).select(key).distinct()
    plays = desk.there(EVENTS).where("is_play").withColumn("duration", F.round("length", 5))
    return months(plays.join(changed, on=key, how="left_semi"))


def months_of_other_versions(desk: Desk, account: Account) -> set[str]:
    """In which months plays lie that have come again with other facts, which win."""
    if not account.repeated:
        return set()
    both = with_id(desk.still_valid("log_data", EVENTS, desk.touched)), account.rows
    before, new = (rows.join(account.repeated_keys, on="songplay_id", how="left_semi") for rows in both)
    other = clean_plays(before.unionByName(new)).exceptAll(clean_plays(before))
    start_time = F.timestamp_millis("ts")
    return months(other.select(F.year(start_time).alias("year"), F.month(start_time).alias("month"))) - desk.again


def months(rows: DataFrame) -> set[str]:
    return {f"year={row.year}/month={row.month}" for row in rows.select("year", "month").distinct().collect()}


# ------------------------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------------------------


def run(settings: Settings, full: bool = False) -> None:
    """The whole job. What is to be read is listed, and where to write is locked, before Spark starts."""
    source, lake = storage(settings.input, settings), storage(settings.output, settings)
    inputs = {kind: json_files(source, kind) for kind in ("song_data", "log_data")}
    report, since = new_report(settings), time.monotonic()
    with Lease(lake, report["run"], float(settings.lease_seconds), source) as lease:
        recover(lake)
        past = Past.of(lake, settings, inputs, full)
        try:
            staged = build(settings, past, report)
            check_shrink(lake, report["tables"], settings)
        except (JobError, OSError, PySparkException, Py4JError) as error:
            report["outcome"], report["tables"] = f"failed: {one_line(error)}", {}
            with suppress(JobError, OSError):  # what failed first is what is told
                publish(lake, lease, report, {}, past)
            if isinstance(error, JobError) or not past.files or not damaged(report["outcome"]):
                raise
        else:
            publish(lake, lease, report, staged, past)
    if report["outcome"] != PUBLISHED:
        log.warning("%s; everything is built anew", report["outcome"])
        run(settings, full=True)
        return
    for name, table in report["tables"].items():
        told = "{rows:,} rows in {files:,} files, {bytes:,} bytes".format(**table)
        log.info("%-9s %s, %s/%s", name, told, lake.root, name)
    log.info("done in %.1f s; the report is %s/%s/%s.json", time.monotonic() - since, lake.root, RUNS, report["run"])


def damaged(told: str) -> bool:
    """Whether what is told of is what earlier runs have left. It alone is Parquet; Spark 3.5 does not name the file."""
    return re.search("(?i)parquet|corrupted file", told) is not None and STAGING not in told


def new_report(settings: Settings) -> dict:
    """What a run tells of itself, as one JSON object a run, which engines read as a table."""
    return {
        "run": f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}",
        "outcome": PUBLISHED,
        "started": now(),
        "settings": {key: "***" if value and "aws_" in key else value for key, value in asdict(settings).items()},
        "versions": {"python": platform.python_version()},
        **{part: {} for part in ("seconds", "lines", "problems", "tables", "audits")},
        "files": [],
    }


def build(settings: Settings, past: Past, report: dict) -> dict[str, int]:
    """Stages what the new input makes of the tables, and audits it. Returns the rows staged by name, 0 if not known.

    Rows are added to the months that new lines are of. A month in which rows would have to change is built anew: it is
    retired, and its events come once more. The first run is one on an empty lake, and so is a full one.
    """
    report["tables"] = {name: {"rows": rows} for name, rows in past.rows.items()}
    if not past.changed("song_data") and not past.changed("log_data"):
        log.info("nothing is new since the last run")
        return {}
    small = sum(size for files in past.new.values() for size in files.values()) < SMALL_INPUT
    desk = Desk(spark_session(settings, small), settings, past, report)
    songs = song_lines(desk.new_lines("song_data", SONG_FIELDS, SONG_RULES))
    songs = songs.coalesce(tasks_for(desk.spark, past.new["song_data"].values()))  # else a task for 32 tiny files
    songs_before = desk.still_valid("song_data", SONG_LINES)
    all_songs = songs_before.unionByName(songs.where("problem IS NULL").select(*SONG_LINES.names()))
    known_songs = clean_songs(all_songs)
    with timed(report, "reading"):
        events = desk.stage_events(clean_events(desk.new_lines("log_data", LOG_FIELDS, LOG_RULES)))
    with cached(songs), cached(known_songs):
        with timed(report, "accounting"):
            again = desk.stage_again(
                months_of_gone_lines(desk) | months_of_changed_songs(desk, known_songs) | desk.crowded()
            )
            song_account, log_account = accounts(desk, songs, songs_before, events, again)
        for account in (song_account, log_account):
            account.check(settings, f"{settings.output}/{bad_lines_of(report)}")
        again = again.unionByName(desk.stage_again(months_of_other_versions(desk, log_account)))
        every_event = events.unionByName(again)
        plays = desk.new_plays(every_event, log_account.total("duplicates") > 0)
        versions = desk.stage_versions(events, every_event)
        tables = star_schema(known_songs, plays, versions, desk.stage_all)
        if past.changed("song_data"):
            desk.stage(SONG_LINES, all_songs)
        with timed(report, "audit"):
            report["audits"] = audit(tables, *promised(desk, known_songs, plays, versions, log_account))
        desk.tell_tables()
    return desk.staged


def accounts(
    desk: Desk, songs: DataFrame, songs_before: DataFrame, events: DataFrame, again: DataFrame
) -> tuple[Account, Account]:
    """What became of the new lines, of song files and of logs. Those that cannot be used are quarantined."""
    song_account = Account("song_data", desk.past.new["song_data"], desk.source, songs)
    log_account = Account("log_data", desk.past.new["log_data"], desk.source, with_id(events))
    song_account.tell_copies("song_id", songs_before)
    log_account.tell_copies("songplay_id", desk.plays_there(again))
    for account in (song_account, log_account):  # what was read and not listed the next run takes back, and reads anew
        listed = desk.past.inputs[account.kind]
        listed.update(dict.fromkeys(account.files.keys() - listed.keys(), Size(0, "late")))
    desk.report.update(told_by(song_account, log_account))
    quarantine((song_account, log_account), f"{desk.staging}/{bad_lines_of(desk.report)}")
    return song_account, log_account


def promised(
    desk: Desk, songs: DataFrame, plays: DataFrame, versions: DataFrame, logs: Account
) -> tuple[dict[str, int], tuple[int, int]]:
    """What the input tells of the tables: how many rows three of them have, and the first and last ts of a play."""
    if logs.repeated or desk.again:
        count, *span = plays.selectExpr("count(*)", "min(ts)", "max(ts)").first()
    else:
        count, span = logs.total("accepted"), logs.span
    return {"songplays": count, "users": count_of(versions, "user_id"), "songs": songs.count()}, tuple(span)


def count_of(rows: DataFrame, key: str) -> int:
    """How many distinct values there are."""
    return rows.select(F.countDistinct(key)).first()[0]


def told_by(*accounts: Account) -> dict:
    """What the report says about the input."""
    return {
        "lines": {account.kind: account.totals() for account in accounts},
        "problems": {account.kind: dict(account.problems) for account in accounts},
        "files": [file for account in accounts for file in account.files.values()],
    }


def quarantine(accounts: Iterable[Account], directory: str) -> None:
    """Writes the lines that cannot be used as JSON: file, reason, line. Nothing is read or written if all can be."""
    bad = [account.quarantined() for account in accounts if account.problems]
    if bad:
        reduce(DataFrame.union, bad).write.json(directory)


@contextmanager
def timed(report: dict, stage: str) -> Iterator[None]:
    since = time.monotonic()
    yield
    report["seconds"][stage] = round(time.monotonic() - since, 3)
    log.info("%s in %.1f s", stage, report["seconds"][stage])


@contextmanager
def cached(rows: DataFrame) -> Iterator[None]:
    """Keeps the rows while the block lasts, and no longer: a later run in this session must read its input anew."""
    rows.persist()
    try:
        yield
    finally:
        with suppress(Py4JError, OSError):  # when Java has died, that is not the news
            rows.unpersist()


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="etl.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="dl.cfg", metavar="FILE", help="the configuration (default: dl.cfg)")
    parser.add_argument(
        "--input", metavar="ADDRESS", help="directory or s3:// address that holds song_data and log_data"
    )
    parser.add_argument("--output", metavar="ADDRESS", help="directory or s3:// address for the five tables")
    parser.add_argument(
        "--allow-shrink", dest="max_shrink", action="store_const", const="1", help="publish tables that have lost rows"
    )
    parser.add_argument("--full", action="store_true", help="build all tables anew, from all of the input")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the job; the exit code tells how it went."""
    options = vars(arguments(argv))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # of a Java that has died it tells in stack traces, also here:
    logging.root.addFilter(not_of_py4j)
    try:
        full = options.pop("full")
        run(read_settings(options.pop("config"), **options), full)
    except KeyboardInterrupt:
        log.error("interrupted; the next run cleans up, or finishes what this one had begun to publish")
        return 130
    except (JobError, OSError, PySparkException, Py4JError) as error:
        log.error("%s", one_line(error))
        return getattr(error, "exit_code", 1)
    return 0


def not_of_py4j(record: logging.LogRecord) -> bool:
    return record.module not in ("java_gateway", "clientserver")


# What the storage says, and what to do about it.
REMEDIES = {
    "NoSuchBucket|UnknownStoreException": "the bucket does not exist; create it, or mend the address",
    "InvalidAccessKeyId": "the access key is unknown here; mend [AWS CREDS], or the profile or environment in use",
    "SignatureDoesNotMatch": "the secret key does not fit the access key; mend [AWS CREDS]",
    "ExpiredToken|InvalidToken": "the temporary keys have expired; get new ones that last as long as a run",
    "PermanentRedirect|AuthorizationHeaderMalformed|AWSRedirectException": "the bucket is in another region; set [LAKE]"
    " REGION",
    "AccessDenied|Status Code: 403": "access denied; the keys or the role lack a permission here, see iam/",
    "NoAuthWithAWSException|CredentialInitializationException|Unable to (load|locate) credentials": "no AWS keys"
    " were found; give [AWS CREDS], a profile, or a role",
    "UnknownHostException|ConnectException|ConnectTimeout|Connect to .* failed|Could not connect|"
    "Connection was closed|timeout on endpoint": "the store cannot be"
    " reached; check [LAKE] ENDPOINT and REGION and the network",
    "EOFException|ZipException|incorrect header check|not a gzip": "a file of the input is cut short or damaged;"
    " `gzip -t` tells which, deliver it again",
    "No space left|Disk quota": "the disk is full; make room",
    "Permission denied|Operation not permitted|Read-only file system": "the user of the job has no right to it; chmod"
    " or chown it",
    "Too many levels of symbolic links": "a link leads back to itself; remove it",
    "FileNotFoundException|No such file": "it vanished meanwhile, or is a link to nowhere; remove the link, or run the"
    " job again",
    "Not a directory|File exists": "a file stands where a directory is to be; move it, or mend the address",
    "Relative path in absolute URI": "Spark reads no file of a disk with a colon in its name; rename it",
    "Answer from Java side is empty|Connection refused": "Spark's Java has died, perhaps for want of memory",
    "JAVA_GATEWAY_EXITED": "Spark did not start, the lines above say why; for S3 it fetches the connector from Maven"
    " Central: is there a network?",
}


def one_line(error: Exception) -> str:
    """What went wrong in one line. Of what Spark says: where, what to do if that is known, and the innermost cause."""
    if isinstance(error, JobError):
        return str(error)
    if isinstance(error, OSError):
        return explained(error.filename or "", str(error), error.strerror or str(error))
    cause = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    chain = [str(error)]
    while cause is not None:
        chain.append(cause.toString())
        cause = cause.getCause()
    told = " ".join(chain)
    place = re.search(r"while reading file (\S+?)\.?\s", told) or re.search(r"(s3a?://[^\s:,]+)", told)
    return explained(place.group(1) if place else "", told, chain[-1].splitlines()[0])


def explained(place: str, told: str, cause: str) -> str:
    """Where, what to do about what was told if that is known, and the cause."""
    remedy = next((remedy for said, remedy in REMEDIES.items() if re.search(said, told)), "")
    return ": ".join(filter(None, [place, remedy, cause]))


if __name__ == "__main__":
    sys.exit(main())
