"""The job on a real YARN and a real S3 protocol, as `spark-submit --master yarn etl.py` runs it on a cluster."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from lake import all_published, in_order
from oracle import five_tables
from s3 import Server, moto_server, objects, open_uploads
from yarn import (
    Yarn,
    applications,
    containers,
    containers_granted,
    kill_executor,
    python_without_packages,
    started,
    submit,
    yarn_cluster,
)

pytestmark = pytest.mark.yarn

BUCKET = "lake"
PYTHON35 = os.environ.get("PYTHON35") or f"{ROOT}/.venv35/bin/python"
MODES = pytest.mark.parametrize("mode", ["client", "cluster"])


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    """A server whose bucket holds the sample, as raw/."""
    with moto_server() as server:
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        for file in (ROOT / "data").rglob("*.json*"):
            client.upload_file(str(file), BUCKET, f"raw/{file.relative_to(ROOT / 'data')}")
        yield server


@pytest.fixture(scope="module")
def yarn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yarn]:
    with yarn_cluster(tmp_path_factory.mktemp("yarn")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected() -> dict[str, list[tuple]]:
    return in_order(five_tables(str(ROOT / "data")))


def arguments(s3: Server, place: Path, mode: str, output: str, source: str = "raw") -> tuple[list[str], list[Path]]:
    """etl.py's arguments and the files that travel with it: in cluster mode dl.cfg lies beside the script."""
    config = s3.dl_cfg(place / "dl.cfg", "s3a://not-this/one", OUTPUT="s3a://not-this/one")
    name, files = ("dl.cfg", [config]) if mode == "cluster" else (str(config), [])
    return ["--config", name, "--input", f"s3a://{BUCKET}/{source}", "--output", f"s3a://{BUCKET}/{output}"], files


def run(yarn: Yarn, mode: str, args: list[str], files: list[Path]) -> subprocess.CompletedProcess:
    return submit(yarn, mode, ROOT / "etl.py", *args, files=files)


def tables_in(s3: Server, output: str, place: Path) -> dict[str, list[tuple]]:
    """The tables below s3://BUCKET/output, by way of a copy on this disk."""
    for key, body in objects(s3.client(), BUCKET, output + "/").items():
        if key.endswith(".parquet") and "/_" not in key:
            copy = place / key
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(body)
    return all_published(place / output)


def driver_log(yarn: Yarn, mode: str, done: subprocess.CompletedProcess) -> str:
    """What the driver said: in client mode here, in cluster mode in the application's first container."""
    return done.stdout if mode == "client" else next(iter(containers(yarn, applications(yarn)[-1].id).values()))


@MODES
def test_a_job_on_yarn_takes_s3_to_s3_and_its_tables_equal_the_oracles(
    mode: str, yarn: Yarn, s3: Server, expected: dict[str, list[tuple]], tmp_path: Path
) -> None:
    granted = containers_granted(yarn)
    done = run(yarn, mode, *arguments(s3, tmp_path, mode, output := f"done-{mode}"))
    assert done.returncode == 0, driver_log(yarn, mode, done)[-3000:]
    assert tables_in(s3, output, tmp_path) == expected
    application = applications(yarn)[-1]
    assert (application.state, application.final_state) == ("FINISHED", "SUCCEEDED")
    assert containers_granted(yarn) - granted >= 3  # the application's master and two executors
    executors = [text for text in list(containers(yarn, application.id).values())[1:] if "Running task" in text]
    assert len(executors) >= 2
    assert not open_uploads(s3.client(), BUCKET)


@MODES
def test_a_job_that_fails_on_yarn_says_why_in_one_line_and_publishes_nothing(
    mode: str, yarn: Yarn, s3: Server, tmp_path: Path
) -> None:
    s3.client().put_object(Bucket=BUCKET, Key="songs-only/song_data/a.json", Body=b'{"song_id": "SO1"}\n')
    done = run(yarn, mode, *arguments(s3, tmp_path, mode, output := f"failed-{mode}", source="songs-only"))
    assert done.returncode != 0
    reasons = [line for line in driver_log(yarn, mode, done).splitlines() if f"{BUCKET}/songs-only/log_data" in line]
    assert any(" ERROR " in line and "INPUT" in line for line in reasons), reasons
    assert "Traceback" not in driver_log(yarn, mode, done)
    assert not [key for key in objects(s3.client(), BUCKET, output + "/") if key.endswith(".parquet")]
    if mode == "cluster":  # in client mode YARN calls every application a success whose driver has gone away
        assert applications(yarn)[-1].final_state == "FAILED"


def test_a_job_whose_executor_is_killed_in_mid_run_still_gives_the_same_tables(
    yarn: Yarn, s3: Server, expected: dict[str, list[tuple]], tmp_path: Path
) -> None:
    args, files = arguments(s3, tmp_path, "client", "survived")
    job = started(yarn, "client", ROOT / "etl.py", "--verbose", *args, files=files)
    try:
        assert any(" songplays in " in line for line in job.stdout)  # songplays is staged; the audit has not begun
        assert kill_executor(yarn)
        rest = job.stdout.read()
        code = job.wait(60)
    finally:
        job.kill()
    assert code == 0, rest[-3000:]
    assert "Lost executor" in rest
    assert tables_in(s3, "survived", tmp_path) == expected


BOTO3 = ("boto3", "botocore", "s3transfer", "jmespath", "urllib3", "dateutil", "six")  # and what it needs


def by_hand(mode: str) -> tuple[dict[str, str], list[str]]:
    """docs/emr.md's spark-submit in this mode: the environment before it, and its options."""
    [line] = [
        line
        for line in (ROOT / "docs" / "emr.md").read_text(encoding="utf-8").splitlines()
        if "spark-submit --master yarn" in line and ("--deploy-mode cluster" in line) == (mode == "cluster")
    ]
    words = shlex.split(line)
    start = words.index("spark-submit")
    options = words[start + 1 : words.index("etl.py")]
    return dict(word.split("=", 1) for word in words[:start]), options


def install(directory: Path) -> None:
    """boto3 as `pip install --target` leaves it, without a network."""
    directory.mkdir()
    for name in BOTO3:
        origin = Path(importlib.util.find_spec(name).origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, directory / name)
        else:
            shutil.copy(origin, directory)


@MODES
def test_the_commands_by_hand_run_where_python_lacks_boto3(
    mode: str, yarn: Yarn, s3: Server, expected: dict[str, list[tuple]], tmp_path: Path
) -> None:
    bare = python_without_packages(tmp_path / "bare", sys.executable)
    assert subprocess.run([bare, "-c", "import boto3"], capture_output=True).returncode == 1
    install(tmp_path / "deps")
    subprocess.run(["tar", "-czf", "deps.tgz", "-C", "deps", "."], cwd=tmp_path, check=True)
    shutil.copy(ROOT / "etl.py", tmp_path)
    s3.dl_cfg(tmp_path / "dl.cfg", f"s3a://{BUCKET}/raw", OUTPUT=f"s3a://{BUCKET}/by-hand-{mode}")
    environment, options = by_hand(mode)
    done = submit(yarn, mode, "etl.py", options=options, python=bare, directory=tmp_path, **environment)
    assert done.returncode == 0, driver_log(yarn, mode, done)[-3000:]
    assert tables_in(s3, f"by-hand-{mode}", tmp_path) == expected


def test_a_job_on_yarn_runs_unchanged_on_spark_3_5_and_python_3_9(
    s3: Server, expected: dict[str, list[tuple]], tmp_path: Path
) -> None:
    assert shutil.which(PYTHON35), f"no {PYTHON35}: make .venv35/tests, or set PYTHON35 to a Python with pyspark 3.5.6"
    with yarn_cluster(tmp_path / "yarn", PYTHON35) as yarn:
        done = run(yarn, "cluster", *arguments(s3, tmp_path, "cluster", "spark35"))
        assert done.returncode == 0, driver_log(yarn, "cluster", done)[-3000:]
        assert applications(yarn)[-1].final_state == "SUCCEEDED"
    assert tables_in(s3, "spark35", tmp_path) == expected
