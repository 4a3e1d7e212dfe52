"""Runs the job and kills it with its JVM, by SIGKILL: python killed.py "move 3" [the job's arguments]

A point is what is about to be called and for the how manyth time: a function of the job, or a change of the storage
(create, write, move, delete - one file each - and clear). "in audit 1" is a moment after that call has begun.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import etl  # noqa: E402

STEPS = ("recover", "spark_session", "build", "quarantine", "write_table", "audit", "check_shrink", "publish")
CHANGES = ("create", "write", "move", "clear")
POINT = sys.argv.pop(1)
MOMENT = 0.2  # seconds into what takes longer

seen: Counter[str] = Counter()
one_at_a_time = threading.Lock()


def die() -> None:
    os.killpg(0, signal.SIGKILL)


def passing(name: str) -> None:
    """Here the process dies, if this is the point."""
    with one_at_a_time:
        seen[name] += 1
        if f"{name} {seen[name]}" == POINT:
            die()
        if f"in {name} {seen[name]}" == POINT:
            threading.Timer(MOMENT, die).start()


def watched(name: str, inner: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        if name != "write" or not args[1].startswith(etl.LOCK):  # a bucket creates by a write
            passing(name)
        return inner(*args, **kwargs)

    return call


def delete_one_by_one(inner: Callable) -> Callable:
    def call(storage: Any, names: Any) -> None:
        for name in list(names):
            if not name.startswith(etl.LOCK):  # a slow run renews its lease more often
                passing("delete")
            inner(storage, [name])

    return call


if __name__ == "__main__":
    for step in STEPS:
        setattr(etl, step, watched(step, getattr(etl, step)))
    etl.Desk.stage_again = watched("stage_again", etl.Desk.stage_again)
    for kind in (etl.Disk, etl.Bucket):
        for change in CHANGES:
            setattr(kind, change, watched(change, getattr(kind, change)))
        kind.delete = delete_one_by_one(kind.delete)
    code = etl.main(sys.argv[1:])
    print(dict(seen))
    sys.exit(code)
