"""Tasks and processes of Spark that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
import pytest
from conftest import event, job, play_of, song, write_lake
from lake import all_published, in_order
from pyspark import TaskContext
from pyspark.sql import DataFrame, Row, SparkSession

import etl


def test_a_task_that_fails_once_changes_nothing(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable
) -> None:
    failed = tmp_path / "failed"
    failed.mkdir()
    read_lines = etl.read_lines

    def fails_once(rows: Iterator[Row]) -> Iterator[Row]:
        yield from rows
        if TaskContext.get().attemptNumber() == 0:
            (failed / str(TaskContext.get().taskAttemptId())).touch()
            raise OSError("pulled the plug of a task that had read all of its lines")

    def unreliable(spark: SparkSession, source: str, kind: str, names: dict) -> DataFrame:
        lines = read_lines(spark, source, kind, names)
        return spark.createDataFrame(lines.rdd.mapPartitions(fails_once), lines.schema)

    monkeypatch.setattr(etl, "read_lines", unreliable)
    source = write_lake(tmp_path / "lake", [song()], [play_of(song()), event(itemInSession=1), event(itemInSession=1)])
    assert job(source, tmp_path / "output").code == 0
    assert len(list(failed.iterdir())) == 2  # one reads the songs, one the log
    record_property("failed tasks", len(list(failed.iterdir())))
    assert all_published(tmp_path / "output") == in_order(oracle.five_tables(str(source)))
