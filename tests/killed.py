"""Runs the job, and kills it with its JVM by SIGKILL at one moment: python killed.py MOMENT [the job's arguments]"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import etl  # noqa: E402

MOMENT = sys.argv.pop(1)


def die(*arguments: object) -> None:
    os.killpg(0, signal.SIGKILL)


def building(build: Callable) -> Callable:
    """In the midst of Spark's work."""

    def killed_build(*arguments: object) -> object:
        threading.Timer(3, die).start()
        return build(*arguments)

    return killed_build


def moving(move: Callable) -> Callable:
    """When half of the new files are where readers see them."""

    def killed_move(lake: object, moves: dict[str, str]) -> bool:
        half = [*moves][: len(moves) // 2]
        move(lake, {source: moves[source] for source in half})
        return not half or die()

    return killed_move


def retiring(delete: Callable) -> Callable:
    """When half of the replaced files are gone."""

    def killed_delete(lake: object, names: Iterable[str]) -> None:
        names = [*names]
        replaced = [name for name in names if not name.startswith(etl.STAGING)]
        delete(lake, replaced[: len(replaced) // 2] if replaced else names)
        if replaced:
            die()

    return killed_delete


if __name__ == "__main__":
    etl.build = building(etl.build) if MOMENT == "building" else etl.build
    etl.commit = die if MOMENT == "committing" else etl.commit
    for kind in (etl.Disk, etl.Bucket):
        kind.move = moving(kind.move) if MOMENT == "moving" else kind.move
        kind.delete = retiring(kind.delete) if MOMENT == "retiring" else kind.delete
    sys.exit(etl.main(sys.argv[1:]))
