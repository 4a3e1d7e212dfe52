"""Killed by SIGKILL at any point, the job leaves the old tables, or the next run makes the new ones whole."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, event, play_of, song, write_lake
from lake import all_published, in_order
from oracle import five_tables
from s3 import Server, moto_server, objects, open_uploads

import etl

# What tests/killed.py knows as points, in the order of a night over the small lake below. The first `write` is the
# journal's, then the ledger's and the report's. Moves bring new files, deletes 1 to 8 retire old ones, 9 the journal.
BEFORE = [
    "recover 1", "spark_session 1", "build 1", "stage_again 1", "in stage_again 1", "quarantine 1", "write_table 1",
    "in write_table 1", "write_table 2", "in write_table 3", "write_table 7", "audit 1", "in audit 1", "check_shrink 1",
    "publish 1", "write 1",
]  # fmt: skip
PUBLISHING = [
    "move 1", "move 2", "move 9", "move 17",
    "delete 1", "delete 2", "delete 5", "delete 8", "write 2", "write 3", "delete 9", "clear 2",
]  # fmt: skip
# On S3 these are spared: they are like others.
ALIKE = {"build 1", "quarantine 1", "write_table 2", "write_table 7", "check_shrink 1", "move 2", "delete 2"}
QUICK = {"in write_table 1", "move 9", "delete 5"}  # the others take minutes: make test-killed


def points(names: list[str], quick: set[str]) -> list:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.killed) for name in names]


class Place:
    """A lake's tables on a disk or on S3: reset to those of the old input before each test."""

    def __init__(self, root: Path, config: Path, address: str, server: Server | None = None) -> None:
        self.root, self.config, self.address, self.server = root, config, address, server

    def run(self, point: str = "", *options: str) -> int:
        """Runs the job in a process group of its own, and returns its exit code: -9 if it was killed at the point."""
        arguments = ["--config", str(self.config), "--input", str(self.root / "in"), "--output", self.address]
        command = [sys.executable, str(ROOT / "tests" / "killed.py"), point, *arguments, *options]
        done = subprocess.run(command, start_new_session=True, capture_output=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()[-3000:]
        return done.returncode

    def storage(self) -> etl.Disk | etl.Bucket:
        return etl.storage(self.address, etl.read_settings(str(self.config)))

    def tables(self) -> dict[str, list[tuple]]:
        """What a reader sees now."""
        if not self.server:
            return all_published(self.address)
        bucket, prefix = etl.s3_place(self.address)
        shutil.rmtree(self.root / "seen", ignore_errors=True)
        for key, body in objects(self.server.client(), bucket, f"{prefix}/").items():
            path = self.root / "seen" / key.removeprefix(f"{prefix}/")
            if key.endswith(".parquet"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(body)
        return all_published(self.root / "seen")

    def reset(self) -> None:
        if not self.server:
            shutil.rmtree(self.address, ignore_errors=True)
            shutil.copytree(self.root / "before", self.address)
            return
        storage = self.storage()
        storage.delete(list(storage.files("")))
        for path in (self.root / "before").rglob("*"):
            if path.is_file():
                key = f"{etl.s3_place(self.address)[1]}/{path.relative_to(self.root / 'before')}"
                self.server.client().upload_file(str(path), etl.s3_place(self.address)[0], key)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`before`: the tables of an input. `in`: the same with what has come since, of which a night has all to do that
    one can: rows are added to a month, a month is new, another is built anew since its play has another song now."""
    root = tmp_path_factory.mktemp("killed")
    plays = [play_of(song()), event(itemInSession=1), event(userId="8", at="2018-12-01")]
    write_lake(root / "in", [song()], plays)
    config = (ROOT / "dl.cfg").read_text().replace("MAX_BAD_RATIO = 0.05", "MAX_BAD_RATIO = 1")
    (root / "dl.cfg").write_text(config)
    assert Place(root, root / "dl.cfg", str(root / "before")).run() == 0
    shutil.copytree(root / "in", root / "old")
    for kind, name in (("song_data", "songs.json"), ("log_data", "more.json")):
        songs, plays = [song(song_id="SO0", year=1950)], [event(at="2017-01-01"), event(at="2018-12-02"), "{"]
        new = write_lake(root / "new", songs, plays)
        (new / kind / "A" / "rows.json").rename(root / "in" / kind / name)
    return root


@pytest.fixture(scope="module")
def disk(root: Path) -> Place:
    return Place(root, root / "dl.cfg", str(root / "output"))


@pytest.fixture(scope="module")
def s3(root: Path) -> Iterator[Place]:
    with moto_server() as server:
        server.client().create_bucket(Bucket="lake")
        config = server.dl_cfg(root / "s3.cfg", "unused", MAX_BAD_RATIO="1")
        yield Place(root, config, "s3://lake/tables", server)


@pytest.fixture(scope="module")
def expected(root: Path) -> Callable[[bool], dict[str, list[tuple]]]:
    old, new = (in_order(five_tables(str(root / name))) for name in ("old", "in"))
    return lambda published: new if published else old


def killed_and_recovered(place: Place, point: str, expected: Callable, published: bool, *options: str) -> None:
    place.reset()
    assert place.run(point, *options) == -signal.SIGKILL, f"{point} was not passed"
    storage = place.storage()
    if not published:
        assert place.tables() == expected(False)
    with etl.Lease(storage, "the next run", 60):
        etl.recover(storage)
    assert place.tables() == expected(published)
    assert storage.files(etl.STAGING) == {}
    assert len(storage.files(etl.RUNS)) == 1 + published
    assert etl.read_ledger(storage)["files"] == etl.lake_files(storage)
    assert not place.server or open_uploads(place.server.client(), "lake") == []


@pytest.mark.parametrize("point", points(BEFORE, QUICK))
def test_killed_before_it_publishes_on_a_disk_a_run_has_changed_nothing(
    disk: Place, point: str, expected: Callable, record_property: Callable
) -> None:
    record_property("killed on a disk", 1)
    killed_and_recovered(disk, point, expected, published=False)


@pytest.mark.parametrize("point", points(PUBLISHING, QUICK))
def test_killed_while_it_publishes_on_a_disk_a_run_is_finished_by_the_next(
    disk: Place, point: str, expected: Callable, record_property: Callable
) -> None:
    record_property("killed on a disk", 1)
    killed_and_recovered(disk, point, expected, published=True)


@pytest.mark.killed
@pytest.mark.parametrize("point, published", [("write_table 5", False), ("move 9", True), ("delete 6", True)])
def test_a_full_run_that_is_killed_is_as_whole_as_a_night(
    disk: Place, point: str, published: bool, expected: Callable, record_property: Callable
) -> None:
    record_property("killed on a disk", 1)
    killed_and_recovered(disk, point, expected, published, "--full")


@pytest.mark.parametrize("point", points([name for name in BEFORE if name not in ALIKE], set()))
def test_killed_before_it_publishes_on_s3_a_run_has_changed_nothing(
    s3: Place, point: str, expected: Callable, record_property: Callable
) -> None:
    record_property("killed on S3", 1)
    killed_and_recovered(s3, point, expected, published=False)


@pytest.mark.parametrize("point", points([name for name in PUBLISHING if name not in ALIKE], set()))
def test_killed_while_it_publishes_on_s3_a_run_is_finished_by_the_next(
    s3: Place, point: str, expected: Callable, record_property: Callable
) -> None:
    record_property("killed on S3", 1)
    killed_and_recovered(s3, point, expected, published=True)


@pytest.mark.killed
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_run_that_is_killed_while_it_finishes_another_is_finished_by_the_third(
    place: str, expected: Callable, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(place)
    place.reset()
    assert place.run("move 3") == place.run("delete 3") == -signal.SIGKILL
    assert place.run() == 0
    assert place.tables() == expected(True)
    assert place.storage().files(etl.STAGING) == {}
