#!/usr/bin/env python3
"""The job against Spark's floor, DuckDB, Polars and the usual script: the same lake, runs by turns, fresh processes.

    python benchmarks/bench.py                 4 M events (2 GB of logs, a file a day), 5,000 song files, 3 rounds
    python benchmarks/bench.py --scale 0.025   a quick look: 50 MB
    python benchmarks/bench.py --growth        1 and 10 times the events, Spark with 1 GB of heap; 24 GB of disk
    python benchmarks/bench.py --night         one more day: after a month, a year and three years, and on an empty lake
    python benchmarks/bench.py --tiny          the job on 14,896 song files, and on one file with the same rows
    python benchmarks/bench.py --profile       where the job's time goes, by stage, on the screen
    python benchmarks/bench.py --s3            the job's requests to S3, by s3_requests.py
    python benchmarks/bench.py --render        README.md and bench.png from results.json, without running anything

The lake is made by generate.py in the cache folder, and used again from there. All but --profile and --s3 keep their
figures in results.json and show them in README.md. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import measure
import report
import stages

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparkify-etl" / "bench"
RESULTS, README, PLOT = HERE / "results.json", HERE / "README.md", HERE / "bench.png"
PROGRAMS = ("job", "floor", "duckdb", "polars", "usual")
GROWING = ("job", "floor", "duckdb")  # Polars' memory would not do for ten times the events
TINY_SONGS, SMALL_HEAP = 14_896, "1g"
HISTORY_SONGS, HISTORIES = 100, {"nothing": 0, "a month": 30, "a year": 365, "three years": 1095}  # days


# ---------------------------------------------------------------------------------------------------------------------
# The lake
# ---------------------------------------------------------------------------------------------------------------------


class Lake(NamedTuple):
    events: int
    songs: int
    days: int

    @property
    def place(self) -> Path:
        """In the cache folder; another generator makes another lake."""
        generator = zlib.crc32((HERE / "generate.py").read_bytes())
        return CACHE / f"{self.events}-events-{self.songs}-songs-{self.days}-days-{generator:08x}"

    def made(self) -> Lake:
        """The lake itself, made where it is not there yet."""
        if not self.place.exists():
            say(f"making {self.events:,} events and {self.songs:,} songs")
            self.place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="unfinished-") as unfinished:
                sizes = ["--events", self.events, "--songs", self.songs, "--days", self.days, "--start", "2018-01-01"]
                command = [sys.executable, HERE / "generate.py", f"{unfinished}/lake", *sizes]
                subprocess.run([str(word) for word in command], check=True)
                os.rename(f"{unfinished}/lake", self.place)
        return self

    def described(self) -> dict:
        return {**self._asdict(), "bytes": sum(file.stat().st_size for file in self.place.rglob("*.json"))}


def warm(place: Path) -> None:
    """Reads every file once: only root can empty the system's cache, so every run finds it filled instead."""
    for file in place.rglob("*.json"):
        file.read_bytes()


def in_one_file(lake: Lake) -> Path:
    """The same lake with all songs in one file."""
    place = lake.place.with_name(lake.place.name + "-one-song-file")
    if not place.exists():
        unfinished = place.with_name(f"{place.name}.{os.getpid()}")
        (unfinished / "song_data").mkdir(parents=True)
        lines = [file.read_text() for file in sorted((lake.place / "song_data").rglob("*.json"))]
        (unfinished / "song_data" / "songs.json").write_text("\n".join(lines) + "\n")
        shutil.copytree(lake.place / "log_data", unfinished / "log_data")
        unfinished.rename(place)
    return place


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


def command(program: str, source: Path, target: Path) -> list[str | Path]:
    if program == "job":
        config = ["--config", ROOT / "dl.cfg", "--input", source, "--output", target]
        return [sys.executable, ROOT / "etl.py", *config]
    return [sys.executable, HERE / f"{program}_job.py", source, *([] if program == "floor" else [target])]


def environment(heap: str, *options: str) -> dict[str, str]:
    """The same heap for all that run on Spark, and nothing that listens beyond this machine."""
    arguments = " ".join(["--driver-memory", heap, *options, "pyspark-shell"])
    return {"PYSPARK_SUBMIT_ARGS": arguments, "SPARK_LOCAL_IP": "127.0.0.1"}


def own_heap() -> str:
    """What the job gives Spark on this machine when nobody says otherwise."""
    sys.path.insert(0, str(ROOT))
    import etl

    return etl.local_session(small=False)["spark.driver.memory"]


@contextmanager
def empty_folder() -> Iterator[Path]:
    """On the disk that the lake is on."""
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="output-") as place:
        yield Path(place)


def timed(program: str, source: Path, heap: str) -> dict:
    """What one run took, and the files that it left."""
    warm(source)
    with empty_folder() as target:
        usage = measure.measured(command(program, source, target), ROOT, environment(heap))
        sizes = [file.stat().st_size for file in target.rglob("*.parquet")]
    output = {"files": len(sizes), "bytes": sum(sizes), "largest": max(sizes, default=0)}
    return {**figures(usage), **output}


def figures(usage: measure.Usage) -> dict:
    return {"wall": round(usage.wall, 3), "cpu": round(usage.cpu, 3), "memory": usage.memory}


def by_turns(rounds: int, runs: dict[str, Callable[[], dict]]) -> list[dict]:
    """Every run once in each round, so that what slows the machine for a while slows all of them."""
    found = []
    for number in range(1, rounds + 1):
        for name, run in runs.items():
            found.append({"program": name, "round": number, **run()})
            say(f"round {number}: {name}: {found[-1]['wall']:.1f} s")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What is measured
# ---------------------------------------------------------------------------------------------------------------------


def comparison(options: argparse.Namespace) -> dict:
    lake, heap = Lake(scaled(options), options.songs, options.days).made(), own_heap()
    runs = {name: lambda name=name: timed(name, lake.place, heap) for name in options.only}
    return {"data": lake.described(), "heap": heap, "runs": by_turns(options.rounds, runs)}


def growth(options: argparse.Namespace) -> dict:
    small = Lake(scaled(options), options.songs, options.days).made()
    large = small._replace(events=10 * small.events).made()

    def run(program: str, lake: Lake, data: dict) -> dict:
        return {"events": lake.events, "input": data["bytes"], **timed(program, lake.place, SMALL_HEAP)}

    lakes = {"1x": (small, small.described()), "10x": (large, large.described())}
    runs = {
        f"{program} {size}": lambda program=program, pair=pair: run(program, *pair)
        for size, pair in lakes.items()
        for program in GROWING
        if program in options.only
    }
    return {"data": small.described(), "heap": SMALL_HEAP, "runs": by_turns(options.rounds, runs)}


def tiny(options: argparse.Namespace) -> dict:
    """The job, where nearly all files are song files, of a few hundred bytes each."""
    lake, heap = Lake(events=560, songs=TINY_SONGS, days=14).made(), own_heap()
    places = {"many": (lake.place, lake.songs), "one": (in_one_file(lake), 1)}
    runs = {
        name: lambda place=place, songs=songs: {"songs": songs, **timed("job", place, heap)}
        for name, (place, songs) in places.items()
    }
    return {"data": lake.described(), "heap": heap, "runs": by_turns(options.rounds, runs)}


def night(options: argparse.Namespace) -> dict:
    """The job on one more day, by the history that the day is added to; "all": on a year and the day at once."""
    days = max(HISTORIES.values()) + 1
    lake, heap = Lake(scaled(options) * days // options.days, HISTORY_SONGS, days).made(), own_heap()
    with empty_folder() as folder:
        runs = {name: Night(lake.place, folder / name, days, heap).timed for name, days in HISTORIES.items()}
        runs["all"] = Night(lake.place, folder / "all", HISTORIES["a year"], heap, "--full").timed
        return {"data": lake.described(), "heap": heap, "runs": by_turns(options.rounds, runs)}


class Night:
    """The last day of a lake, and its history: some days before it, of which the tables are there."""

    def __init__(self, lake: Path, folder: Path, days: int, heap: str, *options: str) -> None:
        self.source, self.before, self.output, self.heap = folder / "in", folder / "before", folder / "out", heap
        self.options = options
        logs = sorted((lake / "log_data").rglob("*.json"))
        self.last = logs[-1], self.source / logs[-1].relative_to(lake)
        for file in [*logs[-1 - days : -1], *(lake / "song_data").rglob("*.json")]:
            self.link(file, self.source / file.relative_to(lake))
        if days:
            say(f"tables of {days} days")
            measure.measured(command("job", self.source, self.before), ROOT, environment(heap))

    def link(self, file: Path, name: Path) -> None:
        """The same file under another name: time and content are what the job knows it by."""
        name.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, name)

    def timed(self) -> dict:
        """What a run on the history and the day took, and what became of the files of the lake."""
        shutil.rmtree(self.output, ignore_errors=True)
        if self.before.exists():
            shutil.copytree(self.before, self.output)
        self.link(*self.last)
        warm(self.source)
        before = tables_of(self.output)
        with empty_folder() as logs:
            words = [*command("job", self.source, self.output), *self.options]
            usage = measure.measured(words, ROOT, environment(self.heap, *event_log(logs)))
            read = stages.profile(only_file(logs)).read
        self.last[1].unlink()
        after = tables_of(self.output)
        sizes = {"json": self.last[0].stat().st_size, "read": read, "files": len(after)}
        changes = {"new": len(after - before), "retired": len(before - after)}
        return {**figures(usage), **sizes, **changes}


def tables_of(output: Path) -> set[Path]:
    """The files of the tables and of the state."""
    return {file for file in output.rglob("*.parquet") if "_staging" not in file.parts}


def event_log(folder: Path) -> list[str]:
    """Options for Spark to write its event log into the folder, as stages.py reads it."""
    settings = {"enabled": "true", "dir": f"file://{folder}", "compress": "false", "rolling.enabled": "false"}
    return [f"--conf spark.eventLog.{key}={value}" for key, value in settings.items()]


def only_file(folder: Path) -> Path:
    (file,) = (file for file in folder.iterdir() if not file.name.startswith("."))
    return file


def show_profile(options: argparse.Namespace) -> None:
    """Runs the job once with Spark's event log on, and prints where its time went."""
    lake = Lake(scaled(options), options.songs, options.days).made()
    warm(lake.place)
    with empty_folder() as target, empty_folder() as logs:
        usage = measure.measured(command("job", lake.place, target), ROOT, environment(own_heap(), *event_log(logs)))
        found = stages.profile(only_file(logs))
    print(stages.tables(found, usage.started, usage.java, usage.ended))
    rest = usage.cpu - usage.python - found.cpu
    print(
        f"The whole run took {usage.wall:.1f} s by the clock and {usage.cpu:.1f} s of processor: {found.cpu:.1f} s in"
        f" tasks, {usage.python:.1f} s in Python, {rest:.1f} s in the rest of Java (start, compiler, garbage collector,"
        f" planner). Memory at the peak: {usage.memory / report.GB:.1f} GB."
    )


def s3_requests() -> None:
    subprocess.run([sys.executable, str(HERE / "s3_requests.py")], cwd=ROOT, check=True)


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def machine() -> dict:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = {"Spark": "pyspark", "DuckDB": "duckdb", "Polars": "polars"}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "versions": {
            "Linux": ".".join(platform.release().split(".")[:2]),
            "Python": platform.python_version(),
            **{name: version(package) for name, package in packages.items()},
        },
    }


def keep(name: str, section: dict) -> None:
    """Puts the section in results.json; the others stay as they were measured."""
    results = read_results()
    results[name] = {"machine": machine(), **section}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def read_results() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def render() -> None:
    results = read_results()
    README.write_text(report.rendered(README.read_text(encoding="utf-8"), results), encoding="utf-8")
    if "comparison" in results:
        report.plot(results["comparison"], PLOT)


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def scaled(options: argparse.Namespace) -> int:
    return max(1, round(options.events * options.scale))


def programs(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(PROGRAMS):
        raise argparse.ArgumentTypeError(f"no such program: {', '.join(sorted(unknown))}; choose of {PROGRAMS}")
    return names


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    for name in ("growth", "night", "tiny", "profile", "s3", "render"):
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name)
    parser.set_defaults(mode="comparison")
    parser.add_argument("--scale", type=float, default=1, help="multiplies the events (default 1)")
    parser.add_argument("--events", type=int, default=4_000_000, help="500 bytes each (default 4,000,000)")
    parser.add_argument("--songs", type=int, default=5_000, help="a file each (default 5,000)")
    parser.add_argument("--days", type=int, default=365, help="a log file each (default 365)")
    parser.add_argument("--rounds", type=int, default=3, help="all of them count (default 3)")
    parser.add_argument("--only", type=programs, default=list(PROGRAMS), help="some programs, as job,floor")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    measured = {"comparison": comparison, "growth": growth, "night": night, "tiny": tiny}
    if options.mode == "profile":
        show_profile(options)
    elif options.mode == "s3":
        s3_requests()
    else:
        if options.mode in measured:
            keep(options.mode, measured[options.mode](options))
        render()
    return 0


if __name__ == "__main__":
    sys.exit(main())
