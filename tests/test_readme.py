"""What README.md says is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from s3 import free_port

import etl

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_entity_picture_is_the_schema() -> None:
    for table in etl.TABLES.values():
        picture = re.search(rf"^    {table.name} {{\n(.*?)^    }}", README, re.S | re.M).group(1)
        drawn = [re.sub(r" (PK|FK)$", "", line.strip()) for line in picture.splitlines()]
        assert drawn == [" ".join(reversed(column.split())) for column in table.columns.split(", ")]
        assert f"{table.key} PK" in picture


def test_every_test_that_is_named_is_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", README)
    assert named and [name for name in named if f"def {name}(" not in tests] == []


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links and [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_make_target_that_is_named_is_there() -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"make ([a-z][a-z0-9-]+)\b", README)) - {"it"} <= set(targets)


@pytest.mark.slow
def test_the_walk_on_a_local_s3_server_works_as_written(tmp_path: Path) -> None:
    walk = next(block for block in re.findall(r"```sh\n(.*?)```", README, re.S) if "moto_server" in block)
    for name in ("etl.py", "upload.py", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    program = walk.replace("make setup\n", "set -e\n").replace("5555", str(free_port()))
    program = program.replace(".venv/bin/", f"{sys.prefix}/bin/")
    program = program.replace("$(cat .venv/java_home)", os.environ["JAVA_HOME"])
    told = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert told.returncode == 0, told.stderr
    read_back = dict(line.split() for line in told.stdout.splitlines() if line.split()[0] in etl.TABLES)
    assert {name: int(rows) for name, rows in read_back.items()} == {
        "songplays": 413, "users": 18, "songs": 60, "artists": 14, "time": 400,
    }  # fmt: skip
