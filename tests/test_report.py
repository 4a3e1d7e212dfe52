"""What a run tells of itself in OUTPUT/_runs, and that it gives no secret away."""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyspark
import pytest
from conftest import ROOT, event, play_of, song, write_lake
from lake import published
from pyspark.sql import SparkSession

import etl

CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY0000000000",
    "AWS_SECRET_ACCESS_KEY": "canary/Secret+Key0123456789",
    "AWS_SESSION_TOKEN": "canaryToken==",
}
STAGES = {"reading", "accounting", *etl.TABLES, "_state/users", "_state/songs", "audit", "publish"}
PLAYS = [play_of(song()), event(itemInSession=1), event(itemInSession=1), event(page="Home"), "{"]


class Runs(NamedTuple):
    root: Path
    reports: list[dict]
    logged: str


@pytest.fixture(scope="module")
def runs(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One that published, one that failed at its limits, one that published; with keys in dl.cfg that nothing needs."""
    root = tmp_path_factory.mktemp("report")
    logged = root.with_name("report.log")
    listener = etl.logging.FileHandler(logged)
    etl.logging.getLogger().addHandler(listener)
    for ratio, code in (("0.5", 0), ("0.1", 1), ("0.5", 0)):
        write_lake(root / "in", [song()], PLAYS)
        assert etl.main(["--config", str(config(root, ratio))]) == code
    etl.logging.getLogger().removeHandler(listener)
    paths = sorted((root / "out" / "_runs").iterdir())
    return Runs(root, [json.loads(path.read_text()) for path in paths], logged.read_text())


def config(root: Path, ratio: str) -> Path:
    text = (ROOT / "dl.cfg").read_text().replace("MAX_BAD_RATIO = 0.05", f"MAX_BAD_RATIO = {ratio}")
    text = text.replace("INPUT = data", f"INPUT = {root}/in").replace("OUTPUT = output", f"OUTPUT = {root}/out")
    keys = "\n".join(f"{key} = {value}" for key, value in CANARIES.items())
    text = text.replace("AWS_ACCESS_KEY_ID =\nAWS_SECRET_ACCESS_KEY =", keys)
    (root / "dl.cfg").write_text(text)
    (root / "dl.cfg").chmod(0o600)
    return root / "dl.cfg"


def test_a_report_has_these_parts_and_no_other(runs: Runs) -> None:
    parts = {"run", "outcome", "started", "settings", "versions", "lines", "problems", "files", "seconds", "tables"}
    parts |= {"audits"}
    assert [set(report) for report in runs.reports] == [parts] * 3


def test_a_report_is_named_by_its_run_which_tells_when_it_began(runs: Runs) -> None:
    assert [f"{report['run']}.json" for report in runs.reports] == sorted(
        path.name for path in (runs.root / "out" / "_runs").iterdir()
    )
    for report in runs.reports:
        began = datetime.strptime(report["started"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        named = datetime.strptime(report["run"], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=timezone.utc)
        assert 0 <= (datetime.now(timezone.utc) - began).total_seconds() < 3600
        assert abs((began - named).total_seconds()) <= 1


def test_a_report_tells_the_versions(runs: Runs) -> None:
    expected = {"spark": pyspark.__version__, "python": platform.python_version()}
    assert [report["versions"] for report in runs.reports] == [expected] * 3


def test_a_report_tells_the_settings_with_the_keys_masked(runs: Runs) -> None:
    told = runs.reports[0]["settings"]
    assert set(told) == {key for keys in etl.SECTIONS.values() for key in keys}
    assert {key.upper(): told[key] for key in etl.SECTIONS["AWS CREDS"]} == dict.fromkeys(CANARIES, "***")
    assert (told["input"], told["max_bad_ratio"], told["sse"]) == (f"{runs.root}/in", "0.5", "")


def test_a_report_tells_the_files_of_the_input_with_their_bytes_and_lines(runs: Runs) -> None:
    size = {kind: (runs.root / "in" / kind / "A" / "rows.json").stat().st_size for kind in ("song_data", "log_data")}
    fates = {"accepted": 2, "duplicates": 1, "no_play": 1, "quarantined": 1}
    assert runs.reports[0]["files"] == [
        {"file": "song_data/A/rows.json", "bytes": size["song_data"], **dict.fromkeys(fates, 0), "accepted": 1},
        {"file": "log_data/A/rows.json", "bytes": size["log_data"], **fates},
    ]
    assert runs.reports[0]["lines"]["log_data"] == {"lines": 5, **fates}
    assert runs.reports[0]["problems"] == {"song_data": {}, "log_data": {"broken JSON": 1}}


def test_the_latest_report_tells_the_rows_files_and_bytes_that_are_there(runs: Runs) -> None:
    for name, told in runs.reports[-1]["tables"].items():
        files = [path for path in (runs.root / "out" / name).rglob("*") if path.is_file()]
        assert told == {
            "rows": len(published(runs.root / "out", name)),
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
        }
    assert set(runs.reports[-1]["tables"]) == set(etl.TABLES)


def test_a_report_tells_what_was_audited(runs: Runs) -> None:
    rows = {name: table["rows"] for name, table in runs.reports[0]["tables"].items()}
    assert runs.reports[0]["audits"] == {
        name: dict.fromkeys(("rows", "known", "distinct", "expected"), count) for name, count in rows.items()
    }


def test_a_report_tells_the_seconds_of_every_stage(runs: Runs) -> None:
    assert [set(report["seconds"]) for report in runs.reports] == [STAGES, {"reading", "accounting", "publish"}, STAGES]
    assert all(0 <= seconds < 600 for report in runs.reports for seconds in report["seconds"].values())


def test_a_failed_run_is_reported_with_its_line_and_its_accounting_and_no_table(runs: Runs) -> None:
    report = runs.reports[1]
    assert report["outcome"].startswith("failed: log_data: 1 of 5 lines cannot be used, and [LAKE] MAX_BAD_RATIO = 0.1")
    assert report["outcome"].removeprefix("failed: ") in runs.logged
    assert report["tables"] == {} and report["problems"]["log_data"] == {"broken JSON": 1}
    assert report["lines"]["log_data"]["quarantined"] == 1


def test_duckdb_reads_the_reports_as_a_table(runs: Runs) -> None:
    with duckdb.connect() as engine:
        rows = engine.sql(
            "SELECT run, outcome = 'published', lines.log_data.accepted, tables.songplays.rows, len(files),"
            f" seconds.accounting > 0 FROM read_json('{runs.root}/out/_runs/*.json') ORDER BY run"
        ).fetchall()
    runs_of = [report["run"] for report in runs.reports]
    assert rows == [
        (runs_of[0], True, 2, 2, 2, True),
        (runs_of[1], False, 2, None, 2, True),
        (runs_of[2], True, 2, 2, 2, True),
    ]


def test_every_report_is_one_line(runs: Runs) -> None:
    for path in (runs.root / "out" / "_runs").iterdir():
        assert len(path.read_text().splitlines()) == 1


def test_no_key_is_in_any_file_or_line_that_a_run_writes(runs: Runs) -> None:
    written = {path: path.read_bytes() for path in (runs.root / "out").rglob("*") if path.is_file()}
    assert {path.relative_to(runs.root / "out").parts[0] for path in written} >= {
        "_runs",
        "_quarantine",
        "_lock",
        "time",
    }
    for canary in CANARIES.values():
        assert not [path for path, content in written.items() if canary.encode() in content]
        assert canary not in runs.logged
    assert "lines quarantined" in runs.logged
