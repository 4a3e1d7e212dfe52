"""Tries to break the job's promises, and writes what was tried into the table in docs/guarantees.md.

    make reliability

It runs the tests that kill, race, starve and feed garbage. Each records as a property how much it has tried. Numbers
are summed over the tests, a text stands as it is. The table is written only when all of them pass.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("test_ledger", "test_killed", "test_storage", "test_faults", "test_bad_input", "test_s3_job")
ROWS = {  # what a test calls it -> what the table says of it
    "states": "states that two or three runs at once can reach, step by step|no promise broken; one more run heals",
    "broken on a disk": "calls to the system at which a run fails, is interrupted or killed|the same",
    "broken on S3": "requests to S3 at which a run fails, is interrupted or killed|the same",
    "killed with its JVM on disk": "SIGKILL of driver and JVM in mid-job, tables on a disk|the same",
    "killed with its JVM on S3": "SIGKILL of driver and JVM in mid-job, tables on S3|the same",
    "racing commits": "commits at the same moment, on a disk and on S3|one succeeds",
    "failed requests": "S3 requests answered by 503 or a reset, one in ten|the same tables",
    "failed tasks": "tasks that fail after they have read all of their lines|the same tables",
    "bad inputs": "bad files, values and configurations|a quarantined line, or one clear line",
    "store down": "the store goes down in mid-run|one clear line, exit 1",
}


def tried(report: Path) -> dict[str, str]:
    """What the tests have tried, by the names in ROWS."""
    sums, texts = Counter(), {}
    for entry in xml.etree.ElementTree.parse(report).iter("property"):
        name, value = entry.attrib["name"], entry.attrib["value"]
        if value.isdigit():
            sums[name] += int(value)
        else:
            texts[name] = value
    return {**{name: f"{number:,}" for name, number in sums.items()}, **texts}


def table(found: dict[str, str]) -> str:
    lines = ["| tried | how much | outcome |", "|---|---|---|"]
    for name, row in ROWS.items():
        what, outcome = row.split("|")
        lines.append(f"| {what} | {found[name]} | {outcome} |")
    return "\n".join(lines)


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        suites = [str(ROOT / "tests" / f"{suite}.py") for suite in SUITES]
        command = [sys.executable, "-m", "pytest", *suites, "-m", "not minio", "-n", "2", "--dist", "load"]
        if code := subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT).returncode:
            return code
        found = tried(report)
    page = ROOT / "docs" / "guarantees.md"
    marked, rows = r"(<!-- by make reliability -->\n).*?(<!-- end -->)", f"{table(found)}\n"
    text = re.sub(marked, lambda mark: mark[1] + rows + mark[2], page.read_text(encoding="utf-8"), flags=re.S)
    page.write_text(text, encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
