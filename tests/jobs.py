"""Runs of the job against S3, all in one process of their own, so that Spark and its S3 connector start only once.

with jobs(server) as run:
    outcome = run("s3://lake/raw", "s3://tables/out", MAX_BAD_RATIO=1)  # as conftest's job()

Hadoop keeps what it knows of a bucket for good. So runs with another endpoint or other time-outs need other buckets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT, Outcome
from s3 import Server

# How long a test waits for a store that does not answer: a second, instead of a minute for each request.
HASTE = {
    "PATIENCE": {"connect_timeout": 1, "read_timeout": 1, "retries": {"total_max_attempts": 2}},
    "S3A_PATIENCE": {"connection.timeout": "500", "attempts.maximum": "0", "retry.limit": "0"},
}

# S3A raises time-outs to 15 s. Tests that wait for one lower that limit by what Hadoop has for its own tests.
PROGRAM = """
import json, sys
import conftest, etl, jobs

def connect(spark, settings, connect_s3=etl.connect_s3):
    jvm, gateway = spark._jvm, spark.sparkContext._gateway
    config = jvm.org.apache.spark.util.Utils.classForName("org.apache.hadoop.fs.s3a.impl.AWSClientConfig", True, False)
    types, values = gateway.new_array(jvm.java.lang.Class, 1), gateway.new_array(jvm.java.lang.Object, 1)
    types[0], values[0] = jvm.java.lang.Class.forName("java.time.Duration"), jvm.java.time.Duration.ofMillis(1)
    method = config.getDeclaredMethod("setMinimumOperationDuration", types)
    method.setAccessible(True)
    method.invoke(None, values)
    connect_s3(spark, settings)

etl.connect_s3, etl.local_session = connect, conftest.small_session
patience = {name: dict(getattr(etl, name)) for name in ("PATIENCE", "S3A_PATIENCE")}
for line in sys.stdin:
    places, options, settings, patient = json.loads(line)
    for name, values in patience.items():
        getattr(etl, name).update({**values, **({} if patient else jobs.HASTE[name])})
    print("outcome", json.dumps(conftest.job(*places, *options, **settings)), flush=True)
"""


class Jobs:
    """The process. `output` is all that it has written."""

    def __init__(self, server: Server, process: subprocess.Popen[str]) -> None:
        self.server, self.process, self.output = server, process, ""

    def __call__(self, source: str, output: str, *options: str, patient: bool = True, **settings: object) -> Outcome:
        """As conftest's job(), on this server. Not patient: with time-outs of a second."""
        given = {"ENDPOINT": self.server.endpoint, "REGION": self.server.region, **settings}
        self.process.stdin.write(json.dumps([[source, output], options, given, patient]) + "\n")
        self.process.stdin.flush()
        timer = threading.Timer(700, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                self.output += line
                if line.startswith("outcome "):
                    return Outcome(*json.loads(line.removeprefix("outcome ")))
        finally:
            timer.cancel()
        raise AssertionError(f"the process of the jobs has ended: {self.output[-2000:]}")


@contextmanager
def jobs(server: Server, conf: dict[str, str] | None = None) -> Iterator[Jobs]:
    """A process for runs, with the server's keys in its environment and nothing of this machine's AWS settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment.update(AWS_EC2_METADATA_DISABLED="true", AWS_CONFIG_FILE=os.devnull)
    environment.update(AWS_SHARED_CREDENTIALS_FILE=os.devnull, PYTHONPATH=f"{ROOT}:{Path(__file__).parent}")
    environment.update(AWS_ACCESS_KEY_ID=server.access_key, AWS_SECRET_ACCESS_KEY=server.secret_key)
    submit = " ".join(f"--conf {key}={value}" for key, value in (conf or {}).items())
    environment["PYSPARK_SUBMIT_ARGS"] = f"{submit} pyspark-shell"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], text=True, env=environment, **pipes)
    try:
        yield Jobs(server, process)
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
