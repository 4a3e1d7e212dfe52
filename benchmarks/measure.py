"""Runs a program in a process of its own and says what it took: seconds, processor, memory.

Linux only: what the processes of a run use is read from /proc, and those that outlive their parent (Spark's JVM does,
by a moment) are waited for as children of ours.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36
PERIOD = 0.1  # seconds between two looks at the processes
PAGE = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    pid: int
    name: str
    resident: int  # bytes, with those that it shares with others


class Usage(NamedTuple):
    """What a run took. started and ended are the clock's, in seconds since 1970."""

    wall: float
    cpu: float  # user and system, of all processes
    python: float  # of it, the program itself without its children that it left to run
    memory: int  # bytes, the most that all processes held at one moment
    started: float
    java: float  # when its Java was first seen; 0 if it has none
    ended: float


def measured(command: Sequence[str | Path], folder: Path, environment: dict[str, str]) -> Usage:
    """Runs the command in the folder. RuntimeError, with the last it said, if it fails."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.sync()  # what an earlier run has written is not to be flushed in this one's time
    with tempfile.TemporaryFile() as told:
        before, started, since = children_seconds(), time.time(), time.monotonic()
        child = subprocess.Popen(
            [str(word) for word in command], cwd=folder, env={**os.environ, **environment}, stdout=told,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        with Watch(child.pid) as watch:
            status = child.wait()
            wall, ended, python = time.monotonic() - since, time.time(), children_seconds() - before
            wait_for_orphans()
        if status:
            told.seek(0)
            raise RuntimeError(f"{command[1]} ended with {status}: {told.read().decode(errors='replace')[-3000:]}")
    return Usage(wall, children_seconds() - before, python, watch.memory, started, watch.java, ended)


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wait_for_orphans() -> None:
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


class Watch(threading.Thread):
    """Looks at the processes of a session every 100 ms, until told to stop. PySpark's workers leave their parent's
    process group, not its session."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session, self.done = session, threading.Event()
        self.resident, self.memory, self.java = 0, 0, 0.0

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.join()

    def run(self) -> None:
        while not self.done.wait(PERIOD):
            self.look(list(processes(self.session)))

    def look(self, found: list[Process]) -> None:
        # PSS counts pages that processes share once. Reading it takes milliseconds: only where there is a new peak.
        resident = sum(process.resident for process in found)
        if resident > self.resident * 1.01:
            self.resident = resident
            self.memory = max(self.memory, sum(proportional(process) for process in found))
        if not self.java and any(process.name == "java" for process in found):
            self.java = time.time()


def processes(session: int) -> Iterator[Process]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                head, _, tail = Path(f"/proc/{entry}/stat").read_text().rpartition(")")
            except OSError:  # it has just ended
                continue
            fields = tail.split()
            if int(fields[3]) == session:
                yield Process(int(entry), head.partition("(")[2], int(fields[21]) * PAGE)


def proportional(process: Process) -> int:
    """The process's share of the memory that it holds; what it holds where that is not told."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return process.resident
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), process.resident)
