"""The job as a whole, against the oracle: from JSON files to published tables."""

from __future__ import annotations

import gzip
import logging
import random
import subprocess
import sys
from pathlib import Path

import oracle
import pyarrow.parquet
import pyspark
import pytest
from conftest import ROOT, event, play_of, song, write_lake
from lake import all_published, in_order, published
from pyspark.sql import SparkSession

import etl

GENERATED = {"other": ["--seed", "7"], "dirty": ["--seed", "8", "--dirty"]}


@pytest.fixture(scope="module", params=["sample", *GENERATED])
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, other generated data, and dirty data."""
    if request.param == "sample":
        return ROOT / "data"
    root = tmp_path_factory.mktemp(request.param)
    generator = [sys.executable, str(ROOT / "benchmarks" / "generate.py"), str(root), *GENERATED[request.param]]
    subprocess.run(generator, check=True)
    return root


def run(source: Path, output: Path, *options: str) -> int:
    config = (ROOT / "dl.cfg").read_text().replace("MAX_BAD_RATIO = 0.05", "MAX_BAD_RATIO = 1")
    (output.parent / "dl.cfg").write_text(config)
    return etl.main(
        ["--config", str(output.parent / "dl.cfg"), "--input", str(source), "--output", str(output), *options]
    )


def files(output: Path, pattern: str = "**/*") -> set[str]:
    return {str(path.relative_to(output)) for path in output.glob(pattern) if path.is_file()}


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What the run that made `output` has logged."""
    return []


@pytest.fixture(scope="module")
def output(spark: SparkSession, lake: Path, told: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "output"
    told.clear()
    listener = logging.Handler()
    listener.emit = lambda record: told.append(record.getMessage())
    etl.log.addHandler(listener)
    try:
        assert run(lake, output) == 0
    finally:
        etl.log.removeHandler(listener)
    return output


# The rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", etl.TABLES)
def test_a_table_has_the_rows_that_the_oracle_has(lake: Path, output: Path, name: str) -> None:
    assert published(output, name) == in_order(oracle.five_tables(lake))[name]


def test_the_lines_not_used_are_those_that_the_oracle_does_not_use(output: Path, lake: Path, told: list[str]) -> None:
    rejected = oracle.rejected_lines(lake).items()
    expected = {f"{kind}_data: {lines:,} lines quarantined: {why}" for (kind, why), lines in rejected}
    assert {line.split(";")[0] for line in told if "lines quarantined: " in line} == expected


@pytest.mark.parametrize("name", etl.TABLES)
def test_a_key_is_unique_and_never_null(output: Path, name: str) -> None:
    rows = published(output, name)
    keys = [row[etl.TABLES[name].names().index(etl.TABLES[name].key)] for row in rows]
    assert rows and None not in keys and len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "name, column, other",
    [(t.name, column, other) for t in etl.TABLES.values() for column, other in t.references.items()],
)
def test_a_foreign_key_is_in_its_dimension_or_null(output: Path, name: str, column: str, other: str) -> None:
    there = {row[etl.TABLES[other].names().index(etl.TABLES[other].key)] for row in published(output, other)}
    here = {row[etl.TABLES[name].names().index(column)] for row in published(output, name)}
    assert here - {None} <= there
    assert column in ("song_id", "artist_id") or None not in here


def test_a_second_run_gives_the_same_rows_and_leaves_no_file_of_the_first(lake: Path, output: Path) -> None:
    rows, before = all_published(output), files(output)
    assert run(lake, output, "--full") == 0
    assert all_published(output) == rows
    assert not {name for name in files(output) & before if not name.startswith("_")}
    assert {name.split("/")[0] for name in files(output)} - {"_quarantine"} == {*etl.TABLES, "_lock", "_runs", "_state"}


def test_rows_depend_neither_on_how_the_lines_are_cut_into_files_nor_on_their_order(
    spark: SparkSession, tmp_path: Path
) -> None:
    shuffled, expected = tmp_path / "shuffled", in_order(oracle.five_tables(ROOT / "data"))
    for kind in ("song_data", "log_data"):
        lines = [line for path in (ROOT / "data" / kind).rglob("*.json") for line in path.read_text().splitlines()]
        random.Random(1).shuffle(lines)
        (shuffled / kind / "deep" / "er").mkdir(parents=True)
        (shuffled / kind / "a.json").write_text("\n".join(lines[::2]))
        with gzip.open(shuffled / kind / "deep" / "er" / "b.json.gz", "wt") as file:
            file.write("\n".join(lines[1::2]))
    assert run(shuffled, tmp_path / "output") == 0
    assert all_published(tmp_path / "output") == expected


# The files ---------------------------------------------------------------------------------------------------------


def test_tables_lie_in_hive_layout(output: Path) -> None:
    for table in etl.TABLES.values():
        layout = "/".join(f"{column}=*" for column in table.partitions)
        found = files(output, f"{table.name}/**/*.parquet")
        assert found and found == files(output, "/".join(filter(None, [table.name, layout, "part-*.parquet"])))


def test_parquet_types_are_those_of_the_schema_and_times_are_int64_microseconds(output: Path) -> None:
    types = {"BIGINT": "INT64", "INT": "INT32", "STRING": "BYTE_ARRAY", "DOUBLE": "DOUBLE", "TIMESTAMP": "INT64"}
    for table in etl.TABLES.values():
        file = next(output.glob(f"{table.name}/**/*.parquet"))
        schema = pyarrow.parquet.ParquetFile(file).schema
        expected = dict(column.split() for column in table.columns.split(", "))
        found = {schema.column(n).name: schema.column(n) for n in range(len(schema.names))}
        assert list(found) == [name for name in expected if name not in table.partitions]
        assert all(found[name].physical_type == types[expected[name]] for name in found)
        if "start_time" in found:
            assert "isAdjustedToUTC=true, timeUnit=microseconds" in str(found["start_time"].logical_type)


def test_spark_and_pyarrow_read_the_tables_as_they_are(spark: SparkSession, output: Path) -> None:
    for table in etl.TABLES.values():
        rows = len(published(output, table.name))
        assert spark.read.parquet(f"{output}/{table.name}").select(table.names()).count() == rows
        assert pyarrow.parquet.read_table(f"{output}/{table.name}").num_rows == rows


def test_rows_lie_in_order_inside_a_file(output: Path) -> None:
    for table in etl.TABLES.values():
        for file in output.glob(f"{table.name}/**/*.parquet"):
            columns = pyarrow.parquet.ParquetFile(file).read(columns=list(table.order)).to_pydict()
            rows = list(zip(*(columns[name] for name in table.order), strict=True))
            assert rows == sorted(rows, key=lambda row: [(value is not None, value) for value in row])


def test_songs_partition_by_year_and_artist_brings_the_original_layout_back(
    spark: SparkSession, tmp_path: Path
) -> None:
    config = tmp_path / "dl.cfg"
    config.write_text((ROOT / "dl.cfg").read_text().replace("BY = year\n", "BY = year, artist_id\n"))
    output = tmp_path / "output"
    assert etl.main(["--config", str(config), "--input", str(ROOT / "data"), "--output", str(output)]) == 0
    assert files(output, "songs/**/*.parquet") == files(output, "songs/year=*/artist_id=*/part-*.parquet")
    assert published(output, "songs") == in_order(oracle.five_tables(ROOT / "data"))["songs"]


# What goes wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_lake(tmp_path / "small", [song()], [play_of(song()), event(itemInSession=1)])


def test_what_vanished_from_the_input_vanishes_from_the_tables(
    spark: SparkSession, small: Path, tmp_path: Path
) -> None:
    assert run(small, tmp_path / "output") == 0
    write_lake(small, [song(song_id="SO2", year=1950)], [event(at="2017-01-01")])
    assert run(small, tmp_path / "output", "--allow-shrink") == 0
    assert all_published(tmp_path / "output") == in_order(oracle.five_tables(small))


def test_a_table_is_never_emptied(
    spark: SparkSession, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(small, tmp_path / "output") == 0
    before = all_published(tmp_path / "output")
    write_lake(small, [song()], [event(page="Home")])
    assert run(small, tmp_path / "output", "--allow-shrink") == 1
    assert "songplays would be empty" in caplog.text
    assert all_published(tmp_path / "output") == before


def test_a_failed_audit_publishes_nothing(
    spark: SparkSession, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(etl, "greatest", lambda rows, key: rows)  # duplicates stay
    write_lake(small, [song()], [event(), event()])
    assert run(small, tmp_path / "output") == 1
    assert "songplays: songplay_id: 2 rows, 2 known, 1 distinct, 1 expected" in caplog.text
    assert not files(tmp_path / "output", "songplays/**/*")


def test_a_truncated_gzip_is_named_in_one_line(
    spark: SparkSession, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = gzip.compress((small / "log_data" / "A" / "rows.json").read_bytes() * 100)
    (small / "log_data" / "cut.json.gz").write_bytes(whole[:-20])
    assert run(small, tmp_path / "output") == 1
    assert "`gzip -t` tells which" in caplog.records[-1].message
    assert "cut.json.gz" in caplog.records[-1].message or pyspark.__version__ < "4"  # Spark 3.5 does not say which
    assert "\n" not in caplog.records[-1].message
