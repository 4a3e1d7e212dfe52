"""The job from S3 to S3, through Spark's real S3A connector, on a real S3 server on loopback."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import oracle
import pyarrow.dataset
import pyarrow.fs
import pyspark
import pytest
import sparkless
from conftest import ROOT, Outcome, event, job, play_of, song
from faultproxy import Fault, FaultProxy, fault_proxy
from jobs import HASTE, Jobs, jobs
from lake import all_published, in_order
from s3 import Server, minio_server, moto_server, objects, open_uploads

import etl
import upload

CANARY = "canary/Secret+Key0123456789abcdefghijklmnop"
# What some clusters have in spark-defaults.conf; it must not be taken for a sign of EMR.
DEFAULTS = {"spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """An S3 server, which takes any key, with two empty buckets."""
    with moto_server() as server:
        server = server.with_keys("AKIDCANARY", CANARY)
        for bucket in ("lake", "tables"):
            server.client().create_bucket(Bucket=bucket)
        yield server


@pytest.fixture(scope="module")
def event_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def run(server: Server, event_log: Path) -> Iterator[Jobs]:
    conf = {"enabled": "true", "dir": f"file://{event_log}", "compress": "false", "rolling.enabled": "false"}
    with jobs(server, {**DEFAULTS, **{f"spark.eventLog.{name}": value for name, value in conf.items()}}) as run:
        yield run


def put(server: Server, key: str, *rows: dict | str, **options: str) -> None:
    """An object of one row a line, in the bucket that is the first part of the key."""
    bucket, _, key = key.partition("/")
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    server.client().put_object(Bucket=bucket, Key=key, Body=lines.encode(), **options)


def small_lake(server: Server, bucket: str) -> str:
    """The address of an input of one song and one play in a new bucket."""
    server.client().create_bucket(Bucket=bucket)
    put(server, f"{bucket}/in/song_data/a.json", song())
    put(server, f"{bucket}/in/log_data/a.json", play_of(song()))
    return f"s3://{bucket}/in"


def downloaded(server: Server, bucket: str, prefix: str, place: Path) -> Path:
    for key, content in objects(server.client(), bucket, prefix).items():
        path = place / key
        if not key.endswith("/"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return place / prefix


def plays_in(server: Server, address: str) -> int:
    """The rows of songplays."""
    host = server.endpoint.removeprefix("http://")
    store = pyarrow.fs.S3FileSystem(
        access_key="x", secret_key="x", endpoint_override=host, scheme="http", region=server.region
    )
    return pyarrow.dataset.dataset(f"{address.removeprefix('s3://')}/songplays", filesystem=store).count_rows()


# From S3 to S3 -------------------------------------------------------------------------------------------------------


def test_the_sample_goes_up_the_job_runs_from_s3_to_s3_and_the_tables_are_right(
    server: Server, run: Jobs, tmp_path: Path
) -> None:
    config = server.dl_cfg(tmp_path / "dl.cfg", "s3://lake/raw", OUTPUT="s3://tables/sample")
    assert upload.main([str(ROOT / "data"), "--config", str(config)]) == 0
    keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    outcome = run("s3://lake/raw", "s3://tables/sample", **keys)
    assert outcome.code == 0, outcome.lines
    output = downloaded(server, "tables", "sample", tmp_path)
    assert all_published(output) == in_order(oracle.five_tables(ROOT / "data"))
    left = {key for key in objects(server.client(), "tables", "sample") if not key.endswith((".parquet", "/"))}
    assert {key.split("/")[1] for key in left} == {"_runs", "_state"}
    assert open_uploads(server.client(), "tables") == []


def test_keys_from_the_environment_serve_and_one_request_in_ten_may_fail(
    server: Server, run: Jobs, record_property: Callable
) -> None:
    source = small_lake(server, "faulty")
    faults = [Fault("503", fraction=0.05), Fault("reset", fraction=0.05)]
    with fault_proxy(server.endpoint, faults=faults, seed=1) as proxy:
        outcome = run(source, "s3a://faulty/out", ENDPOINT=proxy.endpoint)
        assert outcome.code == 0, outcome.error
        assert sum(proxy.injected().values()) > 5
        assert "DeleteObjects" not in proxy.counts()  # some stores refuse to delete many objects at once
        record_property("failed requests", sum(proxy.injected().values()))
    assert plays_in(server, "s3://faulty/out") == 1


# Every listed object is read, or the run stops and names it ----------------------------------------------------------

NAMES = (
    *("é", "e\u0301", "😀", " a", "a b", "a\\b", "%41", "+", "#", "?", "*", "[1]", "{1}", ";", "'", "_a=b", "x /a"),
    *("a:b", ":", "a:b/c", "[a:b]", "{a:b}", "events [2018-11-01 10:00]", "both", "both.json/inside", "m=%31/a"),
)


def test_an_object_of_any_name_is_read_on_the_first_night_and_on_a_later_one(server: Server, run: Jobs) -> None:
    source = small_lake(server, "names")
    for night in (1, 2):
        for item, name in enumerate(NAMES):
            put(server, f"names/in/log_data/{night}/{name}.json", event(sessionId=night, itemInSession=item))
        outcome = run(source, "s3://names/out")
        assert outcome.code == 0, outcome.error
        assert plays_in(server, "s3://names/out") == 1 + night * len(NAMES)


FOLDED = {  # what Hadoop takes for 2018/a.json; its size would count for that one, and rows of it would be lost
    "an empty part": ("2018//a.json", True),
    "an empty part, alone": ("2018//b.json", True),
    "an empty part at the start": ("/2018/a.json", True),
    "an empty part in an object without a byte": ("2018//a.json", False),
    "a part .": ("2018/./a.json", True),
    "a part . in an object without a byte": ("2018/./a.json", False),
    "a part ..": ("2018/x/../a.json", True),
}


@pytest.mark.parametrize("name", FOLDED)
def test_an_object_that_hadoop_takes_for_another_stops_the_run_by_its_name(
    server: Server, run: Jobs, name: str
) -> None:
    key, has_bytes = FOLDED[name]
    bucket = f"folded-{list(FOLDED).index(name)}"
    source = small_lake(server, bucket)
    put(server, f"{bucket}/in/log_data/2018/a.json", *(event(itemInSession=item) for item in range(3)))
    put(server, f"{bucket}/in/log_data/{key}", *[{}] * has_bytes)
    outcome = run(source, f"s3://{bucket}/out")
    assert outcome.code == 1 and f"{bucket}/in/log_data/{key}: " in outcome.error
    assert not objects(server.client(), bucket, "out/_state")


def test_an_archived_object_is_named_with_the_advice_to_restore_it(server: Server, run: Jobs) -> None:
    source = small_lake(server, "archive")
    put(server, "archive/in/log_data/old.json", event(), StorageClass="GLACIER")
    outcome = run(source, "s3://archive/out")
    assert outcome.code == 1
    assert "log_data/old.json: the object is archived; restore it, then run again" in outcome.error


# A store that stops answering ----------------------------------------------------------------------------------------

WHILE_SPARK_WORKS = {  # the first request that gets no answer, nor does any after it
    "when Spark reads": ("GET", "log_data"),
    "when Spark writes": ("PUT|CreateMPU", "_staging.*parquet"),
}
FROM_THE_COMMIT_ON = {  # and what the run says
    "at the commit": ("PUT", "_state/ledger", "this run may have published; the next run will find out"),
    "when files move in": ("COPY", "", "the run has committed, but readers may not see all of it"),
    "when it clears up": ("DELETE", "parquet", "the run has committed, but readers may not see all of it"),
}
REAL = bool(os.environ.get("REAL_TIME_OUTS"))  # else time-outs of a second, so that the tests are quick


@pytest.mark.parametrize("when", WHILE_SPARK_WORKS)
def test_a_store_that_falls_silent_ends_the_run_by_time_outs_and_the_next_run_is_whole(
    server: Server, run: Jobs, record_property: Callable, when: str
) -> None:
    record_property("store down", 1)
    operation, path = WHILE_SPARK_WORKS[when]
    bucket = f"silent-{list(WHILE_SPARK_WORKS).index(when)}"
    source, since = small_lake(server, bucket), time.monotonic()
    with fault_proxy(server.endpoint, [Fault("silence", operation=operation, path=path, lasting=True)]) as proxy:
        outcome = run(source, f"s3://{bucket}/out", patient=REAL, ENDPOINT=proxy.endpoint)
        took = time.monotonic() - since
        print(f"silence {when}: the run ends after {took:.0f} s")
        assert proxy.outage and took < (600 if REAL else 100)
        assert outcome.code == 1 and "the store does not answer" in outcome.error
        proxy.faults, proxy.outage = [], ""
        outcome = run(source, f"s3://{bucket}/out", ENDPOINT=proxy.endpoint)
        assert outcome.code == 0, outcome.error
    assert plays_in(server, f"s3://{bucket}/out") == 1


@pytest.mark.parametrize("when", FROM_THE_COMMIT_ON)
def test_a_store_that_falls_silent_from_the_commit_on_ends_the_run_and_the_next_run_is_whole(
    server: Server, monkeypatch: pytest.MonkeyPatch, record_property: Callable, when: str
) -> None:
    record_property("store down", 1)
    operation, path, expected = FROM_THE_COMMIT_ON[when]
    if not REAL:
        monkeypatch.setattr(etl, "PATIENCE", HASTE["PATIENCE"])
    sparkless.without_spark(monkeypatch)
    keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
    output = f"s3://tables/silent-{list(FROM_THE_COMMIT_ON).index(when)}"
    settings = etl.Settings("in", output, endpoint=server.endpoint, region=server.region, **keys)
    lake = etl.Bucket(output, settings)
    for name, text in sparkless.FOREIGN.items():
        lake.write(name, text)
    assert sparkless.outcome("r0", settings, lambda: ("log_data/r0.json",)) == "done"
    logs, since = ("log_data/r0.json", "log_data/r1.json"), time.monotonic()
    with fault_proxy(server.endpoint, [Fault("silence", operation=operation, path=path, lasting=True)]) as proxy:
        ended = sparkless.outcome("r1", replace(settings, endpoint=proxy.endpoint), lambda: logs)
        took = time.monotonic() - since
        print(f"silence {when}: the run ends after {took:.0f} s")
        assert proxy.outage and took < (600 if REAL else 60)
    assert expected in ended and "the store does not answer" in ended
    before = sparkless.contents(lake)
    assert not list(sparkless.problems(before, [("r1", ended)]))
    assert sparkless.outcome("r2", settings, lambda: (*logs, "log_data/r2.json")) == "done"
    assert not list(sparkless.not_healed(before, sparkless.contents(lake)))


# What goes wrong before Spark starts ---------------------------------------------------------------------------------


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server; a run in this process loses patience at once."""
    monkeypatch.setattr(etl, "PATIENCE", {**etl.PATIENCE, "read_timeout": 0.5, "retries": {"total_max_attempts": 2}})
    with fault_proxy(server.endpoint) as proxy:
        yield proxy


def early(server: Server, endpoint: str, output: str = "s3://tables/early", **settings: str) -> Outcome:
    """A run in this process that ends before it needs Spark."""
    keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    return job("s3://early/in", output, **{**keys, "ENDPOINT": endpoint, "REGION": server.region, **settings})


@pytest.fixture(scope="module")
def early_lake(server: Server) -> str:
    return small_lake(server, "early")


REFUSALS = {
    Fault("403 AccessDenied"): "access denied; the keys or the role lack a permission",
    Fault("403 InvalidAccessKeyId"): "the store does not know the access key; correct [AWS CREDS], the profile or the",
    Fault("403 SignatureDoesNotMatch"): "the secret key does not belong to the access key; correct [AWS CREDS]",
    Fault("400 ExpiredToken"): "the temporary keys have expired; get new ones",
    Fault("403 RequestTimeTooSkewed"): "the clock of this machine is wrong; set it",
    Fault("400 AuthorizationHeaderMalformed"): "the bucket is in another region; set [LAKE] REGION",
    Fault("404 NoSuchBucket"): "the bucket does not exist; create it or correct the address",
    Fault("400 KMS.DisabledException", operation="PUT"): "the key that encrypts the object cannot be used",
    Fault("500 InternalError"): "the store is overloaded or fails; run it again later",
    Fault("503 SlowDown"): "the store is overloaded or fails; run it again later",
    Fault("reset"): "the store does not answer; check [LAKE] ENDPOINT, REGION, the network",
    Fault("silence"): "the store does not answer; check [LAKE] ENDPOINT, REGION, the network",
    Fault("501 NotImplemented", operation="PUT", header="if-none-match"): "conditional writes (If-None-Match), without",
    Fault("403 AccessDenied", operation="PUT"): "access denied; the keys or the role lack a permission",
    Fault("403 AccessDenied", operation="DELETE"): "access denied; the keys or the role lack a permission",
}


@pytest.mark.parametrize("fault", REFUSALS, ids=lambda fault: f"{fault.kind} {fault.operation}")
def test_a_store_that_refuses_is_explained_in_one_line_before_anything_is_published(
    server: Server, early_lake: str, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.faults = [fault]
    outcome = early(server, proxy.endpoint)
    assert outcome.code == 1 and REFUSALS[fault] in outcome.error and outcome.error.startswith("s3://")
    assert proxy.injected()
    assert not objects(server.client(), "tables", "early/_state")


def test_a_store_that_ignores_the_condition_of_a_write_is_refused(
    server: Server, early_lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = etl.Bucket.write
    monkeypatch.setattr(etl.Bucket, "write", lambda self, name, text, *taken, **condition: write(self, name, text))
    outcome = early(server, server.endpoint)
    assert outcome.code == 1 and "the store ignores If-None-Match, so two runs could publish at once" in outcome.error


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "https://127.0.0.1:{port}", "http://nowhere.invalid"])
def test_an_endpoint_where_no_store_is_is_explained(
    server: Server, proxy: FaultProxy, early_lake: str, endpoint: str
) -> None:
    outcome = early(server, endpoint.format(port=server.endpoint.rpartition(":")[2]))
    assert (
        outcome.code == 1 and "the store does not answer; check [LAKE] ENDPOINT, REGION, the network" in outcome.error
    )


def test_a_missing_bucket_of_the_output_is_named_and_keys_from_a_profile_serve(
    server: Server, early_lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "credentials"
    profile.write_text(
        f"[night]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_PROFILE", "night")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    blank = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    outcome = early(server, server.endpoint, "s3://nowhere/tables", **blank)
    assert outcome.code == 1
    assert outcome.error.startswith("s3://nowhere/tables: the bucket does not exist; create it or correct the address")
    conf, _ = given(monkeypatch, "4.0.2")
    assert (conf["fs.s3a.access.key"], conf["fs.s3a.secret.key"]) == (server.access_key, CANARY)


# What Spark is given -------------------------------------------------------------------------------------------------


def given(monkeypatch: pytest.MonkeyPatch, version: str, **settings: str) -> tuple[dict[str, str], str]:
    """What connect_s3 sets on a Spark of this version, and how an address is written for it."""
    conf: dict[str, str] = {}
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    hadoop = SimpleNamespace(set=conf.__setitem__)
    spark = SimpleNamespace(version=version, _jsc=SimpleNamespace(hadoopConfiguration=lambda: hadoop))
    settings = etl.Settings("s3://lake/raw", "s3n://lake/t", **settings)
    etl.connect_s3(spark, settings)
    return conf, etl.address(spark, settings, settings.input)


KEYS = {"aws_access_key_id": "AK", "aws_secret_access_key": "SK"}


def test_on_emr_spark_is_given_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert given(monkeypatch, "3.5.6-amzn-1", region="us-west-2") == ({}, "s3://lake/raw")


@pytest.mark.parametrize("version", ["3.5.6-amzn-1", "4.0.2"])
def test_keys_and_an_endpoint_in_the_configuration_are_used_on_emr_too(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    conf, address = given(monkeypatch, version, **KEYS)
    assert (conf["fs.s3a.access.key"], conf["fs.s3a.secret.key"], address) == ("AK", "SK", "s3a://lake/raw")
    conf, address = given(monkeypatch, version, endpoint="http://store:9000")
    assert (conf["fs.s3a.endpoint"], conf["fs.s3a.endpoint.region"]) == ("http://store:9000", "us-east-1")
    assert address == "s3a://lake/raw"


def test_without_an_endpoint_spark_finds_amazons(monkeypatch: pytest.MonkeyPatch) -> None:
    conf, _ = given(monkeypatch, "4.0.2", region="us-west-2", **KEYS)
    assert "fs.s3a.endpoint" not in conf and conf["fs.s3a.endpoint.region"] == "us-west-2"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_spark_and_boto3_ask_the_same_store_when_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://store:9000")
    conf, _ = given(monkeypatch, "4.0.2", **KEYS)
    assert conf["fs.s3a.endpoint"] == "http://store:9000"


def test_keys_that_a_profile_cannot_get_are_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[profile night]\ncredential_process = false\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_PROFILE", "night")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(etl.StoreError, match="^AWS keys: "):
        given(monkeypatch, "4.0.2")


def test_the_connector_fits_the_pinned_spark() -> None:
    (pinned,) = re.findall(r"^pyspark==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    jars = " ".join(os.listdir(Path(pyspark.__file__).parent / "jars"))
    (hadoop,) = re.findall(r"hadoop-client-api-([\d.]+)\.jar", jars)
    packages = etl.S3A_SESSION["spark.jars.packages"]
    assert pinned == etl.S3A_SPARK and f"hadoop-aws:{hadoop}," in packages and f"_2.13:{pinned}," in packages


def test_a_spark_that_has_no_known_connector_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etl, "spark_version", "3.5.6")
    monkeypatch.setattr(etl.SparkSession, "getActiveSession", lambda: None)
    with pytest.raises(etl.UsageError, match="not 3.5.6, or spark-submit --packages"):
        etl.spark_session(etl.Settings("s3://lake/raw", "output"))


# Secrets: after all runs of this file --------------------------------------------------------------------------------


def test_no_key_shows_in_tables_reports_logs_event_logs_or_the_process_list(
    server: Server, run: Jobs, event_log: Path
) -> None:
    assert run(small_lake(server, "secrets"), "s3://tables/secrets").code == 0
    processes = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert any(b"sparkify-etl" in line or b"pyspark-shell" in line for line in processes)
    logs = [path.read_bytes() for path in event_log.rglob("*") if path.is_file()]
    assert b"spark.master" in b"".join(logs)
    for text in (*objects(server.client(), "tables").values(), run.output.encode(), *logs, *processes):
        assert CANARY.encode() not in text


@pytest.mark.minio
def test_on_minio_the_sample_goes_up_the_tables_are_right_and_a_wrong_key_is_named(tmp_path: Path) -> None:
    with minio_server() as server, jobs(server) as run:
        config = server.dl_cfg(tmp_path / "dl.cfg", "s3://lake/raw", OUTPUT="s3://lake/tables")
        assert upload.main([str(ROOT / "data"), "--config", str(config), "--create-bucket"]) == 0
        outcome = run("s3://lake/raw", "s3://lake/tables")
        assert outcome.code == 0, outcome.lines
        output = downloaded(server, "lake", "tables", tmp_path)
        assert all_published(output) == in_order(oracle.five_tables(ROOT / "data"))
        keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": "wrong"}
        outcome = run("s3://lake/raw", "s3://lake/tables", **keys)
        assert outcome.code == 1
        assert "the secret key does not belong to the access key; correct [AWS CREDS]" in outcome.error
        outcome = run("s3://lake/raw", "s3://lake/tables", **{**keys, "AWS_ACCESS_KEY_ID": "nobody"})
        assert outcome.code == 1 and "the store does not know the access key; correct [AWS CREDS]" in outcome.error
