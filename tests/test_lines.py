"""What makes a line unusable, reason by reason; what is read and what is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from conftest import event, lines_of, rows_of_lines, song, write_lines
from pyspark.sql import SparkSession

import etl

EVENT, SONG = json.dumps(event()), json.dumps(song())


def renamed(line: str, key: str, other: str) -> str:
    """The line with another name for one of its keys."""
    assert f'"{key}":' in line
    return line.replace(f'"{key}":', f'"{other}":')


BAD_LOG_LINES = [
    ("broken JSON", "{"),
    ("broken JSON", '{"page": "NextSong"'),
    ("broken JSON", f"[{EVENT}]"),
    ("broken JSON", EVENT + json.dumps(event(itemInSession=1))),  # cat of files without a last newline
    ("broken JSON", EVENT + "," + json.dumps(event(itemInSession=1))),
    ("broken JSON", EVENT + " trailing"),
    ("broken JSON", EVENT + "}"),
    ("broken JSON", "null"),
    ("broken JSON", "5"),
    ("broken JSON", json.dumps(event(length=float("nan")))),
    ("broken JSON", EVENT.replace('"', "'")),
    ("broken JSON", '{"song": "a\\q"}'),
    *(("broken JSON", EVENT.replace('"Ada"', value)) for value in ("[1 2]", "[tru]", "[NaN]", "[,]", "{1}")),
    ("broken JSON", f"{EVENT[:-1]}\ufeff}}"),  # a byte order mark that is not at the start
    ("wrong type: ts", json.dumps(event(ts="1542285045796"))),
    ("wrong type: ts", json.dumps(event(ts=1542285045796.5))),
    ("wrong type: ts", json.dumps(event(ts=2**70))),
    ("wrong type: sessionId", json.dumps(event(sessionId="7"))),
    ("wrong type: sessionId", json.dumps(event(sessionId="9.0"))),
    ("wrong type: sessionId", json.dumps(event(sessionId={"id": 7}))),
    ("wrong type: sessionId", json.dumps(event(sessionId=2**63))),  # not the same as 2**63 - 1
    ("wrong type: sessionId", json.dumps(event(sessionId=-(2**63) - 1))),
    ("wrong type: sessionId", json.dumps(event(sessionId=9e15))),  # from here on a double may be another number
    ("wrong type: sessionId", renamed(EVENT, "sessionId", 'sessionId": 9007199254740993.5, "x')),
    ("wrong type: sessionId", renamed(EVENT, "sessionId", 'sessionId": 1e400, "x')),
    ("wrong type: itemInSession", json.dumps(event(itemInSession=[1]))),
    ("wrong type: itemInSession", json.dumps(event(itemInSession=0.5))),
    ("wrong type: itemInSession", json.dumps(event(itemInSession=True))),
    ("wrong type: length", json.dumps(event(length="200.5"))),
    ("wrong type: length", json.dumps(event(length="NaN"))),
    ("wrong type: ts", json.dumps(event(length="", itemInSession="", sessionId="", ts=""))),
    ("infinite number", EVENT.replace("200.5", "1e400")),
    ("no page", json.dumps(event(page=None))),
    ("no page", "{}"),
    ("no page", renamed(EVENT, "page", "Page")),
    ("no time", json.dumps(event(ts=None))),
    ("no time", renamed(EVENT, "ts", "TS")),
    ("impossible time", json.dumps(event(at="1999-12-31T23:59:59.999"))),
    ("impossible time", json.dumps(event(at="2100-01-01"))),
    ("impossible time", json.dumps(event(ts=1542285045))),
    ("impossible time", json.dumps(event(ts=1542285045796000))),
    ("impossible time", json.dumps(event(ts=1542285045.0))),
    ("impossible time", json.dumps(event(ts=-(2**63)))),
    ("impossible time", json.dumps(event(ts=2**63 - 1))),
    ("no user id", json.dumps(event(userId=None))),
    ("no user id", renamed(EVENT, "userId", "userid")),
    *(
        ("user id is not a number", json.dumps(event(userId=user_id)))
        for user_id in (
            "39x",
            "39.5",
            39.5,
            "39.",
            ".0",
            "39.0.0",
            "-1",
            -1.0,
            -0.0,
            9e15,
            1e300,
            12345678.5,
            "9" * 19,
            "39\n",
            "٣٩",
            True,
            [39],
        )
    ),
    ("play without a user", json.dumps(event(userId=""))),
    ("play without a user", json.dumps(event(userId="  "))),
    ("play without a session", json.dumps(event(sessionId=None))),
    ("play without a session", renamed(EVENT, "sessionId", "SessionId")),
    ("play without an item", json.dumps(event(itemInSession=None))),
    *(
        ("key in the wrong case", renamed(EVENT, key, key.swapcase()))
        for key in ("level", "firstName", "lastName", "gender", "artist", "song", "length", "location", "userAgent")
    ),
    ("key in the wrong case", renamed(json.dumps(event(page="Home")), "itemInSession", "ItemInSession")),
    ("key in the wrong case", EVENT.replace('"level": ', '"Level"  :\t')),
    ("key in the wrong case", EVENT.replace('"level": ', '"Level"\t: ')),
    ("key in the wrong case", json.dumps(event(level=None, Level="paid", profile={"level": "paid"}))),
    ("key in the wrong case", EVENT.replace('"level": ', r'"\u004cevel": ')),  # \u004c is L
    ("key in the wrong case", json.dumps(event(gender=None, Level="and level, too"))),
]
GOOD_LOG_LINES = [
    EVENT,
    json.dumps(event(userId="", page="Home")),
    json.dumps(event(sessionId=None, itemInSession=None, page="Home")),
    json.dumps(event(length=200)),
    json.dumps(event(page="Home", song=None, Song="a page that is no play has no song")),
    json.dumps(event(Level="and level, too")),
    # Below the top level a key may have any name, and so may a text that looks like a key.
    json.dumps(event(gender=None, profile={"Gender": "F"})),
    json.dumps(event(level=None, history=[{"Level": "free"}, {"LEVEL": "paid"}])),
    json.dumps(event(artist=None, note='"Artist" : "x"')),
    json.dumps({name: value for name, value in event(user={"UserAgent": 1}).items() if name != "userAgent"}),
    json.dumps(event(song="}{", artist='"]}')),
    json.dumps(event(status="what is not read cannot be wrong")),
    f" \t{EVENT} ",
    json.dumps(event(ts=1542285045796.0, sessionId=9.0, itemInSession=-0.0, userId=39.0)),
    json.dumps(event(ts=1542285045796.0, sessionId=2**63 - 1, userId="39.00")),
    *(json.dumps(event(userId=user_id)) for user_id in (39, 12345678.0, 9e15 - 1, " 39 ", "039", "9" * 18)),
    EVENT.replace('"39"', "3.9e1"),
    EVENT.replace("1542285045796", "1.542285045796E12"),
    EVENT.replace('"level": ', '"level": "paid", "level": '),
    json.dumps(event(sessionId=9e15 - 1, itemInSession=1 - 9e15)),
    json.dumps(event(sessionId=-(2**63), itemInSession=2**63 - 1)),
    json.dumps(event(at="2000-01-01")),
    json.dumps(event(at="2099-12-31T23:59:59.999")),
]
BAD_SONG_LINES = [
    ("broken JSON", "{"),
    ("broken JSON", "["),
    ("wrong type: year", json.dumps(song(year="1999"))),
    ("wrong type: year", json.dumps(song(year=1999.5))),
    ("wrong type: year", json.dumps(song(year=2**31))),
    ("wrong type: year", json.dumps(song(year=2.0**31))),
    ("wrong type: duration", json.dumps(song(duration="218.9"))),
    ("wrong type: artist_latitude", json.dumps(song(artist_latitude="north"))),
    ("wrong type: artist_longitude", json.dumps(song(artist_longitude=""))),
    ("infinite number", SONG.replace("218.93179", "1e400")),
    ("infinite number", SONG.replace("35.1", "1e400")),
    ("infinite number", SONG.replace("-90.0", "-1e400")),
    ("no song id", json.dumps(song(song_id=" "))),
    ("no song id", json.dumps(song(song_id=None))),
    *(("impossible year", json.dumps(song(year=year))) for year in (-1, 2100, 20180, 2100.0)),
    *(
        ("key in the wrong case", renamed(SONG, key, key.title()))
        for key in song()
        if key not in ("num_songs", "song_id")
    ),
]
GOOD_SONG_LINES = [
    SONG,
    *(json.dumps(song(year=year)) for year in (0, 1, 2099, 1999.0, None)),
    json.dumps(song(title=None, album={"Title": "below the top level"})),
    json.dumps(song(num_songs="what is not read cannot be wrong")),
    json.dumps(song(song_id="Infinity", title="1e400", artist_location='"Year":')),
]
# The oracle's parser takes the first value of a key that stands twice, and Spark's the last.
TWICE = [("a key twice", EVENT.replace('"ts": ', '"ts": "x", "ts": ')), ("a key twice", f'{{"length": "",{EVENT[1:]}')]
LINES = {
    "log_data": (BAD_LOG_LINES + TWICE, GOOD_LOG_LINES, etl.LOG_FIELDS, etl.LOG_RULES),
    "song_data": (BAD_SONG_LINES, GOOD_SONG_LINES, etl.SONG_FIELDS, etl.SONG_RULES),
}


@pytest.fixture(autouse=True, scope="module")
def with_generated_code(compiled: SparkSession) -> None:
    """The rules decide what is lost, so they are tried as they run for users."""


def problems(spark: SparkSession, root: Path, kind: str, lines: list[str]) -> dict[str, str | None]:
    """Each line's problem, by the line."""
    write_lines(root / kind / "lines.json", lines)
    _, _, fields, rules = LINES[kind]
    checked = etl.checked(lines_of(spark, root, kind), fields, rules)
    return {row.value: row.problem for row in checked.select("value", "problem").collect()}


@pytest.mark.parametrize("kind", LINES)
def test_a_line_that_cannot_be_used_has_its_reason_and_any_other_has_none(
    spark: SparkSession, tmp_path: Path, kind: str
) -> None:
    bad, good, *_ = LINES[kind]
    expected = {line: reason for reason, line in bad} | dict.fromkeys(good)
    assert len(expected) == len(bad) + len(good)
    assert problems(spark, tmp_path, kind, list(expected)) == expected


@pytest.mark.parametrize("kind", LINES)
def test_every_reason_has_a_line_that_shows_it(kind: str) -> None:
    bad, _, fields, rules = LINES[kind]
    typed = {f"wrong type: {name}" for name, type in etl.field_types(fields).items() if type != "STRING"}
    assert {reason for reason, _ in bad} | {"a key twice"} == {"broken JSON", "a key twice", *typed, *rules}


def values(spark: SparkSession, root: Path) -> list[str]:
    return sorted(row.value for row in lines_of(spark, root, "log_data").collect())


def test_json_and_gzipped_json_are_read_at_any_depth_and_nothing_else(spark: SparkSession, tmp_path: Path) -> None:
    read = ("1.json", "a/2.json", "a/b/c/3.json", "a b/[4].json", "année=2018/é%20+.json", "_x=1/7.json")
    not_read = ("not.txt", "_hidden.json", ".5.json", "json", "_old/8.json", "a/.old/9.json", "x.JSON", "x.json.bak")
    for name in (*read, *not_read):
        write_lines(tmp_path / "log_data" / name, [name])
    write_lines(tmp_path / "log_data" / "a" / "6.json.gz", [gzip.compress(b"6")])
    assert values(spark, tmp_path) == sorted([*read, "6"])
    assert [etl.is_input(f"log_data/{name}") for name in (*read, *not_read)] == [True] * len(read) + [False] * 8


def test_line_ends_blank_lines_and_byte_order_marks_are_no_content(spark: SparkSession, tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    write_lines(tmp_path / "log_data" / "x.json", [mark + b"one\r\ntwo\r\n\r\n  \t\n" + mark + b"three\rfour"])
    joined = gzip.compress(mark + b"five\n") + gzip.compress(mark + mark + b"six\n" + mark)
    write_lines(tmp_path / "log_data" / "joined.json.gz", [joined])
    assert values(spark, tmp_path) == sorted(["one", "two", "three", "four", "five", "six"])


def test_of_two_objects_on_a_line_none_is_used_and_the_line_has_the_text_of_both(
    spark: SparkSession, tmp_path: Path
) -> None:
    both = EVENT + json.dumps(event(itemInSession=1))
    write_lines(tmp_path / "log_data" / "a+b%20c d é.json", [both])
    rows = rows_of_lines(spark, tmp_path, "log_data").select("file", "problem", "value", "is_play").collect()
    assert [tuple(row) for row in rows] == [("log_data/a+b%20c d é.json", "broken JSON", both, False)]


def test_a_line_is_parsed_once(spark: SparkSession, tmp_path: Path) -> None:
    write_lines(tmp_path / "log_data" / "x.json", [EVENT])
    plays = rows_of_lines(spark, tmp_path, "log_data").where("is_play").select("title", "user_id")
    plan = plays._jdf.queryExecution().executedPlan().toString()
    assert plan.count("from_json(") - plan.count("CASE WHEN (closed") == 1  # the other parses what has a wrong type
