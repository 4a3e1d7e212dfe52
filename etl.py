#!/usr/bin/env python3
"""Sparkify's data lake job: song and log JSON in, a star schema of five Parquet tables out.

    table      grain                                         partitions
    songplays  one row per play (a log line with page = NextSong)  year, month
    users      one row per user                              -
    songs      one row per song                              year
    artists    one row per artist                            -
    time       one row per distinct start time of a play     year, month

    spark-submit --master yarn etl.py        on a cluster; master, memory and packages are the submitter's
    python etl.py                            on a laptop; a local session, no AWS needed

Input is newline-delimited JSON, at any depth under INPUT/song_data and INPUT/log_data, as *.json or *.json.gz.
Output is OUTPUT/<table>/, in Hive layout. INPUT, OUTPUT and the AWS keys stand in dl.cfg. All times are UTC.

Exit codes: 0 done, 1 failed (nothing that readers see has changed), 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import configparser
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import reduce
from typing import NamedTuple
from urllib.parse import urlparse

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
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
SONG_RULES = {
    "no song id": r"song_id IS NULL OR NOT song_id RLIKE '\\S'",
}
LOG_RULES = {
    "no page": "page IS NULL",
    "no time": "ts IS NULL",
    # 2000-01-01 to 2099-12-31. Seconds or microseconds in place of milliseconds fall outside.
    "impossible time": "ts NOT BETWEEN 946684800000 AND 4102444799999",
    "no user id": "userId IS NULL",
    "user id is no number": r"NOT userId RLIKE '^ *[0-9]{0,18} *\\z'",
    "play without a user": "page = 'NextSong' AND trim(userId) = ''",
    "play without a session": "page = 'NextSong' AND sessionId IS NULL",
    "play without an item": "page = 'NextSong' AND itemInSession IS NULL",
}


class Table(NamedTuple):
    """One table of the star schema. It drives the writing, the checks, the catalogue, the README and the tests."""

    name: str
    columns: str  # as DDL, in order
    key: str
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


# ------------------------------------------------------------------------------------------------------------------
# Configuration
# ------------------------------------------------------------------------------------------------------------------


class JobError(Exception):
    """What stops the job, told in one line that names the file, key or value and the remedy."""

    exit_code = 1


class UsageError(JobError):
    """The command line, dl.cfg or the places that it names are wrong. Nothing was read or written."""

    exit_code = 2


@dataclass(frozen=True)
class Settings:
    """What dl.cfg says. Fields without a default must be there; the repr keeps the keys to itself."""

    input: str
    output: str
    songs_partition_by: str = "year"
    endpoint: str = ""
    region: str = ""
    sse: str = ""
    kms_key_id: str = ""
    expected_bucket_owner: str = ""
    aws_access_key_id: str = field(default="", repr=False)
    aws_secret_access_key: str = field(default="", repr=False)
    aws_session_token: str = field(default="", repr=False)


SECTIONS = {
    "AWS CREDS": ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
    "LAKE": (
        "input", "output", "songs_partition_by", "endpoint", "region", "sse", "kms_key_id", "expected_bucket_owner",
    ),
}  # fmt: skip
REQUIRED = {"AWS CREDS": SECTIONS["AWS CREDS"][:2], "LAKE": ("input", "output")}
ENCRYPTIONS = {"": "", "AES256": "AES256", "aws:kms": "SSE-KMS"}  # S3's names, and S3A's
LAYOUTS = {"year": ("year",), "year, artist_id": ("year", "artist_id")}
PLACEHOLDER = re.compile(
    r"<.*>|.*\b(your|my)[-_ ]?(bucket|access|secret|aws|key|token).*|change[-_ ]?me|x{3,}|\.{3}", re.I
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
    return checked_settings(path, Settings(**values))


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


def checked_settings(path: str, settings: Settings) -> Settings:
    """The settings themselves, if they make sense together."""

    def wrong(key: str, remedy: str) -> UsageError:
        return UsageError(f"{path}: [LAKE] {key.upper()} = {getattr(settings, key)!r}: {remedy}")

    for key in ("input", "output"):
        place = getattr(settings, key)
        if not place:
            raise wrong(key, "blank; give a directory or an s3:// address")
        if on_s3(place) and not urlparse(place).netloc:
            raise wrong(key, "names no bucket; write s3://BUCKET/PREFIX")
    if settings.songs_partition_by not in LAYOUTS:
        raise wrong("songs_partition_by", f"choose one of: {' | '.join(LAYOUTS)}")
    if settings.sse not in ENCRYPTIONS:
        raise wrong("sse", f"choose one of: {' | '.join(filter(None, ENCRYPTIONS))}, or leave it out")
    if bool(settings.aws_access_key_id) != bool(settings.aws_secret_access_key):
        raise UsageError(
            f"{path}: [AWS CREDS] holds one key of two; give both, or leave both blank for the AWS default chain"
        )
    if settings.aws_access_key_id and os.name == "posix" and os.stat(path).st_mode & 0o077:
        log.warning("%s holds keys and others on this machine can read it: chmod 600 %s", path, path)
    return settings


def on_s3(address: str) -> bool:
    return urlparse(address).scheme in ("s3", "s3a", "s3n")


# ------------------------------------------------------------------------------------------------------------------
# What each table means: DataFrame in, DataFrame out
# ------------------------------------------------------------------------------------------------------------------


def star_schema(
    songs: DataFrame, events: DataFrame, versions: DataFrame, kept=lambda name, rows: rows
) -> dict[str, DataFrame]:
    """The five tables, by name. `kept` may write one and hand back what was written, for the next to be made from."""
    songplays = kept("songplays", songplays_table(events, songs))
    return {
        "songplays": songplays,
        "users": kept("users", users_table(versions)),
        "songs": kept("songs", songs_table(songs)),
        "artists": kept("artists", artists_table(songs)),
        "time": kept("time", time_table(songplays)),
    }


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


def clean_songs(lines: DataFrame) -> DataFrame:
    """One row per song_id. Where versions of a song compete, the greatest wins, the year first."""
    songs = lines.where("problem IS NULL").select(
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
    return greatest(songs, key=["song_id"])


def clean_events(lines: DataFrame) -> DataFrame:
    """One row per log line; a line with a problem has nothing but its file, its text and the problem."""
    facts = {
        "is_play": "page = 'NextSong'",
        "ts": "ts",
        "user_id": "try_cast(userId AS BIGINT)",  # blank: null, nobody
        "session_id": "sessionId",
        "item": "itemInSession",
        # Which of a user's events is the latest: by time, then by place in the session. One number, since Spark
        # aggregates numbers by hash and structs by sorting all rows. 2^21 items a session leave ts 42 bits: to 2109.
        "nth": "ts * 2097152 + least(greatest(coalesce(itemInSession, 0), 0), 2097151)",
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
    return lines.select("file", "value", "problem", *columns)


def user_versions(events: DataFrame) -> DataFrame:
    """One row per file, problem, play or not, and version of a user's facts: how many lines, and the last one's place.

    The one narrow pass over the logs: it accounts for every line, and the users are made of it.
    """
    facts = ("user_id", "first_name", "last_name", "gender", "level")
    return events.groupBy("file", "problem", "is_play", *facts).agg(
        F.count("*").alias("lines"), F.max("nth").alias("nth")
    )


def songplays_table(events: DataFrame, songs: DataFrame) -> DataFrame:
    """One row per play, however often its line was delivered, with its song where title, artist and duration agree."""
    key = ["ts", "user_id", "session_id", "item"]
    facts = ["level", "location", "user_agent", "artist", "title", "length"]
    plays = greatest(events.where("is_play").select(*key, *facts), key)
    matched = plays.withColumn("duration", F.round("length", 5)).join(
        song_lookup(songs), on=["title", "artist", "duration"], how="left"
    )
    start_time = F.timestamp_millis("ts")
    return matched.select(
        F.xxhash64(*key).alias("songplay_id"),
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
    return versions.where("user_id IS NOT NULL").groupBy("user_id").agg(*facts)


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
    # Files of a good size before tasks for every core: what is written once is read for years.
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
}
SHUFFLE_BYTES = 64 * 2**20  # a task's share of a shuffle; adaptive execution merges those that turn out small
JAVA_VERSIONS = (17, 21)
JAVA_REMEDY = (
    "install one (Debian: apt install openjdk-17-jre-headless; Fedora: dnf install java-21-openjdk-headless;"
    " macOS: brew install openjdk@17) and set JAVA_HOME to it"
)


def spark_session(settings: Settings) -> SparkSession:
    """The submitter's session as it is, or a local one of our own."""
    builder = SparkSession.builder.appName("sparkify-etl")
    if not submitted():
        check_java()
        check_s3(settings)
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # spares two warnings about the machine's name
        for key, value in {**local_session(), **s3a_packages(settings)}.items():
            builder = builder.config(key, value)
    spark = builder.getOrCreate()
    for key, value in SESSION.items():
        spark.conf.set(key, value)
    connect_s3(spark, settings)
    return spark


def submitted() -> bool:
    """Whether spark-submit, or a notebook's kernel, has started Spark's JVM already."""
    return "PYSPARK_GATEWAY_PORT" in os.environ or SparkSession.getActiveSession() is not None


def local_session() -> dict[str, str]:
    """Half of the machine's memory, at most 8 GB; nothing listens beyond this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "spark.master": "local[*]",
        "spark.driver.memory": f"{max(1, min(8, memory // 2**31))}g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
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
    return int(re.search(r'version "(?:1\.)?(\d+)', told).group(1))


# S3A and its committer for a local session, by the Hadoop that Spark brings: the least that serves, 9 MB in place of
# the AWS bundle's 500. A submitter brings its own with --packages; on EMR they are there.
S3A_PACKAGES = {
    "3.3": "org.apache.spark:spark-hadoop-cloud_{scala}:3.5.5 com.amazonaws:aws-java-sdk-s3:1.12.262"
    " com.amazonaws:aws-java-sdk-sts:1.12.262 com.amazonaws:aws-java-sdk-dynamodb:1.12.262",  # 3.5.6 is not to be had
    "3.4": "org.apache.spark:spark-hadoop-cloud_{scala}:{spark} software.amazon.awssdk:s3:2.25.53"
    " software.amazon.awssdk:s3-transfer-manager:2.25.53",
    "3.5": "org.apache.spark:spark-hadoop-cloud_{scala}:{spark} software.amazon.awssdk:s3:2.35.4"
    " software.amazon.awssdk:s3-transfer-manager:2.35.4"
    " software.amazon.s3.analyticsaccelerator:analyticsaccelerator-s3:1.3.1",
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
    import boto3  # only where Hadoop cannot do a thing

    return boto3.Session(
        aws_access_key_id=settings.aws_access_key_id or None,
        aws_secret_access_key=settings.aws_secret_access_key or None,
        aws_session_token=settings.aws_session_token or None,
        region_name=settings.region or None,
    )


def check_s3(settings: Settings) -> None:
    """One LIST of each place, before Spark starts: its answer says what is wrong. S3A asks by HEAD: only a 403."""
    for place in filter(on_s3, (settings.input, settings.output)):
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, prefix = place.split("://", 1)[1].partition("/")
        try:
            s3_client(settings).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except (BotoCoreError, ClientError) as error:
            raise JobError(explained(place, str(error), str(error))) from None


def s3_client(settings: Settings, **config: object):
    """boto3's S3 client for the lake; keywords go to botocore's Config."""
    from botocore.config import Config

    style = {"s3": {"addressing_style": "path"}} if settings.endpoint else {}
    return aws_session(settings).client(
        "s3", endpoint_url=settings.endpoint or None, config=Config(**{**style, **config})
    )


def read_lines(spark: SparkSession, directory: str) -> DataFrame:
    """One row per line that is not blank: file, value. *.json and *.json.gz at any depth; UsageError if none."""
    reader = spark.read.option("recursiveFileLookup", True).option("pathGlobFilter", "*.{json,json.gz}")
    try:
        lines = reader.text(directory)
    except AnalysisException as error:
        if "PATH_NOT_FOUND" not in str(error):
            raise
        raise UsageError(
            f"{directory} does not exist; set [LAKE] INPUT to the directory that holds song_data and log_data"
        ) from None
    if not lines.inputFiles():
        raise UsageError(f"{directory} holds no *.json or *.json.gz file; is [LAKE] INPUT right?")
    size_shuffles(spark, lines)
    return lines.select(F.col("_metadata.file_path").alias("file"), "value").where(F.col("value").rlike(r"\S"))


def size_shuffles(spark: SparkSession, lines: DataFrame) -> None:
    """Shuffles in as many parts as the input's size asks; a literal is too many for a sample, too few for a year."""
    size = int(str(lines._jdf.queryExecution().optimizedPlan().stats().sizeInBytes()))
    spark.conf.set("spark.sql.shuffle.partitions", max(spark.sparkContext.defaultParallelism, size // SHUFFLE_BYTES))


class Storage:
    """The calls of Hadoop's FileSystem that the job needs, below one directory: local disk, HDFS and S3 alike."""

    def __init__(self, spark: SparkSession, root: str) -> None:
        self.jvm = spark._jvm
        self.root = root
        self.fs = self.path("").getFileSystem(spark._jsc.hadoopConfiguration())
        self.prefix = len(self.fs.makeQualified(self.path("")).toString().rstrip("/")) + 1

    def path(self, name: str):
        return self.jvm.org.apache.hadoop.fs.Path(f"{self.root}/{name}")

    def files(self, directory: str) -> dict[str, int]:
        """The files below a directory and their sizes in bytes, by path."""
        if not self.exists(directory):
            return {}
        found, sizes = self.fs.listFiles(self.path(directory), True), {}
        while found.hasNext():
            status = found.next()
            sizes[status.getPath().toString()[self.prefix :]] = status.getLen()
        return sizes

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def read(self, name: str) -> str | None:
        if not self.exists(name):
            return None
        stream = self.fs.open(self.path(name))
        try:
            return self.jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8")
        finally:
            stream.close()

    def write(self, name: str, text: str) -> None:
        """All of the text, or nothing: a reader never finds half of it."""
        stream = self.fs.create(self.path(name + ".tmp"), True)
        stream.write(bytearray(text, "utf-8"))
        stream.close()
        self.delete(name)
        self.move(name + ".tmp", name)

    def move(self, source: str, target: str) -> None:
        """Done already is done: a publication that was cut short is repeated from its beginning."""
        if not on_s3(self.root):  # where there are no directories, looking for one is three requests for nothing
            self.fs.mkdirs(self.path(target).getParent())
        if self.renamed(source, target):
            return
        here, there = self.exists(source), self.exists(target)
        if here and there:  # a copy that was cut short
            self.delete(target)
        if here and not self.renamed(source, target) or not here and not there:
            raise JobError(f"{self.root}: cannot move {source} to {target}; run the job again: it goes on from here")

    def renamed(self, source: str, target: str) -> bool:
        try:
            return self.fs.rename(self.path(source), self.path(target))
        except Py4JJavaError as error:
            if not re.search("FileNotFoundException|FileAlreadyExistsException", error.java_exception.toString()):
                raise
            return False

    def delete(self, name: str) -> None:
        self.fs.delete(self.path(name), True)


STAGING, JOURNAL = "_staging", "_journal.json"  # readers pass over names that begin with an underscore


def stage(spark: SparkSession, table: Table, rows: DataFrame, directory: str) -> DataFrame:
    """Writes the rows as the table's files and hands back what was written.

    REBALANCE lets adaptive execution size the files: small ones are merged, a large month is split.
    """
    by = f"({', '.join(table.partitions)})" if table.partitions else ""
    sized = spark.sql(f"SELECT /*+ REBALANCE{by} */ * FROM {{rows}}", rows=rows.select(*table.names()))
    ordered = sized.sortWithinPartitions(*table.partitions, *table.order)
    ordered.write.partitionBy(*table.partitions).parquet(directory)
    return spark.read.schema(table.columns).parquet(directory)


def audit(tables: dict[str, DataFrame]) -> dict[str, int]:
    """The number of rows in each table, read back from what was written. JobError if a key or a reference is broken."""
    with ExitStack() as stack:
        keys = {name: rows.select(TABLES[name].key, *TABLES[name].references) for name, rows in tables.items()}
        for rows in keys.values():
            stack.enter_context(cached(rows))  # each is looked at twice or more, and S3 counts every look
        counts = [
            rows.groupBy(F.lit(name).alias("name")).agg(
                F.count("*").alias("rows"), F.count(key).alias("known"), F.countDistinct(key).alias("distinct")
            )
            for name, rows, key in ((name, rows, rows.columns[0]) for name, rows in keys.items())
        ]
        lost = [
            rows.where(F.col(column).isNotNull())
            .join(keys[other].select(F.col(TABLES[other].key).alias(column)), on=column, how="left_anti")
            .select(F.lit(f"{name}: a {column} is not in {other}").alias("told"))
            for name, rows in keys.items()
            for column, other in TABLES[name].references.items()
        ]
        counted = {row.name: row for row in reduce(DataFrame.union, counts).collect()}
        broken = reduce(DataFrame.union, lost).first()
    for name, row in counted.items():
        if not row.rows == row.known == row.distinct:
            told = f"{row.rows} rows, of them {row.known} with a {TABLES[name].key}, {row.distinct} distinct"
            raise JobError(f"{name}: {told}; nothing was published")
    if broken:
        raise JobError(f"{broken.told}; nothing was published")
    return {name: counted[name].rows if name in counted else 0 for name in tables}


def publish(lake: Storage, staging: str, names: Iterable[str]) -> dict[str, list[int]]:
    """Makes the staged files the tables; the sizes of each table's files. The journal says what is to be moved and what
    is to be retired: until it is written readers see the old tables, from then on nothing can stop the new ones."""
    moves, retired, sizes = {}, [], {}
    for name in names:
        old, staged = lake.files(name), lake.files(f"{staging}/{name}")
        new = {file: size for file, size in staged.items() if not file.rsplit("/", 1)[1].startswith(("_", "."))}
        if old and not new:
            raise JobError(f"{name} would be empty and is not now; look at the input; nothing was published")
        moves.update({file: file[len(staging) + 1 :] for file in new})
        retired += old
        sizes[name] = list(new.values())
    lake.write(JOURNAL, json.dumps({"move": moves, "retire": retired}))
    finish_publication(lake)
    return sizes


def finish_publication(lake: Storage) -> None:
    """Does what the journal says, if there is one, and clears the staging. Doing it twice does no harm."""

    text = lake.read(JOURNAL)
    if text:
        journal = json.loads(text)
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lake.move, journal["move"].keys(), journal["move"].values()))
            list(pool.map(lake.delete, journal["retire"]))
        lake.delete(JOURNAL)
    lake.delete(STAGING)


def log_lines_used(kind: str, counts: DataFrame) -> None:
    """Logs how many lines could be used, and for each reason how many could not. counts: problem, file, lines."""
    by_problem = counts.groupBy("problem").agg(F.sum("lines").alias("lines"), F.min("file").alias("file")).collect()
    total = sum(row.lines for row in by_problem)
    rejected = [row for row in by_problem if row.problem]
    log.info("%s: %s lines, %s of them not used", kind, f"{total:,}", f"{sum(row.lines for row in rejected):,}")
    for row in sorted(rejected, key=lambda row: row.problem):
        log.warning(
            "%s: %s lines not used: %s; the first such file is %s", kind, f"{row.lines:,}", row.problem, row.file
        )


# ------------------------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------------------------


def run(spark: SparkSession, settings: Settings) -> None:
    """The whole job: read, derive, stage, audit, publish."""
    started = time.monotonic()
    source, target = (address(spark, place) for place in (settings.input, settings.output))
    lake = Storage(spark, target)
    finish_publication(lake)  # of a run that was killed
    staging = f"{STAGING}/{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
    schema = dict(TABLES, songs=TABLES["songs"]._replace(partitions=LAYOUTS[settings.songs_partition_by]))

    def kept(name: str, rows: DataFrame) -> DataFrame:
        since = time.monotonic()
        written = stage(spark, schema[name], rows, f"{target}/{staging}/{name}")
        log.info("%s written in %.1f s", name, time.monotonic() - since)
        return written

    songs = checked(read_lines(spark, f"{source}/song_data"), SONG_FIELDS, SONG_RULES).drop("value")
    events = clean_events(checked(read_lines(spark, f"{source}/log_data"), LOG_FIELDS, LOG_RULES))
    versions = user_versions(events)
    # Both are read several times and small beside the logs. Those are parsed twice, which is faster than to keep them.
    with cached(songs), cached(versions):
        log_lines_used("song_data", songs.withColumn("lines", F.lit(1)))
        log_lines_used("log_data", versions)
        tables = star_schema(clean_songs(songs), events, versions, kept)
        rows = audit(tables)
        published = publish(lake, staging, schema)
    for name, sizes in published.items():
        told = f"{rows[name]:,} rows in {len(sizes):,} files, {sum(sizes):,} bytes"
        log.info("%-9s %s, %s/%s", name, told, target, name)
    log.info("done in %.1f s", time.monotonic() - started)


@contextmanager
def cached(rows: DataFrame) -> Iterator[None]:
    """Keeps the rows while the block lasts, and no longer: a later run in this session must read its input anew."""
    rows.persist()
    try:
        yield
    finally:
        rows.unpersist()


def address(spark: SparkSession, place: str) -> str:
    """The place as Hadoop is to be told it: s3:// where it is served, else s3a://; a bare path is local on local[*]."""
    place = place.rstrip("/")
    if on_s3(place):
        return place if on_emr(spark) else "s3a://" + place.split("://", 1)[1]
    local = not urlparse(place).scheme and spark.sparkContext.master.startswith("local")
    return f"file://{os.path.abspath(place)}" if local else place


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="etl.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="dl.cfg", metavar="FILE", help="the configuration (default: dl.cfg)")
    parser.add_argument(
        "--input", metavar="ADDRESS", help="directory or s3:// address that holds song_data and log_data"
    )
    parser.add_argument("--output", metavar="ADDRESS", help="directory or s3:// address for the five tables")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the job; the exit code tells how it went."""
    options = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("py4j").setLevel(logging.WARNING)
    try:
        settings = read_settings(options.config, input=options.input, output=options.output)
        run(spark_session(settings), settings)
    except JobError as error:
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        log.error("interrupted; nothing that readers see has changed, and the next run starts clean")
        return 130
    except (PySparkException, Py4JError) as error:
        log.error("%s", root_cause(error))
        return 1
    return 0


# What the storage says, and what to do about it.
REMEDIES = {
    "NoSuchBucket|UnknownStoreException": "the bucket does not exist; create it, or mend the address",
    "InvalidAccessKeyId": "the access key is unknown here; mend [AWS CREDS], or the profile or environment in use",
    "SignatureDoesNotMatch": "the secret key does not fit the access key; mend [AWS CREDS]",
    "ExpiredToken|InvalidToken": "the temporary keys have expired; get new ones",
    "PermanentRedirect|AuthorizationHeaderMalformed|AWSRedirectException": "the bucket is in another region; set [LAKE]"
    " REGION",
    "AccessDenied|Status Code: 403": "access denied; the keys or the role lack a permission here, see iam/",
    "NoAuthWithAWSException|CredentialInitializationException|Unable to (load|locate) credentials": "no AWS keys"
    " were found; give [AWS CREDS], a profile, or a role",
    "UnknownHostException|ConnectException|ConnectTimeout|Connect to .* failed|Could not connect": "the store cannot be"
    " reached; check [LAKE] ENDPOINT and REGION and the network",
    "EOFException|ZipException|incorrect header check": "a file of the input is cut short or damaged; `gzip -t` tells"
    " which, deliver it again",
    "JAVA_GATEWAY_EXITED": "Spark did not start, the lines above say why; for S3 it fetches the connector from Maven"
    " Central: is there a network?",
}


def root_cause(error: Exception) -> str:
    """What Spark or the storage says, in one line: where, what to do if that is known, and the innermost cause."""
    cause = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    chain = [str(error)]
    while cause is not None:
        chain.append(cause.toString())
        cause = cause.getCause()
    told = " ".join(chain)
    place = re.search(r"while reading file (\S+)", told) or re.search(r"(s3a?://[^\s:,]+)", told)
    return explained(place.group(1) if place else "", told, chain[-1].splitlines()[0])


def explained(place: str, told: str, cause: str) -> str:
    """Where, what to do about what was told if that is known, and the cause."""
    remedy = next((remedy for said, remedy in REMEDIES.items() if re.search(said, told)), "")
    return ": ".join(filter(None, [place, remedy, cause]))


if __name__ == "__main__":
    sys.exit(main())
