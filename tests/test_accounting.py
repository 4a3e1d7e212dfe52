"""Every line of the input is accounted for: accepted, a duplicate, no play, or quarantined with its reason and text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import oracle
import pytest
from conftest import ROOT, event, song, write_lake
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lake import published
from pyspark.sql import DataFrame, Row, SparkSession

import etl

KINDS = {
    "song_data": ("songs", etl.SONG_FIELDS, etl.SONG_RULES, "song_id"),
    "log_data": ("songplays", etl.LOG_FIELDS, etl.LOG_RULES, "songplay_id"),
}


def expected_fates(lake: Path) -> dict[str, Counter]:
    """What must become of the lines, by file, in plain Python: of copies the first by the file's name is accepted."""
    fates, seen = defaultdict(Counter), set()
    for file, line, reason in sorted(oracle.judged_lines(str(lake)), key=lambda judged: judged[0]):
        key = None if reason else key_of(json.loads(line))
        fates[file][
            "quarantined" if reason else "no_play" if not key else "duplicates" if key in seen else "accepted"
        ] += 1
        seen.add(key)
    return dict(fates)


def key_of(row: dict) -> tuple | None:
    """Lines that share it are one play, or one song; None for an event that is no play."""
    if "song_id" in row:
        return ("song", str(row["song_id"]))
    if row["page"] != "NextSong":
        return None
    return row["ts"], int(row["userId"]), row["sessionId"], row["itemInSession"]


def bad_lines(lake: Path) -> list[tuple[str, str, str]]:
    return sorted((file, reason, line) for file, line, reason in oracle.judged_lines(str(lake)) if reason)


def fates(files: list[dict]) -> dict[str, Counter]:
    """What the report says of the files that hold a line."""
    told = {file["file"]: Counter({fate: file[fate] for fate in etl.FATES if file[fate]}) for file in files}
    return {name: fates for name, fates in told.items() if fates}


# The whole job on a dirty lake ---------------------------------------------------------------------------------------


class Run(NamedTuple):
    lake: Path
    output: Path
    report: dict


def run(lake: Path, output: Path) -> Run:
    output.parent.mkdir(exist_ok=True)
    config = output.parent / "dl.cfg"
    config.write_text((ROOT / "dl.cfg").read_text().replace("MAX_BAD_RATIO = 0.05", "MAX_BAD_RATIO = 1"))
    assert etl.main(["--config", str(config), "--input", str(lake), "--output", str(output)]) == 0
    (report,) = (output / "_runs").glob("*.json")
    return Run(lake, output, json.loads(report.read_text()))


@pytest.fixture(scope="module")
def dirty(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("dirty")
    options = ["--dirty", "--seed", "9", "--days", "5", "--songs", "30"]
    subprocess.run([sys.executable, ROOT / "benchmarks" / "generate.py", root / "lake", *options], check=True)
    return run(root / "lake", root / "run" / "output")


def test_every_line_of_every_file_has_one_fate(dirty: Run) -> None:
    lines = Counter(file for file, _, _ in oracle.judged_lines(str(dirty.lake)))
    told = fates(dirty.report["files"])
    assert {name: sum(fates.values()) for name, fates in told.items()} == lines
    assert told == expected_fates(dirty.lake)
    assert set().union(*told.values()) == set(etl.FATES)


def test_the_totals_are_the_sums_of_the_files(dirty: Run) -> None:
    for kind in KINDS:
        files = [file for file in dirty.report["files"] if file["file"].startswith(kind)]
        sums = {fate: sum(file[fate] for file in files) for fate in etl.FATES}
        assert dirty.report["lines"][kind] == {"lines": sum(sums.values()), **sums}


def test_a_line_accepted_is_a_row_of_its_table(dirty: Run) -> None:
    for kind, (table, *_) in KINDS.items():
        assert dirty.report["lines"][kind]["accepted"] == len(published(dirty.output, table)) > 0


def test_the_quarantine_holds_the_bad_lines_and_no_other_with_file_reason_and_text(dirty: Run) -> None:
    parts = (dirty.output / "_quarantine" / f"run={dirty.report['run']}").glob("*.json")
    rows = [json.loads(row) for part in parts for row in part.read_text(encoding="utf-8").split("\n") if row]
    assert sorted((row["file"], row["reason"], row["line"]) for row in rows) == bad_lines(dirty.lake)
    assert {tuple(row) for row in rows} == {("file", "reason", "line")}


def test_the_report_counts_the_bad_lines_by_reason(dirty: Run) -> None:
    expected = {kind: Counter() for kind in KINDS}
    for file, reason, _ in bad_lines(dirty.lake):
        expected[file.split("/")[0]][reason] += 1
    assert dirty.report["problems"] == expected


# Accounts of small lakes ---------------------------------------------------------------------------------------------

Accounts = Callable[[Path], dict[str, etl.Account]]


@pytest.fixture
def accounts(spark: SparkSession) -> Accounts:
    return lambda lake: {kind: account(spark, lake, kind) for kind in KINDS}


def account(spark: SparkSession, lake: Path, kind: str) -> etl.Account:
    """The account of the lines, as the job takes it, copies told."""
    _, fields, rules, key = KINDS[kind]
    spark.conf.set("spark.sql.shuffle.partitions", etl.tasks_for(spark, []))
    lines = etl.checked(etl.read_lines(spark, f"file://{lake}/{kind}"), fields, rules)
    rows = etl.song_lines(lines) if kind == "song_data" else etl.clean_events(lines)
    keyed = rows if kind == "song_data" else etl.with_id(rows)
    told = etl.Account(kind, etl.json_files(etl.Disk(str(lake)), kind), f"file://{lake}", keyed)
    told.tell_copies(key, keyed.where("false"))
    return told


def in_files(root: Path, files: dict[str, list[dict | str]]) -> Path:
    """A lake with the log files and one song."""
    write_lake(root, [song()], ["{}"])
    for name, rows in files.items():
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        (root / "log_data" / name).write_text(text, encoding="utf-8")
    return root


def test_of_copies_in_two_files_the_original_is_in_the_file_of_the_smallest_name(
    accounts: Accounts, tmp_path: Path
) -> None:
    # A blank is %20 in Spark's addresses, which is after the exclamation mark; in the names it is before.
    lake = in_files(tmp_path, {"a!b.json": [event()], "a b.json": [event()], "c.json": [event(), event(sessionId=8)]})
    assert fates(list(accounts(lake)["log_data"].files.values())) == {
        "log_data/A/rows.json": {"quarantined": 1},
        "log_data/a b.json": {"accepted": 1},
        "log_data/a!b.json": {"duplicates": 1},
        "log_data/c.json": {"accepted": 1, "duplicates": 1},
    }


def test_of_copies_in_one_file_one_is_the_original(accounts: Accounts, tmp_path: Path) -> None:
    lake = in_files(tmp_path, {"a.json": [event(), event(level="paid"), event(), event(page="Home")]})
    assert fates(list(accounts(lake)["log_data"].files.values()))["log_data/a.json"] == {
        "accepted": 1,
        "duplicates": 2,
        "no_play": 1,
    }


def test_two_objects_on_one_line_are_one_bad_line_with_the_text_of_both(accounts: Accounts, tmp_path: Path) -> None:
    both = json.dumps(event()) + json.dumps(event(itemInSession=1))
    told = accounts(in_files(tmp_path, {"a+b%20c d.json": [both]}))["log_data"]
    assert ("log_data/a+b%20c d.json", "broken JSON", both) in map(tuple, told.quarantined().collect())


REQUIRED = ("page", "ts", "userId", "sessionId", "itemInSession")


def test_a_key_in_the_wrong_case_is_quarantined(accounts: Accounts, tmp_path: Path) -> None:
    wrong = {f"{key}.json": json.dumps(event()).replace(f'"{key}"', f'"{key.swapcase()}"') for key in REQUIRED}
    told = accounts(in_files(tmp_path, {name: [line] for name, line in wrong.items()}))["log_data"]
    assert {f"log_data/{key}.json": {"quarantined": 1} for key in REQUIRED}.items() <= fates(
        list(told.files.values())
    ).items()


# What it costs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [[event()], [event(), event(), "{", "7", event(page="Home")]], ids=["clean", "dirty"])
def test_a_log_is_read_once_whatever_is_in_it(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[dict | str]
) -> None:
    read_lines, seen = etl.read_lines, tmp_path / "seen"
    seen.mkdir()

    def watched(spark: SparkSession, directory: str, names: list[str] | None) -> DataFrame:
        def reading(rows: Iterator[Row]) -> Iterator[Row]:
            (seen / f"{directory[-8:]}-{uuid.uuid4()}").touch()
            return rows

        rows = read_lines(spark, directory, names)
        return spark.createDataFrame(rows.rdd.mapPartitions(reading), rows.schema)

    monkeypatch.setattr(etl, "read_lines", watched)
    told = run(write_lake(tmp_path / "lake", [song()], lines), tmp_path / "run" / "output")
    assert told.report["lines"]["log_data"]["lines"] == len(lines)
    assert len(list(seen.glob("log_data*"))) == 1
    assert (told.output / "_quarantine").exists() == ("{" in lines)


# Garbage -------------------------------------------------------------------------------------------------------------

VALUES = (
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(
            allow_nan=False, allow_infinity=False
        )  # inside of a list Spark calls NaN a wrong type, not broken JSON
        | st.text(max_size=6)
        | st.sampled_from(["NextSong", "39", " 39 ", "", 0, -1, 7.0, 2**31, 2**63, 946684800000, 4102444800000]),
        lambda value: st.lists(value, max_size=2) | st.dictionaries(st.text(max_size=3), value, max_size=2),
        max_leaves=4,
    )
    | st.floats()
)
TOKENS = [
    "1e400",
    "-1e999",
    "1e-400",
    "1E2",
    "-0",
    "-0.0",
    "007",
    "+1",
    "-",
    "0x1F",
    "1.",
    ".5",
    "NaN",
    "Infinity",
    "tru",
    "'a'",
    "12345678901234567890123",
    "7.0",
    "{}",
    "[]",
    "[7]",
    "",
    " 7 ",
    '"39 "',
]


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """A song or an event in which up to three values are others."""
    raw = draw(st.sampled_from([song(), event(), event(page="Home", userId="")]))
    raw = {**raw, **draw(st.dictionaries(st.sampled_from(sorted(raw)), VALUES, max_size=3))}
    return json.dumps(raw, ensure_ascii=False).encode("utf-8", errors="replace")


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """An object with something else in the place of a few of its bytes, or of one of its values."""
    line = draw(objects())
    if draw(st.booleans()):
        key = draw(st.sampled_from(["ts", "length", "duration", "year", "userId", "song_id", "sessionId"])).encode()
        return re.sub(rb'("%s": )[^,}]*' % key, rb"\g<1>" + draw(st.sampled_from(TOKENS)).encode(), line)
    at, length = draw(st.integers(0, len(line))), draw(st.integers(0, 9))
    return line[:at] + draw(st.binary(max_size=4)) + line[at + length :]


def judged(line: bytes) -> bool:
    """Whether the oracle can judge it: DuckDB reads no half of a surrogate pair, and of a key twice the first."""
    try:
        json.loads(line, object_pairs_hook=lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else 1 / 0)
    except ZeroDivisionError:
        return False
    except (ValueError, RecursionError):
        pass
    return b"\\ud" not in line.lower()


LINES = (
    objects()
    | mangled()
    | st.binary(max_size=20)
    | st.text(max_size=9).map(str.encode)
    | st.sampled_from(["\ufeff{}", "\u2028", "\x00", "\x1c", "{}", "[]", "null", "[{}]", "{}{}", " "]).map(str.encode)
).filter(judged)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"])
FILES = st.lists(st.tuples(LINES, ENDS), min_size=20, max_size=60).map(lambda lines: b"".join(map(b"".join, lines)))


@settings(
    max_examples=12,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # to make a failing example smaller takes minutes; what is wrong with it is told below
)
@given(logs=st.lists(FILES, min_size=1, max_size=2), songs=FILES)
def test_garbage_is_accounted_for_line_by_line_as_the_oracle_does(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, logs: list[bytes], songs: bytes
) -> None:
    lake = tmp_path_factory.mktemp("garbage")
    for name in ("log_data/A", "song_data"):
        (lake / name).mkdir(parents=True)
    for n, content in enumerate(logs):
        (lake / "log_data" / ("A" if n % 2 else "") / f"{n} é.json").write_bytes(content)
    (lake / "song_data" / "songs.json").write_bytes(songs)
    told = {kind: account(spark, lake, kind) for kind in KINDS}
    quarantined = [tuple(row) for one in told.values() if one.problems for row in one.quarantined().collect()]
    found, expected = one_mark_each(quarantined), one_mark_each(bad_lines(lake))
    assert set(found) ^ set(expected) == set() and found == expected
    assert fates([file for one in told.values() for file in one.files.values()]) == expected_fates(lake)


def one_mark_each(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Java and Python put one U+FFFD or several in the place of bytes that are no text."""
    return sorted((file, reason, re.sub("\ufffd+", "\ufffd", line)) for file, reason, line in rows)
