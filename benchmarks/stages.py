#!/usr/bin/env python3
"""Where a Spark job's time goes, read from its event log: by the clock, by query, by stage.

    python benchmarks/stages.py EVENTLOG        one file, plain: spark.eventLog.compress and rolling.enabled are false
    python benchmarks/bench.py --profile        runs the job and prints this
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

SQL = "org.apache.spark.sql.execution.ui.SparkListenerSQL"
MB = 1_000_000


@dataclass
class Stage:
    """One stage; seconds are of the cores unless said otherwise."""

    number: int
    query: int = -1
    does: str = ""
    begin: float = 0.0
    end: float = 0.0
    tasks: list[float] = field(default_factory=list)  # seconds of each
    run: float = 0.0
    cpu: float = 0.0
    gc: float = 0.0
    shuffle_write: float = 0.0
    shuffle_wait: float = 0.0
    read: int = 0  # bytes from files or the cache
    shuffled: int = 0
    spilled: int = 0
    written: int = 0

    @property
    def clock(self) -> float:
        return self.end - self.begin

    def add(self, task: dict) -> None:
        metrics, info = task["Task Metrics"], task["Task Info"]
        self.tasks.append((info["Finish Time"] - info["Launch Time"]) / 1e3)
        self.run += (metrics["Executor Run Time"] + metrics["Executor Deserialize Time"]) / 1e3
        self.cpu += (metrics["Executor CPU Time"] + metrics["Executor Deserialize CPU Time"]) / 1e9
        self.gc += metrics["JVM GC Time"] / 1e3
        self.shuffle_write += metrics["Shuffle Write Metrics"]["Shuffle Write Time"] / 1e9
        self.shuffle_wait += metrics["Shuffle Read Metrics"]["Fetch Wait Time"] / 1e3
        self.read += metrics["Input Metrics"]["Bytes Read"]
        self.shuffled += metrics["Shuffle Write Metrics"]["Shuffle Bytes Written"]
        self.spilled += metrics["Disk Bytes Spilled"]
        self.written += metrics["Output Metrics"]["Bytes Written"]


@dataclass
class Query:
    name: str
    begin: float
    end: float = 0.0


@dataclass
class Profile:
    """What the event log tells. Times are the clock's, in seconds since 1970."""

    start: float = 0.0
    cores: int = 0
    queries: dict[int, Query] = field(default_factory=dict)
    stages: dict[int, Stage] = field(default_factory=dict)

    @property
    def begin(self) -> float:
        return min(query.begin for query in self.queries.values())

    @property
    def end(self) -> float:
        return max(query.end for query in self.queries.values())

    @property
    def cpu(self) -> float:
        return sum(stage.cpu for stage in self.stages.values())

    @property
    def read(self) -> int:
        """Bytes from files or the cache."""
        return sum(stage.read for stage in self.stages.values())


def events(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def profile(path: Path) -> Profile:
    found = Profile()
    for event in events(path):
        kind = event["Event"]
        if kind == "SparkListenerApplicationStart":
            found.start = event["Timestamp"] / 1e3
        elif kind == "SparkListenerExecutorAdded":
            found.cores += event["Executor Info"]["Total Cores"]
        elif kind == SQL + "ExecutionStart":
            found.queries[event["executionId"]] = Query(query_name(event), event["time"] / 1e3)
        elif kind == SQL + "ExecutionEnd":
            found.queries[event["executionId"]].end = event["time"] / 1e3
        elif kind == "SparkListenerJobStart":
            query = int(event["Properties"].get("spark.sql.execution.id", -1))
            for number in event["Stage IDs"]:
                found.stages.setdefault(number, Stage(number)).query = query
        elif kind == "SparkListenerTaskEnd" and event.get("Task Metrics"):
            found.stages[event["Stage ID"]].add(event)
        elif kind == "SparkListenerStageCompleted":
            about = event["Stage Info"]
            stage = found.stages[about["Stage ID"]]
            stage.does = operators(about)
            stage.begin, stage.end = about["Submission Time"] / 1e3, about["Completion Time"] / 1e3
    found.stages = {number: stage for number, stage in found.stages.items() if stage.tasks}
    return found


def query_name(event: dict) -> str:
    """What a query writes, or the line and the function that asked for it."""
    plan = event["physicalPlanDescription"]
    written = re.search(r"Execute InsertIntoHadoopFsRelationCommand\n.*?Arguments: \S*/([^/,\s]+),", plan, re.S)
    if written:
        return f"write {written.group(1)}"
    action, _, place = event["description"].partition(" at ")
    file, _, line = place.rpartition(":")
    if file.endswith(".py") and Path(file).exists():
        return f"{action} in {function_at(Path(file), int(line))}"
    return action


def function_at(file: Path, line: int) -> str:
    above = file.read_text(encoding="utf-8").splitlines()[:line]
    return next((found.group(1) for text in reversed(above) if (found := re.match(r"\s*def (\w+)", text))), file.name)


def operators(about: dict) -> str:
    """The parts of Spark's plan that a stage holds, without those that only carry rows on. What a cache was made from
    shows also where the cache is read: the MB tell."""
    dull = re.compile(r"mapPartitions|WholeStageCodegen|AQEShuffleRead|parallelize")
    parts = {rdd["RDD ID"]: json.loads(rdd["Scope"])["name"].strip() for rdd in about["RDD Info"] if "Scope" in rdd}
    names = [parts[number] for number in sorted(parts) if not dull.match(parts[number])]
    return " > ".join(dict.fromkeys(names))


def tables(found: Profile, began: float = 0.0, java: float = 0.0, ended: float = 0.0, most: int = 15) -> str:
    """The report. began, java and ended are the program's: its start, its Java's and its end, where they are known."""
    parts = [
        aligned(clock_table(found, began or found.start, java, ended or found.end)),
        aligned(query_table(found)),
        aligned(stage_table(found, most)),
        totals(found),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def aligned(lines: list[str]) -> list[str]:
    """A Markdown table's lines with columns of one width, numbers to the right: for a screen.

    >>> aligned(["| name | s |", "|---|---:|", "| a | 10.0 |"])
    ['| name |    s |', '|------|-----:|', '| a    | 10.0 |']
    """
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    right = [cell.endswith(":") for cell in rows[1]]
    rows[1] = ["" for _ in widths]

    def padded(row: list[str]) -> list[str]:
        return [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ]

    rule = "|".join("-" * (width + 1) + ("-:"[number]) for width, number in zip(widths, right, strict=True))
    return [f"|{rule}|" if at == 1 else f"| {' | '.join(padded(row))} |" for at, row in enumerate(rows)]


def clock_table(found: Profile, began: float, java: float, ended: float) -> list[str]:
    """Every second of the clock, once."""
    busy = length(merged([(query.begin, query.end) for query in found.queries.values()]))
    working = length(merged([(stage.begin, stage.end) for stage in found.stages.values()]))
    java = java or found.start
    spans = {
        "Python: start and imports": java - began,
        "Java: start, to Spark's application": found.start - java,
        "Spark: context, session, listing the input": found.begin - found.start,
        "queries: stages at work": working,
        "queries: planning, code generation, commit": busy - working,
        "between queries: the driver alone": found.end - found.begin - busy,
        "after the last query: publishing, exit": ended - found.end,
    }
    total = ended - began
    rows = [f"| {name} | {seconds:.1f} | {seconds / total:.0%} |" for name, seconds in spans.items()]
    return ["| by the clock | s | share |", "|---|---:|---:|", *rows, f"| all | {total:.1f} | 100% |"]


def query_table(found: Profile) -> list[str]:
    lines = ["| query | s | in stages | core s | stages |", "|---|---:|---:|---:|---:|"]
    for number, query in found.queries.items():
        mine = [stage for stage in found.stages.values() if stage.query == number]
        working = length(merged([(stage.begin, stage.end) for stage in mine]))
        if query.end - query.begin >= 0.05:
            seconds = f"{query.end - query.begin:.1f} | {working:.1f} | {sum(stage.run for stage in mine):.1f}"
            lines.append(f"| {number} {query.name} | {seconds} | {len(mine)} |")
    return lines


def stage_table(found: Profile, most: int) -> list[str]:
    """The dearest stages, by core seconds. skew is the longest task over the middle one."""
    dearest = sorted(found.stages.values(), key=lambda stage: -stage.run)[:most]
    lines = [
        "| stage | of query | does | tasks | s | core s | CPU s | GC s | shuffle write s | wait s | read MB"
        " | shuffle MB | spill MB | written MB | skew |",
        "|---:|---|---|" + "---:|" * 12,
    ]
    for stage in dearest:
        name = found.queries[stage.query].name if stage.query in found.queries else "no query"
        seconds = (stage.clock, stage.run, stage.cpu, stage.gc, stage.shuffle_write, stage.shuffle_wait)
        sizes = (stage.read, stage.shuffled, stage.spilled, stage.written)
        lines.append(
            f"| {stage.number} | {name} | {stage.does} | {len(stage.tasks)} | "
            + " | ".join([f"{each:.1f}" for each in seconds] + [f"{each / MB:,.1f}" for each in sizes])
            + f" | {max(stage.tasks) / max(median(stage.tasks), 0.001):.1f} |"
        )
    return lines


def totals(found: Profile) -> list[str]:
    """All stages together, and what their core seconds went to."""
    sums = defaultdict(float)
    for stage in found.stages.values():
        for name in ("run", "cpu", "gc", "shuffle_write", "shuffle_wait"):
            sums[name] += getattr(stage, name)
    at_work = found.cores * length(merged([(stage.begin, stage.end) for stage in found.stages.values()]))
    single = sum(stage.run for stage in found.stages.values() if len(stage.tasks) == 1)
    return [
        f"The tasks of all {len(found.stages)} stages took {sums['run']:.1f} s, {sums['cpu']:.1f} s of them on a"
        f" processor: the rest they waited, for the disk, for garbage collection ({sums['gc']:.1f} s), or for a"
        f" processor that was busy. {sums['shuffle_write']:.1f} s went into writing shuffles,"
        f" {sums['shuffle_wait']:.1f} s into waiting for them.",
        f"While stages were at work the {found.cores} cores had {at_work:.1f} s to give, and tasks took"
        f" {sums['run'] / at_work:.0%} of them; {single:.1f} s were in stages of a single task.",
    ]


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The spans without what they share.

    >>> merged([(1, 3), (2, 4), (6, 7)])
    [(1, 4), (6, 7)]
    """
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def length(spans: list[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in spans)


if __name__ == "__main__":
    print(tables(profile(Path(sys.argv[1]))))
