#!/usr/bin/env python3
"""The job beside other programs: the same lake, by turns, each run in a fresh process. Linux only.

    python benchmarks/bench.py [MODE] [--scale N] [--rounds N]

Lakes are made by generate.py in the cache directory and used again. Figures at scale 1 go to results.json and into
README.md, which says what each mode measures; a quick look at another scale goes to the screen alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import report
from measure import measured
from s3_requests import counted

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparkify-etl" / "bench"
RESULTS, README = HERE / "results.json", HERE / "README.md"
PROGRAMS = ("job", "floor", "duckdb", "usual")
EVENTS, SONGS, DAYS = 4_000_000, 5_000, 365
HISTORIES = {"no history": 0, "a month": 30, "a year": 365, "three years": 1095}  # days

sys.path.insert(0, str(ROOT))

import etl  # noqa: E402

Runs = dict[str, Callable[[], dict]]  # by name; a run returns what it has measured


def lake(events: float, songs: int, days: int, start: str = "2018-01-01") -> tuple[Path, str]:
    """A lake in the cache, and what it holds. It is made if it is not there; another generator makes another lake."""
    code = zlib.crc32(b"".join((HERE / f"generate.{kind}").read_bytes() for kind in ("py", "sql")))
    place = CACHE / f"{events:.0f}-events-{songs}-songs-{days}-days-from-{start}-{code:08x}"
    if not place.exists():
        say(f"making {events:,.0f} events and {songs:,} songs")
        sizes = {"--events": round(events), "--songs": songs, "--days": days, "--start": start}
        with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
            options = [str(word) for size in sizes.items() for word in size]
            subprocess.run([sys.executable, HERE / "generate.py", f"{unfinished}/lake", *options], check=True)
            os.rename(f"{unfinished}/lake", place)
    size = bytes_of(place) / report.MB
    return place, f"{events:,.0f} events in {days:,} log files, {songs:,} songs, {size:,.0f} MB of JSON"


def bytes_of(source: Path) -> int:
    return sum(file.stat().st_size for file in source.rglob("*.json"))


def command(program: str, source: Path, target: Path, checkout: Path = ROOT) -> list[str | Path]:
    if program != "job":
        return [sys.executable, HERE / f"{program}_job.py", source, *([] if program == "floor" else [target])]
    return [sys.executable, checkout / "etl.py", "--config", checkout / "dl.cfg", "--input", source, "--output", target]


def timed(words: list[str | Path], source: Path, target: Path) -> dict:
    """What a run took, the files in `target` after it, and the job's own stages."""
    for file in source.rglob("*.json"):
        file.read_bytes()  # only root can empty the system's cache, so every run finds it filled
    before = tables_of(target)
    heap = etl.local_session(False)["spark.driver.memory"]  # every program on Spark has the job's heap
    spark = {"PYSPARK_SUBMIT_ARGS": f"--driver-memory {heap} pyspark-shell", "SPARK_LOCAL_IP": "127.0.0.1"}
    figures = measured(words, {**os.environ, **spark})
    reports = sorted((target / "_runs").glob("*.json"))
    stages = {"stages": json.loads(reports[-1].read_text())["seconds"]} if reports else {}
    after = tables_of(target)
    files = {"files": len(after), "new": len(after - before), "bytes": sum(file.stat().st_size for file in after)}
    return {**figures, **(files if after else {}), **stages}


def tables_of(target: Path) -> set[Path]:
    """The files of the tables and of the state."""
    return {file for file in target.rglob("*.parquet") if "_staging" not in file.parts}


def first_run(program: str, source: Path, place: Path, checkout: Path = ROOT) -> dict:
    target = place / "first"
    shutil.rmtree(target, ignore_errors=True)
    return timed(command(program, source, target, checkout), source, target)


# Each mode returns what its data are and its runs; `place` is an empty directory on the disk that the lakes are on.


def comparison(options: argparse.Namespace, place: Path) -> tuple[str, Runs]:
    source, data = lake(EVENTS * options.scale, SONGS, DAYS)
    return data, {name: partial(first_run, name, source, place) for name in options.only}


def growth(options: argparse.Namespace, place: Path) -> tuple[str, Runs]:
    lakes = {f"{n}x": lake(EVENTS * options.scale * n, SONGS, DAYS) for n in (1, 10)}
    pairs = [(name, size) for size in lakes for name in options.only if name != "usual"]
    runs = {f"{name} {size}": partial(first_run, name, lakes[size][0], place) for name, size in pairs}
    return f"1x: {lakes['1x'][1]}; 10x: {lakes['10x'][1]}", runs


def against(options: argparse.Namespace, place: Path) -> tuple[str, Runs]:
    source, data = lake(EVENTS * options.scale, SONGS, DAYS)
    checkouts = {"job": ROOT, "the other": Path(options.against).resolve()}
    commit = subprocess.check_output(["git", "log", "-1", "--format=%h of %cs"], cwd=checkouts["the other"], text=True)
    runs = {name: partial(first_run, "job", source, place, checkout) for name, checkout in checkouts.items()}
    return f"the other is commit {commit.strip()}; {data}", runs


def tiny(options: argparse.Namespace, place: Path) -> tuple[str, Runs]:
    """Nearly all files are song files, of a few hundred bytes each."""
    source, data = lake(560, 14_896, 14)
    one = place / "one"
    shutil.copytree(source / "log_data", one / "log_data")
    (one / "song_data").mkdir()
    lines = [file.read_text() + "\n" for file in sorted((source / "song_data").rglob("*.json"))]
    (one / "song_data" / "songs.json").write_text("".join(lines))
    places = {"14,896 song files": source, "one song file": one}
    return data, {name: partial(first_run, "job", source, place) for name, source in places.items()}


def sample(options: argparse.Namespace, place: Path) -> tuple[str, Runs]:
    source, target = ROOT / "data", place / "output"
    words = command("job", source, target)
    measured(words)
    return f"the sample in data/, {bytes_of(source) / report.MB:.1f} MB of JSON", {
        "in full, the first time": partial(first_run, "job", source, place),
        "in full, the second time": partial(timed, [*words, "--full"], source, target),
        "nothing new": partial(timed, words, source, target),
    }


def night(options: argparse.Namespace, place: Path) -> tuple[str, Runs]:
    """The job on one more day, 16 December 2020 or 30 November 2020, by the history that the day is added to."""
    days = max(HISTORIES.values()) + 1
    source, data = lake(EVENTS * options.scale * days / DAYS, 100, days, start="2017-12-17")
    by_month, by_day = ROOT / "dl.cfg", place / "by_day.cfg"
    by_day.write_text(by_month.read_text(encoding="utf-8").replace("= year, month", "= year, month, day"))
    runs = {name: history(source, place / name, days, by_month) for name, days in HISTORIES.items()}
    runs["a year, end of month"] = history(source, place / "end", HISTORIES["a year"], by_month, skipped=16)
    runs["a year, in full"] = history(source, place / "full", HISTORIES["a year"], by_month, "--full")
    for name in ("no history", "a year"):
        runs[f"{name}, by day"] = history(source, place / f"{name}, by day", HISTORIES[name], by_day)
    return data, runs


def history(lake: Path, place: Path, days: int, config: Path, *options: str, skipped: int = 0) -> Callable[[], dict]:
    """Makes the tables of the days before the last, without those skipped at the end. Returns the run that adds the
    last day to a copy of them."""
    source, before, output = place / "in", place / "before", place / "out"
    files = sorted((lake / "log_data").rglob("*.json"))
    *logs, last = files[: len(files) - skipped]
    new = source / last.relative_to(lake)
    for file in [*logs[len(logs) - days :], *(lake / "song_data").rglob("*.json")]:
        (source / file.relative_to(lake)).parent.mkdir(parents=True, exist_ok=True)
        os.link(file, source / file.relative_to(lake))
    before.mkdir()
    if days:
        say(f"tables of {days} days")
        timed([*command("job", source, before), "--config", config], source, before)

    def add_day() -> dict:
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(before, output)
        new.unlink(missing_ok=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        os.link(last, new)
        return timed([*command("job", source, output), "--config", config, *options], source, output)

    return add_day


def s3(options: argparse.Namespace, place: Path) -> tuple[str, Runs]:
    source, data = lake(20_000, 500, 30)
    return data, {"a night": partial(counted, source, place), "in full": partial(counted, source, place, "--full")}


def by_turns(rounds: int, runs: Runs) -> list[dict]:
    """Every run once in each round, so that what slows the machine for a while slows all of them."""
    found = []
    for number in range(1, rounds + 1):
        for name, run in runs.items():
            found.append({"program": name, "round": number, **run()})
            say(f"round {number}: {name}: {found[-1].get('wall') or found[-1].get('requests')}")
    return found


def machine() -> str:
    processor = re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / report.GB
    cores = f"{len(os.sched_getaffinity(0))} cores of {processor[1] if processor else platform.machine()}"
    return f"{cores}, {memory:.0f} GB; Python {platform.python_version()}, Spark {version('pyspark')}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


MODES = {mode.__name__: mode for mode in (comparison, growth, night, tiny, sample, s3, against)}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_mutually_exclusive_group()
    for name in ("growth", "night", "tiny", "sample", "s3", "render"):
        modes.add_argument(f"--{name}", dest="mode", action="store_const", const=name)
    modes.add_argument("--against", metavar="DIR", help="another checkout, whose job runs in turn with this one's")
    parser.add_argument("--scale", type=float, default=1, help="multiply the events (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="all of them count (default 3)")
    parser.add_argument("--only", type=lambda text: text.split(","), default=PROGRAMS, help="programs, as job,floor")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    mode = "against" if options.against else options.mode or "comparison"
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    if mode != "render":
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            data, runs = MODES[mode](options, Path(place))
            results[mode] = {"machine": machine(), "data": data, "runs": by_turns(options.rounds, runs)}
        print("\n".join(report.section(mode, results[mode])))
    if options.scale == 1:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        README.write_text(report.rendered(README.read_text(encoding="utf-8"), results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
