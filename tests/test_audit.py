"""Each check before a run publishes, seen red by really breaking what it guards; what readers see never changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
from conftest import Outcome, event, job, play_of, song, write_lake
from lake import reports
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import etl

Damage = Callable[[DataFrame], DataFrame]

SONGS = [song(), song(song_id="SO2", artist_id="AR2", title="Other", year=2001)]
PLAYS = [play_of(SONGS[0]), event(itemInSession=1, at="2018-11-16"), event(itemInSession=2, userId="8")]


@pytest.fixture(scope="module")
def root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input and a lake that was published once."""
    root = tmp_path_factory.mktemp("audit")
    write_lake(root / "in", SONGS, PLAYS)
    assert job(root / "in", root / "out").code == 0
    return root


@pytest.fixture
def lake(root: Path) -> Iterator[Path]:
    """The same; whatever a test does to its input, the run fails and readers see what they saw."""
    before, runs = seen(root / "out"), len(reports(root / "out"))
    write_lake(root / "in", SONGS, PLAYS)
    yield root
    assert seen(root / "out") == before
    (report,) = reports(root / "out")[runs:]
    assert report["outcome"].startswith("failed: ") and report["tables"] == {}
    assert not [path for path in (root / "out" / "_staging").rglob("*") if path.is_file()]


def seen(output: Path) -> dict[str, bytes]:
    """What readers see, and the ledgers."""
    return {
        str(path): path.read_bytes()
        for name in (*etl.TABLES, "_state")
        for path in (output / name).rglob("*")
        if path.is_file()
    }


def run(root: Path, *options: str, **settings: object) -> Outcome:
    return job(root / "in", root / "out", *options, **settings)


# The tables are wrong ------------------------------------------------------------------------------------------------


def only(condition: str) -> Damage:
    return lambda rows: rows.where(condition)


def other(column: str, value: str) -> Damage:
    return lambda rows: rows.withColumn(column, F.expr(value))


def twice(rows: DataFrame) -> DataFrame:
    return rows.union(rows)


DAMAGES = {
    "plays lost": ("songplays", only("user_id <> 8"), "songplays: 2 rows"),
    "songs lost": ("songs", only("year = 1999"), "songs: 1 rows"),
    "plays doubled": ("songplays", twice, "songplays: 6 rows"),
    "users doubled": ("users", twice, "users: 4 rows"),
    "artists doubled": ("artists", twice, "artists: 4 rows"),
    "times doubled": ("time", twice, "time: 4 rows"),
    "null user": ("users", other("user_id", "nullif(user_id, 8)"), "users: 2 rows with 1 different"),
    "null song": ("songs", other("song_id", "nullif(song_id, 'SO2')"), "songs: 2 rows with 1 different"),
    "plays of one key": ("songplays", other("songplay_id", "1L"), "songplays: 3 rows with 1 different"),
    "user of a play": (
        "songplays",
        other("user_id", "user_id + 1000"),
        "songplays: in 3 rows the user_id is not in users",
    ),
    "song of a play": (
        "songplays",
        other("song_id", "song_id || 'x'"),
        "songplays: in 1 rows the song_id is not in songs",
    ),
    "artist of a play": (
        "songplays",
        other("artist_id", "artist_id || 'x'"),
        "songplays: in 1 rows the artist_id is not in artists",
    ),
    "artist of a song": (
        "songs",
        other("artist_id", "artist_id || 'x'"),
        "songs: in 2 rows the artist_id is not in artists",
    ),
    "time of a play": (
        "songplays",
        other("start_time", "start_time + INTERVAL 1 HOUR"),
        "songplays: in 3 rows the start_time is not in time",
    ),
}


@pytest.fixture(scope="module")
def tables(spark: SparkSession, root: Path) -> dict[str, DataFrame]:
    return {name: spark.read.parquet(f"{root}/out/{name}") for name in etl.TABLES}


def audited(tables: dict[str, DataFrame], due: list[str]) -> dict[str, dict[str, int]]:
    """Audits the tables that are due. The input has three plays and two songs."""
    return etl.audit(tables, due, {"songplays": (3, 3), "songs": (2, 2)})[0]


def test_tables_that_are_as_promised_pass(spark: SparkSession, tables: dict[str, DataFrame]) -> None:
    rows = {name: facts["rows"] for name, facts in audited(tables, list(tables)).items()}
    assert rows == {"songplays": 3, "users": 2, "songs": 2, "artists": 2, "time": 2}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_a_table_is_found_and_named(
    spark: SparkSession, tables: dict[str, DataFrame], name: str, tmp_path: Path
) -> None:
    table, damage, line = DAMAGES[name]
    damage(tables[table]).write.parquet(str(tmp_path / table))
    with pytest.raises(etl.JobError, match="nothing was published$") as failure:
        audited({**tables, table: spark.read.parquet(str(tmp_path / table))}, [table])
    assert str(failure.value).startswith(line)


@pytest.mark.parametrize(
    "damage, line",
    [
        (only("user_id <> 8"), "songplays: 2 rows"),
        (other("user_id", "hex(user_id)"), "songplays: the columns are not those declared"),
    ],
    ids=["rows lost", "another type"],
)
def test_a_wrong_table_is_not_published(lake: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage, line: str) -> None:
    star_schema = etl.star_schema

    def damaged(*frames: DataFrame) -> dict[str, DataFrame]:
        tables = star_schema(*frames)
        return {**tables, "songplays": damage(tables["songplays"])}

    monkeypatch.setattr(etl, "star_schema", damaged)
    assert run(lake, "--full").error.startswith(line)


def rows_cut(file: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).slice(1), file)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize("spoil, line", [(rows_cut, "songs: 1 rows"), (cut_short, "/songs/year=2001/part-")])
def test_a_staged_file_that_is_not_as_it_was_written_is_not_published(
    lake: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], line: str
) -> None:
    audit = etl.audit

    def spoilt(*arguments: object) -> object:
        (file,) = (lake / "out" / "_staging").glob("*/songs/year=2001/*.parquet")
        spoil(file)
        for checksum in file.parent.glob(".*.crc"):
            checksum.unlink()
        return audit(*arguments)

    monkeypatch.setattr(etl, "audit", spoilt)
    assert line in run(lake, "--full").error


# Limits --------------------------------------------------------------------------------------------------------------


def test_a_greater_share_of_unusable_lines_than_max_bad_ratio_publishes_nothing(lake: Path) -> None:
    write_lake(lake / "in", SONGS, [*PLAYS, "{", "}", event(ts=None)])
    error = run(lake, MAX_BAD_RATIO=0.4).error
    assert error.startswith("log_data: 3 of 6 lines cannot be used: 2 broken JSON, 1 no time")
    place = Path(re.search(r"they are in ([^\s;]+);", error)[1])
    assert place.parent == lake / "out" / "_quarantine"
    assert "".join(part.read_text() for part in place.glob("*.json")).count('"reason"') == 3
    report = reports(lake / "out")[-1]
    assert report["problems"]["log_data"] == {"broken JSON": 2, "no time": 1} and report["outcome"].endswith(error)


def test_a_table_that_loses_a_greater_share_of_its_rows_than_max_shrink_is_not_published(lake: Path) -> None:
    write_lake(lake / "in", SONGS, PLAYS[:2])
    error = run(lake, MAX_SHRINK=0.3).error
    assert error.startswith("songplays: 2 rows instead of 3, and MAX_SHRINK = 0.3; ") and "--allow-shrink" in error


def test_a_table_is_never_emptied_even_where_it_may_shrink(lake: Path) -> None:
    write_lake(lake / "in", SONGS, [event(page="Home")])
    assert run(lake, "--allow-shrink").error.startswith("songplays would become empty")


def test_tables_may_shrink_with_allow_shrink(spark: SparkSession, tmp_path: Path) -> None:
    for plays, options in ((PLAYS, ()), (PLAYS[:2], ("--allow-shrink",))):
        write_lake(tmp_path / "in", SONGS, plays)
        assert run(tmp_path, *options).code == 0
    assert [report["tables"]["songplays"]["rows"] for report in reports(tmp_path / "out")] == [3, 2]
