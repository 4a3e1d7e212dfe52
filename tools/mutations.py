"""Breaks rules of etl.py one at a time, runs the tests on each, and writes docs/mutations.md: make mutations.

A rule that no test guards is a test to be written: the script then exits with 1. It works on a copy of the project.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTATIONS = {  # what breaks -> the text in etl.py, and what replaces it
    "plays without a song are lost": ('on=SONG_KEY, how="left")', 'on=SONG_KEY, how="inner")'),
    "times are local, not UTC": ('timeZone": "UTC"', 'timeZone": "America/Los_Angeles"'),
    "the audit accepts any count": ("if counts != {", "if False and counts != {"),
    "the quarantine is not written": ("if any(account.problems for account in found):", "if False:"),
    "replaced files are never deleted": (
        "lake.delete([file for file in ledger.retire if",
        "lake.delete([file for file in () if",
    ),
    "a commit on a disk has no condition": (
        "os.link(self.at(draft), self.at(name))",
        "os.replace(self.at(draft), self.at(name))",
    ),
    "a commit on S3 has no condition": ('self.write(name, text, IfNoneMatch="*")', "self.write(name, text)"),
    "partitions of changed files and songs are not rebuilt": (
        "touched |= partitions_of_gone_lines(work, changes) | partitions_of_other_songs(work, changes, songs)",
        "pass",
    ),
    "a user's facts are the first, not the latest": (
        'return F.max(F.when(value.isNotNull(), F.struct(*order, value)))["value"]',
        'return F.min(F.when(value.isNotNull(), F.struct(*order, value)))["value"]',
    ),
    "impossible times are accepted": ('"ts NOT BETWEEN 946684800000 AND 4102444799999"', '"false"'),
    "keys appear in the report": ('"***" if value and name in', '"***" if False and name in'),
    "a file that Spark does not see is ignored": ("if file.size and name not in addresses:", "if False:"),
    "files are deleted before others are moved in": (
        "    if lake.move(moves):",
        "    lake.delete(ledger.retire)\n    if lake.move(moves):",
    ),
}

HEAD = """# Broken rules, and the test that notices

`make mutations` breaks each rule of `etl.py` alone, runs the tests of `make test`, and writes this table with the
first test that fails.

| broken rule | first test that fails |
|---|---|"""


def first_failure(mutated: str) -> str:
    """The first test that fails with this text as etl.py; "" if none does."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "project")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "output"))
        (copy / "etl.py").write_text(mutated, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "--maxfail", "1", "-q"]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        found = re.search(r"^(?:FAILED|ERROR) tests/(\S+?)(\[| |$)", done.stdout, re.M)
        return found[1] if found else "" if done.returncode == 0 else "the tests could not run"


def main() -> int:
    source = (ROOT / "etl.py").read_text(encoding="utf-8")
    lines = HEAD.splitlines()
    missed = 0
    for what, (text, replacement) in MUTATIONS.items():
        if source.count(text) != 1:
            sys.exit(f"etl.py has {text!r} {source.count(text)} times instead of once; correct tools/mutations.py")
        test = first_failure(source.replace(text, replacement))
        missed += not test
        lines.append(f"| {what} | {f'`{test}`' if test else '**none**'} |")
        print(lines[-1], flush=True)
    (ROOT / "docs" / "mutations.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
