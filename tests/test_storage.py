"""Where tables lie: what is done there is done whole and once, and what is wrong with the place is told in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import etl


@pytest.fixture(params=["disk", "s3", "whole bucket"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> etl.Disk | etl.Bucket:
    if request.param == "disk":
        return etl.Disk(str(tmp_path))
    server = request.getfixturevalue("server")
    place = "s3://lake" if request.param == "whole bucket" else f"s3://lake/{tmp_path.name}"
    return etl.storage(place, etl.read_settings(str(server.dl_cfg(tmp_path / "dl.cfg", "s3://lake"))))


def test_a_file_is_read_as_it_was_written_and_listed_with_its_size(lake: etl.Disk | etl.Bucket) -> None:
    assert lake.read("a/b c+%20.txt") is None and lake.files("a") == {}
    lake.write("a/b c+%20.txt", "é\n")
    assert lake.read("a/b c+%20.txt") == "é\n" and lake.files("a") == {"a/b c+%20.txt": 3}
    lake.clear("a")
    assert lake.files("a") == {}


def test_what_is_there_is_not_created_again(lake: etl.Disk | etl.Bucket) -> None:
    lake.create("once", "first")
    lake.create("once", "second")
    assert lake.read("once") == "first"
    lake.delete(["once", "never"])
    assert lake.read("once") is None


def test_a_move_that_is_done_twice_is_done_once(lake: etl.Disk | etl.Bucket) -> None:
    lake.write("from/x", "1")
    for _ in range(2):
        lake.move("from/x", "to/y=1/x")
    assert lake.files("to") == {"to/y=1/x": 1}


def test_more_than_a_thousand_files_are_listed_and_deleted(lake: etl.Disk | etl.Bucket) -> None:
    for number in range(1005):
        lake.write(f"many/{number}", "")
    assert len(lake.files("many")) == 1005
    lake.delete(list(lake.files("many")))
    assert lake.files("many") == {}


def test_a_journal_of_files_that_are_gone_is_named(lake: etl.Disk | etl.Bucket) -> None:
    journal = {"move": {"_staging/r/x": "users/x"}, "retire": [], "report": {}}
    lake.write("_staging/r/_journal.json", json.dumps(journal))
    with pytest.raises(etl.JobError, match="_staging/r/_journal.json names files that are gone; remove it and run"):
        etl.recover(lake)
    lake.clear("_staging")


def test_half_a_report_of_a_killed_run_is_passed_over(lake: etl.Disk | etl.Bucket) -> None:
    lake.write("_runs/20200101T000000Z.json", json.dumps({"outcome": etl.PUBLISHED, "tables": {"users": {"rows": 1}}}))
    lake.write("_runs/20200102T000000Z.json.0123", '{"outco')
    assert etl.last_published(lake)["tables"] == {"users": {"rows": 1}}
    lake.clear("_runs")


def test_a_strange_file_in_the_staging_is_cleared_away(lake: etl.Disk | etl.Bucket) -> None:
    lake.write("_staging/.DS_Store", "")
    etl.recover(lake)
    assert lake.files("_staging") == {}


def test_a_profile_that_is_not_there_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(etl.UsageError, match="nobody.*mend the profile"):
        etl.storage("s3://lake/tables", etl.Settings(input="data", output="s3://lake/tables"))


def test_an_endpoint_that_is_no_address_is_told_in_a_line() -> None:
    settings = etl.Settings(input="data", output="s3://lake/tables", endpoint="http://min_io:9000")
    with pytest.raises(etl.UsageError, match="mend .* ENDPOINT"):
        etl.storage("s3://lake/tables", settings)
