"""What a run reports of itself in OUTPUT/_runs, and that it gives no secret away."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyspark
import pytest
from conftest import Outcome, event, job, play_of, song, write_lake
from lake import published, reports
from pyspark.sql import SparkSession

import etl

CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY0000000000",
    "AWS_SECRET_ACCESS_KEY": "canary/Secret+Key0123456789",
    "AWS_SESSION_TOKEN": "canaryToken==",
}
PLAYS = [play_of(song()), event(itemInSession=1), event(itemInSession=1), event(page="Home"), "{"]
STAGES = {*etl.TABLES, "_state/events", "_state/songs", "_state/users", "accounting", "audit"}


class Runs(NamedTuple):
    root: Path
    outcomes: list[Outcome]
    reports: list[dict]


@pytest.fixture(scope="module")
def runs(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One that published, one that found nothing new, one that failed; dl.cfg has keys that nothing needs."""
    root = tmp_path_factory.mktemp("report")
    write_lake(root / "in", [song()], PLAYS)
    outcomes = [job(root / "in", root / "out", "--verbose", MAX_BAD_RATIO=0.5, **CANARIES) for _ in range(2)]
    write_lake(root / "in", [song()], PLAYS)
    outcomes.append(job(root / "in", root / "out", MAX_BAD_RATIO=0.1, **CANARIES))
    assert [outcome.code for outcome in outcomes] == [0, 0, 1]
    return Runs(root, outcomes, reports(root / "out"))


def test_a_report_has_these_parts_and_no_other_and_is_one_line(runs: Runs) -> None:
    parts = {"run", "outcome", "started", "settings", "versions", "lines", "problems", "files", "seconds", "tables"}
    assert [set(report) for report in runs.reports] == [parts | {"audits"}] * 3
    for path in (runs.root / "out" / "_runs").iterdir():
        assert len(path.read_text().splitlines()) == 1


def test_a_report_says_what_became_of_the_run(runs: Runs) -> None:
    published, nothing_new, failed = (report["outcome"] for report in runs.reports)
    assert (published, nothing_new) == ("published", "nothing new")
    assert failed == f"failed: {runs.outcomes[2].error}" and "log_data: 1 of 5 lines cannot be used" in failed


def test_a_report_is_named_by_its_run_whose_name_begins_with_its_start_in_utc(runs: Runs) -> None:
    names = sorted(path.name for path in (runs.root / "out" / "_runs").iterdir())
    assert [f"{report['run']}.json" for report in runs.reports] == names
    for report in runs.reports:
        began = datetime.strptime(report["started"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        named = datetime.strptime(report["run"].split("-")[0], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=timezone.utc)
        assert 0 <= (datetime.now(timezone.utc) - began).total_seconds() < 3600
        assert 0 <= (named - began).total_seconds() < 1


def test_a_report_has_the_versions_and_the_settings_with_the_keys_masked(runs: Runs) -> None:
    expected = {"spark": pyspark.__version__, "python": platform.python_version()}
    assert [report["versions"] for report in runs.reports] == [expected] * 3
    settings = runs.reports[0]["settings"]
    assert set(settings) == {key for keys in etl.SECTIONS.values() for key in keys}
    assert {key.upper(): settings[key] for key in etl.SECTIONS["AWS CREDS"]} == dict.fromkeys(CANARIES, "***")
    assert (settings["input"], settings["max_bad_ratio"]) == (f"{runs.root}/in", 0.5)
    assert settings["plays_partition_by"] == ["year", "month"]


def test_a_report_has_the_input_files_with_their_bytes_and_the_fates_of_their_lines(runs: Runs) -> None:
    size = {kind: (runs.root / "in" / kind / "A" / "rows.json").stat().st_size for kind in ("song_data", "log_data")}
    fates = {"accepted": 2, "duplicates": 1, "no_play": 1, "quarantined": 1}
    for report in (runs.reports[0], runs.reports[2]):
        songs = [file for file in report["files"] if file["file"] == "song_data/A/rows.json"]
        assert songs == [
            {"file": "song_data/A/rows.json", "bytes": size["song_data"], **dict.fromkeys(fates, 0), "accepted": 1}
        ]
        logs = [file for file in report["files"] if file not in songs]
        assert logs == [{"file": "log_data/A/rows.json", "bytes": size["log_data"], **fates}]
        assert report["lines"]["log_data"] == {"lines": 5, **fates}
        assert report["problems"] == {"song_data": {}, "log_data": {"broken JSON": 1}}


def test_a_report_has_the_rows_files_and_bytes_of_the_tables_unless_the_run_failed(runs: Runs) -> None:
    for report in runs.reports[:2]:
        for name, facts in report["tables"].items():
            files = [path for path in (runs.root / "out" / name).rglob("*") if path.is_file()]
            assert facts == {
                "rows": len(published(runs.root / "out", name)),
                "files": len(files),
                "bytes": sum(path.stat().st_size for path in files),
            }
    assert [set(report["tables"]) for report in runs.reports] == [set(etl.TABLES), set(etl.TABLES), set()]


def test_a_report_has_what_was_audited(runs: Runs) -> None:
    rows = {name: table["rows"] for name, table in runs.reports[0]["tables"].items()}
    assert runs.reports[0]["audits"] == {
        name: {"rows": count, "keys": count} for name, count in rows.items()
    }
    assert not runs.reports[1]["audits"] and not runs.reports[2]["audits"]


def test_a_report_has_the_seconds_of_every_stage_and_verbose_logs_them(runs: Runs) -> None:
    published, nothing_new, failed = (set(report["seconds"]) for report in runs.reports)
    assert (published, nothing_new) == (STAGES, set())
    assert failed == {"_state/events", "_state/songs", "accounting"}
    assert all(0 <= seconds < 600 for report in runs.reports for seconds in report["seconds"].values())
    logged = {line.split()[1] for line in runs.outcomes[0].lines if line.startswith("DEBUG ")}
    assert logged >= STAGES and not [line for line in runs.outcomes[2].lines if line.startswith("DEBUG ")]


def test_duckdb_reads_the_reports_as_a_table(runs: Runs) -> None:
    with duckdb.connect() as engine:
        rows = engine.sql(
            "SELECT run, outcome, lines.log_data.accepted, tables.songplays.rows, len(files), seconds.accounting > 0"
            f" FROM read_json('{runs.root}/out/_runs/*.json') ORDER BY run"
        ).fetchall()
    assert rows == [
        (runs.reports[0]["run"], "published", 2, 2, 2, True),
        (runs.reports[1]["run"], "nothing new", None, 2, 0, None),
        (runs.reports[2]["run"], runs.reports[2]["outcome"], 2, None, 2, True),
    ]


def test_no_key_is_in_any_file_or_line_that_a_run_writes(runs: Runs) -> None:
    written = {path: path.read_bytes() for path in (runs.root / "out").rglob("*") if path.is_file()}
    places = {path.relative_to(runs.root / "out").parts[0] for path in written}
    assert places == {*etl.TABLES, "_runs", "_quarantine", "_state"}
    logged = "\n".join(line for outcome in runs.outcomes for line in outcome.lines)
    for canary in CANARIES.values():
        assert not [path for path, content in written.items() if canary.encode() in content]
        assert canary not in logged
    assert "lines quarantined" in logged
    settings = etl.Settings("in", "out", **{name.lower(): canary for name, canary in CANARIES.items()})
    assert not [canary for canary in CANARIES.values() if canary in repr(settings)]
