"""What all tests share.

    song(), event(), play_of()    raw rows, whole and valid, of which a test changes what it is about
    write_lines(), write_lake()   one input file, and an input of one file of each kind
    job()                         runs the whole job in this process: its exit code and what it logged
    write_config()                a dl.cfg with the settings that a test names; all others have their defaults
    spark                         the job's own local session; there is one for each of pytest's workers
    table                         the rows that one of the five tables has for some songs and events
    server, small                 an S3 server on loopback, and a small input that lies there and on the disk

lake.py reads what a run leaves, its tables and reports; oracle.py makes the same tables by other means. All tests run
in the time zone of New York, on the JVM's side too: a time that is not taken as UTC gives a wrong row.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TZ"] = "America/New_York"
time.tzset()

import pytest  # noqa: E402
from pyspark.sql import DataFrame, SparkSession  # noqa: E402
from s3 import Server, moto_server  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

import etl  # noqa: E402

Tables = Callable[..., list[tuple]]
Row = dict | str | bytes


# Raw rows ----------------------------------------------------------------------------------------------------------


def song(**overrides: Any) -> dict:
    """A raw song, whole and valid."""
    return {
        "num_songs": 1,
        "artist_id": "AR1",
        "artist_latitude": 35.1,
        "artist_longitude": -90.0,
        "artist_location": "Memphis, TN",
        "artist_name": "The Lanterns",
        "song_id": "SO1",
        "title": "Slow River",
        "duration": 218.93179,
        "year": 1999,
        **overrides,
    }


def event(**overrides: Any) -> dict:
    """A raw log line, whole and valid: a play that matches no song. `at` gives ts as an ISO date and time, UTC."""
    at = overrides.pop("at", "2018-11-15T12:30:45.796")
    return {
        "artist": "Nobody Known",
        "auth": "Logged In",
        "firstName": "Ada",
        "gender": "F",
        "itemInSession": 0,
        "lastName": "Quill",
        "length": 200.5,
        "level": "free",
        "location": "Windham, ME",
        "method": "PUT",
        "page": "NextSong",
        "registration": 1541016707796.0,
        "sessionId": 7,
        "song": "Nothing Known",
        "status": 200,
        "ts": epoch_ms(at),
        "userAgent": '"Mozilla/5.0 (X11; Linux x86_64)"',
        "userId": "39",
        **overrides,
    }


def play_of(raw_song: dict, /, **overrides: Any) -> dict:
    """A raw play of the raw song."""
    return event(
        **{"artist": raw_song["artist_name"], "song": raw_song["title"], "length": raw_song["duration"], **overrides}
    )


def epoch_ms(at: str) -> int:
    moment = datetime.fromisoformat(at).replace(tzinfo=timezone.utc)
    return round(moment.timestamp() * 1000)


def write_lines(path: Path, rows: Iterable[Row]) -> Path:
    """A file of one row a line; a row that is text or bytes is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (json.dumps(row) if isinstance(row, dict) else row for row in rows)
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
    return path


def write_lake(root: Path, songs: Iterable[Row] = (), events: Iterable[Row] = ()) -> Path:
    """An input of one file of each kind."""
    write_lines(root / "song_data" / "A" / "rows.json", songs)
    write_lines(root / "log_data" / "A" / "rows.json", events)
    return root


# The job -----------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a run did: its exit code, and its log lines, each with its level ("WARNING --full: all tables ...")."""

    code: int
    lines: list[str]

    @property
    def error(self) -> str:
        """The one line that says what is wrong; it is indeed one line."""
        (line,) = (line.removeprefix("ERROR ") for line in self.lines if line.startswith("ERROR "))
        assert "\n" not in line
        return line

    def says(self, text: str) -> bool:
        return any(text in line for line in self.lines)


def write_config(path: Path, **settings: object) -> Path:
    """A dl.cfg with these settings: write_config(path, INPUT=..., OUTPUT=..., MAX_SHRINK=0.3)."""
    keys = {name: value for name, value in settings.items() if name.startswith("AWS_")}
    sections = {"AWS CREDS": keys, "LAKE": {name: settings[name] for name in settings.keys() - keys.keys()}}
    lines = [[f"[{name}]", *(f"{key} = {value}" for key, value in values.items())] for name, values in sections.items()]
    path.write_text("\n".join(sum(lines, [])), encoding="utf-8")
    path.chmod(0o600)
    return path


def job(source: Path | str, output: Path | str, *options: str, **settings: object) -> Outcome:
    """Runs the job in this process, with options of its command line and settings of dl.cfg.

    The session is this worker's, so a test that asks for no Spark (the fixture) must not get as far.
    """
    lines: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")
    logging.root.addHandler(listener)
    try:
        with tempfile.TemporaryDirectory() as directory:
            config = write_config(Path(directory) / "dl.cfg", INPUT=source, OUTPUT=output, **settings)
            return Outcome(etl.main(["--config", str(config), *options]), lines)
    finally:
        logging.root.removeHandler(listener)


# Spark -------------------------------------------------------------------------------------------------------------


def small_session(small: bool) -> dict[str, str]:
    """The job's local session for many small runs: two cores, less memory, and room for all that Java compiles.

    Without generated code, unless a test asks for it (the fixture `compiled`): to compile takes longer than to run.
    """
    options = "-XX:+UseParallelGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"
    changes = {"master": "local[2, 4]", "driver.memory": "1g", "driver.defaultJavaOptions": options}
    return {**LOCAL_SESSION(small), **{f"spark.{name}": value for name, value in changes.items()}, **INTERPRETED}


INTERPRETED = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
COMPILED = {"spark.sql.codegen.wholeStage": "true", "spark.sql.codegen.factoryMode": "FALLBACK"}
LOCAL_SESSION = etl.local_session


@pytest.fixture(scope="session")
def spark() -> Iterable[SparkSession]:
    """The job's own local session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(etl, "local_session", small_session)
        session = etl.spark_session(etl.Settings(input="data", output="output"))
    yield session
    session.stop()


@pytest.fixture(scope="module")
def compiled(spark: SparkSession) -> Iterator[SparkSession]:
    """The session with generated code, as users have it."""
    for key, value in COMPILED.items():
        spark.conf.set(key, value)
    yield spark
    for key, value in INTERPRETED.items():
        spark.conf.set(key, value)


@pytest.fixture
def table(spark: SparkSession, tmp_path: Path) -> Tables:
    """table(name, songs=[...], events=[...]): the rows of one of the five tables, sorted."""

    def rows_of(name: str, songs: Iterable[Row] = (), events: Iterable[Row] = ()) -> list[tuple]:
        lake = write_lake(tmp_path, songs, events)
        # As in the job, what was parsed is stored before it is used: one plan for all takes Spark many times as long.
        song_lines = parsed(lake, "song_data", etl.SONG_LINES) if songs else []
        log_lines = parsed(lake, "log_data", etl.EVENTS) if events else []
        songs = etl.clean_songs(spark.createDataFrame(song_lines, etl.SONG_LINES.columns))
        events = spark.createDataFrame(log_lines, etl.EVENTS.columns)
        rows = etl.star_schema(songs, etl.clean_plays(events), etl.user_versions(events))[name]
        return sorted_rows(map(in_utc, row) for row in rows.collect())

    def parsed(lake: Path, kind: str, table: etl.Table) -> list[tuple]:
        return rows_of_lines(spark, lake, kind).select(*table.names()).collect()

    return rows_of


def rows_of_lines(spark: SparkSession, root: Path, kind: str) -> DataFrame:
    """What the job makes of the lines of one kind below the root before it builds tables."""
    lines = lines_of(spark, root, kind)
    if kind == "song_data":
        return etl.checked(lines, etl.SONG_FIELDS, etl.SONG_RULES)
    return etl.log_events(etl.checked(lines, etl.LOG_FIELDS, etl.LOG_RULES))


def lines_of(spark: SparkSession, root: Path, kind: str) -> DataFrame:
    """The lines of one kind below the root, as the job reads them."""
    return etl.read_lines(spark, f"file://{root}", kind, etl.json_files(etl.Disk(str(root)), kind))


def in_utc(value: Any) -> Any:
    """PySpark hands times over in the zone of this machine."""
    return value.astimezone(timezone.utc).replace(tzinfo=None) if isinstance(value, datetime) else value


def sorted_rows(rows: Iterable[tuple]) -> list[tuple]:
    """Plain tuples in an order that nulls do not break."""
    return sorted(map(tuple, rows), key=lambda row: [(value is not None, value) for value in row])


# S3 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """An S3 server with two empty buckets."""
    with moto_server() as server:
        for bucket in ("lake", "tables"):
            server.client().create_bucket(Bucket=bucket)
        yield server


@pytest.fixture(scope="module")
def small(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small input with one bad line, on disk and at s3://lake/small: MAX_BAD_RATIO = 1 is needed."""
    root = write_lake(tmp_path_factory.mktemp("small"), [song()], [play_of(song()), event(itemInSession=1), "{"])
    for path in root.rglob("*.json"):
        server.client().upload_file(str(path), "lake", f"small/{path.relative_to(root)}")
    return root


# The files that take longest come first, so that no worker is left alone with one at the end.
LONGEST = ("test_nightly", "test_s3_job", "test_bad_input", "test_job")
TOOLS = ("test_oracle", "test_generate", "test_benchmarks", "test_notebook")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Half characters, of names that are not UTF-8, cannot travel from a worker to pytest."""
    report = yield
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests, and marks those of tools: `make test` leaves them to `make test-tools`."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    for item in items:
        if item.path.stem in TOOLS:
            item.add_marker(pytest.mark.tools)
