#!/usr/bin/env python3
"""Runs etl.py on an EMR cluster of its own: launches it, waits, tells why if the job fails, and leaves nothing running.

    python emr.py --dry-run      prints what would be shipped and asked for
    python emr.py                does it; the exit code is the job's

Everything comes from dl.cfg: [LAKE] says what the job reads and writes (both on S3), [EMR] what it runs on. The keys in
[AWS CREDS] are used here and stay here: the cluster works with the role of its instance profile.

Exit codes: as etl.py's. 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted (the cluster is terminated).
docs/emr.md takes a newcomer from an AWS account to the first run.
"""

from __future__ import annotations

import argparse
import configparser
import gzip
import io
import json
import logging
import re
import shlex
import signal
import sys
import uuid
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import etl
from etl import JobError, UsageError

log = logging.getLogger("emr")

NAME = "sparkify-etl"  # of the cluster, its step, and the tags by which a later call finds it
ACTIVE = ["STARTING", "BOOTSTRAPPING", "RUNNING", "WAITING"]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "INTERRUPTED"}
POLL = 30  # seconds between two looks
SILENCE = 600  # seconds without an answer from AWS before we give up waiting
LOG_WAIT = 600  # seconds for a step's log to reach S3; EMR copies logs every few minutes and when it terminates
TAIL = 30  # lines of the job's log to show when it failed


# ------------------------------------------------------------------------------------------------------------------
# Configuration
# ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """What dl.cfg's section [EMR] says."""

    code: str  # where etl.py and dl.cfg are shipped to, an s3:// address
    logs: str  # where EMR puts the logs, an s3:// address
    subnet: str
    release: str = "emr-spark-8.0.0"
    primary_type: str = "m5.xlarge"
    core_type: str = "m5.xlarge"
    core_count: int = 2
    task_type: str = "m5.xlarge"
    task_count: int = 0  # on Spot: cheap, and may be taken away at any time, which costs time and nothing else
    service_role: str = "EMR_DefaultRole"
    instance_profile: str = "EMR_EC2_DefaultRole"
    key_name: str = ""
    tags: str = ""  # name=value, name=value
    timeout_minutes: int = 240


def read_cluster(path: str) -> Cluster:
    """The section [EMR] of the file at `path`. UsageError names what is wrong."""
    parser = etl.parsed_config(path)
    if not parser.has_section("EMR"):
        raise UsageError(f"{path}: section [EMR] is missing; docs/emr.md shows one")
    known, values = {field.name: field for field in fields(Cluster)}, {}
    for key, value in parser.items("EMR"):
        if key not in known:
            raise UsageError(f"{path}: [EMR] {key.upper()} is no setting; known are {', '.join(known).upper()}")
        if value:
            values[key] = number(path, key, value) if isinstance(known[key].default, int) else value.rstrip("/")
    for key in ("code", "logs", "subnet"):
        if key not in values:
            raise UsageError(f"{path}: [EMR] {key.upper()} is missing or blank; docs/emr.md tells what belongs there")
    for key in ("code", "logs"):
        if not etl.s3_place(values[key])[0]:
            raise UsageError(f"{path}: [EMR] {key.upper()} = {values[key]!r}: give an s3://BUCKET/PREFIX address")
    cluster = Cluster(**values)
    tags_of(cluster, path)
    return cluster


def number(path: str, key: str, value: str) -> int:
    least = 0 if key == "task_count" else 1
    if not re.fullmatch("[0-9]{1,5}", value) or int(value) < least:
        raise UsageError(f"{path}: [EMR] {key.upper()} = {value!r}: give a whole number, {least} or more")
    return int(value)


def tags_of(cluster: Cluster, path: str = "dl.cfg") -> dict[str, str]:
    """"project=lake, owner=me" -> {"project": "lake", "owner": "me"}"""
    pairs = [pair.strip() for pair in cluster.tags.split(",") if pair.strip()]
    if any(not re.fullmatch("[^=]+=.*", pair) for pair in pairs):
        raise UsageError(f"{path}: [EMR] TAGS = {cluster.tags!r}: write name=value, name=value")
    return {name.strip(): value.strip() for name, value in (pair.split("=", 1) for pair in pairs)}


def shipped_config(path: str) -> str:
    """dl.cfg as the cluster gets it: no keys, no [EMR], nothing that only makes sense elsewhere."""
    source, shipped = etl.parsed_config(path), configparser.ConfigParser(interpolation=None)
    shipped.read_dict({section: dict(source.items(section)) for section in source.sections() if section != "EMR"})
    shipped["AWS CREDS"] = dict.fromkeys(etl.REQUIRED["AWS CREDS"], "")
    for key in ("input", "output"):
        if not etl.on_s3(shipped["LAKE"][key]):
            raise UsageError(f"{path}: [LAKE] {key.upper()} = {shipped['LAKE'][key]!r}: EMR needs an s3:// address")
    if shipped["LAKE"].get("endpoint"):
        raise UsageError(f"{path}: [LAKE] ENDPOINT names a store that is not Amazon's; EMR cannot serve it")
    text = io.StringIO()
    shipped.write(text)
    return text.getvalue()


# ------------------------------------------------------------------------------------------------------------------
# The request
# ------------------------------------------------------------------------------------------------------------------


def request_for(cluster: Cluster, settings: etl.Settings, run: str) -> dict[str, Any]:
    """RunJobFlow's arguments for a cluster that runs the job `run` once and is gone."""
    return {
        "Name": NAME,
        "ReleaseLabel": cluster.release,
        "Applications": [{"Name": "Spark"}],
        "LogUri": f"{cluster.logs}/",
        "ServiceRole": cluster.service_role,
        "JobFlowRole": cluster.instance_profile,
        "VisibleToAllUsers": True,
        "AutoTerminationPolicy": {"IdleTimeout": 900},
        "Instances": {
            "InstanceGroups": instance_groups(cluster),
            "Ec2SubnetId": cluster.subnet,
            **({"Ec2KeyName": cluster.key_name} if cluster.key_name else {}),
            "KeepJobFlowAliveWhenNoSteps": False,
            "TerminationProtected": False,
        },
        "Steps": [
            {
                "Name": NAME,
                "ActionOnFailure": "TERMINATE_CLUSTER",
                "HadoopJarStep": {"Jar": "command-runner.jar", "Args": ["bash", "-c", script(cluster, run)]},
            }
        ],
        "Tags": [{"Key": key, "Value": value} for key, value in all_tags(cluster, settings, run).items()],
    }


def instance_groups(cluster: Cluster) -> list[dict[str, Any]]:
    groups = [
        ("MASTER", "ON_DEMAND", cluster.primary_type, 1),
        ("CORE", "ON_DEMAND", cluster.core_type, cluster.core_count),
        ("TASK", "SPOT", cluster.task_type, cluster.task_count),
    ]
    return [
        {"Name": role.lower(), "InstanceRole": role, "Market": market, "InstanceType": kind, "InstanceCount": count}
        for role, market, kind, count in groups
        if count
    ]


def all_tags(cluster: Cluster, settings: etl.Settings, run: str) -> dict[str, str]:
    """The user's tags and ours: whose lake the cluster writes to, and which call launched it."""
    return {
        **tags_of(cluster),
        "for-use-with-amazon-emr-managed-policies": "true",  # what Amazon's own role policies ask for
        NAME: lake_of(settings),
        f"{NAME}-run": run,
    }


def lake_of(settings: etl.Settings) -> str:
    """The output address, however it is written: s3a://lake/tables/ -> s3://lake/tables"""
    return "s3://" + etl.s3_path(settings.output)


def script(cluster: Cluster, run: str) -> str:
    """What the primary node does. `timeout` ends a job that hangs even when nobody waits for it any more."""
    fetch = f"aws s3 cp --recursive --only-show-errors {shlex.quote(f'{cluster.code}/{run}/')} ."
    # What the job's lock and moves are made with; a release may or may not bring it.
    python = '"${PYSPARK_PYTHON:-python3}"'
    boto3 = f'{python} -c "import boto3" 2>/dev/null || sudo {python} -m pip install -q boto3'
    # spark-submit turns the job's stderr into its own stdout: one log for both.
    submit = f"timeout {cluster.timeout_minutes}m spark-submit --master yarn etl.py 1>&2"
    # EMR does not hand on a step's exit code, so the log does.
    steps = f'cd "$(mktemp -d)" && {fetch} && {{ {boto3}; }} && {submit}'
    return f'{steps}; code=$?; echo "exit code $code" >&2; exit $code'


# ------------------------------------------------------------------------------------------------------------------
# The edges
# ------------------------------------------------------------------------------------------------------------------


class Aws(NamedTuple):
    """The services that are asked, as boto3 clients."""

    emr: Any
    emr_once: Any  # the same, but what fails is not tried again
    s3: Any
    iam: Any


def connect(settings: etl.Settings) -> Aws:
    from botocore.config import Config

    session = etl.aws_session(settings)
    if not session.region_name:
        raise UsageError("no AWS region: set [LAKE] REGION in dl.cfg, or AWS_DEFAULT_REGION")

    def client(name: str, attempts: int = 5):
        retries = {"mode": "standard", "total_max_attempts": attempts}
        return session.client(name, config=Config(retries=retries, connect_timeout=20))

    return Aws(client("emr"), client("emr", attempts=1), client("s3"), client("iam"))


def check_roles(aws: Aws, cluster: Cluster) -> None:
    """Roles first: without them EMR takes the request, and the cluster dies minutes later."""
    for what, ask in (
        ("SERVICE_ROLE", lambda: aws.iam.get_role(RoleName=cluster.service_role)),
        ("INSTANCE_PROFILE", lambda: aws.iam.get_instance_profile(InstanceProfileName=cluster.instance_profile)),
    ):
        try:
            ask()
        except aws.iam.exceptions.NoSuchEntityException:
            name = getattr(cluster, what.lower())
            raise UsageError(f"[EMR] {what} = {name!r} does not exist; docs/emr.md, 'Roles', makes it") from None


def running(aws: Aws, tag: str, value: str) -> list[str]:
    """The ids of our active clusters with that tag, the oldest first."""
    pages = aws.emr.get_paginator("list_clusters").paginate(ClusterStates=ACTIVE)
    ours = [entry for page in pages for entry in page["Clusters"] if entry["Name"] == NAME]
    ours.sort(key=lambda entry: (entry["Status"]["Timeline"]["CreationDateTime"], entry["Id"]))
    return [entry["Id"] for entry in ours if {"Key": tag, "Value": value} in tags_on(aws, entry["Id"])]


def tags_on(aws: Aws, cluster_id: str) -> list[dict[str, str]]:
    return aws.emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Tags"]


def refuse_a_second(aws: Aws, lake: str, but: str = "") -> None:
    """JobError if another cluster writes to this output; of two that were launched at once, the older one stays."""
    others = running(aws, NAME, lake)
    if others and others[0] != but:
        remedy = f"wait for it, or stop it: {stop_command(others[0])}"
        raise JobError(f"cluster {others[0]} already writes to {lake}; {remedy}")


def ship(aws: Aws, cluster: Cluster, config: str, run: str) -> None:
    """etl.py and a dl.cfg without keys to CODE/run/; they stay there, a record of what ran."""
    bucket, prefix = etl.s3_place(f"{cluster.code}/{run}")
    job = Path(etl.__file__).read_bytes()
    for name, body in (("etl.py", job), ("dl.cfg", config.encode())):
        aws.s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=body)
    log.info("shipped etl.py and a dl.cfg without keys to %s/%s", cluster.code, run)


def launch(aws: Aws, request: dict[str, Any], run: str) -> str:
    """The new cluster's id. RunJobFlow has no token against doubles: an answer that got lost is looked for by tag."""
    from botocore.exceptions import HTTPClientError

    try:
        return aws.emr_once.run_job_flow(**request)["JobFlowId"]
    except HTTPClientError as error:
        found = running(aws, f"{NAME}-run", run)
        if not found:
            raise JobError(f"no answer from EMR ({error}), and no cluster of this run is there; try again") from None
        return found[0]


def wait(aws: Aws, cluster_id: str, timeout: float) -> dict[str, Any]:
    """The job's step when it has ended, or when the cluster has, with a line for every change on the way."""
    from botocore.exceptions import HTTPClientError

    started = heard = told = monotonic()
    before = None
    while True:
        now = monotonic()
        try:
            cluster = aws.emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]
            step = aws.emr.list_steps(ClusterId=cluster_id)["Steps"][0]
            heard = now
            state = f"cluster {cluster['State'].lower()}, job {step['Status']['State'].lower()}"
            if state != before or now - told >= 300:
                log.info("%s: %s, %d min", cluster_id, state, (now - started) / 60)
                before, told = state, now
            if step["Status"]["State"] in ENDED or cluster["State"].startswith("TERMINATED"):
                return {**step, "Cluster": cluster}
        except HTTPClientError as error:
            log.warning("no answer from AWS, trying again: %s", error)
            if now - heard >= SILENCE:
                raise JobError(f"lost the connection to AWS for {SILENCE // 60} minutes") from None
        if now - started >= timeout:
            raise JobError(f"the job did not end within {timeout / 60:.0f} minutes ([EMR] TIMEOUT_MINUTES)")
        sleep(POLL)


def stop(aws: Aws, cluster_id: str) -> None:
    """Cancels the job and terminates the cluster; if that fails, says what to type."""
    try:
        cancel(aws, cluster_id)
        aws.emr.terminate_job_flows(JobFlowIds=[cluster_id])
        log.info("%s: terminated", cluster_id)
    except BaseException:
        log.error("%s may still be running, and cost money. Stop it: %s", cluster_id, stop_command(cluster_id))
        raise


def cancel(aws: Aws, cluster_id: str) -> None:
    try:
        steps = aws.emr.list_steps(ClusterId=cluster_id, StepStates=["PENDING", "RUNNING"])["Steps"]
        if steps:
            ids = [step["Id"] for step in steps]
            aws.emr.cancel_steps(ClusterId=cluster_id, StepIds=ids, StepCancellationOption="TERMINATE_PROCESS")
    except Exception as error:  # whatever it was, the cluster still has to go
        log.warning("%s: the job could not be cancelled (%s); it ends with the cluster", cluster_id, error)


def stop_command(cluster_id: str) -> str:
    return f"aws emr terminate-clusters --cluster-ids {cluster_id}"


def job_log(aws: Aws, cluster: Cluster, cluster_id: str, step_id: str) -> str:
    """The step's stderr from the log address, as soon as EMR has put it there; "" when it does not."""
    bucket, prefix = etl.s3_place(cluster.logs)
    key = "/".join(part for part in (prefix, cluster_id, "steps", step_id, "stderr.gz") if part)
    deadline = monotonic() + LOG_WAIT
    while monotonic() < deadline:
        try:
            return gzip.decompress(aws.s3.get_object(Bucket=bucket, Key=key)["Body"].read()).decode(errors="replace")
        except aws.s3.exceptions.NoSuchKey:
            log.info("waiting for s3://%s/%s", bucket, key)
            sleep(POLL)
    return ""


# ------------------------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------------------------


def run_job(aws: Aws, cluster: Cluster, settings: etl.Settings, config: str, run: str) -> int:
    """The whole of it: check, ship, launch, wait, terminate. The job's exit code."""
    lake, cluster_id = lake_of(settings), None
    check_roles(aws, cluster)
    refuse_a_second(aws, lake)
    ship(aws, cluster, config, run)
    try:
        cluster_id = launch(aws, request_for(cluster, settings, run), run)
        log.info("%s launched; if this program dies: %s", cluster_id, stop_command(cluster_id))
        refuse_a_second(aws, lake, but=cluster_id)
        step = wait(aws, cluster_id, cluster.timeout_minutes * 60)
    finally:
        for each in [cluster_id] if cluster_id else running(aws, f"{NAME}-run", run):
            stop(aws, each)
    return outcome(aws, cluster, cluster_id, step)


def outcome(aws: Aws, cluster: Cluster, cluster_id: str, step: dict[str, Any]) -> int:
    """The step's exit code; of a job that failed the end of its log too."""
    if step["Status"]["State"] == "COMPLETED":
        log.info("done")
        return 0
    told = step["Status"].get("FailureDetails", {}).get("Message")
    told = told or step["Cluster"].get("StateChangeReason", {}).get("Message") or "no reason given"
    log.error("the job is %s: %s", step["Status"]["State"].lower(), told)
    lines = []
    if step["Status"]["State"] == "FAILED":  # one that never began has no log
        lines = job_log(aws, cluster, cluster_id, step["Id"]).splitlines()
        tail = "\n".join(lines[-TAIL:]) or f"(it has not come; look below {cluster.logs}/{cluster_id}/)"
        log.error("the end of its log:\n%s", tail)
    codes = [int(found[1]) for found in (re.fullmatch("exit code ([0-9]+)", line) for line in lines) if found]
    return codes[-1] if codes and codes[-1] else 1


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="emr.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="dl.cfg", metavar="FILE", help="the configuration (default: dl.cfg)")
    parser.add_argument("--dry-run", action="store_true", help="print the request and what would be shipped, and stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the job on EMR; the exit code tells how it went."""
    options = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemd's or cron's way to say Ctrl-C
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        log.error("emr.py needs boto3: pip install boto3")
        return 2
    try:
        settings, cluster = etl.read_settings(options.config), read_cluster(options.config)
        config, run = shipped_config(options.config), uuid.uuid4().hex[:12]
        if options.dry_run:
            print(json.dumps(request_for(cluster, settings, run), indent=2))
            print(f"# {cluster.code}/{run}/dl.cfg, beside etl.py:\n{config}", end="")
            return 0
        return run_job(connect(settings), cluster, settings, config, run)
    except JobError as error:
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        log.error("interrupted")
        return 130
    except (BotoCoreError, ClientError) as error:
        log.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
