"""Storage that fails now and then changes nothing; storage that stays down ends the run in a bounded time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
import pytest
from conftest import ROOT, event, play_of, song, write_lake
from faultproxy import FaultProxy, fault_proxy
from lake import all_published, in_order
from pyspark import TaskContext
from pyspark.sql import DataFrame, Row, SparkSession
from s3 import Server, objects

import etl


def started(server: Server, proxy: FaultProxy, place: Path, **lake: str) -> subprocess.Popen[str]:
    config = server.behind(proxy.endpoint).dl_cfg(place / "dl.cfg", "s3://lake/small", MAX_BAD_RATIO="1", **lake)
    command = [sys.executable, str(ROOT / "etl.py"), "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))


def rest_of(job: subprocess.Popen[str], seconds: float) -> tuple[str, float]:
    """What the job says from now on and how long it takes; TimeoutExpired if longer than `seconds`."""
    since = time.monotonic()
    try:
        told, _ = job.communicate(timeout=seconds)
    finally:
        job.kill()
    return told, time.monotonic() - since


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

    def unreliable(spark: SparkSession, directory: str, names: list[str] | None) -> DataFrame:
        lines = read_lines(spark, directory, names)
        return spark.createDataFrame(lines.rdd.mapPartitions(fails_once), lines.schema)

    monkeypatch.setattr(etl, "read_lines", unreliable)
    source = write_lake(tmp_path / "lake", [song()], [play_of(song()), event(itemInSession=1), event(itemInSession=1)])
    arguments = ["--config", str(ROOT / "dl.cfg"), "--input", str(source), "--output", str(tmp_path / "output")]
    assert etl.main(arguments) == 0
    assert len(list(failed.iterdir())) == 2  # one reads the songs, one the log
    record_property("failed tasks", len(list(failed.iterdir())))
    assert all_published(tmp_path / "output") == in_order(oracle.five_tables(str(source)))


def test_a_store_that_is_down_from_the_start_is_told_within_two_minutes(
    server: Server, small: Path, tmp_path: Path
) -> None:
    with fault_proxy(server.endpoint) as proxy:
        proxy.down = True
        told, _ = rest_of(started(server, proxy, tmp_path, OUTPUT="s3://tables/down"), 150)
    assert "the store cannot be reached" in told.strip().splitlines()[-1] and "Traceback" not in told


def test_a_store_that_goes_down_ends_the_run_in_a_bounded_time(
    server: Server, small: Path, tmp_path: Path, record_property: Callable
) -> None:
    with fault_proxy(server.endpoint) as proxy:
        job = started(server, proxy, tmp_path, OUTPUT="s3://tables/went", LEASE_SECONDS="15")
        assert any("accounting in" in line for line in job.stdout)
        proxy.down = True
        told, seconds = rest_of(job, 60)
    assert job.returncode == 1 and "Traceback" not in told
    assert "no answer for [LAKE] LEASE_SECONDS = 15" in told
    assert objects(server.client(), "tables", "went/songplays") == {}
    record_property("store down", f"ended after {seconds:.0f} s")


def test_a_store_of_the_input_alone_that_goes_down_ends_the_run_in_a_bounded_time(
    server: Server, small: Path, tmp_path: Path
) -> None:
    with fault_proxy(server.endpoint, latency=0.5) as proxy:
        job = started(server, proxy, tmp_path, OUTPUT=str(tmp_path / "output"), LEASE_SECONDS="15")
        while not proxy.counts()["GET"]:
            assert job.poll() is None
            time.sleep(0.1)
        proxy.down = True
        told, _ = rest_of(job, 60)
    assert job.returncode == 1 and "Traceback" not in told
    assert "s3://lake/small: no answer for [LAKE] LEASE_SECONDS = 15" in told


def test_readers_see_a_mix_for_a_small_part_of_the_run_only(
    server: Server, tmp_path: Path, record_property: Callable
) -> None:
    for path in (ROOT / "data").rglob("*.json"):
        server.client().upload_file(str(path), "lake", f"sample/{path.relative_to(ROOT / 'data')}")
    with fault_proxy(server.endpoint) as proxy:
        for proxy.latency in (0, 0.02):  # the second run has files to retire
            job = started(server, proxy, tmp_path, INPUT="s3://lake/sample", OUTPUT="s3://tables/window")
            told, seconds = rest_of(job, 400)
            assert job.returncode == 0, told
    reports = objects(server.client(), "tables", "window/_runs")
    report = json.loads(reports[max(reports)])
    window, files = report["seconds"]["publish"], sum(table["files"] for table in report["tables"].values())
    assert window < seconds / 10
    record_property("publication", f"{window:.1f} s of {seconds:.0f}, for {files} files")
