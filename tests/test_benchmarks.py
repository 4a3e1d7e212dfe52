"""The programs beside which the benchmark runs the job, how it measures them, and how it shows the figures."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import oracle
import pytest
from test_generate import generate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import report  # noqa: E402

# The programs


def written(program: str, source: Path, target: Path) -> dict[str, list[tuple]]:
    """The program's tables, their rows in order; songplays without songplay_id, which is each program's own."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{program}_job.py"), str(source), str(target)]
    environment = {**os.environ, "TZ": "UTC", "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["PYSPARK_SUBMIT_ARGS"] = "--driver-memory 1g --conf spark.ui.enabled=false pyspark-shell"
    subprocess.run(command, check=True, env=environment, capture_output=True)
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        return {name: oracle.in_order(db.execute(query(program, name, target)).fetchall()) for name in oracle.COLUMNS}


def query(program: str, table: str, target: Path) -> str:
    columns = oracle.COLUMNS[table].replace("songplay_id, ", "").replace("start_time", "start_time::TIMESTAMP")
    if (program, table) == ("usual", "songplays"):  # its plays do not say what was played
        columns = "user_id, song_id"
    return f"SELECT {columns} FROM read_parquet('{target}/{table}/**/*.parquet', hive_partitioning = true)"


def expected(source: Path) -> dict[str, list[tuple]]:
    tables = oracle.five_tables(str(source))
    return {**tables, "songplays": oracle.in_order([row[1:] for row in tables["songplays"]])}


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample, and another lake with the last day delivered twice, with other facts, and a song three times."""
    place = generate(tmp_path_factory.mktemp("lakes") / "other", "--seed", "7", "--events", "3000", "--songs", "300")
    day = max((place / "log_data").rglob("*.json"))
    changes = ({}, {"level": "trial"}, {"gender": " "})
    again = [
        {**json.loads(line), "ts": json.loads(line)["ts"] + n % 3 // 2, **changes[n % 3]}
        for n, line in enumerate(oracle.lines(day))
    ]
    day.with_name("again.json").write_text("\n".join(map(json.dumps, again)), encoding="utf-8")
    song = json.loads(next((place / "song_data").rglob("*.json")).read_text())
    versions = [{**song, "year": 2011, "title": "A"}, {**song, "year": 2011, "title": None, "artist_id": " "}]
    (place / "song_data" / "versions.json").write_text("\n".join(map(json.dumps, versions)))
    return {"sample": ROOT / "data", "other": place}


@pytest.mark.parametrize("lake", ["sample", "other"])
def test_duckdb_makes_the_tables_of_the_oracle(lake, lakes, tmp_path):
    tables, rows = written("duckdb", lakes[lake], tmp_path), expected(lakes[lake])
    for name in rows:
        assert tables[name] == rows[name], name
    with duckdb.connect() as db:
        ids = f"SELECT count(*), count(DISTINCT songplay_id) FROM read_parquet('{tmp_path}/songplays/**/*.parquet')"
        assert db.execute(ids).fetchone() == (len(rows["songplays"]), len(rows["songplays"]))


def test_a_second_run_of_duckdb_replaces_the_tables_of_the_first(lakes, tmp_path):
    written("duckdb", lakes["other"], tmp_path)
    assert written("duckdb", lakes["sample"], tmp_path) == expected(lakes["sample"])


def test_the_tables_of_the_usual_script_have_the_faults_that_it_names(tmp_path):
    tables, rows = written("usual", ROOT / "data", tmp_path), expected(ROOT / "data")
    assert tables["songs"] == rows["songs"]
    assert tables["time"] == rows["time"]
    # More rows than plays: a play of which two songs fit is in it twice.
    assert len(tables["songplays"]) > len(rows["songplays"])
    # The same users, since in the sample everybody played something; some have the level or name of an earlier day.
    assert {row[0] for row in tables["users"]} == {row[0] for row in rows["users"]}
    assert tables["users"] != rows["users"]
    # The same artists, some with the name or place of an earlier song.
    assert {row[0] for row in tables["artists"]} == {row[0] for row in rows["artists"]}
    assert tables["artists"] != rows["artists"]
    # At least a file for each artist's year.
    years = {(artist_id, year) for _, _, artist_id, _, year in rows["songs"]}
    assert len(list((tmp_path / "songs").rglob("*.parquet"))) >= len(years) > 0.5 * len(rows["songs"])


# The measurement

ORPHAN = """
import subprocess, sys
child = "import time; block = bytearray({} << 20)\\nwhile time.process_time() < {}: pass"
subprocess.Popen([sys.executable, "-c", child.format(100, 1)])
subprocess.run([sys.executable, "-c", child.format(1, 0.5)])
"""


def measured(code: str) -> subprocess.CompletedProcess[str]:
    """What measure.py prints of a Python program; in a process of its own, since it waits for every child."""
    script = "import sys, json, measure; print(json.dumps(measure.measured([sys.executable, '-c', sys.argv[1]])))"
    command = [sys.executable, "-c", script, code]
    return subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)


def test_processor_and_memory_count_the_children_that_outlive_the_program():
    figures = json.loads(measured(ORPHAN).stdout)
    assert 1.5 < figures["cpu"] < 3
    assert 100e6 < figures["memory"] < 200e6


def test_a_program_that_fails_is_an_error_with_its_last_output():
    assert "ended with 3: so it goes" in measured("print('so it goes'); exit(3)").stderr


# The figures


def run(program: str, number: int, wall: float, **figures: float) -> dict:
    cpu = wall * (4 if program == "usual" else 2)
    return {"program": program, "round": number, "wall": wall, "cpu": cpu, "memory": 3e9, **figures}


def section(*runs: dict) -> dict:
    return {"machine": "2 cores of Some CPU", "data": "a lake", "runs": list(runs)}


# The machine is three times slower in the second round; the ratio is not.
RESULTS = {
    "comparison": section(
        run("job", 1, 20, files=80, bytes=9e6, stages={"listing": 4.0, "tables": 6.0}), run("floor", 1, 10),
        run("usual", 1, 100), run("job", 2, 60, files=80, bytes=9e6, stages={"listing": 4.0, "tables": 46.0}),
        run("floor", 2, 30), run("usual", 2, 330),
    ),
    "growth": section(run("job 1x", 1, 20), run("job 10x", 1, 208)),
    "night": section(run("no history", 1, 20), run("a year", 1, 26), run("a year, in full", 1, 90)),
    "tiny": section(run("14,896 song files", 1, 30), run("one song file", 1, 12)),
    "sample": section(run("nothing new", 1, 1.5), run("in full, the second time", 1, 11)),
    "s3": section(*({"program": name, "round": 1, "requests": 1234, "HEAD": 1000} for name in ("in full", "a night"))),
    "against": section(run("job", 1, 20), run("the other", 1, 25)),
}  # fmt: skip


@pytest.fixture
def page() -> Callable[[dict], str]:
    return lambda results: report.rendered((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"), results)


def test_ratios_are_taken_within_a_round(page):
    text = page(RESULTS)
    assert "| job / floor, seconds | 2.00 (2.00-2.00) | at most 3.8: met |" in text
    assert "| usual / job, seconds | 5.25 (5.00-5.50) | at least 2.2: met |" in text
    assert "| job / floor, core seconds | 2.00 (2.00-2.00) |  |" in text
    assert "job / duckdb" not in text, "DuckDB has not run"


def test_a_program_has_its_median_and_the_least_and_most_of_its_seconds(page):
    text = page(RESULTS)
    assert "| **the job** | 40.0 (20.0-60.0) | 80.0 | 3.0 | 80 | 9.0 |" in text
    assert "| the floor | 20.0 (10.0-30.0) | 40.0 | 3.0 | - | - |" in text


def test_the_stages_of_the_job_have_their_share_of_the_run(page):
    assert "| listing | 4.0 | 10% |\n| tables | 26.0 | 65% |\n" in page(RESULTS)


def test_a_goal_says_whether_it_is_met(page):
    text = page(RESULTS)
    assert "| job 10x / job 1x, seconds | 10.40 | at most 10.5: met |" in text
    assert "| a year / no history, seconds | 1.30 | at most 1.2: missed |" in text
    assert "| nothing new, seconds | 1.5 | at most 2: met |" in text
    assert "| a night, requests | 1,234 | at most 300: missed |" in text


def test_requests_have_a_column_for_each_operation(page):
    assert "| run | requests | HEAD |\n|---|---:|---:|\n| in full | 1,234 | 1,000 |\n" in page(RESULTS)


def test_rendering_changes_only_what_is_between_the_markers(page):
    empty, full = page({}), page(RESULTS)
    assert empty.count("*Not measured yet.*") == len(RESULTS)
    assert full.count("*Not measured yet.*") == 0
    assert report.rendered(full, {}) == empty
    assert report.rendered(full, RESULTS) == full


def test_a_page_without_a_place_for_a_section_is_an_error():
    with pytest.raises(ValueError, match="add <!-- figures: comparison -->"):
        report.rendered("no markers", RESULTS)


def test_the_page_shows_what_the_results_say(page):
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    assert page(results) == (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
