"""dl.cfg and the command line: what is wrong is told in one line that names file, key and remedy, with exit code 2."""

from __future__ import annotations

import configparser
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import etl

KEYS = "[AWS CREDS]\nAWS_ACCESS_KEY_ID =\nAWS_SECRET_ACCESS_KEY =\n"
LAKE = "[LAKE]\nINPUT = data\nOUTPUT = output\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "dl.cfg"


@pytest.mark.parametrize(
    "text, told",
    [
        (KEYS, "section [LAKE] is missing"),
        (LAKE, "section [AWS CREDS] is missing"),
        (KEYS + "[LAKE]\nOUTPUT = output\n", "[LAKE] INPUT is missing"),
        (KEYS + "[LAKE]\nINPUT = data\n", "[LAKE] OUTPUT is missing"),
        ("[AWS CREDS]\nAWS_ACCESS_KEY_ID =\n" + LAKE, "[AWS CREDS] AWS_SECRET_ACCESS_KEY is missing"),
        (KEYS + LAKE.replace("data", ""), "[LAKE] INPUT = '': blank"),
        (KEYS + LAKE.replace("output", "s3://"), "[LAKE] OUTPUT = 's3://': names no bucket"),
        (KEYS + LAKE.replace("data", "s3://your-bucket/raw"), "[LAKE] INPUT still holds a placeholder"),
        (KEYS.replace("ID =", "ID = <your key>") + LAKE, "[AWS CREDS] AWS_ACCESS_KEY_ID still holds a placeholder"),
        (KEYS.replace("ID =", "ID = AKIDEXAMPLE") + LAKE, "[AWS CREDS] holds one key of two"),
        (KEYS + LAKE + "OUTPT = x\n", "[LAKE] OUTPT is no setting; known are INPUT, OUTPUT, "),
        (KEYS + LAKE + "INPUT = x\n", "line 7"),
        (
            KEYS + LAKE + "SONGS_PARTITION_BY = artist\n",
            "[LAKE] SONGS_PARTITION_BY = 'artist': choose one of: year | year, artist_id",
        ),
        (KEYS + LAKE + "SSE = kms\n", "[LAKE] SSE = 'kms': choose one of: AES256 | aws:kms"),
        (LAKE.replace("[LAKE]\n", "") + KEYS, "line 1"),
        (KEYS + LAKE + "no value\n", "line 7"),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(
    config: Path, caplog: pytest.LogCaptureFixture, text: str, told: str
) -> None:
    config.write_text(text)
    assert etl.main(["--config", str(config)]) == 2
    (record,) = caplog.records
    assert record.message.startswith(f"{config}: ") and told in record.message and "\n" not in record.message


def test_a_missing_configuration_is_named(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert etl.main(["--config", str(config)]) == 2
    assert f"{config}: No such file or directory; name the configuration with --config" in caplog.text


def test_a_configuration_that_is_no_text_is_named(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    config.write_bytes("[LAKE]\nINPUT = ü\n".encode("latin-1"))
    assert etl.main(["--config", str(config)]) == 2
    assert "not UTF-8" in caplog.text


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda root: None, "song_data does not exist or holds no *.json"),
        (lambda root: (root / "song_data").mkdir(parents=True), "song_data does not exist or holds no *.json"),
        (lambda root: write(root / "song_data" / "a.json"), "log_data does not exist or holds no *.json"),
    ],
)
def test_an_input_without_songs_or_logs_is_told_before_anything_is_written(
    spark, tmp_path: Path, caplog: pytest.LogCaptureFixture, make, told: str
) -> None:
    make(tmp_path / "lake")
    arguments = [
        "--config",
        str(ROOT / "dl.cfg"),
        "--input",
        str(tmp_path / "lake"),
        "--output",
        str(tmp_path / "output"),
    ]
    assert etl.main(arguments) == 2
    assert str(tmp_path / "lake") in caplog.records[-1].message and told in caplog.records[-1].message
    assert not (tmp_path / "output").exists()


def write(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def test_the_command_line_wins_over_the_configuration(config: Path) -> None:
    config.write_text(KEYS + LAKE)
    settings = etl.read_settings(str(config), input="s3://elsewhere/raw", output=None)
    assert (settings.input, settings.output) == ("s3://elsewhere/raw", "output")


def test_the_committed_configuration_is_ready_to_run_and_holds_no_key() -> None:
    settings = etl.read_settings(str(ROOT / "dl.cfg"))
    assert (settings.input, settings.output) == ("data", "output")
    parser = configparser.ConfigParser()
    parser.read(ROOT / "dl.cfg")
    assert not any(parser["AWS CREDS"].values())


def test_a_percent_sign_in_a_secret_is_a_percent_sign(config: Path) -> None:
    config.write_text(KEYS.replace("ID =", "ID = AKIDEXAMPLE").replace("KEY =", "KEY = a%b%(c)s") + LAKE)
    assert etl.read_settings(str(config)).aws_secret_access_key == "a%b%(c)s"


def test_the_settings_do_not_show_the_keys(config: Path) -> None:
    config.write_text(KEYS.replace("ID =", "ID = AKIDEXAMPLE").replace("KEY =", "KEY = canary") + LAKE)
    assert "canary" not in repr(etl.read_settings(str(config)))


def test_an_error_in_a_line_does_not_show_the_line(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    config.write_text("AWS_SECRET_ACCESS_KEY = canary\n" + KEYS + LAKE + "canary\n")
    assert etl.main(["--config", str(config)]) == 2
    assert "canary" not in caplog.text


def test_keys_that_others_can_read_are_warned_of_with_the_chmod(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    config.write_text(KEYS.replace("ID =", "ID = AKIDEXAMPLE").replace("KEY =", "KEY = secret") + LAKE)
    config.chmod(0o644)
    etl.read_settings(str(config))
    assert f"chmod 600 {config}" in caplog.text
    caplog.clear()
    config.chmod(stat.S_IRUSR)
    etl.read_settings(str(config))
    assert not caplog.text


# The command line and Java -----------------------------------------------------------------------------------------


def test_an_unknown_option_is_wrong_usage() -> None:
    with pytest.raises(SystemExit, match="2"):
        etl.main(["--nonsense"])


def test_help_names_the_tables_and_the_exit_codes(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        etl.main(["--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in (*etl.TABLES, "--config", "--input", "--output", "Exit codes"))


def fake_java(root: Path, version: str) -> Path:
    java = root / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2020-01-01' >&2\n")
    java.chmod(0o755)
    return root


@pytest.mark.parametrize(
    "version, told", [("1.8.0_392", "Java 8"), ("11.0.2", "Java 11"), ("25", "Java 25"), (None, "no Java")]
)
def test_a_java_that_spark_cannot_run_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, told: str
) -> None:
    home = fake_java(tmp_path, version) if version else tmp_path
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(
        etl.UsageError, match=f"Spark needs Java 17 or 21, and JAVA_HOME={home} holds {told}: install one"
    ):
        etl.check_java()


@pytest.mark.parametrize("version", ["17.0.15", "21.0.1"])
def test_java_17_and_21_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, version)))
    etl.check_java()


def test_importing_the_job_does_nothing() -> None:
    program = "import os, etl; from pyspark import SparkContext; assert SparkContext._active_spark_context is None"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
