"""The programs that the benchmark holds the job against, and how it shows its figures."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import oracle
import pytest
from matplotlib import image
from test_generate import generate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import report  # noqa: E402
import stages  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# The programs
# ---------------------------------------------------------------------------------------------------------------------


def written(program: str, source: Path, target: Path) -> dict[str, list[tuple]]:
    """The tables that the program makes, in order; songplays without songplay_id, which is each program's own."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{program}_job.py"), str(source), str(target)]
    environment = {**os.environ, "TZ": "UTC", "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["PYSPARK_SUBMIT_ARGS"] = "--driver-memory 1g --conf spark.ui.enabled=false pyspark-shell"
    subprocess.run(command, check=True, env=environment, capture_output=True)
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        return {name: oracle.in_order(db.execute(query(name, target)).fetchall()) for name in oracle.COLUMNS}


def query(table: str, target: Path) -> str:
    columns = oracle.COLUMNS[table].replace("songplay_id, ", "").replace("start_time", "start_time::TIMESTAMP")
    return f"SELECT {columns} FROM read_parquet('{target}/{table}/**/*.parquet', hive_partitioning = true)"


def expected(source: Path) -> dict[str, list[tuple]]:
    tables = oracle.five_tables(str(source))
    return {**tables, "songplays": oracle.in_order([row[1:] for row in tables["songplays"]])}


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample, and another lake with the last day delivered twice, with other facts, and a song three times."""
    place = generate(tmp_path_factory.mktemp("lakes") / "other", "--seed", "7", "--events", "3000", "--songs", "300")
    day = sorted((place / "log_data").rglob("*.json"))[-1]
    lines = [json.loads(line) for line in day.read_text(encoding="utf-8").split("\n")]
    changes = ({}, {"level": "trial"}, {"gender": " "})
    again = [{**line, "ts": line["ts"] + n % 3 // 2, **changes[n % 3]} for n, line in enumerate(lines)]
    day.with_name("again.json").write_text("\n".join(map(json.dumps, again)), encoding="utf-8")
    song = json.loads(next((place / "song_data").rglob("*.json")).read_text())
    versions = [{**song, "year": 2011, "title": "A"}, {**song, "year": 2011, "title": None, "artist_id": " "}]
    folder = place / "song_data" / "A" / "Z" / "Z"
    folder.mkdir(parents=True)
    (folder / "versions.json").write_text("\n".join(map(json.dumps, versions)))
    return {"sample": ROOT / "data", "other": place}


@pytest.mark.parametrize("program", ["duckdb", "polars"])
@pytest.mark.parametrize("lake", ["sample", "other"])
def test_duckdb_and_polars_make_the_oracles_tables(program, lake, lakes, tmp_path):
    tables, rows = written(program, lakes[lake], tmp_path), expected(lakes[lake])
    for name in rows:
        assert tables[name] == rows[name], name
    with duckdb.connect() as db:
        ids = f"SELECT count(*), count(DISTINCT songplay_id) FROM read_parquet('{tmp_path}/songplays/**/*.parquet')"
        assert db.execute(ids).fetchone() == (len(rows["songplays"]), len(rows["songplays"]))


@pytest.mark.parametrize("program", ["duckdb", "polars"])
def test_a_second_run_replaces_the_tables_of_the_first(program, lakes, tmp_path):
    written(program, lakes["other"], tmp_path)
    assert written(program, lakes["sample"], tmp_path) == expected(lakes["sample"])


def test_the_usual_scripts_tables_have_the_faults_that_it_names(tmp_path):
    tables, rows = written("usual", ROOT / "data", tmp_path), expected(ROOT / "data")
    assert tables["songs"] == rows["songs"]
    assert tables["time"] == rows["time"]
    # More rows than plays: a play with two songs that fit is there twice.
    assert len(tables["songplays"]) > len(rows["songplays"])
    # The same users, for in the sample everybody played something; some with the level or name of an earlier day.
    assert {row[0] for row in tables["users"]} == {row[0] for row in rows["users"]}
    assert tables["users"] != rows["users"]
    # The same artists, some with the name or place of an earlier song.
    assert {row[0] for row in tables["artists"]} == {row[0] for row in rows["artists"]}
    assert tables["artists"] != rows["artists"]
    # At least a file for each artist's year.
    years = {(artist_id, year) for _, _, artist_id, _, year in rows["songs"]}
    assert len(list((tmp_path / "songs").rglob("*.parquet"))) >= len(years) > 0.5 * len(rows["songs"])


# ---------------------------------------------------------------------------------------------------------------------
# The figures
# ---------------------------------------------------------------------------------------------------------------------

MACHINE = {"cores": 2, "memory": 24e9, "processor": "Some CPU", "versions": {"Spark": "4.0.2"}}
DATA = {"events": 4_000_000, "songs": 5_000, "days": 365, "bytes": 2_000_000_000}


def run(program: str, number: int, wall: float, **figures: float) -> dict:
    output = {"files": 0, "bytes": 0, "largest": 0} if program == "floor" else {
        "files": 80, "bytes": 90_000_000, "largest": 9_000_000}  # fmt: skip
    cpu = wall * (4 if program == "usual" else 2)
    return {"program": program, "round": number, "wall": wall, "cpu": cpu, "memory": 3e9, **output, **figures}


def section(*runs: dict) -> dict:
    return {"machine": MACHINE, "data": DATA, "heap": "8g", "runs": list(runs)}


# The machine was three times slower in the second round; the ratio was not.
NIGHTS = {"nothing": 20, "a month": 20, "a year": 24, "three years": 24, "all": 96}
RESULTS = {
    "comparison": section(
        run("job", 1, 20), run("floor", 1, 10), run("usual", 1, 100),
        run("job", 2, 60), run("floor", 2, 30), run("usual", 2, 330),
        run("job", 3, 22), run("floor", 3, 10), run("usual", 3, 132),
    ),
    "growth": section(
        run("job 1x", 1, 20, events=4_000_000, input=2e9), run("job 10x", 1, 208, events=40_000_000, input=2e10),
        run("duckdb 1x", 1, 8, events=4_000_000, input=2e9), run("duckdb 10x", 1, 80, events=40_000_000, input=2e10),
    ),
    "night": section(
        *(run(name, 1, wall, json=5e6, read=12e6, new=30, retired=3) for name, wall in NIGHTS.items()),
    ),
    "tiny": section(run("many", 1, 30, songs=14_896), run("one", 1, 12, songs=1)),
}  # fmt: skip


@pytest.fixture
def page() -> Callable[[dict], str]:
    return lambda results: report.rendered((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"), results)


def test_ratios_are_taken_within_a_round(page):
    text = page(RESULTS)
    assert "| job / floor | 2.00 (2.00-2.20) | 2.00 (2.00-2.20) | at most 1.6: missed |" in text
    assert "| usual / job | 5.50 (5.00-6.00) | 11.00 (10.00-12.00) | at least 6: missed |" in text
    assert "job / duckdb" not in text  # was not run


def test_a_program_has_its_median_and_its_least_and_most(page):
    text = page(RESULTS)
    assert "| **the job**, etl.py | 22.0 (20.0-60.0) | 44.0 | 3.0 | 80 | 9.0 | 90.0 | 90,909 | 45.5 |" in text
    assert "| the floor: Spark, one read to nothing | 10.0 (10.0-30.0) | 20.0 | 3.0 | - | - | - |" in text


def test_growth_is_told_per_event(page):
    text = page(RESULTS)
    assert "| **the job**, etl.py | 40,000,000 | 20,000 | 208.0 | 5.20 | 3.0 |" in text
    assert "large over small: **1.04**; asked is at most 1.05: met." in text
    assert "a million events cost **the job**, etl.py 5.22 s, DuckDB 2.00 s." in text


def test_a_night_is_held_against_a_day_alone_and_against_a_short_history(page):
    text = page(RESULTS)
    assert "| an empty lake | 20.0 | 40.0 | 12.0 | 80 | 30 | 3 |" in text
    assert "a year over an empty lake: **1.20**, asked is at most 1.3: met; three years over a month: **1.20**," in text
    assert "all of it read again (`--full`) over a year: **4.00**." in text


def test_tiny_files_are_held_against_one_file(page):
    assert "| 14,896 | 30.0 | 60.0 | 3.0 |" in page(RESULTS)
    assert "with the same rows: **2.50**; asked is at most 2: missed." in page(RESULTS)


def test_rendering_touches_only_what_is_between_the_markers(page):
    empty, full = page({}), page(RESULTS)
    assert empty.count("*Not measured yet.*") == 4
    assert full.count("*Not measured yet.*") == 0
    assert report.rendered(full, {}) == empty
    assert report.rendered(full, RESULTS) == full


def test_the_page_shows_what_the_results_say(page):
    results = ROOT / "benchmarks" / "results.json"
    kept = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    assert page(kept) == (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_the_plot_has_a_picture_without_background(tmp_path):
    report.plot(RESULTS["comparison"], tmp_path / "plot.png")
    picture = image.imread(tmp_path / "plot.png")
    assert picture.shape[1] == 9 * 150
    assert picture[0, 0, 3] == 0  # the page shows through


# ---------------------------------------------------------------------------------------------------------------------
# The profile
# ---------------------------------------------------------------------------------------------------------------------


def task(stage: int, launch: float, finish: float) -> dict:
    run = int(1000 * (finish - launch))
    return {
        "Event": "SparkListenerTaskEnd", "Stage ID": stage,
        "Task Info": {"Launch Time": 1000 * launch, "Finish Time": 1000 * finish},
        "Task Metrics": {
            "Executor Run Time": run, "Executor Deserialize Time": 0, "Executor CPU Time": run * 500_000,
            "Executor Deserialize CPU Time": 0, "JVM GC Time": 0, "Disk Bytes Spilled": 0,
            "Shuffle Write Metrics": {"Shuffle Write Time": 0, "Shuffle Bytes Written": 0},
            "Shuffle Read Metrics": {"Fetch Wait Time": 0}, "Input Metrics": {"Bytes Read": 5_000_000},
            "Output Metrics": {"Bytes Written": 0},
        },
    }  # fmt: skip


def completed(stage: int, begin: float, end: float, *parts: str) -> dict:
    scopes = [{"RDD ID": n, "Scope": json.dumps({"name": name})} for n, name in enumerate(parts)]
    about = {"Stage ID": stage, "RDD Info": scopes, "Submission Time": 1000 * begin, "Completion Time": 1000 * end}
    return {"Event": "SparkListenerStageCompleted", "Stage Info": about}


PLAN = "(2) Execute InsertIntoHadoopFsRelationCommand\nInput: []\nArguments: file:/x/users, false"
EVENTS = [
    {"Event": "SparkListenerApplicationStart", "Timestamp": 4000},
    {"Event": "SparkListenerExecutorAdded", "Executor Info": {"Total Cores": 2}},
    {"Event": stages.SQL + "ExecutionStart", "executionId": 0, "time": 6000, "description": "parquet at X.java:0",
     "physicalPlanDescription": PLAN},
    {"Event": "SparkListenerJobStart", "Stage IDs": [0, 1, 2], "Properties": {"spark.sql.execution.id": "0"}},
    task(0, 7, 8), task(0, 7, 11), task(0, 7, 8),
    completed(0, 7, 11, "Scan text ", "WholeStageCodegen (1)", "Exchange"),
    task(1, 10, 12), completed(1, 10, 12, "WriteFiles"),
    {"Event": stages.SQL + "ExecutionEnd", "executionId": 0, "time": 14000},
]  # fmt: skip


@pytest.fixture
def told(tmp_path: Path) -> str:
    (tmp_path / "log").write_text("\n".join(map(json.dumps, EVENTS)))
    return re.sub(" +", " ", stages.tables(stages.profile(tmp_path / "log"), began=1, java=2, ended=16))


def test_the_profile_tells_every_second_of_the_clock_once(told):
    rows = [line.split("|")[1:3] for line in told.splitlines()[2:10]]
    assert [(name.strip().split(":")[0], float(seconds)) for name, seconds in rows] == [
        ("Python", 1), ("Java", 2), ("Spark", 2), ("queries", 5), ("queries", 3), ("between queries", 0),
        ("after the last query", 2), ("all", 15)]  # fmt: skip


def test_the_profile_names_a_query_by_the_table_that_it_writes(told):
    assert "| 0 write users | 8.0 | 5.0 | 8.0 | 2 |" in told


def test_the_profile_has_a_stages_operators_and_its_skew(told):
    assert "| 0 | write users | Scan text > Exchange | 3 | 4.0 | 6.0 | 3.0 |" in told
    assert "| 15.0 | 0.0 | 0.0 | 0.0 | 4.0 |" in told
    assert "tasks took 80% of them; 2.0 s were in stages of a single task" in told


def test_columns_have_one_width_on_a_screen():
    lines = stages.aligned(["| name | s |", "|---|---:|", "| a | 10.0 |"])
    assert lines == ["| name |    s |", "|------|-----:|", "| a    | 10.0 |"]
