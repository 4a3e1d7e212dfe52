"""Breaks rules of etl.py one at a time, runs the tests on each, and writes docs/mutations.md: make mutations.

If no test fails for a broken rule, a test is missing, and the script exits with 1. It works on a copy of the project.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTATIONS = {  # what breaks -> the tests that are run first, the text in etl.py, and what replaces it
    "plays without a song are lost": ("tables", 'on=SONG_KEY, how="left")', 'on=SONG_KEY, how="inner")'),
    "times are local, not UTC": ("tables", 'timeZone": "UTC"', 'timeZone": "America/Los_Angeles"'),
    "the audit accepts any count": ("audit", "if found != {", "if False and found != {"),
    "the quarantine is not written": ("job", "if any(account.problems for account in found):", "if False:"),
    "replaced files are never deleted": ("ledger", "for file in ledger.retire if", "for file in () if"),
    "a commit on a disk has no condition": (
        "storage",
        "os.link(path, self.at(name))",
        "os.replace(path, self.at(name))",
    ),
    "a commit on S3 has no condition": ("storage", '*taken, IfNoneMatch="*")', "*taken)"),
    "partitions of changed files are not rebuilt": (
        "nightly",
        'if changes.gone["log_data"]:\n        touched |=',
        "if False:\n        touched |=",
    ),
    "a user's facts are the first, not the latest": (
        "tables",
        'return F.max(F.when(value.isNotNull(), F.struct(*order, value)))["value"]',
        'return F.min(F.when(value.isNotNull(), F.struct(*order, value)))["value"]',
    ),
    "impossible times are accepted": ("lines", '"ts NOT BETWEEN 946684800000 AND 4102444799999"', '"false"'),
    "keys appear in the report": ("report", '"***" if value and name in', '"***" if False and name in'),
    "a file that Spark does not see is ignored": (
        "bad_input",
        "if file.size and name not in addresses:",
        "if False:",
    ),
    "files are deleted before others are moved in": (
        "ledger",
        "    if not lake.move(moves):",
        "    lake.delete(ledger.retire)\n    if not lake.move(moves):",
    ),
}

HEAD = """# Broken rules, and the test that notices

`make mutations` breaks one rule of `etl.py` at a time, runs the tests of `make test` on it, and writes this table with
the first test that fails.

| broken rule | first test that fails |
|---|---|"""


def first_failure(mutated: str, *tests: str) -> str:
    """The first of the tests that fails with this text as etl.py; "" if none does. All tests, if none is named."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "project")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "output"))
        (copy / "etl.py").write_text(mutated, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "--maxfail", "1", "-q", *tests]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        found = re.search(r"^(?:FAILED|ERROR) tests/(\S+?)(\[| |$)", done.stdout, re.M)
        return found[1] if found else "" if done.returncode == 0 else "the tests could not run"


def main() -> int:
    source = (ROOT / "etl.py").read_text(encoding="utf-8")
    lines = HEAD.splitlines()
    missed = 0
    for what, (tests, text, replacement) in MUTATIONS.items():
        if source.count(text) != 1:
            sys.exit(f"etl.py has {text!r} {source.count(text)} times instead of once; correct tools/mutations.py")
        mutated = source.replace(text, replacement)
        test = first_failure(mutated, f"tests/test_{tests}.py") or first_failure(mutated)
        missed += not test
        lines.append(f"| {what} | {f'`{test}`' if test else '**none**'} |")
        print(lines[-1], flush=True)
    (ROOT / "docs" / "mutations.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
