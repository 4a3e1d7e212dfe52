"""One run at a time: a lease that one of many takes, that is kept while its holder lives, and ends when it dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, event, song, write_lake
from pyspark.sql import SparkSession
from s3 import Server, minio_server

import etl

# Fifty processes that try at once, print whether they won, and wait for one another before they leave.
RACE = r"""
import multiprocessing, os, sys, etl

def tell(line):
    os.write(1, f"{line}\n".encode())  # whole, whoever else writes

def attempt(place, settings, gate):
    lake = etl.storage(place, settings)
    gate.wait()
    try:
        with etl.Lease(lake, "a run", 60):
            tell("won")
            gate.wait()
    except etl.JobError as error:
        tell(f"lost: {error}")
        gate.wait()

settings = etl.read_settings(sys.argv[1], input="data", output=sys.argv[2])
fork = multiprocessing.get_context("fork")
gate = fork.Barrier(50)
racers = [fork.Process(target=attempt, args=(sys.argv[2], settings, gate)) for _ in range(50)]
[racer.start() for racer in racers]
[racer.join() for racer in racers]
"""
DIES = """
import os, sys, etl
etl.Lease(etl.Disk(sys.argv[1]), "a run that dies", 60).__enter__()
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def lake(tmp_path: Path) -> etl.Disk:
    return etl.Disk(str(tmp_path / "output"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """elsewhere(True) puts what follows on another machine."""
    here = etl.socket.gethostname()
    return lambda away: monkeypatch.setattr(etl.socket, "gethostname", lambda: "elsewhere" if away else here)


def race(config: Path, place: str) -> list[str]:
    told = subprocess.run([sys.executable, "-c", RACE, str(config), place], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return sorted(told.stdout.splitlines())


def assert_one_winner(told: list[str]) -> None:
    assert len(told) == 50 and [line for line in told if line == "won"] == ["won"], told
    assert all("another run " in line for line in told if line != "won")


def left_by_a_dead_run(lake: etl.Disk) -> None:
    """A lease that is over, of a holder on another machine."""
    state = {"run": "x", "host": "elsewhere", "machine": "elsewhere", "pid": 1, "since": "", "expires": 1}
    lake.write("_lock/000000000007.json", json.dumps(state))


@pytest.mark.parametrize("prepare", [lambda lake: None, left_by_a_dead_run], ids=["free", "expired"])
def test_of_fifty_runs_that_start_at_once_on_a_disk_one_wins(
    lake: etl.Disk, prepare: Callable, record_property: Callable
) -> None:
    record_property("racing starts", 50)
    prepare(lake)
    assert_one_winner(race(ROOT / "dl.cfg", lake.root))


@pytest.mark.parametrize("prepare", [lambda lake: None, left_by_a_dead_run], ids=["free", "expired"])
def test_of_fifty_runs_that_start_at_once_on_s3_one_wins(
    server: Server, tmp_path: Path, prepare: Callable, request: pytest.FixtureRequest, record_property: Callable
) -> None:
    record_property("racing starts", 50)
    place = f"s3://lake/{request.node.callspec.id}"
    config = server.dl_cfg(tmp_path / "dl.cfg", "s3://lake/raw")
    prepare(etl.storage(place, etl.read_settings(str(config))))
    assert_one_winner(race(config, place))


@pytest.mark.minio
def test_of_fifty_runs_that_start_at_once_on_minio_one_wins(tmp_path: Path) -> None:
    with minio_server() as server:
        server.client().create_bucket(Bucket="lake")
        assert_one_winner(race(server.dl_cfg(tmp_path / "dl.cfg", "s3://lake/raw"), "s3://lake/tables"))


def test_a_second_run_stops_and_names_the_holder(
    spark: SparkSession, lake: etl.Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_lake(tmp_path / "lake", [song()], [event()])
    with etl.Lease(lake, "20181115T000000Z", 60):
        arguments = ["--config", str(ROOT / "dl.cfg"), "--input", str(source), "--output", lake.root]
        assert etl.main(arguments) == 1
        told = caplog.records[-1].message
        assert f"run 20181115T000000Z of process {os.getpid()} on {etl.socket.gethostname()}, since 20" in told
        assert "changed nothing" in told and {name.split("/")[0] for name in lake.files("")} == {"_lock"}
    assert etl.main(arguments) == 0


def test_a_holder_that_died_on_this_machine_is_replaced_at_once(lake: etl.Disk) -> None:
    died = subprocess.run([sys.executable, "-c", DIES, lake.root], cwd=ROOT)
    assert died.returncode == -9
    with etl.Lease(lake, "next", 60):
        assert lake.read(max(lake.files("_lock"))).count("next")


def test_a_holder_on_another_machine_is_replaced_when_its_lease_is_over(lake: etl.Disk, elsewhere: Callable) -> None:
    elsewhere(True)
    dead = etl.Lease(lake, "dead", 1)
    dead.number = dead.newest()[0]
    assert dead.advance(1)  # and never again
    elsewhere(False)
    with pytest.raises(etl.JobError, match="run dead of process .* on elsewhere"), etl.Lease(lake, "next", 60):
        pass
    time.sleep(1)
    with etl.Lease(lake, "next", 60):
        pass


def test_a_lease_is_kept_while_its_holder_lives(lake: etl.Disk, elsewhere: Callable) -> None:
    with etl.Lease(lake, "long", 0.9):
        time.sleep(2)
        elsewhere(True)
        with pytest.raises(etl.JobError, match="run long"), etl.Lease(lake, "next", 60):
            pass


def test_a_lease_is_given_back_also_by_a_run_that_fails(lake: etl.Disk, elsewhere: Callable) -> None:
    with pytest.raises(ZeroDivisionError), etl.Lease(lake, "fails", 60):
        raise ZeroDivisionError
    elsewhere(True)
    with etl.Lease(lake, "next", 60):
        pass
    assert len(lake.files("_lock")) == 1


def test_a_lease_that_was_given_back_is_not_taken_again_by_a_renewal_on_its_way(lake: etl.Disk) -> None:
    with etl.Lease(lake, "done", 60) as lease:
        pass
    lease.renew()
    assert not etl.running(lease.newest()[1])


def test_a_late_starter_that_follows_a_state_of_long_ago_does_not_win(lake: etl.Disk) -> None:
    late = etl.Lease(lake, "late", 60)
    late.number = 3
    with etl.Lease(lake, "other", 60) as other:
        other.number += 5
        assert other.advance(60)
        assert not late.advance(60)
        assert other.advance(60)


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(etl, "give_up", told.append)
    return told


def test_a_run_whose_lease_another_has_taken_gives_up(lake: etl.Disk, given_up: list[str]) -> None:
    slept, thief = etl.Lease(lake, "slept", 0.6), etl.Lease(lake, "thief", 60)
    with slept:
        thief.number = slept.number
        assert thief.advance(60)
        time.sleep(0.5)
    assert given_up and "run thief" in given_up[0] and "taken for dead" in given_up[0]


def test_a_run_whose_store_has_been_silent_for_the_length_of_its_lease_gives_up(
    lake: etl.Disk, given_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with etl.Lease(lake, "cut off", 1.5):
        monkeypatch.setattr(lake, "create", lambda name, text: time.sleep(2) or False)
        time.sleep(3)
    assert given_up and "no answer for [LAKE] LEASE_SECONDS" in given_up[0]


def test_a_renewal_that_was_cut_short_is_taken_up_by_the_next_attempt(
    lake: etl.Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with etl.Lease(lake, "unlucky", 60) as lease:
        newest = lease.newest
        with monkeypatch.context() as patch:
            patch.setattr(lease, "newest", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                lease.renew()
        lease.renew()
        assert newest()[0] == 2 and newest()[1]["id"] == lease.holder["id"]


def test_a_lease_on_a_damaged_lock_is_refused_with_its_name(lake: etl.Disk) -> None:
    for text in ("", "{}", "7", "{"):
        lake.write("_lock/000000000007.json", text)
        with pytest.raises(etl.JobError, match="_lock/000000000007.json: not what a run has written"):
            etl.Lease(lake, "next", 60).__enter__()


def test_an_input_that_may_not_be_looked_at_has_answered(lake: etl.Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(below: str, status: int) -> dict:
        error = etl.StoreError("s3://lake/raw", ValueError("no"))
        error.status = status
        raise error

    lease = etl.Lease(lake, "reader", 60, etl.Disk(lake.root))
    monkeypatch.setattr(lease.source, "files", lambda below: refused(below, 403))
    lease.look_at_source()
    monkeypatch.setattr(lease.source, "files", lambda below: refused(below, 503))
    with pytest.raises(etl.StoreError):
        lease.look_at_source()
