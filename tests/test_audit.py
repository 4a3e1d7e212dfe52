"""Each check of the audit, seen red by really breaking what it guards; what readers see never changes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import ROOT, epoch_ms, event, play_of, song, write_lake
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import etl

Damage = Callable[[DataFrame], DataFrame]

SONGS = [song(), song(song_id="SO2", artist_id="AR2", title="Other", year=2001)]
PLAYS = [play_of(SONGS[0]), event(itemInSession=1, at="2018-11-16"), event(itemInSession=2, userId="8")]


@pytest.fixture(scope="module")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that was published once."""
    root = tmp_path_factory.mktemp("audit")
    write_lake(root / "in", SONGS, PLAYS)
    assert job(root) == 0
    return root


@pytest.fixture
def lake(root: Path) -> Iterator[Path]:
    """The same; whatever a test does to its input, the run fails and readers see what they saw."""
    before, runs = seen(root / "out"), reports(root)
    write_lake(root / "in", SONGS, PLAYS)
    yield root
    assert seen(root / "out") == before
    (report,) = (report for name, report in reports(root).items() if name not in runs)
    assert report["outcome"].startswith("failed: ")
    assert not [path for path in (root / "out" / "_staging").rglob("*") if path.is_file()]


def job(root: Path, *options: str, **settings: str) -> int:
    config = (ROOT / "dl.cfg").read_text()
    for key, value in settings.items():
        config = re.sub(f"^{key} =.*$", f"{key} = {value}", config, flags=re.M)
    (root / "dl.cfg").write_text(config)
    places = ["--input", str(root / "in"), "--output", str(root / "out")]
    return etl.main(["--config", str(root / "dl.cfg"), *places, *options])


def seen(output: Path) -> dict[str, bytes]:
    """What readers see: the files that lie in no directory with an underscore."""
    return {str(path): path.read_bytes() for name in etl.TABLES for path in (output / name).rglob("*.parquet")}


def reports(root: Path) -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in (root / "out" / "_runs").iterdir()}


@pytest.fixture
def refused(caplog: pytest.LogCaptureFixture) -> Callable[..., str]:
    """refused(root, ...): runs the job, which must fail, and gives the one line that says why."""

    def run(root: Path, *options: str, **settings: str) -> str:
        assert job(root, *options, **settings) == 1
        (record,) = (record for record in caplog.records if record.levelname == "ERROR")
        assert "\n" not in record.message
        return record.message

    return run


# The tables are wrong ------------------------------------------------------------------------------------------------


def only(condition: str) -> Damage:
    return lambda rows: rows.where(condition)


def other(column: str, value: str) -> Damage:
    return lambda rows: rows.withColumn(column, F.expr(value))


def twice(rows: DataFrame) -> DataFrame:
    return rows.union(rows)


EXPECTED = {"songplays": 3, "users": 2, "songs": 2}
FACTS = ["first_name", "last_name", "gender", "level"]
SPAN = (epoch_ms("2018-11-15T12:30:45.796"), epoch_ms("2018-11-16"))
DAMAGES = {
    "plays lost": (
        "songplays",
        only("user_id <> 8"),
        "songplays: songplay_id: 2 rows, 2 known, 2 dis",
    ),
    "users lost": (
        "users",
        only("user_id <> 8"),
        "users: user_id: 1 rows, 1 known, 1 distinct, 2 exp",
    ),
    "songs lost": (
        "songs",
        only("year = 1999"),
        "songs: song_id: 1 rows, 1 known, 1 distinct, 2 exp",
    ),
    "artists lost": (
        "artists",
        only("artist_id = 'AR1'"),
        "artists: artist_id: 1 rows, 1 known, 1 dis",
    ),
    "times lost": (
        "time",
        only("day = 15"),
        "time: start_time: 1 rows, 1 known, 1 distinct, 2 expe",
    ),
    "plays doubled": ("songplays", twice, "songplays: songplay_id: 6 rows, 6 known, 3 distinct, 3 expected"),
    "users doubled": ("users", twice, "users: user_id: 4 rows, 4 known, 2 distinct, 2 expected"),
    "times doubled": ("time", twice, "time: start_time: 4 rows, 4 known, 2 distinct, 2 expected"),
    "null user": (
        "users",
        other("user_id", "nullif(user_id, 8)"),
        "users: user_id: 2 rows, 1 known, 1 distinct, 2 exp",
    ),
    "null song": ("songs", other("song_id", "nullif(song_id, 'SO2')"), "songs: song_id: 2 rows, 1 known, 1 distinct"),
    "plays of one key": (
        "songplays",
        other("songplay_id", "1L"),
        "songplays: songplay_id: 3 rows, 3 known, 1 distinct",
    ),
    "user of a play": ("songplays", other("user_id", "user_id + 1000"), "songplays: a user_id is not in users"),
    "song of a play": ("songplays", other("song_id", "song_id || 'x'"), "songplays: a song_id is not in songs"),
    "artist of a play": (
        "songplays",
        other("artist_id", "artist_id || 'x'"),
        "songplays: a artist_id is not in artists",
    ),
    "artist of a song": ("songs", other("artist_id", "artist_id || 'x'"), "a artist_id is not in artists"),
    "time of a play": (
        "time",
        other("start_time", "start_time + INTERVAL 1 HOUR"),
        "songplays: a start_time is not in time",
    ),
}


@pytest.fixture(scope="module")
def tables(spark: SparkSession, root: Path) -> dict[str, DataFrame]:
    return {name: spark.read.parquet(f"{root}/out/{name}").select(etl.TABLES[name].names()) for name in etl.TABLES}


def audited(tables: dict[str, DataFrame]) -> dict[str, dict]:
    return etl.audit(tables, dict(EXPECTED), SPAN)


def test_tables_that_are_as_promised_pass(tables: dict[str, DataFrame]) -> None:
    rows = {name: told["rows"] for name, told in audited(tables).items()}
    assert rows == {"songplays": 3, "users": 2, "songs": 2, "artists": 2, "time": 2}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_a_table_is_found_and_named(tables: dict[str, DataFrame], name: str) -> None:
    table, damage, told = DAMAGES[name]
    with pytest.raises(etl.JobError, match="(?i)nothing was published$") as failure:
        audited({**tables, table: damage(tables[table])})
    assert told in str(failure.value)


def test_times_in_another_zone_are_found(tables: dict[str, DataFrame]) -> None:
    shifted = {
        name: tables[name].withColumn("start_time", F.expr("start_time - INTERVAL 5 HOURS"))
        for name in ("songplays", "time")
    }
    with pytest.raises(etl.JobError, match="songplays: times from 1542267045796 to 1542308400000, in the input"):
        audited({**tables, **shifted})


@pytest.mark.parametrize("table, column, kind", [("users", "user_id", "string"), ("time", "hour", "double")])
def test_a_column_of_another_type_is_found(
    spark: SparkSession, tables: dict[str, DataFrame], tmp_path: Path, table: str, column: str, kind: str
) -> None:
    rows = tables[table].withColumn(column, F.col(column).cast(kind))
    declared = dict(tables[table].dtypes)[column]
    told = ", ".join(sorted(f"{column} {each}" for each in (kind, declared)))
    with pytest.raises(etl.JobError, match=f"{table}: the columns written are not those declared: {told};"):
        etl.write_table(spark, etl.TABLES[table], rows, str(tmp_path / table))


def test_a_table_without_rows_has_no_columns_to_find(
    spark: SparkSession, tables: dict[str, DataFrame], tmp_path: Path
) -> None:
    none = etl.write_table(spark, etl.TABLES["songs"], tables["songs"].where("false"), str(tmp_path / "songs"))
    assert none.count() == 0


# A transform is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform, damage, told",
    [
        (
            "songplays_table",
            lambda rows: rows.where("user_id <> 8"),
            "songplays: songplay_id: 2 rows, 2 known, 2 distin",
        ),
        (
            "users_table",
            lambda rows: rows.select(F.hex("user_id").alias("user_id"), *FACTS),
            "users: the columns written",
        ),
    ],
)
def test_what_a_wrong_transform_makes_is_not_published(
    lake: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], transform: str, damage: Damage, told: str
) -> None:
    right = getattr(etl, transform)
    monkeypatch.setattr(etl, transform, lambda *frames: damage(right(*frames)))
    assert told in refused(lake)


# What was staged is not what was computed ----------------------------------------------------------------------------


def spoil_staged(patch: pytest.MonkeyPatch, lake: Path, spoil: Callable[[Path], None]) -> None:
    """Does something to a staged file of users after it was written, and before it is audited."""
    audit = etl.audit

    def spoilt(*arguments: object) -> dict:
        (file,) = (lake / "out" / "_staging").glob("*/users/*.parquet")
        spoil(file)
        for checksum in file.parent.glob(".*.crc"):
            checksum.unlink()
        return audit(*arguments)

    patch.setattr(etl, "audit", spoilt)


def rows_cut(file: Path) -> None:
    pa.parquet.write_table(pa.parquet.read_table(file).slice(1), file)


def test_rows_lost_in_a_staged_file_are_not_published(
    lake: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    spoil_staged(monkeypatch, lake, rows_cut)
    assert "users: user_id: 1 rows, 1 known, 1 distinct, 2 expected" in refused(lake)


def test_a_staged_file_that_is_cut_short_is_not_published(
    lake: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    spoil_staged(monkeypatch, lake, lambda file: file.write_bytes(file.read_bytes()[:-40]))
    assert "/users/part-" in refused(lake)


# Limits --------------------------------------------------------------------------------------------------------------


def quarantined(root: Path, line: str) -> str:
    """The newest run's bad lines, as the line names the place."""
    place = Path(re.search(r"they are in (\S+);", line).group(1))
    assert place.parent == root / "out" / "_quarantine"
    return "".join(part.read_text() for part in place.glob("*.json"))


def test_more_bad_lines_than_max_bad_lines_publish_nothing(lake: Path, refused: Callable[..., str]) -> None:
    write_lake(lake / "in", SONGS, [*PLAYS, "{", "7", json.dumps(event(ts=None))])
    line = refused(lake, MAX_BAD_LINES="2", MAX_BAD_RATIO="1")
    assert "log_data: 3 of 6 lines cannot be used, and [LAKE] MAX_BAD_LINES = 2: 2 broken JSON, 1 no time;" in line
    assert quarantined(lake, line).count('"reason"') == 3
    newest = max(reports(lake).items())[1]
    assert newest["problems"]["log_data"] == {"broken JSON": 2, "no time": 1} and newest["outcome"].endswith(line)


def test_a_greater_share_of_bad_lines_than_max_bad_ratio_publishes_nothing(
    lake: Path, refused: Callable[..., str]
) -> None:
    write_lake(lake / "in", [*SONGS, "{"], PLAYS)
    line = refused(lake, MAX_BAD_RATIO="0.3")
    assert "song_data: 1 of 3 lines cannot be used, and [LAKE] MAX_BAD_RATIO = 0.3: 1 broken JSON; they are in" in line
    assert quarantined(lake, line).count('"reason"') == 1


def test_a_table_that_loses_more_than_max_shrink_is_not_published(lake: Path, refused: Callable[..., str]) -> None:
    write_lake(lake / "in", SONGS, PLAYS[:2])
    line = refused(lake, MAX_SHRINK="0.3")
    assert "songplays: 2 rows, and 3 in the last run; [LAKE] MAX_SHRINK = 0.3" in line and "--allow-shrink" in line


@pytest.mark.parametrize("kind, emptied", [("log_data", "songplays"), ("song_data", "artists")])
def test_a_table_is_never_emptied_even_where_it_may_shrink(
    lake: Path, refused: Callable[..., str], kind: str, emptied: str
) -> None:
    songs, plays = (SONGS, [event(page="Home")]) if kind == "log_data" else ([song(artist_id="")], PLAYS)
    write_lake(lake / "in", songs, plays)
    assert f"{emptied} would be empty and is not now" in refused(lake, "--allow-shrink")


def test_what_may_shrink_is_published_with_allow_shrink_and_within_the_limits(
    spark: SparkSession, tmp_path: Path
) -> None:
    write_lake(tmp_path / "in", SONGS, PLAYS)
    assert job(tmp_path) == 0
    write_lake(tmp_path / "in", SONGS, [*PLAYS[:2], "{"])
    assert job(tmp_path, "--allow-shrink", MAX_BAD_LINES="1", MAX_BAD_RATIO="0.34") == 0
    assert [report["tables"]["songplays"]["rows"] for _, report in sorted(reports(tmp_path).items())] == [3, 2]
