"""A run adds what is new: after any sequence of nights the tables are those of one full run over all of the input."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, Row, event, job, play_of, song, write_lake, write_lines
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lake import all_published, in_order, published, reports
from oracle import five_tables
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import etl

SONGS = [song(), song(song_id="SO2", title="Other", artist_id="AR2", artist_name="Hollow Fjord", duration=100.25)]
# One month for each kind of play: of a song that comes late, of a song that is known, of none.
PLAYS = [
    play_of(SONGS[1], at="2018-10-05", userId="1"),
    play_of(SONGS[0], at="2018-11-15", userId="1"),
    event(at="2018-12-05", userId="1"),
]
BY_DAY = {"PLAYS_PARTITION_BY": "year, month, day"}
LOG_B = [event(at="2018-11-06", userId="8"), event(at="2018-11-06", page="Home", userId="7")]
LAYOUTS = {"by month": {}, "by day": BY_DAY}


class Nights:
    """An input to which files are delivered, and its tables."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.source, self.output = root / "in", root / "out"
        self.settings = {"MAX_BAD_RATIO": 1, **settings}

    def deliver(self, name: str, rows: Iterable[Row]) -> None:
        write_lines(self.source / name, rows)

    def run(self, *options: str) -> Outcome:
        return job(self.source, self.output, "--allow-shrink", *options, **self.settings)

    def published_with(self, *options: str) -> Outcome:
        """A run that publishes what one full run would, and says so in its report."""
        outcome = self.run(*options)
        assert outcome.code == 0, outcome.lines
        assert reports(self.output)[-1]["outcome"] == "published"
        self.are_as_one_full_run()
        return outcome

    def files(self, below: str = "") -> set[str]:
        """The files of the tables and the state."""
        found = {str(path.relative_to(self.output)) for path in self.output.rglob("*") if path.is_file()}
        roots = (*(f"{name}/" for name in etl.TABLES), "_state/")
        return {file for file in found if file.startswith(roots) and file.startswith(below)} - self.ledgers()

    def ledgers(self) -> set[str]:
        return {str(path.relative_to(self.output)) for path in (self.output / "_state" / "ledger").glob("*")}

    def replaced(self, below: str, before: set[str]) -> set[str]:
        """The partitions that had these files and have others now, or none."""
        return {etl.partition_of(file) for file in before - self.files() if file.startswith(below)}

    def are_as_one_full_run(self) -> None:
        """The tables have the rows that they should, and the report and the ledger say what is there."""
        by_day = "PLAYS_PARTITION_BY" in self.settings
        tables = all_published(self.output, by_day)
        assert tables == in_order(five_tables(str(self.source), by_day))
        rows = {name: facts["rows"] for name, facts in reports(self.output)[-1]["tables"].items()}
        assert rows == {name: len(rows) for name, rows in tables.items()}
        ledger = etl.newest_ledger(etl.Disk(str(self.output)))
        sizes = {file: (self.output / file).stat().st_size for file in self.files()}
        assert {file: size for file, (size, _) in ledger.files.items()} == sizes
        assert not (self.output / "_staging").exists()


@pytest.fixture(scope="module")
def first_nights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Nights]:
    """first_nights(**settings): an input with the tables of a first night, as often as it is asked for.

    All have one place, which a ledger names.
    """
    root, made = tmp_path_factory.mktemp("nights"), {}

    def fresh(**settings: Any) -> Nights:
        nights, key = Nights(root / "lake", **settings), json.dumps(settings)
        shutil.rmtree(root / "lake", ignore_errors=True)
        if key not in made:
            write_lake(nights.source, SONGS[:1], PLAYS)
            nights.deliver("log_data/b.json", LOG_B)
            nights.published_with()
            made[key] = shutil.copytree(root / "lake", root / f"copy {len(made)}")
        else:
            shutil.copytree(made[key], root / "lake")
        return nights

    return fresh


@pytest.fixture
def nights(first_nights: Callable[..., Nights]) -> Nights:
    return first_nights()


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
    artist_latitude=st.sampled_from([None, 1.5]),
    duration=st.sampled_from([218.93179, 100.25]),
    year=st.sampled_from([0, 1999, 2001]),
)


def deliveries(kind: str, rows: st.SearchStrategy) -> st.SearchStrategy:
    """A file that is new, another under an old name, or None: the file goes."""
    names = st.sampled_from([f"{kind}/{name}.json" for name in ("b", "c d/e", "[f]")])
    return st.tuples(names, st.none() | st.lists(rows | st.just("{"), min_size=1, max_size=4))


NIGHT = st.lists(
    deliveries("log_data", EVENTS) | deliveries("log_data", EVENTS) | deliveries("song_data", VERSIONS),
    min_size=2,
    max_size=4,
)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(  # NIGHTS=60 tries that many sequences for each layout, in ten minutes or so
    max_examples=int(os.environ.get("NIGHTS", "3")),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(deliveries=st.lists(NIGHT, min_size=2, max_size=3))
def test_any_sequence_of_nights_gives_what_one_full_run_gives(
    first_nights: Callable[..., Nights], layout: str, deliveries: list
) -> None:
    nights = first_nights(**LAYOUTS[layout])
    for night in deliveries:
        for name, rows in night:
            if rows is not None:
                nights.deliver(name, rows)
            else:
                (nights.source / name).unlink(missing_ok=True)
        outcome = nights.run()
        assert outcome.code == 0 and not outcome.says("all tables are rebuilt")
        nights.are_as_one_full_run()


# What a night costs --------------------------------------------------------------------------------------------------


def test_a_night_with_nothing_new_starts_no_spark_and_writes_a_report_alone(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, ledgers = nights.files(), nights.ledgers()
    monkeypatch.setattr(etl, "spark_session", lambda *given: pytest.fail("Spark was started"))
    outcome = nights.run()
    assert outcome.code == 0 and outcome.says("nothing is new since the last run")
    assert (nights.files(), nights.ledgers()) == (before, ledgers)
    first, second = reports(nights.output)
    assert (second["outcome"], second["tables"]) == ("nothing new", first["tables"])
    assert not second["lines"] and not second["files"]
    nights.are_as_one_full_run()


def test_new_logs_alone_are_read_and_the_partitions_of_their_lines_alone_are_replaced(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, read_lines = [], etl.read_lines
    monkeypatch.setattr(etl, "read_lines", lambda *given: read.append(sorted(given[3])) or read_lines(*given))
    before = nights.files()
    nights.deliver("log_data/2018-12-06.json", [event(at="2018-12-06", userId="8"), event(at="2018-12-05T01:00")])
    nights.published_with()
    assert read == [["log_data/2018-12-06.json"]]
    assert nights.replaced("songplays/", before) == {"year=2018/month=12"}
    untouched = {file for file in before if "month=12" not in file and not file.startswith(("users/", "_state/users/"))}
    assert {file.split("/")[0] for file in untouched} == {"songplays", "songs", "artists", "time", "_state"}
    assert untouched <= nights.files()


def test_a_song_that_arrives_after_its_plays_is_found_and_their_partitions_alone_are_replaced(nights: Nights) -> None:
    before = nights.files()
    nights.deliver("song_data/b.json", SONGS[1:])
    nights.published_with()
    assert nights.replaced("songplays/", before) == {"year=2018/month=10"}
    assert [row[4] for row in published(nights.output, "songplays")].count("SO2") == 1


def test_a_song_that_nobody_has_played_replaces_no_play(nights: Nights) -> None:
    before = nights.files()
    nights.deliver("song_data/b.json", [song(song_id="SO9", title="Never played")])
    nights.published_with()
    assert {file for file in before if file.startswith(("songplays/", "time/", "users/"))} <= nights.files()


@pytest.mark.parametrize(
    "layout, rows, replaced",
    [
        ("by month", None, {"year=2018/month=11"}),
        ("by month", [event(at="2018-12-07", userId="9")], {"year=2018/month=11", "year=2018/month=12"}),
        ("by day", [event(at="2018-12-05", userId="9")], {"year=2018/month=11/day=6", "year=2018/month=12/day=5"}),
    ],
    ids=["vanished", "changed", "changed, by day"],
)
def test_a_log_that_has_changed_or_vanished_replaces_the_partitions_of_its_old_and_new_lines_alone(
    first_nights: Callable[..., Nights], layout: str, rows: list[Row] | None, replaced: set[str]
) -> None:
    nights = first_nights(**LAYOUTS[layout])
    before = nights.files()
    if rows:
        nights.deliver("log_data/b.json", rows)
    else:
        (nights.source / "log_data/b.json").unlink()
    assert not nights.published_with().says("all tables are rebuilt")
    assert not {7, 8} & {row[0] for row in published(nights.output, "users")}
    assert nights.replaced("songplays/", before) == replaced


def test_plays_that_come_again_are_duplicates_and_a_greater_version_of_one_wins(nights: Nights) -> None:
    greater = {**PLAYS[1], "level": "paid"}
    nights.deliver("log_data/again.json", [PLAYS[0], greater, event(at="2018-10-06")])
    nights.published_with()
    (file,) = reports(nights.output)[-1]["files"]
    assert [file[fate] for fate in etl.FATES] == [1, 2, 0, 0]
    levels = {row[1].month: row[3] for row in published(nights.output, "songplays") if row[2] == 1}
    assert levels == {10: "free", 11: "paid", 12: "free"}


def test_a_level_that_is_delivered_late_does_not_win(nights: Nights) -> None:
    nights.deliver("log_data/late.json", [event(at="2018-12-04", userId="1", level="paid")])
    nights.published_with()
    assert {row[0]: row[4] for row in published(nights.output, "users")}[1] == "free"


def test_a_partition_has_as_few_files_after_many_nights_as_after_one(nights: Nights) -> None:
    for number in range(3):
        nights.deliver(f"log_data/{number}.json", [event(at="2018-11-20", itemInSession=number)])
        assert nights.run().code == 0
    for name in ("songplays", "time", "_state/events"):
        assert len(nights.files(f"{name}/year=2018/month=11/")) <= 3  # a task for the new events, two for the old


def test_tables_that_have_always_been_empty_may_stay_so(spark: SparkSession, tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    for night in range(2):
        write_lake(nights.source, SONGS, [event(page="Home", userId="", itemInSession=night)])
        assert nights.run().code == 0
    tables = reports(nights.output)[-1]["tables"]
    assert [tables[name]["rows"] for name in ("users", "songplays", "time", "songs")] == [0, 0, 0, 2]


@pytest.mark.parametrize("copies", [0, 2])
def test_plays_that_share_a_songplay_id_by_chance_are_published_with_a_warning(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    monkeypatch.setattr(etl, "songplay_id", lambda: F.col("ts") % 2)
    plays = [event(at="2018-12-06", itemInSession=n) for n in range(3)]
    nights.deliver("log_data/c.json", plays + plays[:1] * copies)
    outcome = nights.run()
    assert outcome.code == 0, outcome.lines
    assert [line for line in outcome.lines if line.startswith("WARNING songplays: ") and "shared by" in line]
    rows = published(nights.output, "songplays")
    assert len(rows) == len(PLAYS) + 1 + len(plays)
    assert sum(file["duplicates"] for file in reports(nights.output)[-1]["files"]) == copies
    if copies:
        monkeypatch.undo()
        nights.deliver("log_data/d.json", [event(at="2018-12-06", itemInSession=4)])
        nights.published_with()  # with ids as they should be


# What is new, and why all is rebuilt: without Spark ------------------------------------------------------------------


def inputs(**marks: str) -> dict[str, dict[str, etl.File]]:
    return {"song_data": {}, "log_data": {name: etl.File(1, mark) for name, mark in marks.items()}}


LEDGER = etl.Ledger(
    number=7,
    rules={"meaning": 3, "input": "/in"},
    inputs={"song_data": {}, "log_data": {"a": "1", "b": "2", "c": "3"}},
    files={
        "songplays/year=2018/month=11/p.parquet": [10, 3],
        "songplays/year=2018/month=12/p.parquet": [20, 4],
        "songplays/year=2018/month=12/day=1/p.parquet": [30, 5],
        "songs/year=0/p.parquet": [40, 6],
        "_state/events/year=2018/month=11/p.parquet": [50, None],
    },
)
SIZES = {file: size for file, (size, _) in LEDGER.files.items()}


def test_a_file_is_new_if_its_name_or_its_mark_is_not_in_the_ledger_and_gone_if_it_vanished_or_changed() -> None:
    changes = etl.changes_since(LEDGER, inputs(a="1", b="other", d="4"))
    assert [*changes.new["log_data"]] == ["b", "d"] and changes.gone["log_data"] == {"b", "c"}
    assert not changes.new["song_data"] and not changes.gone["song_data"]
    nothing = etl.changes_since(LEDGER, inputs(a="1", b="2", c="3"))
    assert not any(nothing.new.values()) and not any(nothing.gone.values())
    assert [*etl.changes_since(etl.Ledger(), inputs(a="1")).new["log_data"]] == ["a"]


def test_a_ledger_knows_the_files_of_a_table_and_of_its_partitions() -> None:
    assert len(LEDGER.of_table("songplays")) == 3 and LEDGER.of_table("song") == []
    assert LEDGER.of_table("songplays", {"year=2018/month=12"}) == ["songplays/year=2018/month=12/p.parquet"]
    assert LEDGER.of_table("songplays", {"year=2018/month=12/day=1"}) == [
        "songplays/year=2018/month=12/day=1/p.parquet"
    ]
    assert LEDGER.of_table("_state/events", {"year=2018/month=12"}) == []
    assert etl.partition_of("users/p.parquet") == ""


NOTHING_CHANGED = inputs(a="1", b="2", c="3")
CHANGED = f"{etl.MANY_CHANGES + 1:,} files of the input have changed or vanished"


@pytest.mark.parametrize(
    "why, ledger, found, files, full",
    [
        ("", LEDGER, NOTHING_CHANGED, SIZES, False),
        ("", etl.Ledger(), NOTHING_CHANGED, {}, False),  # nothing yet: no reason, and no line
        ("--full", LEDGER, NOTHING_CHANGED, SIZES, True),
        ("version 1 of this job wrote the lake", LEDGER._replace(number=0), NOTHING_CHANGED, SIZES, False),
        (
            "meaning was 2 in the last run and is 3",
            LEDGER._replace(rules={"meaning": 2}),
            NOTHING_CHANGED,
            SIZES,
            False,
        ),
        (
            "input was '/out' in the last run and is '/in'",
            LEDGER._replace(rules={"meaning": 3, "input": "/out"}),
            NOTHING_CHANGED,
            SIZES,
            False,
        ),
        (
            "songs/year=0/p.parquet is missing, or not as the last run left it",
            LEDGER,
            NOTHING_CHANGED,
            {file: size for file, size in SIZES.items() if not file.startswith("songs/")},
            False,
        ),
        (
            "_state/events/year=2018/month=11/p.parquet is missing, or not as the last run left it",
            LEDGER,
            NOTHING_CHANGED,
            {**SIZES, "_state/events/year=2018/month=11/p.parquet": 51},
            False,
        ),
        ("", LEDGER._replace(inputs={"log_data": dict.fromkeys(map(str, range(100)), "0")}), inputs(), SIZES, False),
        (
            CHANGED,
            LEDGER._replace(inputs={"log_data": dict.fromkeys(map(str, range(101)), "0")}),
            inputs(),
            SIZES,
            False,
        ),
    ],
)
def test_a_run_rebuilds_all_tables_for_one_of_these_reasons(
    why: str, ledger: etl.Ledger, found: dict, files: dict[str, int], full: bool
) -> None:
    changes = etl.changes_since(ledger, found)
    assert etl.why_rebuild(ledger, {"meaning": 3, "input": "/in"}, files, changes, full) == why


def test_a_small_run_does_without_the_second_of_javas_compilers(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def no_session(settings: etl.Settings, size: int) -> None:
        sizes.append(size)
        raise etl.JobError("Spark is not needed here")

    monkeypatch.setattr(etl, "spark_session", no_session)
    nights.deliver("log_data/c.json", ["x" * 1000])
    assert nights.run().error == "Spark is not needed here"
    nights.deliver("song_data/c.json", ["x" * 1000])
    assert nights.run().error == "Spark is not needed here"
    months = Counter()
    for file in nights.files("_state/events/"):
        months[etl.partition_of(file)] += (nights.output / file).stat().st_size
    assert len(months) > 1
    assert sizes == [1000 + max(months.values()), 2000 + sum(months.values())]  # new songs may touch any month
    options = [etl.local_session(small)["spark.driver.defaultJavaOptions"] for small in (True, False)]
    assert ["-XX:TieredStopAtLevel=1" in option for option in options] == [True, False]


# Rebuilt, end to end -------------------------------------------------------------------------------------------------


def the_only_line(outcome: Outcome, text: str) -> str:
    (line,) = (line for line in outcome.lines if text in line)
    assert "\n" not in line
    return line


def test_a_listed_file_that_is_missing_costs_a_full_run_and_one_line(nights: Nights) -> None:
    (lost,) = nights.files("users/")
    (nights.output / lost).unlink()
    before = nights.files()
    line = the_only_line(nights.published_with(), "all tables are rebuilt")
    assert line == f"WARNING {lost} is missing, or not as the last run left it: all tables are rebuilt"
    assert not before & nights.files()


def test_rows_of_another_layout_are_never_mixed(nights: Nights) -> None:
    nights.settings |= BY_DAY
    before = nights.files()
    line = the_only_line(nights.published_with(), "all tables are rebuilt")
    assert line.startswith("WARNING plays_partition_by was 'year, month' in the last run and is 'year, month, day': ")
    assert not before & nights.files()


def test_rows_of_another_meaning_are_never_mixed(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etl, "MEANING", etl.MEANING + 1)
    monkeypatch.setattr(etl, "spark_session", lambda *given: (_ for _ in ()).throw(etl.JobError("no Spark")))
    line = the_only_line(nights.run(), "all tables are rebuilt")
    assert line.startswith(f"WARNING meaning was {etl.MEANING - 1} in the last run and is {etl.MEANING}: ")


def test_a_lake_of_version_1_is_rebuilt_with_one_line_and_nothing_of_it_stays(nights: Nights) -> None:
    shutil.rmtree(nights.output / "_state" / "ledger")
    sizes = {file: (nights.output / file).stat().st_size for file in nights.files()}
    nights.deliver("../out/_state/ledger.json", [json.dumps({"files": sizes, "log_data": {}})])
    nights.deliver("../out/_lock/lease.json", ["{}"])
    line = the_only_line(nights.published_with(), "all tables are rebuilt")
    assert line == "WARNING version 1 of this job wrote the lake: all tables are rebuilt"
    assert not sizes.keys() & nights.files()
    assert not (nights.output / "_lock").exists() and not (nights.output / "_state/ledger.json").exists()


def test_a_damaged_ledger_stops_the_run_by_name_before_spark_starts(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.deliver("log_data/c.json", [event(at="2018-12-06")])
    (ledger,) = nights.ledgers()
    text = (nights.output / ledger).read_text()
    (nights.output / ledger).write_text(text[: len(text) // 2])
    monkeypatch.setattr(etl, "spark_session", lambda *given: pytest.fail("Spark was started"))
    before = nights.files()
    assert nights.run().error.startswith(f"{nights.output}/{ledger} is damaged; ")
    assert nights.files() == before and (nights.output / ledger).read_text() == text[: len(text) // 2]


def test_a_damaged_file_of_the_same_size_stops_the_run_and_full_rebuilds(nights: Nights) -> None:
    (file,) = nights.files("_state/users/")
    size = (nights.output / file).stat().st_size
    (nights.output / file).write_bytes(b"PAR1" + b"x" * (size - 8) + b"PAR1")
    nights.deliver("log_data/c.json", [event(at="2018-12-06")])
    outcome = nights.run()
    assert outcome.code == 1 and "a file of the lake is damaged; rebuild all tables with --full" in outcome.error
    assert the_only_line(nights.published_with("--full"), "all tables are rebuilt").startswith("WARNING --full: ")


def test_a_night_that_was_refused_is_made_up_for_by_the_next(nights: Nights) -> None:
    nights.deliver("log_data/c.json", [event(at="2018-12-06"), "{", "}"])
    before = nights.files()
    nights.settings["MAX_BAD_RATIO"] = 0.5
    assert "2 of 3 lines cannot be used" in nights.run().error and nights.files() == before
    nights.settings["MAX_BAD_RATIO"] = 1
    assert not nights.published_with().says("all tables are rebuilt")
    places = [path.name for path in (nights.output / "_quarantine").iterdir()]
    assert sorted(places) == [f"run={report['run']}" for report in reports(nights.output)[1:]]


# What is not the job's -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--full",)], ids=["night", "full"])
@pytest.mark.parametrize(
    "name", ["songs/mine.mp3", "users/_old/../copy.parquet", "time/year=2018/month=11/a", "_state/events/x"]
)
def test_a_file_that_no_ledger_lists_stops_the_run_and_stays(
    nights: Nights, name: str, options: tuple[str, ...]
) -> None:
    nights.deliver(f"../out/{name}", ["theirs"])
    before = nights.files()
    outcome = nights.run(*options)
    assert outcome.code == 2 and outcome.error.startswith(str((nights.output / name).resolve()))
    assert nights.files() == before


def test_a_first_run_into_a_place_with_other_files_where_tables_go_stops_and_removes_none(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    write_lake(nights.source, SONGS, PLAYS)
    nights.deliver("../out/users/part-0.parquet", ["theirs"])
    assert nights.run().code == 2 and nights.files() == {"users/part-0.parquet"}


def test_hidden_files_of_others_neither_stop_a_run_nor_go(nights: Nights) -> None:
    hidden = ["users/.DS_Store", "users/_backup/a.parquet", "songs/.old/b.parquet", "songplays/year=2018/_SUCCESS"]
    for name in hidden:
        nights.deliver(f"../out/{name}", ["theirs"])
    outcome = nights.run()
    assert outcome.code == 0 and outcome.says("nothing is new")
    nights.deliver("song_data/b.json", SONGS[1:])
    assert nights.run("--full").code == 0
    assert all((nights.output / name).read_text() == "theirs" for name in hidden)
