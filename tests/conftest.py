"""One Spark session for all tests, and factories for raw rows: a test states only what it is about."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from s3 import Server, moto_server

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

import etl  # noqa: E402

Tables = Callable[..., list[tuple]]


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


def write_lake(root: Path, songs: Iterable[dict | str] = (), events: Iterable[dict | str] = ()) -> Path:
    """A lake of one file of each kind; a row that is text is written as it is."""
    for kind, rows in (("song_data", songs), ("log_data", events)):
        directory = root / kind / "A"
        directory.mkdir(parents=True, exist_ok=True)
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        (directory / "rows.json").write_text(text, encoding="utf-8")
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_nightly", "test_s3_job", "test_job"))


@pytest.fixture(scope="session")
def spark() -> Iterable[SparkSession]:
    """The job's own local session, with less memory: there is one for each of pytest's workers."""
    local_session = etl.local_session
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(etl, "local_session", lambda small: {**local_session(small), "spark.driver.memory": "1g"})
        session = etl.spark_session(etl.Settings(input="data", output="output"), small=True)
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture
def table(spark: SparkSession, tmp_path: Path) -> Tables:
    """table(name, songs=[...], events=[...]): the rows of one of the five tables, sorted."""

    def rows_of(name: str, songs: Iterable[dict | str] = (), events: Iterable[dict | str] = ()) -> list[tuple]:
        lake = write_lake(tmp_path, songs, events)
        song_lines = etl.checked(etl.read_lines(spark, f"{lake}/song_data"), etl.SONG_FIELDS, etl.SONG_RULES)
        log_lines = etl.checked(etl.read_lines(spark, f"{lake}/log_data"), etl.LOG_FIELDS, etl.LOG_RULES)
        events = etl.clean_events(log_lines)
        songs = etl.clean_songs(song_lines.where("problem IS NULL"))
        tables = etl.star_schema(songs, etl.clean_plays(events), etl.user_versions(events))
        return sorted_rows(map(in_utc, row) for row in tables[name].collect())

    return rows_of


def in_utc(value: Any) -> Any:
    """PySpark hands times over in the zone of this machine."""
    return value.astimezone(timezone.utc).replace(tzinfo=None) if isinstance(value, datetime) else value


def sorted_rows(rows: Iterable[tuple]) -> list[tuple]:
    """Plain tuples in an order that nulls do not break."""
    return sorted(map(tuple, rows), key=lambda row: [(value is not None, value) for value in row])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """An S3 server with two empty buckets."""
    with moto_server() as server:
        for bucket in ("lake", "tables"):
            server.client().create_bucket(Bucket=bucket)
        yield server


@pytest.fixture(scope="module")
def small(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small lake with one bad line, on disk and at s3://lake/small: MAX_BAD_RATIO = 1 is needed."""
    root = write_lake(tmp_path_factory.mktemp("small"), [song()], [play_of(song()), event(itemInSession=1), "{"])
    for path in root.rglob("*.json"):
        server.client().upload_file(str(path), "lake", f"small/{path.relative_to(root)}")
    return root
