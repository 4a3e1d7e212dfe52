"""The six calls of a lake mean the same on a disk and on S3."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3 import minio_server

import etl

Lake = etl.Disk | etl.Bucket


@pytest.fixture(params=["disk", "s3", "whole bucket"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    if request.param == "disk":
        return etl.Disk(str(tmp_path / "lake"))
    server = request.getfixturevalue("server")
    place = "s3://tables" if request.param == "whole bucket" else f"s3://lake/{tmp_path.name}"
    return etl.storage(place, etl.read_settings(str(server.dl_cfg(tmp_path / "dl.cfg", "s3://lake"))))


def sizes(lake: Lake, below: str) -> dict[str, int]:
    return {name: file.size for name, file in lake.files(below).items()}


def test_a_file_is_read_as_it_was_written_and_listed_with_its_size(lake: Lake) -> None:
    assert lake.read("a/b c+%20.txt") is None and lake.files("a") == {}
    for text in ("another\n", "é\n"):
        lake.write("a/b c+%20.txt", text)
    assert lake.read("a/b c+%20.txt") == "é\n" and sizes(lake, "a") == {"a/b c+%20.txt": 3}


def test_a_write_that_fails_leaves_the_old_text(lake: Lake) -> None:
    lake.write("a/x", "old")
    with pytest.raises(UnicodeEncodeError):
        lake.write("a/x", "new \ud800")  # not a character: the text breaks off here
    assert lake.read("a/x") == "old"


def test_a_directory_is_listed_without_those_whose_names_begin_alike(lake: Lake) -> None:
    for name in ("b/x", "bc/x", "b/c/x"):
        lake.write(name, "")
    assert sorted(lake.files("b")) == ["b/c/x", "b/x"]


def test_the_mark_of_a_file_changes_with_its_content(lake: Lake) -> None:
    marks = []
    for text in ("1", "22", "2"):
        lake.write("a/mark", text)
        marks.append(lake.files("a")["a/mark"].mark)
    assert len({*marks}) == 3


def test_a_file_that_exists_is_not_created_again(lake: Lake) -> None:
    assert lake.create("once/x", "first", "drafts/x")
    assert not lake.create("once/x", "second", "drafts/y")
    assert lake.read("once/x") == "first"


def test_a_file_on_a_disk_does_not_change_when_its_draft_is_used_again(tmp_path: Path) -> None:
    lake = etl.Disk(str(tmp_path))
    assert lake.create("once/x", "first", "drafts/x")
    assert not lake.create("once/x", "second", "drafts/x")
    assert lake.read("once/x") == "first"


def test_a_move_says_whether_a_source_was_missing_and_moves_the_others(lake: Lake) -> None:
    lake.write("from/x", "1")
    assert not lake.move({"from/gone": "to/gone", "from/x": "to/y=1/x"})
    assert sizes(lake, "to") == {"to/y=1/x": 1}
    assert lake.move({}) and lake.move({"to/y=1/x": "to/z"})


def test_a_missing_file_is_deleted_without_an_error(lake: Lake) -> None:
    lake.write("d/y=1/x", "")
    lake.delete(["d/y=1/never", "d/y=1/x", "d/y=1/x"])
    assert lake.files("d") == {}


def test_a_directory_that_a_delete_leaves_empty_goes(tmp_path: Path) -> None:
    lake = etl.Disk(str(tmp_path))
    for name in ("songs/y=1/a/x", "songs/y=2/x"):
        lake.write(name, "")
    lake.delete(["songs/y=1/a/x"])
    assert [path.name for path in (tmp_path / "songs").iterdir()] == ["y=2"]


def test_a_list_of_many_pages_is_whole(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = etl.Bucket.ask

    def two_a_page(bucket: etl.Bucket, operation: str, **arguments: object) -> dict:
        return ask(bucket, operation, **arguments, **({"MaxKeys": 2} if operation == "list_objects_v2" else {}))

    monkeypatch.setattr(etl.Bucket, "ask", two_a_page)
    names = [f"pages/{number}" for number in range(7)]
    for name in names:
        lake.write(name, "")
    assert sorted(lake.files("pages")) == names


def test_a_link_to_nowhere_is_listed_so_that_its_reader_names_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "nowhere")
    assert list(etl.Disk(str(tmp_path)).files("a")) == ["a/link"]


def test_of_many_that_create_a_file_at_once_one_succeeds(lake: Lake, record_property: Callable) -> None:
    assert created_at_once(lake) == 1
    record_property("racing commits", 30)


@pytest.mark.minio
def test_on_minio_of_many_that_create_a_file_at_once_one_succeeds(tmp_path: Path) -> None:
    with minio_server() as server:
        server.client().create_bucket(Bucket="lake")
        config = server.dl_cfg(tmp_path / "dl.cfg", "s3://lake/raw")
        assert created_at_once(etl.storage("s3://lake/tables", etl.read_settings(str(config)))) == 1


def created_at_once(lake: Lake) -> int:
    """How many of thirty that start together succeed."""
    gate = threading.Barrier(30)

    def create(number: int) -> bool:
        gate.wait()
        return lake.create("race/ledger.json", str(number), f"race/drafts/{number}")

    with ThreadPoolExecutor(30) as pool:
        return sum(pool.map(create, range(30)))


def test_a_profile_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(etl.UsageError, match="nobody.*correct the profile"):
        etl.storage("s3://lake/tables", etl.Settings(input="data", output="s3://lake/tables"))


def test_an_endpoint_that_is_no_address_is_named() -> None:
    settings = etl.Settings(input="data", output="s3://lake/tables", endpoint="http://min_io:9000")
    with pytest.raises(etl.UsageError, match="min_io.*correct .* ENDPOINT"):
        etl.storage("s3://lake/tables", settings)
