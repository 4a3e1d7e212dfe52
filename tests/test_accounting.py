"""The account of the lines in corner cases: copies of one play, and lines that are garbage. See also test_job.py."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import oracle
import pytest
from conftest import event, job, rows_of_lines, song, sorted_rows, write_lake, write_lines
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lake import reports
from pyspark.sql import SparkSession

import etl

# Copies --------------------------------------------------------------------------------------------------------------


def test_of_copies_the_one_in_the_file_with_the_smallest_name_is_accepted(spark: SparkSession, tmp_path: Path) -> None:
    write_lake(tmp_path / "in", [song(), song(year=2001), song(song_id="SO2")], [event(page="Home")])
    logs = {
        # A blank is %20 in Spark's addresses, which is after the exclamation mark; in the names it is before.
        "a!b.json": [event()],
        "a b.json": [event()],
        "c.json": [event(), event(sessionId=8)],
        "d.json": [event(itemInSession=1), event(itemInSession=1, level="paid"), event(itemInSession=1), "{"],
    }
    for name, rows in logs.items():
        write_lines(tmp_path / "in" / "log_data" / name, rows)
    assert job(tmp_path / "in", tmp_path / "out", MAX_BAD_RATIO=1).code == 0
    (report,) = reports(tmp_path / "out")
    assert {file["file"]: tuple(file[fate] for fate in etl.FATES) for file in report["files"]} == {
        "song_data/A/rows.json": (2, 1, 0, 0),
        "log_data/A/rows.json": (0, 0, 1, 0),
        "log_data/a b.json": (1, 0, 0, 0),
        "log_data/a!b.json": (0, 1, 0, 0),
        "log_data/c.json": (1, 1, 0, 0),
        "log_data/d.json": (1, 2, 0, 1),
    }


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
        | st.sampled_from(
            ["NextSong", "39", " 39 ", "", "7.0", 0, -1, 7.0, 2**31, 2**63, 2.0**53, 1e12, 4102444800000]
        ),
        lambda value: st.lists(value, max_size=2) | st.dictionaries(st.text(max_size=3), value, max_size=2),
        max_leaves=4,
    )
    | st.floats()
)
TOKENS = [
    *("1e400", "-1e999", "1e-400", "1E2", "7e0", "1.5E12", "7.0", "1999.0", "-0", "-0.0", "9223372036854775808"),
    *(
        "9007199254740993.0",
        "-9007199254740991.0",
        "12345678901234567890123",
        "{}",
        "[]",
        "[7]",
        '""',
        '"7.0"',
        '"39 "',
    ),
    *(
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
        "",
        "\ufeff7",
        "[tru]",
        "[1 2]",
        "[,]",
        "{1}",
    ),
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


@settings(  # GARBAGE=200 tries that many inputs
    max_examples=int(os.environ.get("GARBAGE", "12")),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # to make a failing example smaller takes minutes; what is wrong with it is told below
)
@given(logs=st.lists(FILES, min_size=1, max_size=2), songs=FILES)
def test_garbage_is_judged_and_read_line_by_line_as_by_the_oracle(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, logs: list[bytes], songs: bytes
) -> None:
    lake = tmp_path_factory.mktemp("garbage")
    for n, content in enumerate(logs):
        write_lines(lake / "log_data" / ("A" if n % 2 else "") / f"{n} é.json", [content])
    write_lines(lake / "song_data" / "songs.json", [songs])
    song_rows, events = (rows_of_lines(spark, lake, kind).collect() for kind in ("song_data", "log_data"))
    refused = [(row.file, row.problem, row.value) for row in (*song_rows, *events) if row.problem]
    expected = [(file, why, line) for file, line, why in oracle.judged_lines(str(lake)) if why]
    found, expected = one_mark_each(refused), one_mark_each(expected)
    assert set(found) ^ set(expected) == set() and found == expected
    with oracle.lake(str(lake)) as db:
        numbers = "ts, user_id, session_id, item, page = 'NextSong', length"
        assert numbers_of(events, "ts user_id session_id item is_play length") == sorted_rows(
            db.execute(f"select {numbers} from event").fetchall()
        )
        numbers = "year duration artist_latitude artist_longitude"
        assert numbers_of(song_rows, numbers, year=0) == sorted_rows(
            db.execute(f"select {numbers.replace(' ', ', ')} from song_version").fetchall()
        )


def numbers_of(rows: list, names: str, **unknown: object) -> list[tuple]:
    """The usable rows' columns of these names."""
    found = [[row[name] for name in names.split()] for row in rows if not row.problem]
    return sorted_rows(
        [unknown.get(name) if value is None else value for name, value in zip(names.split(), row, strict=True)]
        for row in found
    )


def one_mark_each(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Java and Python put one U+FFFD or several in the place of bytes that are no text."""
    return sorted((file, reason, re.sub("\ufffd+", "\ufffd", line)) for file, reason, line in rows)
