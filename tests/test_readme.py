"""README.md and docs/ say what is so: names, links, commands, tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from s3 import free_port

import etl

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]


def test_the_diagram_of_the_tables_shows_their_columns_types_and_keys() -> None:
    for table in etl.TABLES.values():
        picture = re.search(rf"^    {table.name} {{\n(.*?)^    }}", TEXTS["docs/tables.md"], re.S | re.M).group(1)
        drawn = [re.sub(r" (PK|FK)$", "", line.strip()) for line in picture.splitlines()]
        assert drawn == [" ".join(reversed(column)) for column in etl.field_types(table.columns).items()]
        assert f"{table.key} PK" in picture


def test_the_readme_lists_the_columns_and_partitions_of_each_table() -> None:
    for table in etl.TABLES.values():
        row = re.search(rf"^\| {table.name} \|.*$", README, re.M).group().strip("| ").split("|")
        columns, partitions = (cell.strip() for cell in (*row, "")[2:4])
        assert columns == ", ".join(name for name in table.names() if name not in table.partitions)
        assert partitions == ", ".join(table.partitions)


def test_a_test_that_is_named_exists() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = {name for text in TEXTS.values() for name in re.findall(r"`(test_\w+)`", text)} - {"test_code"}
    assert len(named) > 10 and {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_to_a_file(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXTS[page]) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for text in TEXTS.values() for name in re.findall(r"(?:`|^    |^)make ([a-z][a-z0-9-]+)", text, re.M)}
    assert {"run", "test", "setup"} <= named <= targets


def test_the_readme_has_at_most_150_lines() -> None:
    assert README.count("\n") <= 150


@pytest.mark.slow
def test_the_walk_on_a_local_s3_server_works_as_written(tmp_path: Path) -> None:
    walk = next(block for block in re.findall(r"```sh\n(.*?)```", README, re.S) if "moto_server" in block)
    for name in ("etl.py", "upload.py", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    program = walk.replace("make setup\n", "set -e\n").replace("5555", str(free_port()))
    program = program.replace("source .venv/bin/activate\n", f'export PATH="{sys.prefix}/bin:$PATH"\n')
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    read_back = dict(line.split() for line in done.stdout.splitlines() if line.split()[0] in etl.TABLES)
    assert {name: int(rows) for name, rows in read_back.items()} == {
        "songplays": 413, "users": 18, "songs": 60, "artists": 14, "time": 400,
    }  # fmt: skip
