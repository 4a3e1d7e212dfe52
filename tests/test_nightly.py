"""A run adds what is new: after any sequence of nights the tables are those of one full run over all of the input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, event, play_of, song, write_lake
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lake import all_published, in_order
from oracle import five_tables
from pyspark.sql import SparkSession

import etl

SONGS = [song(), song(song_id="SO2", title="Other", artist_id="AR2", artist_name="Hollow Fjord", duration=100.25)]


class Nights:
    """A lake to which files are delivered, and its tables."""

    def __init__(self, root: Path) -> None:
        self.source, self.output, self.config = root / "in", root / "out", root / "dl.cfg"
        self.config.write_text((ROOT / "dl.cfg").read_text().replace("MAX_BAD_RATIO = 0.05", "MAX_BAD_RATIO = 1"))
        write_lake(self.source, SONGS[:1], [play_of(SONGS[0], userId="1")])  # no table is ever empty

    def deliver(self, name: str, rows: list[dict | str]) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))

    def run(self, *options: str) -> int:
        places = ["--config", self.config, "--input", self.source, "--output", self.output]
        return etl.main([*map(str, places), "--allow-shrink", *options])

    def tables(self, prefix: str = "") -> set[str]:
        """The files of the tables and of the state."""
        found = {str(path.relative_to(self.output)) for path in self.output.rglob("*") if path.is_file()}
        roots = (*(f"{name}/" for name in etl.TABLES), "_state/")
        return {file for file in found - {etl.LEDGER} if file.startswith(roots) and file.startswith(prefix)}

    def report(self) -> dict:
        return json.loads(max((self.output / "_runs").iterdir()).read_text())

    def are_as_one_full_run(self) -> bool:
        """Whether the tables have the rows that they should, and the report and the ledger tell what is there."""
        tables = all_published(self.output)
        assert tables == in_order(five_tables(str(self.source)))
        assert {name: told["rows"] for name, told in self.report()["tables"].items()} == {
            name: len(rows) for name, rows in tables.items()
        }
        ledger = etl.read_ledger(etl.Disk(str(self.output)))
        assert ledger["files"].keys() == self.tables()
        return True


@pytest.fixture(scope="module")
def first_night(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the tables of a first night, and a copy of it."""
    root = tmp_path_factory.mktemp("first")
    (root / "lake").mkdir()
    assert Nights(root / "lake").run() == 0
    shutil.copytree(root / "lake", root / "copy")
    return root


@pytest.fixture
def nights(first_night: Path) -> Nights:
    """The same, as it was: a ledger tells of one place, and of times."""
    nights = Nights(first_night / "lake")
    shutil.rmtree(first_night / "lake")
    shutil.copytree(first_night / "copy", first_night / "lake")
    return nights


# Any sequence of nights ----------------------------------------------------------------------------------------------

EVENTS = st.builds(
    lambda played, **others: play_of(played, **others) if played else event(**others),
    played=st.sampled_from([None, *SONGS, song(title="Third")]),
    at=st.sampled_from(["2018-10-31T23:59:59.999", "2018-11-01", "2018-11-15T12:30:45.796", "2018-12-01"]),
    userId=st.sampled_from(["7", "8", ""]),
    sessionId=st.sampled_from([1, 2]),
    itemInSession=st.sampled_from([0, 1]),
    level=st.sampled_from(["free", "paid", None]),
    firstName=st.sampled_from(["Ada", "Bea", " "]),
    page=st.sampled_from(["NextSong", "NextSong", "Home"]),
)
VERSIONS = st.builds(
    song,
    song_id=st.sampled_from(["SO1", "SO2", "SO3", "SO0"]),
    title=st.sampled_from(["Slow River", "Other", "Third"]),
    artist_id=st.sampled_from(["AR1", "AR2", ""]),
    artist_name=st.sampled_from(["The Lanterns", "Hollow Fjord"]),
    artist_location=st.sampled_from(["", "Memphis, TN", "Wien"]),
    duration=st.sampled_from([218.93179, 100.25]),
    year=st.sampled_from([0, 1999, 2001]),
)


def deliveries(kind: str, rows: st.SearchStrategy) -> st.SearchStrategy:
    """A file that is new, another under an old name, or None: the file goes."""
    names = st.sampled_from([f"{kind}/{name}.json" for name in ("a b", "c/d", "[e]")])
    return st.tuples(names, st.none() | st.lists(rows | st.just("{"), min_size=1, max_size=4))


# NIGHTS=60 tries that many sequences, in ten minutes or so.
NIGHT = st.lists(
    deliveries("log_data", EVENTS) | deliveries("log_data", EVENTS) | deliveries("song_data", VERSIONS),
    min_size=1,
    max_size=3,
)


@settings(
    max_examples=int(os.environ.get("NIGHTS", "6")),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(deliveries=st.lists(NIGHT, min_size=2, max_size=4))
def test_any_sequence_of_nights_gives_what_one_full_run_gives(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture, deliveries: list
) -> None:
    nights = Nights(tmp_path_factory.mktemp("nights"))
    for night in deliveries:
        for name, rows in night:
            if rows is not None:
                nights.deliver(name, rows)
            else:
                (nights.source / name).unlink(missing_ok=True)
        assert nights.run() == 0
        assert nights.are_as_one_full_run()
        assert "everything is built anew" not in caplog.text
    shutil.rmtree(nights.output.parent)


# What a night costs --------------------------------------------------------------------------------------------------


def test_a_night_without_news_starts_no_spark_and_changes_no_file(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = nights.tables()
    monkeypatch.setattr(etl, "spark_session", lambda *settings: pytest.fail("Spark was started"))
    assert nights.run() == 0
    assert nights.tables() == before
    assert nights.are_as_one_full_run()


def test_new_logs_alone_are_read_and_rows_are_only_added(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    read, read_lines = [], etl.read_lines
    monkeypatch.setattr(
        etl,
        "read_lines",
        lambda spark, directory, names: read.append(names) or read_lines(spark, directory, names),
    )
    nights.deliver("log_data/2018-12-01.json", [event(at="2018-12-01", userId="8"), event(at="2018-11-30")])
    before = nights.tables()
    assert nights.run() == 0
    assert read == [[], ["2018-12-01.json"]]
    stayed = {file for file in before if not file.startswith(("users/", "_state/users/"))}
    assert stayed <= nights.tables()
    assert not {file for file in nights.tables() - before if file.startswith(("songs/", "artists/", "_state/songs/"))}
    assert nights.are_as_one_full_run()


def test_only_for_little_news_java_does_without_its_second_compiler(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, spark_session = [], etl.spark_session
    monkeypatch.setattr(etl, "spark_session", lambda *given: asked.append(given[1]) or spark_session(*given))
    for number, limit in enumerate((etl.SMALL_INPUT, 10)):
        monkeypatch.setattr(etl, "SMALL_INPUT", limit)
        nights.deliver(f"log_data/{number}.json", [event(at="2018-11-20", itemInSession=number)])
        assert nights.run() == 0
    assert asked == [True, False]
    told = [etl.local_session(small)["spark.driver.defaultJavaOptions"] for small in asked]
    assert ["-XX:TieredStopAtLevel=1" in options for options in told] == asked


def test_lines_that_were_there_are_copies_in_the_account_and_add_nothing(nights: Nights) -> None:
    nights.deliver("log_data/again.json", [play_of(SONGS[0], userId="1"), event(at="2018-11-30")])
    before = nights.tables("songplays/")
    assert nights.run() == 0
    assert [told for told in nights.report()["files"] if told["file"] == "log_data/again.json"][0]["duplicates"] == 1
    assert before < nights.tables("songplays/") and nights.are_as_one_full_run()


def test_a_month_is_built_anew_for_a_better_version_of_a_play_that_was_there(nights: Nights) -> None:
    nights.deliver("log_data/again.json", [play_of(SONGS[0], userId="1", level="paid"), event(at="2018-12-30")])
    before = nights.tables("songplays/")
    assert nights.run() == 0
    assert not before & nights.tables("songplays/") and nights.are_as_one_full_run()


def test_a_song_that_arrives_after_its_plays_is_found_in_their_months_alone(nights: Nights) -> None:
    nights.deliver("log_data/b.json", [play_of(SONGS[1], at="2018-10-05"), event(at="2018-12-05")])
    assert nights.run() == 0
    before = nights.tables("songplays/")
    nights.deliver("song_data/b.json", SONGS[1:])
    assert nights.run() == 0
    assert {etl.month_of(file) for file in before - nights.tables("songplays/")} == {"year=2018/month=10"}
    assert nights.are_as_one_full_run()


def test_a_level_that_is_delivered_late_does_not_win(nights: Nights) -> None:
    nights.deliver("log_data/b.json", [event(at="2018-12-05", userId="1", level="paid")])
    assert nights.run() == 0
    nights.deliver("log_data/c.json", [event(at="2018-12-04", userId="1", level="free")])
    assert nights.run() == 0
    assert published_levels(nights) == {1: "paid"} and nights.are_as_one_full_run()


def published_levels(nights: Nights) -> dict[int, str]:
    return {row[0]: row[4] for row in all_published(nights.output)["users"]}


@pytest.mark.parametrize("rows", [None, [event(at="2018-12-06", userId="9")]], ids=["vanished", "changed"])
def test_what_a_file_had_brought_goes_with_it_and_the_log_says_so(
    nights: Nights, caplog: pytest.LogCaptureFixture, rows: list[dict] | None
) -> None:
    nights.deliver("log_data/b.json", [event(at="2018-12-05", userId="8"), event(page="Home", userId="7")])
    assert nights.run() == 0
    before = nights.tables("songplays/")
    if rows:
        nights.deliver("log_data/b.json", rows)
    else:
        (nights.source / "log_data/b.json").unlink()
    assert nights.run() == 0
    told = "log_data: 1 files, log_data/b.json the first, have changed or vanished; what they touched is built anew"
    assert told in caplog.messages
    assert nights.are_as_one_full_run()
    assert {etl.month_of(file) for file in before - nights.tables("songplays/")} == {
        "year=2018/month=11",
        "year=2018/month=12",
    }


def test_after_many_nights_a_month_has_few_files(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etl, "FEW_FILES", 2)
    for number in range(4):
        nights.deliver(f"log_data/{number}.json", [event(at="2018-11-20", itemInSession=number)])
        assert nights.run() == 0
    for name in ("songplays", "time", "_state/events"):
        assert len(nights.tables(f"{name}/year=2018/month=11/")) <= etl.FEW_FILES + 1
    assert nights.are_as_one_full_run()


# Starting over -------------------------------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def other_bytes(path: Path) -> None:
    """As many, so that only who reads them sees it."""
    path.write_bytes(b"PAR1" + b"x" * (path.stat().st_size - 8) + b"PAR1")


@pytest.mark.parametrize(
    "pattern, damage, told",
    [
        ("_state/ledger.json", Path.unlink, "_state/ledger.json is missing or damaged"),
        ("_state/ledger.json", cut_short, "_state/ledger.json is missing or damaged"),
        (
            "_state/ledger.json",
            lambda path: path.write_text(path.read_text().replace('"log_data": {', '"log_data": {"x": "1 2", ')),
            "_state/ledger.json is missing or damaged",
        ),
        ("_state/users/*.parquet", Path.unlink, "is not as the last run has left it"),
        ("_state/events/*/*/*.parquet", cut_short, "is not as the last run has left it"),
        ("songplays/*/*/*.parquet", Path.unlink, "is not as the last run has left it"),
        (
            "users/*.parquet",
            lambda path: shutil.copy(path, path.with_name("copy.parquet")),
            "users/copy.parquet is not as the last run has left it",
        ),
        ("_state/users/*.parquet", other_bytes, "corrupted file"),
        ("songplays/*/*/*.parquet", other_bytes, "corrupted file"),
    ],
)
def test_a_lake_that_is_not_as_the_ledger_tells_is_built_anew(
    nights: Nights, caplog: pytest.LogCaptureFixture, pattern: str, damage: Callable[[Path], None], told: str
) -> None:
    (path,) = nights.output.glob(pattern)
    damage(path)
    for checksum in path.parent.glob(".*.crc"):
        checksum.unlink()
    nights.deliver("log_data/b.json", [event(at="2018-11-30")])
    assert nights.run() == 0
    (line,) = (record.message for record in caplog.records if "everything is built anew" in record.message)
    assert told in line and "\n" not in line
    assert nights.are_as_one_full_run()


def test_rows_of_another_meaning_are_never_mixed(
    nights: Nights, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etl, "MEANING", etl.MEANING + 1)
    before = nights.tables()
    assert nights.run() == 0
    told = f"meaning was {etl.MEANING - 1} in the last run, and is {etl.MEANING}: everything is built anew"
    assert told in caplog.messages
    assert not before & nights.tables() and nights.are_as_one_full_run()


def test_another_layout_or_input_starts_over(nights: Nights, caplog: pytest.LogCaptureFixture) -> None:
    nights.config.write_text(nights.config.read_text().replace("BY = year\n", "BY = year, artist_id\n"))
    assert nights.run() == 0
    assert "songs_partition_by was 'year' in the last run, and is 'year, artist_id': everything" in caplog.text
    nights.source = nights.source.rename(nights.source.with_name("moved"))
    assert nights.run() == 0
    assert "moved': everything is built anew" in caplog.text
    assert nights.are_as_one_full_run()


def test_full_builds_everything_anew_and_needs_no_state(nights: Nights) -> None:
    shutil.rmtree(nights.output / "_state")
    before = nights.tables()
    assert nights.run("--full") == 0
    assert not before & nights.tables() and nights.are_as_one_full_run()


def test_a_night_that_fails_is_made_up_for_by_the_next(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    nights.deliver("log_data/b.json", [event(at="2018-12-05")])
    with monkeypatch.context() as patch:
        patch.setattr(etl, "time_table", lambda rows: rows.select("start_time").where("false"))
        assert nights.run() == 1
    assert nights.report()["outcome"].startswith("failed: ")
    assert nights.run() == 0 and nights.are_as_one_full_run()


def test_a_night_that_is_refused_is_not_made_up_for_by_a_full_run(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "parquet").mkdir()  # a word that Spark's errors about damaged files have
    nights = Nights(tmp_path / "parquet")
    assert nights.run() == 0
    nights.config.write_text(nights.config.read_text().replace("MAX_BAD_LINES =", "MAX_BAD_LINES = 0"))
    nights.deliver("log_data/b.json", ["{"])
    assert nights.run() == 1
    assert "built anew" not in caplog.text


def test_a_store_that_fails_while_files_are_retired_leaves_a_half_that_is_told_and_the_next_night_finishes(
    nights: Nights, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.deliver("log_data/again.json", [play_of(SONGS[0], userId="1", level="paid")])
    delete = etl.Disk.delete

    def fails(lake: etl.Disk, names: list[str]) -> None:
        if any(name.startswith("songplays/") for name in names):
            raise OSError(5, "Input/output error", "songplays")
        delete(lake, names)

    with monkeypatch.context() as patch:
        patch.setattr(etl.Disk, "delete", fails)
        assert nights.run() == 1
    told = caplog.records[-1].message
    assert "the run is half published: run the job again now" in told and "\n" not in told
    assert nights.run() == 0 and nights.are_as_one_full_run()


def test_a_file_that_comes_after_the_listing_is_read_and_the_next_night_knows_it(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.deliver("log_data/late.json", [event(at="2018-12-05", userId="8")])
    json_files = etl.json_files

    def without_late(source: etl.Disk, kind: str) -> dict[str, etl.Size]:
        return {name: size for name, size in json_files(source, kind).items() if "late" not in name}

    with monkeypatch.context() as patch:
        patch.setattr(etl, "json_files", without_late)
        assert nights.run("--full") == 0
    assert nights.are_as_one_full_run()
    (nights.source / "log_data/late.json").unlink()
    assert nights.run() == 0 and nights.are_as_one_full_run()


def test_tables_that_have_always_been_empty_may_stay_so(spark: SparkSession, tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    for night in range(2):
        nights.deliver("log_data/A/rows.json", [event(page="Home", userId="", itemInSession=night)])
        assert nights.run() == 0 and nights.report()["tables"]["users"]["rows"] == 0


# What is not the job's -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["songs/mine.mp3", "users/part-0.parquet", "time/year=2018/month=11/a"])
def test_a_first_run_removes_no_file_of_somebody_else(
    nights: Nights, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    shutil.rmtree(nights.output)
    nights.deliver(f"../out/{name}", ["theirs"])
    assert nights.run() == 2
    assert f"out/{name} is of no run of this job and lies where its tables go; move it" in caplog.text
    assert (nights.output / name).read_text() == "theirs" and len(nights.tables()) == 1


def test_nor_does_a_later_one(nights: Nights, caplog: pytest.LogCaptureFixture) -> None:
    nights.deliver("../out/songs/mine.mp3", ["theirs"])
    assert nights.run("--full") == 2
    assert "songs/mine.mp3 is of no run of this job" in caplog.text and (nights.output / "songs/mine.mp3").exists()


def test_a_draft_of_the_ledger_that_a_killed_run_has_left_does_no_harm(
    nights: Nights, caplog: pytest.LogCaptureFixture
) -> None:
    etl.Disk(str(nights.output)).draft(etl.LEDGER, "{")
    nights.deliver("log_data/b.json", [event(at="2018-11-30")])
    assert nights.run() == 0
    assert "built anew" not in caplog.text
