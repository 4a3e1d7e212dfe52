"""A run that is broken anywhere leaves the old tables, or the next run makes the new ones whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import explorer
import pytest
import sparkless
from conftest import ROOT, event, play_of, song, write_lake
from lake import all_published
from s3 import Server, objects
from sparkless import Lake

import etl

# What Disk asks of the system, besides open, and what changes something there and on S3.
SYSTEM = ["link", "makedirs", "replace", "rmdir", "unlink", "sync", "walk"]
CHANGES = {*SYSTEM[:5], "put_object", "copy_object", "delete_object"}
STARTS = ["an empty lake", "a lake", "a lake that a killed run left"]


class Fuse:
    """Counts calls to the system or to S3, and breaks the run at the n-th, before that call does anything."""

    def __init__(self, at: int, break_it: Callable[[], None]) -> None:
        self.left, self.break_it = at, break_it

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.break_it()

    def before(self, call: Callable) -> Callable:
        def counted(*arguments: object, **options: object) -> object:
            self.burn()
            return call(*arguments, **options)

        return counted


class OnDisk:
    error = OSError(5, "Input/output error")

    def __init__(self, root: Path) -> None:
        self.settings = etl.Settings("in", str(root), max_shrink=1.0)

    def empty(self) -> None:
        shutil.rmtree(self.settings.output, ignore_errors=True)

    def arm(self, patch: pytest.MonkeyPatch, fuse: Fuse, changes_only: bool) -> None:
        def counted_open(path: str, mode: str = "r", **options: object) -> object:
            counts = "w" in mode or not changes_only
            file = (fuse.before(open) if counts else open)(path, mode, **options)
            if "w" in mode:
                fuse.burn()  # between opening and writing
            return file

        names = CHANGES.intersection(SYSTEM) if changes_only else SYSTEM
        counted = {name: fuse.before(getattr(os, name)) for name in names}
        patch.setattr(etl, "os", SimpleNamespace(**{**vars(os), **counted}))
        patch.setattr(etl, "open", counted_open, raising=False)


class OnS3:
    """Each lake has a prefix of its own."""

    error = etl.StoreError("s3://lake", OSError("no answer"))
    numbers = count()

    def __init__(self, settings: etl.Settings) -> None:
        self.settings = settings

    def empty(self) -> None:
        self.settings = replace(self.settings, output=f"s3://lake/{next(self.numbers)}")

    def arm(self, patch: pytest.MonkeyPatch, fuse: Fuse, changes_only: bool) -> None:
        ask = etl.Bucket.ask

        def counted_ask(bucket: etl.Bucket, operation: str, *expected: str, **arguments: object) -> dict | None:
            if operation in CHANGES or not changes_only:
                fuse.burn()
            return ask(bucket, operation, *expected, **arguments)

        patch.setattr(etl.Bucket, "ask", counted_ask)


Place = OnDisk | OnS3


@pytest.fixture(autouse=True)
def without_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    sparkless.without_spark(monkeypatch)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnDisk:
    monkeypatch.setattr(os, "sync", lambda: None)  # takes seconds on a busy machine
    return OnDisk(tmp_path / "lake")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> OnS3:
    client = sparkless.Client()
    monkeypatch.setattr(etl, "s3_client", lambda settings: client)
    return OnS3(etl.Settings("in", "s3://lake", max_shrink=1.0))


@pytest.fixture
def server_s3(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnS3:
    """S3 that outlives a killed run."""
    place = OnS3(etl.read_settings(str(server.dl_cfg(tmp_path / "dl.cfg", "in", OUTPUT="s3://lake", MAX_SHRINK="1"))))
    client = etl.s3_client(place.settings)
    monkeypatch.setattr(etl, "s3_client", lambda settings: client)  # to make one takes as long as a run
    return place


def fails(place: Place, at: int, logs: Callable) -> tuple[str, bool]:
    """A call gets an error."""

    def error() -> None:
        raise place.error

    return broken(place, Fuse(at, error), logs)


def is_interrupted(place: Place, at: int, logs: Callable) -> tuple[str, bool]:
    """Someone presses Control-C."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    try:
        return broken(place, Fuse(at, interrupt), logs)
    except KeyboardInterrupt:
        return "interrupted", True


def is_killed(place: Place, at: int, logs: Callable) -> tuple[str, bool]:
    """The process gets SIGKILL. It was forked off for that."""
    child = os.fork()
    if not child:
        broken(place, Fuse(at, lambda: os.kill(os.getpid(), signal.SIGKILL)), logs, changes_only=True)
        os._exit(0)
    how = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert how in (0, -signal.SIGKILL)
    return ("killed", True) if how else ("done", False)


def broken(place: Place, fuse: Fuse, logs: Callable, changes_only: bool = False) -> tuple[str, bool]:
    """How the run r2 ends, and whether it came to where it is broken. It may well succeed after one error.

    changes_only: between two changes it is the same where a run dies.
    """
    with pytest.MonkeyPatch.context() as patch:
        place.arm(patch, fuse, changes_only)
        return sparkless.outcome("r2", place.settings, logs), fuse.left <= 0


def broken_everywhere(place: Place, start: Lake, breaks: Callable) -> int:
    """Breaks a run at each of its calls, lets another run follow, and looks. Returns how many calls there were."""
    delivered = {name for name in start if name.startswith(explorer.INPUT)}
    logs = [*(name.split("/", 1)[1] for name in delivered), "log_data/r2.json"]
    for at in count(1):
        place.empty()
        lake = etl.storage(place.settings.output, place.settings)
        for name in start.keys() - delivered:
            lake.write(name, start[name])
        ended, reached = breaks(place, at, lambda: logs)
        after = sparkless.contents(lake)
        wrong = [*sparkless.problems(after, [("r2", ended)])]
        assert not wrong, f"broken at call {at}, the run ended: {ended}"
        assert sparkless.outcome("s1", place.settings, lambda: logs) == "done", f"after a run broken at call {at}"
        wrong = [*sparkless.not_healed(after, sparkless.contents(lake))]
        assert not wrong, f"broken at call {at}, the run ended: {ended}"
        if not reached:
            assert ended == "done"
            return at - 1
    raise AssertionError


def start_of(name: str) -> Lake:
    """What the broken run finds. Its input has a log more."""
    lake = explorer.first_lake(False, *([] if name == "an empty lake" else ["r0"]))
    if name != "a lake that a killed run left":
        return lake
    _, lakes = explorer.alone(lake, "r1", False)
    return next(lake for lake in lakes if len(sparkless.ledgers(lake)) == 2)  # just committed


@pytest.mark.parametrize("breaks", [fails, is_interrupted, is_killed])
@pytest.mark.parametrize("start", STARTS)
def test_on_a_disk_a_run_may_break_at_any_call_to_the_system(
    disk: OnDisk, start: str, breaks: Callable, record_property: Callable
) -> None:
    record_property("broken on a disk", broken_everywhere(disk, start_of(start), breaks))


@pytest.mark.parametrize("breaks", [fails, is_interrupted])
@pytest.mark.parametrize("start", STARTS)
def test_on_s3_a_run_may_break_at_any_request(
    s3: OnS3, start: str, breaks: Callable, record_property: Callable
) -> None:
    record_property("broken on S3", broken_everywhere(s3, start_of(start), breaks))


@pytest.mark.killed
@pytest.mark.parametrize("start", STARTS)
def test_on_s3_a_run_may_be_killed_before_any_change(server_s3: OnS3, start: str, record_property: Callable) -> None:
    record_property("broken on S3", broken_everywhere(server_s3, start_of(start), is_killed))


# --- driver and JVM -------------------------------------------------------------------------------------------------


class Nights:
    """A lake of the old input on a disk or on S3, for each test from the start, and the new input."""

    def __init__(self, root: Path, server: Server) -> None:
        self.root, self.server, self.output, self.config = root, server, str(root / "lake"), root / "dl.cfg"

    def start(self, place: str) -> None:
        before = self.root / "before"
        if place == "disk":
            shutil.copytree(before, self.output)
            return
        self.output, self.config = f"s3://lake/{self.root.name}", self.root / "s3.cfg"
        self.server.dl_cfg(self.config, "unused", MAX_BAD_RATIO="1")
        for path in before.rglob("*"):
            if path.is_file():
                key = f"{self.root.name}/{path.relative_to(before)}"
                self.server.client().upload_file(str(path), "lake", key)

    def run(self, moment: str = "") -> int:
        """Runs the job in a process group of its own. Returns its exit code: -9 if it was killed."""
        program = [str(ROOT / "tests" / "killed.py"), moment] if moment else [str(ROOT / "etl.py")]
        places = ["--input", str(self.root / "in"), "--output", self.output]
        command = [sys.executable, *program, "--config", str(self.config), *places]
        done = subprocess.run(command, start_new_session=True, capture_output=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()[-3000:]
        return done.returncode

    def lake(self) -> etl.Disk | etl.Bucket:
        return etl.storage(self.output, etl.read_settings(str(self.config), input=str(self.root / "in")))

    def tables(self) -> dict[str, list[tuple]]:
        """What a reader sees now."""
        if not self.output.startswith("s3"):
            return all_published(self.output)
        shutil.rmtree(self.root / "seen", ignore_errors=True)
        for key, body in objects(self.server.client(), "lake", f"{self.root.name}/").items():
            path = self.root / "seen" / key.removeprefix(f"{self.root.name}/")
            if key.endswith(".parquet"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(body)
        return all_published(self.root / "seen")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`before`: a lake. `in`: its input with what has come since, which calls for all that a run can do: a month gets
    rows, a month is new, and another is touched since its play has another song now. `after`: a lake of all of it."""
    root = tmp_path_factory.mktemp("inputs")
    plays = [play_of(song()), event(itemInSession=1), event(userId="8", at="2018-12-01")]
    write_lake(root / "in", [song()], plays)
    config = (ROOT / "dl.cfg").read_text().replace("MAX_BAD_RATIO = 0.05", "MAX_BAD_RATIO = 1")
    (root / "dl.cfg").write_text(config)
    undisturbed = Nights(root, None)
    undisturbed.output = str(root / "before")
    assert undisturbed.run() == 0
    for kind, name in (("song_data", "songs.json"), ("log_data", "more.json")):
        songs, plays = [song(song_id="SO0", year=1950)], [event(at="2017-01-01"), event(at="2018-12-02"), "{"]
        new = write_lake(root / "new", songs, plays)
        (new / kind / "A" / "rows.json").rename(root / "in" / kind / name)
    undisturbed.output = str(root / "after")
    assert undisturbed.run() == 0
    return root


@pytest.mark.killed
@pytest.mark.parametrize(
    "place, moment",
    [
        ("disk", "building"), ("disk", "committing"), ("disk", "moving"),
        ("S3", "building"), ("S3", "moving"), ("S3", "retiring"),
    ],
)  # fmt: skip
def test_killed_with_its_jvm_a_run_leaves_the_old_tables_or_the_next_makes_the_new_ones_whole(
    inputs: Path, server: Server, tmp_path: Path, place: str, moment: str, record_property: Callable
) -> None:
    for name in ("in", "before", "dl.cfg"):
        (tmp_path / name).symlink_to(inputs / name)
    nights = Nights(tmp_path, server)
    nights.start(place)
    old, new = (all_published(inputs / name) for name in ("before", "after"))
    assert nights.run(moment) == -signal.SIGKILL
    if moment in ("building", "committing"):
        assert nights.tables() == old
    else:
        whole = old if moment == "moving" else new  # of the others readers see some
        assert all({*whole[name]} <= {*rows} for name, rows in nights.tables().items())
    assert nights.run() == 0
    assert nights.tables() == new
    lake = nights.lake()
    listed = etl.newest_ledger(lake).files
    assert {name: size for name, (size, _) in listed.items()} == etl.lake_files(lake)
    assert lake.files(etl.STAGING) == {} and len(lake.files(etl.RUNS)) == 2 + (moment in ("moving", "retiring"))
    record_property(f"killed with its JVM on {place}", 1)
