#!/usr/bin/env python3
"""Runs etl.py on a new EMR cluster: launches the cluster, waits for the job, and terminates the cluster.

    python emr.py --dry-run      prints the request and the dl.cfg for the cluster; sends nothing to AWS
    python emr.py                runs the job; the exit code is the job's

If the job fails, the program prints the end of the job's log. All settings come from dl.cfg. [LAKE] names the job's
input and output, both on S3. [EMR] describes the cluster. The keys in [AWS CREDS] stay on this machine: the cluster
uses the role of its instance profile.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
docs/emr.md is a guide from a new AWS account to the first run.
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
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import etl
from etl import JobError, UsageError

try:
    from botocore import exceptions as boto
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError as error:
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`, then try again")

log = logging.getLogger("emr")

NAME = "sparkify-etl"  # of the cluster and of its step
LAKE_TAG, RUN_TAG = NAME, f"{NAME}-run"  # which lake a cluster writes to, and which call of emr.py launched it
ACTIVE = ["STARTING", "BOOTSTRAPPING", "RUNNING", "WAITING"]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "INTERRUPTED"}
POLL = 30  # seconds between two questions
START_WAIT = 60  # seconds to wait for AWS before the launch, when nothing is at stake
SILENCE = 600  # seconds to wait for AWS once a cluster may be running
LOG_WAIT = 600  # seconds to wait for the end of the job's log; EMR copies logs every few minutes and at the end
LAST_LINE = re.compile("^exit code ([0-9]+)$", re.M)  # of the job's log; see `script`
TAIL = 30  # lines of the log to show when the job failed


# ------------------------------------------------------------------------------------------------------------------
# Configuration
# ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Section [EMR] of dl.cfg."""

    code: str  # where etl.py and dl.cfg are shipped to, an s3:// address
    logs: str  # where EMR puts the logs, an s3:// address
    subnet: str
    release: str = "emr-spark-8.0.0"
    primary_type: str = "m5.xlarge"
    core_type: str = "m5.xlarge"
    core_count: int = 2
    task_count: int = 0  # Spot instances of core_type; AWS may take them away, which costs time and nothing else
    service_role: str = "EMR_DefaultRole"
    instance_profile: str = "EMR_EC2_DefaultRole"
    tags: str = ""  # name=value, name=value
    timeout_minutes: int = 240


def read_cluster(path: str) -> Cluster:
    """Section [EMR] of the file at `path`. UsageError names the setting that is wrong."""
    parser = etl.parsed_config(path)
    if not parser.has_section("EMR"):
        raise UsageError(f"{path}: section [EMR] is missing; add it as shown in docs/emr.md")
    known, values = {field.name: field for field in fields(Cluster)}, {}
    for key, value in parser.items("EMR"):
        if key not in known:
            raise UsageError(f"{path}: [EMR] {key.upper()} is not a setting; use one of {', '.join(known).upper()}")
        if value:
            values[key] = number(path, key, value) if isinstance(known[key].default, int) else value.rstrip("/")
    for key in ("code", "logs", "subnet"):
        if key not in values:
            raise UsageError(f"{path}: [EMR] {key.upper()} is missing or blank; set it as shown in docs/emr.md")
    for key in ("code", "logs"):
        if not (etl.on_s3(values[key]) and re.fullmatch(etl.PLACE[0], values[key])):
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
    """project=lake, owner=me -> {"project": "lake", "owner": "me"}"""
    pairs = [pair.strip() for pair in cluster.tags.split(",") if pair.strip()]
    if any(not re.fullmatch("[^=]+=.*", pair) for pair in pairs):
        raise UsageError(f"{path}: [EMR] TAGS = {cluster.tags!r}: write name=value, name=value")
    return {name.strip(): value.strip() for name, value in (pair.split("=", 1) for pair in pairs)}


def shipped_config(path: str) -> str:
    """The text of dl.cfg for the cluster: without keys and without [EMR]."""
    source, shipped = etl.parsed_config(path), configparser.ConfigParser(interpolation=None)
    shipped.read_dict({section: dict(source.items(section)) for section in source.sections() if section != "EMR"})
    shipped["AWS CREDS"] = dict.fromkeys(etl.SECTIONS["AWS CREDS"], "")
    for key in ("input", "output"):
        if not etl.on_s3(shipped["LAKE"][key]):
            raise UsageError(f"{path}: [LAKE] {key.upper()} = {shipped['LAKE'][key]!r}: EMR needs an s3:// address")
    if shipped["LAKE"].get("endpoint"):
        raise UsageError(f"{path}: [LAKE] ENDPOINT is set, but EMR works with Amazon S3 only; leave ENDPOINT blank")
    text = io.StringIO()
    shipped.write(text)
    return text.getvalue()


# ------------------------------------------------------------------------------------------------------------------
# The request
# ------------------------------------------------------------------------------------------------------------------


def request_for(cluster: Cluster, settings: etl.Settings, run: str) -> dict[str, Any]:
    """RunJobFlow's arguments for a cluster that runs the job once and ends."""
    return {
        "Name": NAME,
        "ReleaseLabel": cluster.release,
        "Applications": [{"Name": "Spark"}],
        "LogUri": f"{cluster.logs}/",
        "ServiceRole": cluster.service_role,
        "JobFlowRole": cluster.instance_profile,
        "Instances": {
            "InstanceGroups": instance_groups(cluster),
            "Ec2SubnetId": cluster.subnet,
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
        ("TASK", "SPOT", cluster.core_type, cluster.task_count),
    ]
    return [
        {"Name": role.lower(), "InstanceRole": role, "Market": market, "InstanceType": kind, "InstanceCount": count}
        for role, market, kind, count in groups
        if count
    ]


def all_tags(cluster: Cluster, settings: etl.Settings, run: str) -> dict[str, str]:
    return {
        **tags_of(cluster),
        "for-use-with-amazon-emr-managed-policies": "true",  # Amazon's own role policies require it
        LAKE_TAG: lake_of(settings),
        RUN_TAG: run,
    }


def lake_of(settings: etl.Settings) -> str:
    """The address of OUTPUT in one spelling: s3a://lake/tables/ -> s3://lake/tables"""
    return "s3://" + etl.s3_path(settings.output)


BOTO3 = (
    'import importlib.util, subprocess, sys; sys.exit(not importlib.util.find_spec("boto3") and'
    ' subprocess.call([sys.executable, "-m", "pip", "install", "-q", "--target", ".", "boto3"]))'
)


def script(cluster: Cluster, run: str) -> str:
    """The primary node's shell script. `timeout` ends a job that hangs, even when emr.py is gone."""
    fetch = f"aws s3 cp --recursive --only-show-errors {shlex.quote(f'{cluster.code}/{run}/')} ."
    # A release may lack boto3. Only Spark knows which Python it starts, so Spark runs the check.
    boto3 = f"echo {shlex.quote(BOTO3)} > boto3_here.py && spark-submit --master local boto3_here.py"
    # spark-submit turns the job's stderr into its own stdout: one log for both.
    submit = f"timeout {cluster.timeout_minutes}m spark-submit --master yarn etl.py"
    # EMR does not report a step's exit code, so the log's last line does.
    steps = f'{{ cd "$(mktemp -d)" && {fetch} && {boto3} && {submit}; }} 1>&2'
    return f'{steps}; code=$?; echo "exit code $code" >&2; exit $code'


# ------------------------------------------------------------------------------------------------------------------
# The edges
# ------------------------------------------------------------------------------------------------------------------


class Aws(NamedTuple):
    """boto3's clients."""

    emr: Any  # without retries of its own, see `launch`
    s3: Any
    iam: Any


def connect(settings: etl.Settings) -> Aws:
    session = etl.aws_session(settings)
    if not session.region_name:
        raise UsageError("no AWS region: set [LAKE] REGION in dl.cfg, or AWS_DEFAULT_REGION")
    once = Config(retries={"total_max_attempts": 1})
    return Aws(session.client("emr", config=once), session.client("s3"), session.client("iam"))


class NoAnswer(JobError):
    """AWS gave no answer for too long."""


def ask(question: Callable[[], Any], patience: float = SILENCE) -> Any:
    """AWS's answer. Asks again for `patience` seconds while the failure may pass by itself, then raises NoAnswer."""
    started = monotonic()
    while True:
        try:
            return question()
        except (BotoCoreError, ClientError) as error:
            if not passes(error):
                raise
            if monotonic() - started >= patience:
                raise NoAnswer(f"no answer from AWS for {patience} seconds: {error}") from None
            log.warning("no answer from AWS, asking again: %s", error)
        sleep(POLL)


LINE_DOWN = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError)
NO_KEYS_NOW = (boto.CredentialRetrievalError, boto.MetadataRetrievalError)  # an instance cannot renew its keys
BUSY = "Throttl|TooManyRequests|RequestLimitExceeded|SlowDown|PriorRequestNotComplete|RequestTimeout|Unavailable"
NOT_THERE_YET = "(?i)(cluster ?id|job ?flow id).*(not valid|does not exist)"  # a cluster that is some seconds old


def passes(error: Exception) -> bool:
    """Whether the failure may pass by itself: no connection, throttling, a fault inside AWS, not there yet."""
    if not isinstance(error, ClientError):
        return isinstance(error, LINE_DOWN + NO_KEYS_NOW)
    code, said = (error.response.get("Error", {}).get(part, "") for part in ("Code", "Message"))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 or status in (408, 429):
        return True
    return bool(re.search(f"^Internal|NoSuchKey|{BUSY}", code) or re.search(NOT_THERE_YET, said))


def check_roles(aws: Aws, cluster: Cluster) -> None:
    """UsageError for a role that does not exist: EMR accepts the request, and the cluster dies minutes later."""
    for what, question in (
        ("SERVICE_ROLE", lambda: aws.iam.get_role(RoleName=cluster.service_role)),
        ("INSTANCE_PROFILE", lambda: aws.iam.get_instance_profile(InstanceProfileName=cluster.instance_profile)),
    ):
        try:
            question()
        except aws.iam.exceptions.NoSuchEntityException:
            name = getattr(cluster, what.lower())
            raise UsageError(
                f"[EMR] {what} = {name!r} does not exist; create it as shown in docs/emr.md, 'Roles'"
            ) from None


def running(aws: Aws, lake: str) -> dict[str, str]:
    """id -> run of the active clusters that write to the lake, the oldest first."""
    pages = aws.emr.get_paginator("list_clusters").paginate(ClusterStates=ACTIVE)
    named = [entry for page in pages for entry in page["Clusters"] if entry["Name"] == NAME]
    named.sort(key=lambda entry: (entry["Status"]["Timeline"]["CreationDateTime"], entry["Id"]))
    described = (aws.emr.describe_cluster(ClusterId=entry["Id"])["Cluster"] for entry in named)
    tags = {each["Id"]: {tag["Key"]: tag.get("Value") for tag in each.get("Tags", [])} for each in described}
    return {each: its.get(RUN_TAG, "") for each, its in tags.items() if its.get(LAKE_TAG) == lake}


def ours(aws: Aws, lake: str, run: str) -> list[str]:
    """The clusters of this run, also one whose launch got no answer."""
    return [each for each, its_run in running(aws, lake).items() if its_run == run]


def refuse_a_second(aws: Aws, lake: str, run: str) -> None:
    """JobError if a cluster of another run already writes to the lake. Of two launched at once the older one stays."""
    oldest, its_run = next(iter(running(aws, lake).items()), ("", run))
    if its_run != run:
        raise JobError(f"cluster {oldest} already writes to {lake}; wait for it, or stop it: {stop_command(oldest)}")


def ship(aws: Aws, cluster: Cluster, config: str, run: str) -> None:
    """Uploads etl.py and a dl.cfg without keys to CODE/run/. They stay there as a record of what ran."""
    bucket, _, prefix = etl.s3_path(f"{cluster.code}/{run}").partition("/")
    job = Path(etl.__file__).read_bytes()
    for name, body in (("etl.py", job), ("dl.cfg", config.encode())):
        aws.s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=body)
    log.info("uploaded etl.py and a dl.cfg without keys to %s/%s", cluster.code, run)


def launch(aws: Aws, request: dict[str, Any], lake: str, run: str) -> str:
    """The id of the new cluster.

    RunJobFlow has no token against doubles, and an answer may get lost. So each attempt first looks for a cluster of
    this run by its tags, and boto3 itself does not retry.
    """

    def attempt() -> str:
        found = ours(aws, lake, run)
        return found[0] if found else aws.emr.run_job_flow(**request)["JobFlowId"]

    try:
        return ask(attempt)
    except NoAnswer as error:
        raise NoAnswer(f"{error}; check whether a cluster was launched: aws emr list-clusters --active") from None


def wait(aws: Aws, cluster_id: str, timeout: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's step and the cluster's status once one of them has ended. JobError after `timeout` seconds."""
    started = logged = monotonic()
    before = ""
    while True:
        step, cluster = ask(lambda: look(aws, cluster_id))
        now = monotonic()
        state = f"cluster {cluster['State'].lower()}, job {step['Status']['State'].lower()}"
        if state != before or now - logged >= 300:
            log.info("%s: %s, %d min", cluster_id, state, (now - started) / 60)
            before, logged = state, now
        if step["Status"]["State"] in ENDED or cluster["State"].startswith("TERMINATED"):
            return step, cluster
        if now - started >= timeout:
            raise JobError(f"the job did not end within {timeout / 60:.0f} minutes ([EMR] TIMEOUT_MINUTES)")
        sleep(POLL)


def look(aws: Aws, cluster_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's step and the cluster's status. A step that EMR does not list yet is pending."""
    cluster = aws.emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]
    steps = aws.emr.list_steps(ClusterId=cluster_id).get("Steps", [])
    pending = {"Id": "", "Status": {"State": "PENDING"}}
    return next((step for step in steps if step["Name"] == NAME), pending), cluster


def stop(aws: Aws, ids: list[str]) -> None:
    """Terminates the clusters. A failure is only logged, with the command to type: the job's exit code counts."""
    if not ids:
        return
    try:
        ask(lambda: aws.emr.terminate_job_flows(JobFlowIds=ids))
        log.info("%s: terminated", ", ".join(ids))
    except BaseException as error:
        command = stop_command(*ids)
        log.error("%s may still be running and cost money. Stop it: %s: %s", ", ".join(ids), command, error)
        if not isinstance(error, Exception):
            raise


def stop_command(*ids: str) -> str:
    return f"aws emr terminate-clusters --cluster-ids {' '.join(ids)}"


def job_log(aws: Aws, bucket: str, key: str) -> str:
    """The job's stderr, or what EMR has copied of it when LOG_WAIT is over.

    EMR also copies the log of a running step. Such a copy lacks the line that ends the job.
    """
    text, deadline = "", monotonic() + LOG_WAIT
    while True:
        try:
            text = gzip.decompress(aws.s3.get_object(Bucket=bucket, Key=key)["Body"].read()).decode(errors="replace")
        except (EOFError, gzip.BadGzipFile, zlib.error):
            pass  # a copy in the making
        except (BotoCoreError, ClientError) as error:
            if not passes(error):
                raise
        if LAST_LINE.search(text) or monotonic() >= deadline:
            return text
        log.info("waiting for the end of s3://%s/%s", bucket, key)
        sleep(POLL)


# ------------------------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------------------------


def run_job(aws: Aws, cluster: Cluster, settings: etl.Settings, config: str, run: str) -> int:
    """Checks, ships, launches, waits, terminates. Returns the job's exit code.

    A cluster is terminated when its job has ended or taken too long, and on Ctrl-C. A question to AWS that fails says
    nothing about the job, so the cluster is left alone: it ends when the job does.
    """
    lake, cluster_id = lake_of(settings), ""
    ask(lambda: prepare(aws, cluster, config, lake, run), START_WAIT)
    try:
        cluster_id = launch(aws, request_for(cluster, settings, run), lake, run)
        log.info("%s launched; to stop it from another terminal: %s", cluster_id, stop_command(cluster_id))
        ask(lambda: refuse_a_second(aws, lake, run))
        step, status = wait(aws, cluster_id, cluster.timeout_minutes * 60)
    except (NoAnswer, BotoCoreError, ClientError) as error:
        if not cluster_id:
            raise
        remedy = f"it goes on, and ends when the job ends; to stop it now: {stop_command(cluster_id)}"
        raise JobError(f"lost sight of cluster {cluster_id}; {remedy}: {etl.one_line(error)}") from None
    except BaseException:
        stop(aws, [cluster_id] if cluster_id else ask(lambda: ours(aws, lake, run)))
        raise
    stop(aws, [cluster_id])
    return outcome(aws, cluster, cluster_id, step, status)


def prepare(aws: Aws, cluster: Cluster, config: str, lake: str, run: str) -> None:
    check_roles(aws, cluster)
    refuse_a_second(aws, lake, run)
    ship(aws, cluster, config, run)


def outcome(aws: Aws, cluster: Cluster, cluster_id: str, step: dict[str, Any], status: dict[str, Any]) -> int:
    """The job's exit code. Logs why a job failed, with the end of its log."""
    state = step["Status"]["State"]
    if state == "COMPLETED":
        log.info("done")
        return 0
    reasons = step["Status"].get("FailureDetails", {}), status.get("StateChangeReason", {})
    reason = next((each["Message"] for each in reasons if each.get("Message")), "EMR gives no reason")
    log.error("job %s, cluster %s: %s", state.lower(), status["State"].lower(), reason)
    if state != "FAILED":
        return 1  # the job did not begin, or died with its cluster: there may be no log
    bucket, _, prefix = etl.s3_path(cluster.logs).partition("/")
    key = "/".join(filter(None, [prefix, cluster_id, "steps", step["Id"], "stderr.gz"]))
    try:
        text = job_log(aws, bucket, key)
    except (BotoCoreError, ClientError) as error:
        log.error("cannot read s3://%s/%s: %s", bucket, key, etl.one_line(error))
        return 1
    codes = LAST_LINE.findall(text)
    if not codes:
        log.error("the end of the job's log has not arrived; look for it below %s/%s/", cluster.logs, cluster_id)
    log.error("the job's log:\n%s", "\n".join(text.splitlines()[-TAIL:]) or "(nothing yet)")
    return int(codes[-1]) or 1 if codes else 1


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="emr.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="dl.cfg", metavar="FILE", help="the configuration (default: dl.cfg)")
    parser.add_argument("--dry-run", action="store_true", help="print the request and the dl.cfg, and send nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the job on EMR and returns the exit code."""
    options = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemd stops a service by it
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
        log.error("%s", etl.one_line(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
