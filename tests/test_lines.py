"""What makes a line unusable, reason by reason; what is read and what is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from conftest import event, song
from pyspark.sql import SparkSession

import etl

BAD_LOG_LINES = [
    ("broken JSON", "{"),
    ("broken JSON", '{"page": "NextSong"'),
    ("broken JSON", "[" + json.dumps(event()) + "]"),
    ("broken JSON", json.dumps(event()) + json.dumps(event(itemInSession=1))),  # cat of files without a last newline
    ("broken JSON", json.dumps(event()) + "," + json.dumps(event(itemInSession=1))),
    ("broken JSON", json.dumps(event()) + " trailing"),
    ("broken JSON", json.dumps(event()) + "}"),
    ("broken JSON", "null"),
    ("broken JSON", "5"),
    ("broken JSON", json.dumps(event(length=float("nan")))),
    ("broken JSON", json.dumps(event()).replace('"', "'")),
    ("broken JSON", '{"song": "a\\q"}'),
    ("wrong type", json.dumps(event(ts="1542285045796"))),
    ("wrong type", json.dumps(event(ts=1542285045796.0))),
    ("wrong type", json.dumps(event(ts=2**70))),
    ("wrong type", json.dumps(event(sessionId="7"))),
    ("wrong type", json.dumps(event(itemInSession=[1]))),
    ("wrong type", json.dumps(event(length="200.5"))),
    ("wrong type", json.dumps(event(length="NaN"))),
    ("infinite number", json.dumps(event()).replace("200.5", "1e400")),
    ("no page", json.dumps(event(page=None))),
    ("no page", "{}"),
    ("no page", json.dumps({"Page": "NextSong"})),
    ("no time", json.dumps(event(ts=None))),
    ("impossible time", json.dumps(event(ts=1542285045))),
    ("impossible time", json.dumps(event(ts=1542285045796000))),
    ("impossible time", json.dumps(event(ts=-(2**63)))),
    ("impossible time", json.dumps(event(ts=2**63 - 1))),
    ("no user id", json.dumps(event(userId=None))),
    ("user id is no number", json.dumps(event(userId="39x"))),
    ("user id is no number", json.dumps(event(userId="39.5"))),
    ("user id is no number", json.dumps(event(userId="-1"))),
    ("user id is no number", json.dumps(event(userId="9" * 19))),
    ("user id is no number", json.dumps(event(userId="39\n"))),
    ("play without a user", json.dumps(event(userId=""))),
    ("play without a session", json.dumps(event(sessionId=None))),
    ("play without an item", json.dumps(event(itemInSession=None))),
    *(
        ("key in the wrong case", json.dumps(event()).replace(f'"{key}"', f'"{key.swapcase()}"'))
        for key in ("level", "firstName", "lastName", "gender", "artist", "song", "length", "location", "userAgent")
    ),
    ("key in the wrong case", json.dumps(event(page="Home")).replace('"itemInSession"', '"ItemInSession"')),
]
GOOD_LOG_LINES = [
    json.dumps(event()),
    json.dumps(event(userId="", page="Home")),
    json.dumps(event(sessionId=None, itemInSession=None, page="Home")),
    json.dumps(event(length=200)),
    json.dumps(event(page="Home", song=None, Song="of no account")),
    json.dumps(event(Level="and level, too")),
    json.dumps(event(song="}{", artist='"]}')),
    json.dumps(event(status="what is not read cannot be wrong")),
    " \t" + json.dumps(event()) + " ",
]
BAD_SONG_LINES = [
    ("broken JSON", "{"),
    ("wrong type", json.dumps(song(year="1999"))),
    ("wrong type", json.dumps(song(year=2**31))),
    ("wrong type", json.dumps(song(duration="218.9"))),
    ("wrong type", json.dumps(song(artist_latitude="north"))),
    ("infinite number", json.dumps(song()).replace("218.93179", "1e400")),
    ("infinite number", json.dumps(song()).replace("-90.0", "-1e400")),
    ("no song id", json.dumps(song(song_id=" "))),
    ("no song id", json.dumps(song(song_id=None))),
    *(
        ("key in the wrong case", json.dumps(song()).replace(f'"{key}"', f'"{key.title()}"'))
        for key in song()
        if key not in ("num_songs", "song_id")
    ),
]


def problems(spark: SparkSession, root: Path, kind: str, lines: list[str]) -> dict[str, str | None]:
    """Each line's problem, by the line."""
    (root / "lines.json").write_text("\n".join(lines), encoding="utf-8")
    fields, rules = (etl.LOG_FIELDS, etl.LOG_RULES) if kind == "log" else (etl.SONG_FIELDS, etl.SONG_RULES)
    checked = etl.checked(etl.read_lines(spark, str(root)), fields, rules)
    return {row.value: row.problem for row in checked.select("value", "problem").collect()}


def test_a_log_line_that_cannot_be_used_has_its_reason(spark: SparkSession, tmp_path: Path) -> None:
    expected = {line: reason for reason, line in BAD_LOG_LINES}
    assert problems(spark, tmp_path, "log", list(expected)) == expected


def test_every_reason_has_a_line_that_shows_it() -> None:
    assert {reason for reason, _ in BAD_LOG_LINES} == {*etl.JSON_RULES, *etl.LOG_RULES}
    assert {reason for reason, _ in BAD_SONG_LINES} == {*etl.JSON_RULES, *etl.SONG_RULES}


def test_a_good_log_line_has_no_problem(spark: SparkSession, tmp_path: Path) -> None:
    assert problems(spark, tmp_path, "log", GOOD_LOG_LINES) == dict.fromkeys(GOOD_LOG_LINES)


def test_a_song_line_that_cannot_be_used_has_its_reason(spark: SparkSession, tmp_path: Path) -> None:
    expected = {line: reason for reason, line in BAD_SONG_LINES} | {json.dumps(song()): None}
    assert problems(spark, tmp_path, "song", list(expected)) == expected


def test_json_and_gzipped_json_are_read_at_any_depth_and_nothing_else(spark: SparkSession, tmp_path: Path) -> None:
    for name in ("1.json", "a/2.json", "a/b/c/3.json", "a b/[4].json", "not.txt", "_hidden.json", ".5.json", "json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    with gzip.open(tmp_path / "a" / "6.json.gz", "wt") as file:
        file.write("6")
    lines = etl.read_lines(spark, str(tmp_path)).collect()
    assert sorted(row.value for row in lines) == ["1.json", "6", "a b/[4].json", "a/2.json", "a/b/c/3.json"]


def test_line_ends_blank_lines_and_a_byte_order_mark_are_no_content(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n  \t\nthree")
    assert sorted(row.value for row in etl.read_lines(spark, str(tmp_path)).collect()) == ["one", "three", "two"]


def test_a_line_is_parsed_once_a_pass(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(event()))
    lines = etl.checked(etl.read_lines(spark, str(tmp_path)), etl.LOG_FIELDS, etl.LOG_RULES)
    plays = etl.clean_events(lines).where("is_play").select("title", "user_id")
    assert plays._jdf.queryExecution().executedPlan().toString().count("from_json(") == 1
