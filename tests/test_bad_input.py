"""Bad input, tried: what is wrong, and what the user gets. A line is quarantined with its reason, or it is used and the
run says how; what stops the job is told in one line that names the file, key or value and the remedy.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, event, play_of, song, write_lake
from pyspark.sql import SparkSession

import etl

ITEMS = count(1)


def play(*mangled: str | bytes, **overrides: Any) -> bytes:
    """A play's line, unlike all others; `mangled` is what to replace, and by what."""
    line = json.dumps(event(itemInSession=next(ITEMS), **overrides)).encode()
    if mangled:
        old, new = (text.encode() if isinstance(text, str) else text for text in mangled)
        assert old in line
        line = line.replace(old, new)
    return line


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


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
    "byte order mark": used(b"\xef\xbb\xbf" + play()),
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
}
VALUES = {
    "huge integer": refused(play(ts=10**40), "wrong type"),
    "integer of 5000 digits": refused(play("200.5", "9" * 5000), "broken JSON"),
    "overflow of 64 bits": refused(play(sessionId=2**63), "wrong type"),
    "overflow of a double": refused(play("200.5", "1e400"), "infinite number"),
    "NaN": refused(play(length=float("nan")), "broken JSON"),
    "Infinity": refused(play(length=float("-inf")), "broken JSON"),
    "object for a number": refused(play(sessionId={"id": 7}), "wrong type"),
    "array for a number": refused(play(ts=[1542285045796]), "wrong type"),
    "array for a user": refused(play(userId=["39"]), "user id is no number"),
    "text for a number": refused(play(sessionId="7"), "wrong type"),
    "float for a whole number": refused(play(sessionId=7.0), "wrong type"),
    "exponent for a whole number": refused(play('"sessionId": 7', '"sessionId": 7e0'), "wrong type"),
    "true for a number": refused(play(length=True), "wrong type"),
    "number with a leading zero": refused(play("200.5", "0200.5"), "broken JSON"),
    "null byte": refused(play("Windham", b"Wind\x00ham"), "broken JSON"),
    "null byte, escaped, in a user": refused(play(userId="39\x00"), "user id is no number"),
    "null byte, escaped, in a text": used(play(location="Wind\x00ham")),
    "tab inside a text": refused(play("Windham", "Wind\tham"), "broken JSON"),
    "1969": refused(play(at="1969-12-31"), "impossible time"),
    "1999": refused(play(at="1999-12-31T23:59:59.999"), "impossible time"),
    "2100": refused(play(at="2100-01-01"), "impossible time"),
    "negative time": refused(play(ts=-1542285045796), "impossible time"),
    "time in seconds": refused(play(ts=1542285045), "impossible time"),
    "negative user": refused(play(userId="-39"), "user id is no number"),
    "negative session": used(play(sessionId=-7)),
    "empty user": refused(play(userId=""), "play without a user"),
    "empty texts": used(play(level="", location="", song="", artist="", userAgent="")),
    "digits of another script": refused(play(userId="٣٩"), "user id is no number"),
    "lone surrogate in a user": refused(play(userId="\ud800"), "user id is no number"),
    "lone surrogate in a text": used(play(location="a\ud800b")),
    "Latin-1 in a text": used(play("Windham", "Wïndham".encode("latin-1"))),
    "a key twice": used(play('"userId": "39"', '"userId": "x", "userId": "39"')),
    "a key twice, once of another type": refused(play('"ts":', '"ts": "x", "ts":'), "wrong type"),
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
    "no number of a year": refused(json.dumps(song(song_id="SO2", year="1999")).encode(), "wrong type"),
    "overflow of a year": refused(json.dumps(song(song_id="SO3", year=2**31)).encode(), "wrong type"),
    "infinite duration": refused(
        json.dumps(song(song_id="SO4")).replace("218.93179", "1e400").encode(), "infinite number"
    ),
    "infinite latitude": refused(json.dumps(song(song_id="SO5")).replace("35.1", "-1e400").encode(), "infinite number"),
    "blank song id": refused(json.dumps(song(song_id=" ")).encode(), "no song id"),
}
LAKE = {f"log_data/{name}.json": bad for name, bad in {**FILES, **VALUES}.items()}
LAKE |= {f"song_data/{name}.json": bad for name, bad in SONGS.items()}
LAKE["log_data/nothing.json.gz"] = no_line(b"")
LAKE["log_data/gzip of nothing.json.gz"] = no_line(gzip.compress(b""))
LAKE["log_data/two gzips in one.json.gz"] = used(gzip.compress(play() + b"\n") + gzip.compress(play()), 2)


class Told(NamedTuple):
    code: int
    lines: list[str]
    report: dict
    quarantine: list[dict]


def job(root: Path, *options: str, lake: Path | None = None, **settings: str) -> int:
    """The job in this process, from root/in to root/out."""
    config = (ROOT / "dl.cfg").read_text()
    for key, value in settings.items():
        config = re.sub(f"^{key} =.*$", lambda _, key=key, value=value: f"{key} = {value}", config, flags=re.M)
    (root / "dl.cfg").write_text(config)
    places = ["--input", str(lake or root / "in"), "--output", str(root / "out")]
    return etl.main(["--config", str(root / "dl.cfg"), *places, *options])


@pytest.fixture(scope="module")
def told(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What one run says about the lake of all bad lines and files."""
    root, lines, listener = tmp_path_factory.mktemp("bad"), [], logging.Handler()
    write_lake(root / "in", [song()], [play_of(song())])
    for name, bad in LAKE.items():
        path = root / "in" / name
        path.parent.mkdir(exist_ok=True)
        bad.content(path) if callable(bad.content) else path.write_bytes(bad.content)
    (root / "in" / "log_data" / "nothing inside.json").mkdir()
    (root / "in" / "log_data" / "events.JSON").write_bytes(play())
    listener.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")
    etl.log.addHandler(listener)
    code = job(root, MAX_BAD_RATIO="1")
    etl.log.removeHandler(listener)
    (report,) = (json.loads(path.read_text()) for path in (root / "out" / "_runs").iterdir())
    parts = sorted((root / "out" / "_quarantine").rglob("*.json"))
    return Told(code, lines, report, [json.loads(row) for part in parts for row in part.read_text().split("\n") if row])


def test_bad_lines_and_files_do_not_stop_the_job(told: Told) -> None:
    assert told.code == 0 and told.report["outcome"] == "published"
    assert not [line for line in told.lines if line.startswith("ERROR")]


@pytest.mark.parametrize("name", LAKE)
def test_a_bad_line_is_quarantined_with_its_reason_and_its_file_or_is_used(told: Told, name: str) -> None:
    (file,) = (file for file in told.report["files"] if file["file"] == name)
    assert {fate: file[fate] for fate in etl.FATES if file[fate]} == LAKE[name].fates
    reasons = [row["reason"] for row in told.quarantine if row["file"] == name]
    assert reasons == [LAKE[name].reason] * LAKE[name].fates.get("quarantined", 0)


def test_a_quarantined_line_is_kept_as_it_was_however_long(told: Told) -> None:
    for name, bad in LAKE.items():
        if bad.reason and "UTF-16" not in name and b"\n" not in bad.content:
            (line,) = (row["line"] for row in told.quarantine if row["file"] == name)
            assert line == bad.content.decode(errors="replace").removeprefix("\ufeff")


def test_files_without_a_line_are_warned_of(told: Told) -> None:
    empty = [name for name, bad in LAKE.items() if not bad.fates]
    assert f"WARNING log_data: {len(empty)} files hold no line, or are gone; the first is {min(empty)}" in told.lines


def test_files_that_are_not_read_for_their_name_are_warned_of(told: Told) -> None:
    assert any("log_data: 1 files are not read" in line and "log_data/events.JSON" in line for line in told.lines)


def test_at_least_40_bad_inputs_are_tried(record_property: Callable) -> None:
    tried = len(LAKE) + len(STOPS) + len(PLACES) + sum(map(len, WRONG.values()))
    record_property("bad inputs", tried)
    assert tried >= 40


# Files that stop the job ---------------------------------------------------------------------------------------------


def gone_once_listed(lake: Path, patch: pytest.MonkeyPatch) -> None:
    clean, path = etl.clean_events, write(lake / "log_data" / "bad.json", b"{}")
    patch.setattr(etl, "clean_events", lambda lines: (clean(lines), path.unlink())[0])


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


STOPS = {
    "truncated gzip": (
        lambda lake, patch: write(lake / "log_data" / "bad.json.gz", gzip.compress(play() * 999)[:-20]),
        ("bad.json.gz: ", "cut short or damaged; `gzip -t` tells which, deliver it again"),
    ),
    "gzip that is none": (
        lambda lake, patch: write(lake / "log_data" / "bad.json.gz", play()),
        ("bad.json.gz: ", "cut short or damaged; `gzip -t` tells which, deliver it again"),
    ),
    "file that vanishes between listing and reading": (
        gone_once_listed,
        ("bad.json: ", "it vanished meanwhile, or is a link to nowhere; remove the link, or run the job again"),
    ),
    "link to nowhere": (
        lambda lake, patch: (lake / "log_data" / "bad.json").symlink_to("nowhere.json"),
        (
            "log_data/bad.json: ",
            "it vanished meanwhile, or is a link to nowhere; remove the link, or run the job again",
        ),
    ),
    "link in a circle": (
        lambda lake, patch: (lake / "log_data" / "bad.json").symlink_to("bad.json"),
        ("log_data/bad.json: ", "a link leads back to itself; remove it"),
    ),
    "name with a colon": (
        lambda lake, patch: write(lake / "log_data" / "b:ad.json", play()),
        ("b:ad.json: ", "colon in its name; rename it"),
    ),
    "more bad lines than are allowed": (
        lambda lake, patch: write(lake / "log_data" / "bad.json", b"{\n7"),
        ("log_data: 2 of 3 lines cannot be used", "MAX_BAD_RATIO = 0.05", "2 broken JSON", "raise the limit"),
    ),
    "OUTPUT is a file": (
        lambda lake, patch: write(lake.parent / "out", b""),
        ("/out", "a file stands where a directory is to be; move it, or mend the address"),
    ),
    "damaged lock": (
        lambda lake, patch: damaged(lake.parent / "out" / "_lock" / "000000000001.json"),
        ("/out/_lock/000000000001.json: not what a run has written; restore it, or remove it",),
    ),
    "damaged journal": (
        lambda lake, patch: damaged(lake.parent / "out" / "_staging" / "20200101T000000Z" / "_journal.json"),
        ("/out/_staging/20200101T000000Z/_journal.json: not what a run has written; restore it, or remove it",),
    ),
}


def damaged(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text('{"run": ')


@pytest.mark.parametrize("name", STOPS)
def test_what_stops_the_job_is_told_in_one_line(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    spoil, expected = STOPS[name]
    spoil(write_lake(tmp_path / "in", [song()], [play_of(song())]), monkeypatch)
    assert job(tmp_path) == 1
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert all(part in record.message for part in expected) and "\n" not in record.message


def test_a_damaged_report_of_the_last_run_is_named(tmp_path: Path) -> None:
    damaged(tmp_path / "_runs" / "20200101T000000Z.json")
    with pytest.raises(etl.JobError, match="_runs/20200101T000000Z.json: not what a run has written; restore it, or"):
        etl.last_published(etl.Disk(str(tmp_path)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "out").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(tmp_path / "out")]).returncode:
        pytest.skip("only root can make a small disk")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path / "out")], check=True)


def test_a_full_disk_is_told_in_one_line(
    spark: SparkSession, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_lake(small_disk / "in", [song()], [play_of(song())])
    assert job(small_disk) == 1
    assert "the disk is full; make room" in caplog.records[-1].message and "\n" not in caplog.records[-1].message


# Places that the user of the job has no right to: in a process that is not all-mighty ---------------------------------


def without_privileges() -> None:
    """Root reads and writes what it likes by two capabilities; they are dropped."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


PLACES = {
    "dl.cfg": ("dl.cfg: Permission denied; name the configuration", 2),
    "in/log_data": ("in/log_data: the user of the job has no right to it; chmod or chown it: Permission denied", 1),
    "out": ("out/_lock: the user of the job has no right to it; chmod or chown it: Permission denied", 1),
    "in/log_data/A/rows.json": ("rows.json: the user of the job has no right to it; chmod or chown it: java.io.", 1),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_missing_right_is_told_in_one_line_without_a_stack_trace(tmp_path: Path, name: str) -> None:
    write_lake(tmp_path / "in", [song()], [play_of(song())])
    (tmp_path / "out").mkdir()
    (tmp_path / "dl.cfg").write_text((ROOT / "dl.cfg").read_text())
    os.chmod(tmp_path / name, 0)
    command = [sys.executable, str(ROOT / "etl.py"), "--input", "in", "--output", "out"]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, preexec_fn=without_privileges
    )
    told, code = PLACES[name]
    assert ran.returncode == code
    (line,) = (line for line in ran.stderr.splitlines() if " ERROR " in line)
    assert told in line and line == ran.stderr.splitlines()[-1]
    assert not re.search(r"Traceback|^\s+at |Exception in", ran.stderr, re.M)


# dl.cfg, every key wrong in turn -------------------------------------------------------------------------------------

PATTERN = "to Spark * ? { } [ ] \\ # are more than a name; choose a place without them"
WRONG = {
    "aws_access_key_id": {"": "one key of two", "'AKID'": "holds a space or a quote", "<your key>": "a placeholder"},
    "aws_secret_access_key": {"": "one key of two", "can ary": "holds a space or a quote", "xxxx": "a placeholder"},
    "aws_session_token": {'"canary"': "holds a space or a quote", "changeme": "a placeholder"},
    "input": {
        "": "blank; give a directory",
        "nowhere": "song_data does not exist or holds no *.json",
        "dl.cfg": "song_data does not exist or holds no *.json",
        "s3://": "names no bucket; write s3://BUCKET/PREFIX",
        "https://example.com/lake": "give a directory or an s3:// address",
        "lake*": PATTERN,
        "lake?": PATTERN,
        "lake[1]": PATTERN,
        "lake{1}": PATTERN,
        "lake\\1": PATTERN,
        "la#ke": PATTERN,
        "out/songs/raw": "lies in what a run replaces; choose a place outside of OUTPUT's tables",
        "out/_staging": "lies in what a run replaces; choose a place outside of OUTPUT's tables",
        "s3://your-bucket/lake": "a placeholder",
        "s3://lake/raw//night": "write the plain prefix",
        "s3://lake/../tables": "write the plain prefix",
    },
    "output": {
        "": "blank; give a directory",
        "s3a:///tables": "names no bucket; write s3://BUCKET/PREFIX",
        "hdfs://namenode/tables": "give a directory or an s3:// address",
        "out[1]": PATTERN,
        "in/log_data": "lies in what is read; choose a place outside of song_data and log_data",
        "in/x/../song_data/tables": "lies in what is read; choose a place outside of song_data and log_data",
    },
    "songs_partition_by": {"artist": "choose one of: year | year, artist_id", "": "choose one of: "},
    "max_bad_lines": {"-1": "give a whole number", "some": "give a whole number", "1.5": "give a whole number"},
    "max_bad_ratio": {
        "5%": "give a number from 0 to 1",
        "1.1": "a number from 0",
        "nan": "a number from 0",
        "": "0 to 1",
    },
    "max_shrink": {"-0.1": "give a number from 0 to 1", "1e-1": "a number from 0 to 1", "": "a number from 0 to 1"},
    "lease_seconds": {"9": "10 to 99999", "1" * 12: "10 to 99999", "3 minutes": "10 to 99999", "": "10 to 99999"},
    "endpoint": {
        "localhost:9000": "give http://HOST:PORT",
        "ftp://x": "give http://HOST:PORT",
        "http://a b": "give http",
    },
    "region": {"us west 2": "give a name like us-west-2", "US_WEST_2": "give a name like us-west-2"},
    "sse": {"kms": "choose one of: AES256 | aws:kms", "aes256": "choose one of: AES256 | aws:kms"},
    "kms_key_id": {"1234-abcd": "serves SSE = aws:kms alone"},
    "expected_bucket_owner": {"12345": "give the 12 digits of an AWS account", "me": "give the 12 digits"},
}


def test_every_setting_is_tried_with_a_wrong_value() -> None:
    assert set(WRONG) == {key for keys in etl.SECTIONS.values() for key in keys}


def config(**settings: str) -> str:
    """A dl.cfg that is right but for the settings."""
    keys = dict.fromkeys(etl.SECTIONS["AWS CREDS"], "") | {"input": "in", "output": "out"}
    if any(key.startswith("aws_") for key in settings):
        keys |= {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "canary"}
    keys |= settings
    lines = {
        section: [f"{key} = {keys[key]}" for key in known if key in keys] for section, known in etl.SECTIONS.items()
    }
    return "\n".join(line for section in lines for line in (f"[{section}]", *lines[section])) + "\n"


@pytest.mark.parametrize("key, value", [(key, value) for key, values in WRONG.items() for value in values])
def test_a_wrong_setting_is_told_in_one_line_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lake(Path("in"), [song()], [event()])
    Path("dl.cfg").write_text(config(**{key: value}))
    assert etl.main([]) == 2
    (record,) = caplog.records
    told, section = record.message, next(section for section, keys in etl.SECTIONS.items() if key in keys)
    assert WRONG[key][value] in told and "\n" not in told and "canary" not in told and "can ary" not in told
    assert f"dl.cfg: [{section}] " in told or "set [LAKE] INPUT to what holds" in told
    assert key.upper() in told or "one key of two" in told
    assert not Path("out").exists()


def test_a_token_without_keys_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dl.cfg").write_text(config(aws_access_key_id="", aws_secret_access_key="", aws_session_token="canary"))
    assert etl.main(["--config", str(tmp_path / "dl.cfg")]) == 2
    assert "holds a token and no keys" in caplog.text and "canary" not in caplog.text


def test_a_right_configuration_is_read(tmp_path: Path) -> None:
    for settings in ({}, {"input": "lake", "output": "lake"}, {"input": "lake", "output": "lake/tables"}):
        (tmp_path / "dl.cfg").write_text(config(**settings))
        etl.read_settings(str(tmp_path / "dl.cfg"))
