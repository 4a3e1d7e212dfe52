"""dl.cfg, the command line and the environment: what is wrong stops the job in one line, with exit code 2."""

from __future__ import annotations

import configparser
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, event, song, write_lake

import etl

KEYS = "[AWS CREDS]\nAWS_ACCESS_KEY_ID =\nAWS_SECRET_ACCESS_KEY =\n"
LAKE = "[LAKE]\nINPUT = in\nOUTPUT = out\n"
PLACE = "give a directory or s3://BUCKET/PREFIX"
RATIO = "give a number from 0 to 1"

# Each setting -> wrong values of it, and a part of the error.
WRONG = {
    "aws_access_key_id": {"": "[AWS CREDS] is incomplete", "'AKID'": "a space or a quote"},
    "aws_secret_access_key": {"": "[AWS CREDS] is incomplete", "can ary": "a space or a quote"},
    "aws_session_token": {'"canary"': "a space or a quote"},
    "input": {
        "": PLACE,
        "https://example.com/lake": PLACE,
        "S3://lake/raw": PLACE,
        "file:///data/raw": PLACE,
        "lake*": PLACE,
        "lake?": PLACE,
        "lake[1]": PLACE,
        "lake{1}": PLACE,
        "lake\\1": PLACE,
        "la#ke": PLACE,
        "lake ; the raw files": PLACE,
        "$HOME/lake": PLACE,
        "~nobody-of-this-name/lake": PLACE,
        "in\n  more": PLACE,
        "s3:/lake/raw": PLACE,
        '"lake"': PLACE,
        "'lake'": PLACE,
        "s3://": PLACE,
        "s3://a..b/raw": PLACE,
        "s3://a-.b/raw": PLACE,
        "s3://my_bucket/raw": PLACE,
        "s3://logs.2018/raw": PLACE,
        "s3://My Bucket/raw": PLACE,
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/mine/raw": PLACE,
        "s3://lake/raw//night": PLACE,
        "s3://lake/../raw": PLACE,
        "s3://lake/./raw": PLACE,
        "out/songs/raw": "INPUT is inside a table; choose a place outside OUTPUT's tables",
        "out/_staging": "INPUT is inside a table; choose a place outside OUTPUT's tables",
        "nowhere": "/nowhere/song_data has no *.json or *.json.gz file; set INPUT to",
    },
    "output": {
        "": PLACE,
        "hdfs://namenode/tables": PLACE,
        "s3a:///tables": PLACE,
        "out[1]": PLACE,
        "$HOME/lake": PLACE,
        "lake ; the tables": PLACE,
        "in/log_data": "OUTPUT is inside the input; choose a place outside song_data and log_data",
        "in/x/../song_data/tables": "OUTPUT is inside the input; choose a place outside song_data and log_data",
    },
    "songs_partition_by": {"artist": "give: year, or: year, artist_id", "": "give: year, or: "},
    "plays_partition_by": {"day": "give: year, month, or: year, month, day", "": "give: year, month, or: "},
    "max_bad_ratio": {"5%": RATIO, "1.1": RATIO, "-0.1": RATIO, "nan": RATIO, "": RATIO},
    "max_shrink": {"5%": RATIO, "1.1": RATIO, "-0.1": RATIO, "nan": RATIO, "": RATIO},
    "endpoint": dict.fromkeys(("localhost:9000", "ftp://x", "http://a b", "http://x/a/path"), "give http://HOST:PORT"),
    "region": dict.fromkeys(("us west 2", "US_WEST_2"), "give a name like us-west-2"),
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "dl.cfg"


def configuration(**settings: str) -> str:
    """The text of a dl.cfg that is right except for the settings."""
    texts = {"input": "in", "output": "out"}
    if any(name.startswith("aws_") for name in settings):
        texts.update(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="canary")
    texts.update(settings)
    lines = []
    for section, names in etl.SECTIONS.items():
        lines += [f"[{section}]", *(f"{name} = {texts[name]}" for name in names if name in texts)]
    return "\n".join(lines) + "\n"


def test_every_setting_is_tried_with_a_wrong_value() -> None:
    assert set(WRONG) == {name for names in etl.SECTIONS.values() for name in names}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_setting_stops_the_job_in_one_line_that_names_it_and_shows_no_key(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable,
    name: str,
    value: str,
) -> None:
    record_property("bad inputs", 1)
    monkeypatch.chdir(tmp_path)
    write_lake(Path("in"), [song()], [event()])
    Path("dl.cfg").write_text(configuration(**{name: value}))
    Path("dl.cfg").chmod(0o600)
    assert etl.main([]) == 2
    (record,) = caplog.records
    assert WRONG[name][value] in record.message and "\n" not in record.message
    assert name.upper() in record.message or "[AWS CREDS] is incomplete" in record.message
    assert "canary" not in record.message and "can ary" not in record.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dl.cfg", "in"]


@pytest.mark.parametrize(
    "text, expected",
    [
        (KEYS, "section [LAKE] is missing; copy it from the project's dl.cfg"),
        (LAKE, "section [AWS CREDS] is missing; copy it from the project's dl.cfg"),
        (KEYS + LAKE + "OUTPT = x\n", "[LAKE] OUTPT is not a setting; delete the line; known are INPUT, OUTPUT, "),
        (KEYS + LAKE + "INPUT = x\n", "line 7 is not 'KEY = value' under a [SECTION], or repeats a key"),
        (LAKE.replace("[LAKE]\n", "") + KEYS, "line 1 is not 'KEY = value' under a [SECTION], or repeats a key"),
        (KEYS + LAKE + "no value\n", "line 7 is not 'KEY = value' under a [SECTION], or repeats a key"),
        (KEYS + "AWS_SESSION_TOKEN = canary\n" + LAKE, "[AWS CREDS] is incomplete; set both keys, or leave all blank"),
    ],
)
def test_a_wrong_configuration_stops_the_job_in_one_line_that_names_the_file(
    config: Path, caplog: pytest.LogCaptureFixture, record_property: Callable, text: str, expected: str
) -> None:
    record_property("bad inputs", 1)
    config.write_text(text)
    assert etl.main(["--config", str(config)]) == 2
    (record,) = caplog.records
    assert record.message.startswith(f"{config}: ") and expected in record.message and "\n" not in record.message
    assert "canary" not in record.message


@pytest.mark.parametrize(
    "path, content, expected",
    [
        ("dl.cfg", None, "dl.cfg: No such file or directory; name the configuration with --config FILE"),
        (".", None, ".: Is a directory; name the configuration with --config FILE"),
        ("dl.cfg", "[LAKE]\nINPUT = ü\n".encode("latin-1"), "dl.cfg: not UTF-8 text; save it as UTF-8"),
        ("dl.cfg", (KEYS + LAKE).encode("utf-16"), "dl.cfg: not UTF-8 text; save it as UTF-8"),
        ("s3://lake/dl.cfg", None, "s3://lake/dl.cfg: the configuration must be a local file; copy it here first"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    content: bytes | None,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content:
        Path(path).write_bytes(content)
    assert etl.main(["--config", path]) == 2
    (record,) = caplog.records
    assert record.message.startswith(expected)


@pytest.mark.parametrize("missing", ["song_data", "log_data"])
def test_an_input_without_songs_or_logs_stops_the_job_before_it_writes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lake(Path("in"), [song()], [event()])
    Path(f"in/{missing}/A/rows.json").rename(f"in/{missing}/A/rows.txt")
    Path("dl.cfg").write_text(KEYS + LAKE)
    assert etl.main([]) == 2
    assert f"{tmp_path}/in/{missing} has no *.json" in caplog.records[-1].message
    assert not Path("out").exists()


def test_the_command_line_wins_over_the_configuration(config: Path) -> None:
    config.write_text(KEYS + LAKE)
    settings = etl.read_settings(str(config), input="s3://elsewhere/raw", output=None)
    assert (settings.input, settings.output) == ("s3://elsewhere/raw", "out")


def test_a_tilde_is_the_home_directory(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    config.write_text(configuration(input="~/raw", output="~/lake"))
    settings = etl.read_settings(str(config))
    assert (settings.input, settings.output) == ("/home/ada/raw", "/home/ada/lake")


def test_input_and_output_may_be_one_place_or_lie_in_each_other(config: Path) -> None:
    for places in ({}, {"input": "lake", "output": "lake"}, {"input": "lake", "output": "lake/tables"}):
        config.write_text(configuration(**places))
        etl.read_settings(str(config))


def test_a_directory_may_have_the_name_of_a_scheme() -> None:
    assert [etl.on_s3(place) for place in ("s3", "s3a/in", "s3://lake/raw")] == [False, False, True]


@pytest.mark.parametrize("bucket", ["lake", "2018-logs", "logs.2018.de", "my-point-abc123-s3alias"])
def test_a_bucket_name_that_spark_can_use_is_accepted(config: Path, bucket: str) -> None:
    config.write_text(configuration(input=f"s3://{bucket}/raw", output=f"s3a://{bucket}"))
    etl.read_settings(str(config))


def test_the_committed_configuration_is_ready_to_run_and_has_no_key() -> None:
    settings = etl.read_settings(str(ROOT / "dl.cfg"))
    assert settings == etl.Settings("data", "output")
    parser = configparser.ConfigParser()
    parser.read(ROOT / "dl.cfg")
    assert not any(parser["AWS CREDS"].values())


def test_the_committed_configuration_mentions_every_setting() -> None:
    text = (ROOT / "dl.cfg").read_text()
    assert [name for names in etl.SECTIONS.values() for name in names if f"{name.upper()} =" not in text] == []


def test_a_percent_sign_in_a_secret_is_a_percent_sign(config: Path) -> None:
    config.write_text(KEYS.replace("ID =", "ID = AKIDEXAMPLE").replace("KEY =", "KEY = a%b%(c)s") + LAKE)
    assert etl.read_settings(str(config)).aws_secret_access_key == "a%b%(c)s"


def test_the_settings_do_not_show_the_keys(config: Path) -> None:
    config.write_text(configuration(aws_session_token="canary") + "\n")
    assert "canary" not in repr(etl.read_settings(str(config)))


def test_an_error_in_a_line_does_not_show_the_line(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    config.write_text("AWS_SECRET_ACCESS_KEY = canary\n" + KEYS + LAKE + "canary\n")
    assert etl.main(["--config", str(config)]) == 2
    assert "canary" not in caplog.text


def test_keys_that_others_can_read_cause_a_warning_with_the_chmod(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config.write_text(configuration(aws_session_token="canary"))
    config.chmod(0o644)
    etl.read_settings(str(config))
    assert f"chmod 600 {config}" in caplog.text
    caplog.clear()
    config.chmod(stat.S_IRUSR)
    etl.read_settings(str(config))
    assert not caplog.text


# The command line, Java and Spark Connect ----------------------------------------------------------------------------


def test_an_unknown_option_is_wrong_usage() -> None:
    with pytest.raises(SystemExit, match="2"):
        etl.main(["--nonsense"])


def test_help_names_the_tables_and_the_exit_codes(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        etl.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in (*etl.TABLES, "--config", "--input", "--output", "Exit codes"))


def etl_with(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python etl.py` on a small lake, with these variables in its environment."""
    write_lake(tmp_path / "in", [song()], [event()])
    (tmp_path / "dl.cfg").write_text(KEYS + LAKE)
    command = [sys.executable, str(ROOT / "etl.py")]
    environment = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)


def test_a_java_that_spark_cannot_start_on_is_explained(tmp_path: Path) -> None:
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'java.lang.UnsupportedClassVersionError: class file version 61.0' >&2; exit 1\n")
    java.chmod(0o755)
    ran = etl_with(tmp_path, JAVA_HOME=str(tmp_path / "jdk"))
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "Spark did not start" in ran.stderr.splitlines()[-1] and "Java 17 or 21" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("name, value", [("SPARK_REMOTE", "sc://localhost"), ("SPARK_API_MODE", "connect")])
def test_spark_connect_stops_the_job_before_it_reads_anything(tmp_path: Path, name: str, value: str) -> None:
    ran = etl_with(tmp_path, **{name: value})
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert f"the job needs a Spark session of its own, not Spark Connect; unset {name}" in last


def test_importing_the_job_does_nothing() -> None:
    program = "import os, etl; from pyspark import SparkContext; assert SparkContext._active_spark_context is None"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
