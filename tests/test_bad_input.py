"""Bad input, tried: what is wrong, and what the user gets. A line is quarantined with its reason, or it is used and the
report says how. What stops the job is one line that names the place, the cause and what to do.
"""

from __future__ import annotations

import ctypes
import errno
import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow.dataset
import pytest
from conftest import ROOT, Outcome, event, job, play_of, song, write_config, write_lake
from pyspark.find_spark_home import _find_spark_home
from pyspark.sql import SparkSession

import etl

ITEMS, SONGS_MADE = count(1), count(2)
BOM = b"\xef\xbb\xbf"


def play(*mangled: str | bytes, **overrides: Any) -> bytes:
    """A play's line, unlike all others; `mangled` is what to replace, and by what."""
    line = json.dumps(event(**{"itemInSession": next(ITEMS), **overrides})).encode()
    if mangled:
        old, new = (text.encode() if isinstance(text, str) else text for text in mangled)
        assert old in line
        line = line.replace(old, new)
    return line


def track(**overrides: Any) -> bytes:
    """A song's line, unlike all others."""
    return json.dumps(song(**{"song_id": f"SO{next(SONGS_MADE)}", **overrides})).encode()


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def linked(path: Path) -> None:
    """Makes the directory of the file a link to one outside the lake."""
    outside = path.parents[3] / "outside"
    outside.mkdir()
    (outside / path.name).write_bytes(play())
    path.parent.rmdir()
    path.parent.symlink_to(outside)


# Lines and files that do not stop the job: all in one lake -----------------------------------------------------------


class Bad(NamedTuple):
    """A file of the lake, and what the report must say of it; every quarantined line of it has the reason."""

    content: bytes | Callable[[Path], object]
    fates: dict[str, int]
    reason: str = ""


def used(content: bytes, accepted: int = 1) -> Bad:
    return Bad(content, {"accepted": accepted})


def refused(content: bytes, reason: str, lines: int = 1) -> Bad:
    return Bad(content, {"quarantined": lines}, reason)


def no_line(content: bytes | Callable[[Path], object]) -> Bad:
    return Bad(content, {})


FILES = {
    "empty": no_line(b""),
    "only blank lines": no_line(b"\n \n\t\r\n\x0b\x0c\n"),
    "byte order mark": used(BOM + play()),
    "byte order marks between lines, from `cat`": used(BOM + play() + b"\n" + BOM + play() + b"\n" + BOM + b"\n", 2),
    "byte order mark on a blank line": no_line(BOM + b" \r\n" + BOM),
    "line ends of Windows": used(play() + b"\r\n" + play() + b"\r\n", 2),
    "line ends of old Macs": used(play() + b"\r" + play(), 2),
    "UTF-16": refused((play() + b"\n" + play()).decode().encode("utf-16"), "broken JSON", 2),
    "UTF-16 of the other order": refused(play().decode().encode("utf-16-be"), "broken JSON"),
    "UTF-32": refused(play().decode().encode("utf-32"), "broken JSON"),
    "bytes that are no text": refused(b"\xff\xfe\xfa\x80", "broken JSON"),
    "gzip without its ending": refused(gzip.compress(b"x" * 9, mtime=0), "broken JSON"),
    "only null bytes": refused(b"\x00" * 9, "broken JSON"),
    "10 MB on one good line": used(play(note="x" * 10**7)),
    "10 MB on one bad line": refused(b'{"song": "' + b"x" * 10**7, "broken JSON"),
    "one object over many lines": refused(json.dumps(event(), indent=1).encode(), "broken JSON", 20),
    "HTML": refused(b"<!DOCTYPE html>", "broken JSON"),
    "a pointer of Git LFS": refused(b"version https://git-lfs.github.com/spec/v1", "broken JSON"),
    "sp ace [1] {2} %41 + #x?y;z 'q' \"ü夜": Bad(play() + b"\n{", {"accepted": 1, "quarantined": 1}, "broken JSON"),
    "line\nend": Bad(play() + b"\n{", {"accepted": 1, "quarantined": 1}, "broken JSON"),
    "directory.json/inside": used(play()),
    "link": Bad(lambda path: path.symlink_to("../log_data/byte order mark.json"), {"duplicates": 1}),
    "linked directory/inside": Bad(lambda path: linked(path), {"accepted": 1}),
}
VALUES = {
    "huge integer": refused(play(ts=10**40), "wrong type: ts"),
    "integer of 5000 digits": refused(play("200.5", "9" * 5000), "broken JSON"),
    "overflow of 64 bits": refused(play(sessionId=2**63), "wrong type: sessionId"),
    "overflow of a double": refused(play("200.5", "1e400"), "infinite number"),
    "NaN": refused(play(length=float("nan")), "broken JSON"),
    "Infinity": refused(play(length=float("-inf")), "broken JSON"),
    "object for a number": refused(play(sessionId={"id": 7}), "wrong type: sessionId"),
    "array for a number": refused(play(ts=[1542285045796]), "wrong type: ts"),
    "array for a user": refused(play(userId=["39"]), "user id is not a number"),
    "text for a number": refused(play(sessionId="7"), "wrong type: sessionId"),
    "whole number as a float": used(play(sessionId=7.0, itemInSession=900.0, ts=1542285045796.0, userId=39.0)),
    "whole number as text and a float": used(play(userId="39.0")),
    "whole number with an exponent": used(play('"sessionId": 7', '"sessionId": 7e0')),
    "half a session": refused(play(sessionId=7.5), "wrong type: sessionId"),
    "half a user": refused(play(userId=39.5), "user id is not a number"),
    "float beyond 64 bits": refused(play(sessionId=1e300), "wrong type: sessionId"),
    "true for a number": refused(play(length=True), "wrong type: length"),
    "text for seconds": refused(play(length="200.5"), "wrong type: length"),
    "number with a leading zero": refused(play("200.5", "0200.5"), "broken JSON"),
    "null byte": refused(play("Windham", b"Wind\x00ham"), "broken JSON"),
    "null byte, escaped, in a user": refused(play(userId="39\x00"), "user id is not a number"),
    "null byte, escaped, in a text": used(play(location="Wind\x00ham")),
    "tab inside a text": refused(play("Windham", "Wind\tham"), "broken JSON"),
    "1969": refused(play(at="1969-12-31"), "impossible time"),
    "1999": refused(play(at="1999-12-31T23:59:59.999"), "impossible time"),
    "2100": refused(play(at="2100-01-01"), "impossible time"),
    "negative time": refused(play(ts=-1542285045796), "impossible time"),
    "time in seconds": refused(play(ts=1542285045), "impossible time"),
    "negative user": refused(play(userId="-39"), "user id is not a number"),
    "negative session": used(play(sessionId=-7)),
    "empty user": refused(play(userId=""), "play without a user"),
    "empty texts": used(play(level="", location="", song="", artist="", userAgent="")),
    "digits of another script": refused(play(userId="٣٩"), "user id is not a number"),
    "lone surrogate in a user": refused(play(userId="\ud800"), "user id is not a number"),
    "lone surrogate in a text": used(play(location="a\ud800b")),
    "Latin-1 in a text": used(play("Windham", "Wïndham".encode("latin-1"))),
    "a key twice": used(play('"userId": "39"', '"userId": "x", "userId": "39"')),
    "a key twice, the last of another type": refused(play('"userAgent"', '"ts": "x", "userAgent"'), "a key twice"),
    "a key twice, once of another type": refused(play('"ts":', '"ts": "x", "ts":'), "a key twice"),
    "a key in the wrong case": refused(play('"userId"', '"userid"'), "no user id"),
    "10000 levels in a text": refused(play('"Windham, ME"', nested(10000)), "broken JSON"),
    "10000 levels in what is not read": refused(play('"status": 200', f'"status": {nested(10000)}'), "broken JSON"),
    "10000 levels, open": refused(b"[" * 10000, "broken JSON"),
    "top-level array": refused(b"[" + play() + b"]", "broken JSON"),
    "top-level number": refused(b"7", "broken JSON"),
    "top-level null": refused(b"null", "broken JSON"),
    "top-level text": refused(b'"NextSong"', "broken JSON"),
    "empty object": refused(b"{}", "no page"),
    "two objects": refused(play() + play(), "broken JSON"),
    "comment": refused(b"// " + play(), "broken JSON"),
    "trailing comma": refused(play()[:-1] + b",}", "broken JSON"),
    "line separator of Unicode in a text": used(play("Windham", "Wind\u2028ham\u0085")),
    "only a line separator of Unicode": refused("\u2028".encode(), "broken JSON"),
}
SONGS = {
    "text for a year": refused(track(year="1999"), "wrong type: year"),
    "overflow of a year": refused(track(year=2**31), "wrong type: year"),
    "year as a float": used(track(year=1999.0)),
    "half a year": refused(track(year=1999.5), "wrong type: year"),
    "year before all": refused(track(year=-1), "impossible year"),
    "year with a digit too many": refused(track(year=20180), "impossible year"),
    "infinite duration": refused(track().replace(b"218.93179", b"1e400"), "infinite number"),
    "infinite latitude": refused(track().replace(b"35.1", b"-1e400"), "infinite number"),
    "blank song id": refused(track(song_id=" "), "no song id"),
    "byte order marks": used(BOM + track() + b"\n" + BOM + track(), 2),
    "line ends of Windows and blank lines": used(track() + b"\r\n\r\n" + track() + b"\r\n", 2),
    "one object over many lines": refused(json.dumps(song(), indent=1).encode(), "broken JSON", 12),
}
LAKE = {f"log_data/{name}.json": bad for name, bad in {**FILES, **VALUES}.items()}
LAKE |= {f"song_data/{name}.json": bad for name, bad in SONGS.items()}
LAKE["log_data/nothing.json.gz"] = no_line(b"")
LAKE["log_data/gzip of nothing.json.gz"] = no_line(gzip.compress(b""))
LAKE["log_data/two gzips in one.json.gz"] = used(gzip.compress(play() + b"\n") + gzip.compress(play()), 2)
LAKE["log_data/gzips with byte order marks.json.gz"] = used(
    gzip.compress(BOM + play() + b"\n") + gzip.compress(BOM + play()), 2
)


class Ran(NamedTuple):
    outcome: Outcome
    report: dict
    quarantine: list[dict]


def plays_in(output: Path) -> int:
    """The rows of songplays."""
    return pyarrow.dataset.dataset(output / "songplays").count_rows()


@pytest.fixture(scope="module")
def ran(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """What one run says about the lake of all bad lines and files."""
    root = tmp_path_factory.mktemp("bad")
    write_lake(root / "in", [song()], [play_of(song())])
    for name, bad in LAKE.items():
        path = root / "in" / name
        path.parent.mkdir(exist_ok=True)
        bad.content(path) if callable(bad.content) else path.write_bytes(bad.content)
    (root / "in" / "log_data" / "nothing inside.json").mkdir()
    (root / "in" / "log_data" / "events.JSON").write_bytes(play())
    outcome = job(root / "in", root / "out", MAX_BAD_RATIO=1)
    (report,) = (json.loads(path.read_text()) for path in (root / "out" / "_runs").iterdir())
    parts = sorted((root / "out" / "_quarantine").rglob("*.json"))
    rows = [json.loads(row) for part in parts for row in part.read_text().split("\n") if row]
    return Ran(outcome, report, rows)


def test_bad_lines_and_files_do_not_stop_the_job(ran: Ran) -> None:
    assert ran.outcome.code == 0 and ran.report["outcome"] == "published"
    assert not [line for line in ran.outcome.lines if line.startswith("ERROR")]


@pytest.mark.parametrize("name", LAKE)
def test_a_bad_line_is_quarantined_with_its_reason_and_its_file_or_is_used(
    ran: Ran, record_property: Callable, name: str
) -> None:
    record_property("bad inputs", 1)
    (file,) = (file for file in ran.report["files"] if file["file"] == name)
    assert {fate: file[fate] for fate in etl.FATES if file[fate]} == LAKE[name].fates
    reasons = [row["reason"] for row in ran.quarantine if row["file"] == name]
    assert reasons == [LAKE[name].reason] * LAKE[name].fates.get("quarantined", 0)


def test_a_quarantined_line_has_its_whole_text_however_long(ran: Ran) -> None:
    for name, bad in LAKE.items():
        if bad.reason and "UTF-16" not in name and b"\n" not in bad.content:
            (line,) = (row["line"] for row in ran.quarantine if row["file"] == name)
            assert line == bad.content.decode(errors="replace").removeprefix("\ufeff")


def test_files_without_a_line_cause_a_warning(ran: Ran) -> None:
    empty = [name for name, bad in LAKE.items() if not bad.fates]
    assert f"WARNING log_data: {len(empty)} files have no line; the first is {min(empty)}" in ran.outcome.lines


def test_files_that_are_not_read_because_of_their_names_cause_a_warning(ran: Ran) -> None:
    assert any("log_data: 1 files are ignored" in line and "log_data/events.JSON" in line for line in ran.outcome.lines)


# Every listed file is read, or the run stops and names it ------------------------------------------------------------

NAMES = (
    *("é", "e\u0301", "夜", "😀", "\u200b", "\ufeff", "\u2028", "\u00a0", "\x01", "\x7f"),
    *(" a", "a ", "a b", "a\nb", "a\tb", "a\rb", "a\\b", "%", "%41", "%2F", "a%C3%A9", "+", "#", "?", "*", "~", "$x"),
    *("[1]", "{1}", "{1,2}", "^", "&", ";", "'", '"', "`", "|", "<>", "=", "a=b", "_a=b", "-", "a.", "a..b", "a.json"),
    *("x.json/a", "é/e\u0301", "x /a", " x/a", "year=2018/a", "year=2018/month=%31/a", "a:b/c", "\\/a"),
)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_file_of_any_name_is_read_on_the_first_night_and_on_a_later_one(spark: SparkSession, tmp_path: Path) -> None:
    root = tmp_path / "é %41 + 'lake'"
    for night in (1, 2):
        for name in NAMES:
            write(root / "in" / "log_data" / f"{night}" / f"{name}.json", play())
        write(root / "in" / "song_data" / f"{night}.json", track())
        assert job(root / "in", root / "out").code == 0
        assert plays_in(root / "out") == night * len(NAMES)


UNREADABLE = {
    "b:ad.json": "Spark cannot read a file with a colon in its name from a disk; rename it",
    "[b:ad].json": "Spark cannot read a file with a colon in its name from a disk; rename it",
    "x._COPYING_/line\nend.json": "Spark does not find this file",  # its rule for what is hidden
    os.fsdecode(b"b\xe4d.json"): "Spark does not find this file",  # not UTF-8
}


@pytest.mark.parametrize("night", [1, 2])
@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_spark_cannot_read_stops_the_run_by_its_name_on_every_night(
    spark: SparkSession, tmp_path: Path, name: str, night: int
) -> None:
    source, output = write_lake(tmp_path / "in", [song()], [play_of(song())]), tmp_path / "out"
    assert night == 1 or job(source, output).code == 0
    bad = write(source / "log_data" / name, play())
    outcome = job(source, output)
    assert outcome.code == 1
    assert UNREADABLE[name] in outcome.error
    assert "/log_data/" + name.replace("\n", " ") + ": " in unquote(outcome.error)
    bad.unlink()
    assert job(source, output).code == 0 and plays_in(output) == 1


def test_a_file_that_grows_while_it_is_read_is_read_again_by_the_next_run(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_lake(tmp_path / "in", [song()], [play_of(song())]), tmp_path / "out"
    log, read_lines = write(source / "log_data" / "today.json", play() + b"\n" + play()[:99]), etl.read_lines

    def grown(spark: SparkSession, source: str, kind: str, names: dict) -> Any:
        if kind == "log_data":
            monkeypatch.undo()
            log.write_bytes(log.read_bytes()[:-99] + play() + b"\n" + play() + b"\n")
        return read_lines(spark, source, kind, names)

    monkeypatch.setattr(etl, "read_lines", grown)
    assert job(source, output, MAX_BAD_RATIO=1).code == 0
    assert job(source, output).code == 0
    assert plays_in(output) == 4


def test_a_file_whose_lines_get_lost_on_their_way_stops_the_run_by_its_name(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read_lines = write_lake(tmp_path / "in", [song()], [play_of(song())]), etl.read_lines
    write(source / "log_data" / "lost.json", play())
    monkeypatch.setattr(etl, "read_lines", lambda *given: read_lines(*given).where("file NOT LIKE '%lost%'"))
    outcome = job(source, tmp_path / "out")
    assert outcome.code == 1 and "log_data/lost.json: Spark read no line from it" in outcome.error


def test_a_limit_that_the_submitter_sets_for_lines_loses_none(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, name = spark._jsc.hadoopConfiguration(), "mapreduce.input.linerecordreader.line.maxlength"
    monkeypatch.setattr(
        etl, "spark_session", lambda *given, session=etl.spark_session: (conf.set(name, "100"), session(*given))[1]
    )
    try:
        outcome = job(write_lake(tmp_path / "in", [song()], [play_of(song())]), tmp_path / "out")
    finally:
        conf.unset(name)
    assert outcome.code == 0 and plays_in(tmp_path / "out") == 1


def in_a_process(root: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command on the lake root/in."""
    write_config(root / "dl.cfg", INPUT="in", OUTPUT="out")
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("L")}, **environment}
    return subprocess.run(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, env=environment
    )


def accented_lake(root: Path) -> None:
    """Names that Java cannot read under every locale: of a song file's directory, and of a log file."""
    write(root / "in" / "song_data" / "Ü" / "songs.json", track())
    write(root / "in" / "log_data" / "a.json", play())
    write(root / "in" / "log_data" / "événements-夜.json", play())


def test_under_the_locale_c_the_job_reads_files_of_every_name(tmp_path: Path) -> None:
    accented_lake(tmp_path)
    ran = in_a_process(tmp_path, sys.executable, str(ROOT / "etl.py"), LC_ALL="C")
    assert ran.returncode == 0, ran.stdout
    assert plays_in(tmp_path / "out") == 2


def test_under_spark_submit_with_the_locale_c_the_run_stops_and_names_the_file(tmp_path: Path) -> None:
    accented_lake(tmp_path)
    submit = str(Path(_find_spark_home()) / "bin" / "spark-submit")
    ran = in_a_process(tmp_path, submit, str(ROOT / "etl.py"), LC_ALL="C")
    assert ran.returncode == 1
    (line,) = [line for line in ran.stdout.splitlines() if " ERROR " in line] or [ran.stdout]
    assert "/songs.json: Spark does not find this file" in line and "Java needs LC_ALL=C.UTF-8" in line
    assert not (tmp_path / "out" / "_state").exists()


# What stops the job --------------------------------------------------------------------------------------------------

GZIP = "a .gz file is cut short, damaged or padded; deliver it again"
VANISHED = "it vanished during the run, or is a link to nowhere; remove the link or run"


def unlink_before(name: str) -> Callable[[Path, pytest.MonkeyPatch], None]:
    """Removes a listed log file before the job calls its function of that name."""

    def spoil(lake: Path, patch: pytest.MonkeyPatch) -> None:
        path, call = write(lake / "log_data" / "bad.json", play()), getattr(etl, name)
        patch.setattr(etl, name, lambda *arguments: (path.unlink(missing_ok=True), call(*arguments))[1])

    return spoil


def no_links(lake: Path, patch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", source, None, target)

    patch.setattr(os, "link", link)


def flipped_bits(lake: Path, patch: pytest.MonkeyPatch) -> None:
    """A new night on a state of which one byte has changed and no size has."""
    chance = random.Random(1)
    write(lake / "log_data" / "first.json", b"\n".join(play(location=f"{chance.random()}") for _ in range(500)))
    assert job(lake, lake.parent / "out").code == 0
    path = max((lake.parent / "out" / "_state" / "events").rglob("*.parquet"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
    write(lake / "log_data" / "second.json", play())


STOPS = {
    "truncated gzip": (
        lambda lake, patch: write(lake / "log_data" / "bad.json.gz", gzip.compress(play() * 999)[:-20]),
        ("bad.json.gz: ", GZIP),
    ),
    "gzip that is none": (
        lambda lake, patch: write(lake / "log_data" / "bad.json.gz", play()),
        ("bad.json.gz: ", GZIP),
    ),
    "gzip padded with zero bytes": (
        lambda lake, patch: write(lake / "log_data" / "bad.json.gz", gzip.compress(play()) + bytes(512)),
        ("bad.json.gz: ", GZIP),
    ),
    "file that vanishes before Spark lists it": (
        unlink_before("read_lines"),
        ("log_data/bad.json: Spark does not find this file; it is gone",),
    ),
    "file that vanishes after Spark has listed it": (unlink_before("log_events"), ("bad.json: ", VANISHED)),
    "link to nowhere": (
        lambda lake, patch: (lake / "log_data" / "bad.json").symlink_to("nowhere.json"),
        ("log_data/bad.json: Spark does not find this file", "a link to nowhere"),
    ),
    "link in a circle": (
        lambda lake, patch: (lake / "log_data" / "bad.json").symlink_to("bad.json"),
        ("log_data/bad.json: Spark does not find this file", "a link to nowhere"),
    ),
    "more bad lines than are allowed": (
        lambda lake, patch: write(lake / "log_data" / "bad.json", b"{\n7"),
        (
            "log_data: 2 of 3 lines cannot be used",
            "MAX_BAD_RATIO = 0.05",
            "2 broken JSON",
            "each line must be one JSON object",
        ),
    ),
    "one array over many lines": (
        lambda lake, patch: write(lake / "song_data" / "bad.json", json.dumps([song()], indent=1).encode()),
        ("song_data: 14 of 15 lines cannot be used", "each line must be one JSON object"),
    ),
    "INPUT is a file": (
        lambda lake, patch: (lake.rename(lake.parent / "x"), write(lake, b"")),
        ("in/song_data: a file stands where a directory is needed; move it or correct the address",),
    ),
    "INPUT is a link to itself": (
        lambda lake, patch: (lake.rename(lake.parent / "x"), lake.symlink_to(lake)),
        ("in/song_data: a link leads back to itself; remove it",),
    ),
    "damaged bits in the state": (
        flipped_bits,
        (".parquet: a file of the lake is damaged; rebuild all tables with --full",),
    ),
    "OUTPUT is a file": (
        lambda lake, patch: write(lake.parent / "out", b""),
        ("/out", "a file stands where a directory is needed; move it or correct the address"),
    ),
    "damaged ledger": (
        lambda lake, patch: write(lake.parent / "out" / "_state" / "ledger" / "000000001.json", b'{"run": '),
        ("/out/_state/ledger/000000001.json is damaged; restore it, or choose another OUTPUT",),
    ),
    "disk without hard links": (
        no_links,
        ("/out/_staging/", "this disk has no hard links, which a commit needs; choose another OUTPUT"),
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_what_stops_the_job_is_one_line_with_the_place_and_what_to_do(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable, name: str
) -> None:
    record_property("bad inputs", 1)
    spoil, expected = STOPS[name]
    spoil(write_lake(tmp_path / "in", [song()], [play_of(song())]), monkeypatch)
    outcome = job(tmp_path / "in", tmp_path / "out")
    assert outcome.code == 1
    assert [part for part in expected if part not in outcome.error] == []
    assert len(outcome.error) < 600


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "out").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(tmp_path / "out")]).returncode:
        pytest.skip("only root can make a small disk")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path / "out")], check=True)


def test_a_full_disk_is_explained_in_one_line(spark: SparkSession, small_disk: Path) -> None:
    write_lake(small_disk / "in", [song()], [play_of(song())])
    outcome = job(small_disk / "in", small_disk / "out")
    assert outcome.code == 1 and "the disk is full; free some space" in outcome.error


# Files of others -----------------------------------------------------------------------------------------------------

THEIRS = (
    "users/notes.parquet",
    "songs/year=1999/notes.txt",
    "time/year=2018/backup.parquet",
    "_state/events/x.parquet",
)
IGNORED = (
    *("users/.DS_Store", "users/_backup/users.parquet", "songplays/year=2018/.DS_Store", "_state/.DS_Store"),
    *(
        "_staging/.DS_Store",
        "_staging/#recycle/x",
        "_runs/.DS_Store",
        ".DS_Store",
        "notes.parquet",
        "more/notes.parquet",
    ),
)


@pytest.fixture(scope="module")
def published(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake after its first run."""
    root = tmp_path_factory.mktemp("published")
    write_lake(root / "in", [song()], [play_of(song())])
    assert job(root / "in", root / "out").code == 0
    return root


@pytest.mark.parametrize("options", [(), ("--full",)])
@pytest.mark.parametrize("name", THEIRS)
def test_a_file_of_others_where_tables_go_stops_the_run_by_its_name_and_stays(
    published: Path, name: str, options: tuple[str, ...]
) -> None:
    theirs = write(published / "out" / name, b"theirs")
    try:
        outcome = job(published / "in", published / "out", *options)
        assert outcome.code == 2
        assert f"out/{name}: is among the tables, but no ledger lists it; move it" in outcome.error
        assert theirs.read_bytes() == b"theirs"
    finally:
        theirs.unlink()


def test_hidden_files_and_files_outside_the_tables_stay_and_cause_no_rebuild(published: Path) -> None:
    for name in IGNORED:
        write(published / "out" / name, b"theirs")
    write(published / "in" / "log_data" / "night.json", play())
    outcome = job(published / "in", published / "out")
    assert outcome.code == 0 and not outcome.says("rebuilt")
    assert job(published / "in", published / "out", "--full").code == 0
    assert [name for name in IGNORED if not (published / "out" / name).exists()] == []


# Users of the machine that may not do what the job needs: in a process of its own ------------------------------------


def without_privileges() -> None:
    """Root reads and writes what it likes by two capabilities; they are dropped."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


DENIED = "this user may not do this; chmod or chown the place: "
PLACES = {
    "dl.cfg": ("dl.cfg: Permission denied; name the configuration", 2),
    "in/log_data": (f"in/log_data: {DENIED}Permission denied", 1),
    "out": (f"out/_state/ledger: {DENIED}Permission denied", 1),
    "in/log_data/A/rows.json": (f"rows.json: {DENIED}java.io.", 1),
}


def last_error(root: Path, code: int, preexec: Callable[[], None]) -> str:
    """The one line by which `python etl.py` in a process of less rights says why it stops."""
    command = [sys.executable, str(ROOT / "etl.py")]
    ran = subprocess.run(
        command,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=preexec,
    )
    assert ran.returncode == code
    (line,) = (line for line in ran.stderr.splitlines() if " ERROR " in line)
    assert line == ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    return line


@pytest.mark.parametrize("name", PLACES)
def test_a_missing_right_is_one_line_without_a_stack_trace(tmp_path: Path, name: str) -> None:
    write_lake(tmp_path / "in", [song()], [play_of(song())])
    (tmp_path / "out").mkdir()
    write_config(tmp_path / "dl.cfg", INPUT="in", OUTPUT="out")
    os.chmod(tmp_path / name, 0)
    expected, code = PLACES[name]
    assert expected in last_error(tmp_path, code, without_privileges)


def nameless() -> None:
    """Makes the process the user 54321, who is the owner of all that belongs to the user of the tests."""
    user = os.getuid()
    if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
        raise OSError("this machine permits no user namespaces")
    Path("/proc/self/uid_map").write_text(f"54321 {user} 1")


def test_a_user_id_without_a_name_is_explained(tmp_path: Path) -> None:
    write_lake(tmp_path / "in", [song()], [play_of(song())])
    write_config(tmp_path / "dl.cfg", INPUT="in", OUTPUT="out")
    try:
        subprocess.run(["true"], preexec_fn=nameless, check=True)
    except subprocess.SubprocessError:
        pytest.skip("this machine permits no user namespaces")
    line = last_error(tmp_path, 1, nameless)
    assert "Spark did not start" in line and "a name for the user in /etc/passwd" in line
