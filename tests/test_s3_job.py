"""The job from S3 to S3, through Spark's real S3A connector, on a real S3 server on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import oracle
import pytest
from conftest import ROOT
from faultproxy import Fault, fault_proxy
from lake import all_published, in_order
from pyspark.sql import SparkSession
from s3 import Server, minio_server, objects, open_uploads

import etl
import upload

FAULTY = {"OUTPUT": "s3://tables/faulty", "MAX_BAD_RATIO": "1"}
CANARY = "canary/Secret+Key0123456789abcdefghijklmnop"


def run_job(config: Path, conf: dict[str, str] | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`python etl.py` in a process of its own, as a user would; no AWS settings of this machine reach it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    clean.update(AWS_EC2_METADATA_DISABLED="true", AWS_CONFIG_FILE="/dev/null", AWS_SHARED_CREDENTIALS_FILE="/dev/null")
    submit = " ".join(f"--conf {key}={value}" for key, value in (conf or {}).items())
    if submit:
        environment["PYSPARK_SUBMIT_ARGS"] = f"{submit} pyspark-shell"
    command = [sys.executable, str(ROOT / "etl.py"), "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **environment}, timeout=400)


def last_line(told: subprocess.CompletedProcess) -> str:
    return told.stderr.strip().splitlines()[-1]


def downloaded(server: Server, bucket: str, prefix: str, place: Path) -> Path:
    for key, content in objects(server.client(), bucket, prefix).items():
        path = place / key
        if not key.endswith("/"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return place / prefix


def test_the_sample_goes_up_the_job_runs_from_s3_to_s3_and_the_tables_are_right_and_no_key_shows(
    server: Server, tmp_path: Path
) -> None:
    config = server.dl_cfg(tmp_path / "dl.cfg", "s3://lake/raw", OUTPUT="s3://tables/sample")
    config.write_text(config.read_text().replace(server.secret_key, CANARY))
    assert upload.main([str(ROOT / "data"), "--config", str(config)]) == 0
    events = tmp_path / "events"
    events.mkdir()
    conf = {"enabled": "true", "dir": f"file://{events}", "compress": "false"}
    told = run_job(config, conf={f"spark.eventLog.{name}": value for name, value in conf.items()})
    assert told.returncode == 0, told.stderr
    output = downloaded(server, "tables", "sample", tmp_path)
    assert all_published(output) == in_order(oracle.five_tables(ROOT / "data"))
    left = {key for key in objects(server.client(), "tables", "sample") if not key.endswith((".parquet", "/"))}
    assert {key.split("/")[1] for key in left} == {"_lock", "_runs", "_state"}
    assert open_uploads(server.client(), "tables") == []
    logged = [path.read_bytes() for path in events.rglob("*") if path.is_file()]
    assert logged and b"spark.master" in b"".join(logged)
    for text in (*logged, *objects(server.client(), "tables").values(), told.stdout.encode(), told.stderr.encode()):
        assert CANARY.encode() not in text


def test_keys_from_the_environment_serve_and_one_request_in_ten_may_fail(
    server: Server, small: Path, tmp_path: Path, record_property: Callable
) -> None:
    faults = [Fault("503", fraction=0.05), Fault("reset", fraction=0.05)]
    with fault_proxy(server.endpoint, faults=faults, seed=1) as proxy:
        config = server.behind(proxy.endpoint).dl_cfg(tmp_path / "dl.cfg", "s3a://lake/small", **FAULTY)
        config.write_text(re.sub("(AWS_.* =).*", r"\1", config.read_text()))
        told = run_job(config, AWS_ACCESS_KEY_ID=server.access_key, AWS_SECRET_ACCESS_KEY=server.secret_key)
        assert told.returncode == 0, told.stderr
        assert sum(proxy.injected().values()) > 5
        record_property("failed requests", sum(proxy.injected().values()))
    assert "log_data: 1 lines quarantined: broken JSON" in told.stderr
    output = downloaded(server, "tables", "faulty", tmp_path)
    assert all_published(output) == in_order(oracle.five_tables(small))


def test_keys_from_a_profile_serve_and_a_missing_bucket_is_named(server: Server, small: Path, tmp_path: Path) -> None:
    config = server.dl_cfg(tmp_path / "dl.cfg", "s3://lake/small", OUTPUT="s3://nowhere/tables")
    config.write_text(re.sub("(AWS_.* =).*", r"\1", config.read_text()))
    profile = tmp_path / "credentials"
    keys = (f"aws_access_key_id = {server.access_key}", f"aws_secret_access_key = {server.secret_key}")
    profile.write_text("\n".join(["[night]", *keys]))
    told = run_job(config, AWS_PROFILE="night", AWS_SHARED_CREDENTIALS_FILE=str(profile))
    assert told.returncode == 1
    assert "nowhere" in last_line(told) and "does not exist" in last_line(told)


@pytest.mark.minio
def test_on_minio_the_sample_goes_up_the_tables_are_right_and_a_wrong_key_is_named(tmp_path: Path) -> None:
    with minio_server() as server:
        config = server.dl_cfg(tmp_path / "dl.cfg", "s3://lake/raw", OUTPUT="s3://lake/tables")
        assert upload.main([str(ROOT / "data"), "--config", str(config), "--create-bucket"]) == 0
        told = run_job(config)
        assert told.returncode == 0, told.stderr
        output = downloaded(server, "lake", "tables", tmp_path)
        assert all_published(output) == in_order(oracle.five_tables(ROOT / "data"))
        config.write_text(config.read_text().replace(server.secret_key, "wrong-secret"))
        told = run_job(config)
        assert told.returncode == 1
        assert "the secret key does not fit the access key; mend [AWS CREDS]" in last_line(told)
        config.write_text(config.read_text().replace("= testing\n", "= nobody\n"))
        told = run_job(config)
        assert told.returncode == 1
        assert "the access key is unknown here; mend [AWS CREDS]" in last_line(told)


@pytest.mark.parametrize(
    "jars, expected",
    [
        ("hadoop-client-api-3.3.4.jar spark-core_2.12-3.5.6.jar", ["hadoop-aws:3.3.4", "hadoop-cloud_2.12:3.5.5"]),
        ("hadoop-client-api-3.4.1.jar spark-core_2.13-4.0.2.jar", ["hadoop-aws:3.4.1", "hadoop-cloud_2.13:4.0.2"]),
    ],
)
def test_the_connector_fits_the_running_spark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jars: str, expected: list[str]
) -> None:
    (tmp_path / "jars").mkdir()
    for jar in jars.split():
        (tmp_path / "jars" / jar).touch()
    monkeypatch.setattr(etl, "_find_spark_home", lambda: str(tmp_path))
    assert etl.s3a_packages(etl.Settings(input="data", output="output")) == {}
    packages = etl.s3a_packages(etl.Settings(input="s3://lake/raw", output="output"))["spark.jars.packages"]
    assert [name for name in expected if name in packages] == expected


def test_on_emr_nothing_is_told_to_s3(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = spark._jsc.hadoopConfiguration()
    settings, before = etl.Settings("s3://lake/raw", "s3://lake/t", aws_access_key_id="AK"), conf.size()
    conf.set("fs.s3.impl", "org.apache.hadoop.fs.s3a.S3AFileSystem")  # as on EMR
    try:
        etl.connect_s3(spark, settings)
        assert etl.address(spark, "s3://lake/raw/") == "s3://lake/raw"
        assert conf.get("fs.s3a.access.key") is None and conf.get("fs.s3a.committer.name") != "magic"
        assert "cloud" not in spark.conf.get("spark.sql.sources.commitProtocolClass")
    finally:
        conf.unset("fs.s3.impl")
    assert conf.size() == before


def test_off_emr_s3_is_s3a(spark: SparkSession) -> None:
    assert etl.address(spark, "s3://lake/raw/") == "s3a://lake/raw"
    assert etl.address(spark, "s3a://lake/raw") == "s3a://lake/raw"
