"""emr.py against moto's EMR and S3. botocore checks each request by Amazon's own model before moto sees it.

EMR's control plane is mocked; the rest is real. moto differs from it: a step is RUNNING from the first moment, on a
cluster that is WAITING, and never ends, so the tests end it; a cluster does not terminate after its last step;
terminating one takes no time and leaves its step RUNNING; roles, subnets, releases and tags are not checked; IAM
policies are not enforced; no log is written; AWS is never busy, so the tests give its refusals.
"""

from __future__ import annotations

import configparser
import gzip
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import exceptions as boto
from botocore.awsrequest import AWSResponse
from botocore.validate import ParamValidator
from conftest import ROOT
from moto import mock_aws
from moto.core import DEFAULT_ACCOUNT_ID
from moto.emr.models import Cluster as MotoCluster
from moto.emr.models import emr_backends

import emr
import etl

REGION = "us-west-2"
BUCKET = "lake"
SECRET = "canary-secret-wJalrXUtnFEMI"
EMR = f"CODE = s3://{BUCKET}/emr/code\nLOGS = s3://{BUCKET}/emr/logs/\nSUBNET = subnet-1\nINSTANCE_PROFILE = job\n"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The tests do not sleep, and ask no real account."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(emr, "LOG_WAIT", 0.2)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


SESSION = boto3.Session(region_name=REGION)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[emr.Aws]:
    """moto's AWS with the roles and the bucket in it."""
    with mock_aws():
        SESSION.client("s3", REGION).create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        iam = SESSION.client("iam", REGION)
        iam.create_role(RoleName="EMR_DefaultRole", AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName="job")
        monkeypatch.setattr(etl, "aws_session", lambda settings: SESSION)  # one for all: to load its models takes time
        clients = emr.connect(etl.Settings(input="", output="", region=REGION))
        monkeypatch.setattr(emr, "connect", lambda settings: clients)
        while_it_sleeps(monkeypatch)
        yield clients


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """config(lake=..., emr=...): the path of a dl.cfg with keys in it."""

    def write(lake: str = "", emr: str = EMR, **overrides: str) -> str:
        place = {"INPUT": f"s3://{BUCKET}/raw", "OUTPUT": f"s3a://{BUCKET}/lake/", "REGION": REGION, **overrides}
        lines = ["[AWS CREDS]", "AWS_ACCESS_KEY_ID = AKIDCANARY", f"AWS_SECRET_ACCESS_KEY = {SECRET}", "[LAKE]"]
        lines += [f"{key} = {value}" for key, value in place.items()] + [lake, "[EMR]", emr]
        path = tmp_path / "dl.cfg"
        path.write_text("\n".join(lines))
        path.chmod(0o600)
        return str(path)

    return write


def clusters() -> list[MotoCluster]:
    return list(emr_backends[DEFAULT_ACCOUNT_ID][REGION].clusters.values())


def states() -> list[str]:
    return [cluster.state for cluster in clusters()]


def run(config: str, *args: str) -> int:
    return emr.main(["--config", config, *args])


def while_it_sleeps(monkeypatch: pytest.MonkeyPatch, *events: Callable[[], None]) -> None:
    """One event happens each time that emr.py sleeps; there must be enough of them."""
    left = list(events)
    monkeypatch.setattr(emr, "sleep", lambda seconds: left.pop(0)() if left else pytest.fail("it waits for ever"))


def nothing() -> None:
    pass


def each_question_takes(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    clock = iter(range(0, 10**6, seconds))
    monkeypatch.setattr(emr, "monotonic", lambda: next(clock))


def job_is(state: str) -> Callable[[], None]:
    def change() -> None:
        for cluster in clusters():
            cluster.steps[0].state = state

    return change


def log_is(stderr: str | bytes) -> Callable[[], None]:
    """EMR copies the step's log to its place; bytes are copied as they are."""

    def put() -> None:
        [cluster] = clusters()
        key = f"emr/logs/{cluster.id}/steps/{cluster.steps[0].id}/stderr.gz"
        body = stderr if isinstance(stderr, bytes) else gzip.compress(stderr.encode())
        SESSION.client("s3", REGION).put_object(Bucket=BUCKET, Key=key, Body=body)

    return put


def both(*events: Callable[[], None]) -> Callable[[], None]:
    return lambda: [event() for event in events] and None


def interrupt() -> None:
    raise KeyboardInterrupt


class Instead:
    """For the next `times` requests AWS is not asked: an error is raised, or another answer given."""

    def __init__(self, client: Any, operation: str, answer: dict | Exception, times: int = 10**6) -> None:
        self.answer, self.left, self.asked = answer, times, 0
        client.meta.events.register_first(f"before-call.*.{operation}", self)

    def __call__(self, **_: Any) -> tuple[AWSResponse, dict] | None:
        self.asked += 1
        self.left -= 1
        if self.left < 0:
            return None
        if isinstance(self.answer, Exception):
            raise self.answer
        return AWSResponse("", 200, {}, None), self.answer


def refusal(status: int, code: str, message: str = "Rate exceeded") -> boto.ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(answer, "Any")


HOST = "https://elasticmapreduce.us-west-2.amazonaws.com"
THROTTLED = refusal(400, "ThrottlingException")
NO_NETWORK = boto.EndpointConnectionError(endpoint_url=HOST)
PASSING = [
    THROTTLED,
    refusal(400, "Throttling"),
    refusal(400, "RequestLimitExceeded"),
    refusal(429, "429"),
    refusal(500, "InternalServerError"),
    refusal(400, "InternalServerException"),
    refusal(502, "502", "<html>Bad Gateway</html>"),
    refusal(503, "ServiceUnavailable"),
    refusal(400, "InvalidRequestException", "Cluster id 'j-1' is not valid."),
    refusal(400, "ValidationException", "Specified job flow ID does not exist."),
    NO_NETWORK,
    boto.ConnectionClosedError(endpoint_url=HOST),
    boto.ConnectTimeoutError(endpoint_url=HOST),
    boto.ReadTimeoutError(endpoint_url=HOST),
    boto.SSLError(endpoint_url=HOST, error="unexpected eof"),
    boto.CredentialRetrievalError(provider="iam-role", error_msg="timed out"),
]
LASTING = [
    boto.NoCredentialsError(),
    boto.TokenRetrievalError(provider="sso", error_msg="expired"),
    boto.ParamValidationError(report="no"),
    refusal(400, "AccessDeniedException"),
    refusal(400, "ExpiredTokenException"),
    refusal(403, "RequestTimeTooSkewed"),
    refusal(403, "SignatureDoesNotMatch"),
    refusal(404, "NoSuchBucket"),
    refusal(400, "ValidationException", "Invalid InstanceType"),
]


def name_of(error: Exception) -> str:
    return error.response["Error"]["Code"] if isinstance(error, boto.ClientError) else type(error).__name__


some_passing = pytest.mark.parametrize("error", [THROTTLED, PASSING[4], PASSING[8], NO_NETWORK], ids=name_of)


# --- The run ---------------------------------------------------------------------------------------------------------


def test_a_job_that_is_done_gives_0_and_its_cluster_is_terminated(aws, config, monkeypatch, caplog) -> None:
    while_it_sleeps(monkeypatch, nothing, job_is("COMPLETED"))
    assert run(config()) == 0
    assert states() == ["TERMINATED"]
    assert "cluster waiting, job running, 0 min" in caplog.text and "job completed, 0 min" in caplog.text


def test_a_job_that_fails_gives_its_exit_code_and_the_end_of_its_log(aws, config, monkeypatch, caplog) -> None:
    log = "\n".join(["long ago", *["noise"] * emr.TAIL, "ERROR song_data: no file", "exit code 2"])
    while_it_sleeps(monkeypatch, both(job_is("FAILED"), log_is(log)))
    assert run(config()) == 2
    assert "ERROR song_data: no file" in caplog.text and "long ago" not in caplog.text
    assert states() == ["TERMINATED"]


def test_a_cluster_that_dies_before_the_job_begins_is_a_failure_with_its_reason(
    aws, config, monkeypatch, caplog
) -> None:
    def dies() -> None:
        clusters()[0].state = "TERMINATED_WITH_ERRORS"
        clusters()[0].steps[0].state = "CANCELLED"

    while_it_sleeps(monkeypatch, dies)
    assert run(config()) == 1
    assert "job cancelled, cluster terminated_with_errors: EMR gives no reason" in caplog.messages[-1]


@pytest.mark.parametrize("minutes", [1, 90])
def test_a_job_that_takes_too_long_is_terminated_with_its_cluster(minutes, aws, config, monkeypatch, caplog) -> None:
    each_question_takes(monkeypatch, 600)
    while_it_sleeps(monkeypatch, *[nothing] * 20)
    assert run(config(emr=f"{EMR}TIMEOUT_MINUTES = {minutes}")) == 1
    assert f"did not end within {minutes} minutes" in caplog.text
    assert states() == ["TERMINATED"]


def test_ctrl_c_terminates_the_cluster(aws, config, monkeypatch) -> None:
    while_it_sleeps(monkeypatch, interrupt)
    assert run(config()) == 130
    assert states() == ["TERMINATED"]


def test_a_terminate_signal_is_as_good_as_ctrl_c(aws, config, monkeypatch) -> None:
    while_it_sleeps(monkeypatch, lambda: os.kill(os.getpid(), 15))
    assert run(config()) == 130
    assert states() == ["TERMINATED"]


def test_ctrl_c_during_the_launch_leaves_no_cluster_behind(aws, config, monkeypatch) -> None:
    launch = emr.launch
    monkeypatch.setattr(emr, "launch", lambda *args: launch(*args) and interrupt())
    assert run(config()) == 130
    assert states() == ["TERMINATED"]


# --- The log ---------------------------------------------------------------------------------------------------------


def test_a_log_that_comes_late_is_waited_for(aws, config, monkeypatch, caplog) -> None:
    monkeypatch.setattr(emr, "LOG_WAIT", 60)
    while_it_sleeps(monkeypatch, job_is("FAILED"), nothing, log_is("late but clear\nexit code 1"))
    assert run(config()) == 1
    assert "late but clear" in caplog.text


def test_a_log_that_never_comes_is_named_by_its_place(aws, config, monkeypatch, caplog) -> None:
    monkeypatch.setattr(emr, "LOG_WAIT", 0)
    while_it_sleeps(monkeypatch, job_is("FAILED"))
    assert run(config()) == 1
    assert f"look for it below s3://{BUCKET}/emr/logs/{clusters()[-1].id}/" in caplog.text


def test_a_copy_of_the_log_from_before_the_end_is_not_taken_for_the_whole(aws, config, monkeypatch, caplog) -> None:
    monkeypatch.setattr(emr, "LOG_WAIT", 60)
    old, whole = "INFO reading\nthe exit code 7 is not the last line", "INFO reading\nERROR no such bucket\nexit code 2"
    while_it_sleeps(monkeypatch, both(job_is("FAILED"), log_is(old)), nothing, log_is(whole))
    assert run(config()) == 2
    assert "ERROR no such bucket" in caplog.text


def test_a_log_whose_end_never_comes_is_shown_as_far_as_it_goes_and_says_so(aws, config, monkeypatch, caplog) -> None:
    monkeypatch.setattr(emr, "LOG_WAIT", 0)
    while_it_sleeps(monkeypatch, both(job_is("FAILED"), log_is("INFO as far as this")))
    assert run(config()) == 1
    assert "the end of the job's log has not arrived" in caplog.text and "INFO as far as this" in caplog.text


WHOLE = gzip.compress(b"ERROR no such bucket\nexit code 2")


@pytest.mark.parametrize("cut", [b"", WHOLE[:4], WHOLE[:20], b"no gzip", WHOLE[:12] + b"\xff" * 20], ids=len)
def test_a_log_that_is_not_whole_yet_is_waited_for(cut: bytes, aws, config, monkeypatch) -> None:
    monkeypatch.setattr(emr, "LOG_WAIT", 60)
    while_it_sleeps(monkeypatch, both(job_is("FAILED"), log_is(cut)), log_is(WHOLE))
    assert run(config()) == 2


@pytest.mark.parametrize("error", [refusal(503, "SlowDown"), refusal(500, "InternalError"), NO_NETWORK], ids=name_of)
def test_a_store_that_is_busy_does_not_hide_why_the_job_failed(error, aws, config, monkeypatch) -> None:
    monkeypatch.setattr(emr, "LOG_WAIT", 60)
    Instead(aws.s3, "GetObject", error, times=2)
    while_it_sleeps(monkeypatch, both(job_is("FAILED"), log_is("exit code 2")), nothing, nothing)
    assert run(config()) == 2


def test_a_log_that_may_not_be_read_is_named_with_the_remedy(aws, config, monkeypatch, caplog) -> None:
    Instead(aws.s3, "GetObject", refusal(403, "AccessDenied"))
    while_it_sleeps(monkeypatch, both(job_is("FAILED"), log_is("exit code 2")))
    assert run(config()) == 1
    assert f"cannot read s3://{BUCKET}/emr/logs/" in caplog.messages[-1] and "iam/" in caplog.messages[-1]


# --- Questions that get no answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", PASSING, ids=name_of)
def test_what_may_pass_by_itself_is_asked_again(error: Exception, monkeypatch) -> None:
    answers = iter([error, error, "yes"])
    while_it_sleeps(monkeypatch, nothing, nothing)
    assert emr.ask(lambda: given(next(answers))) == "yes"


@pytest.mark.parametrize("error", LASTING, ids=name_of)
def test_what_does_not_pass_by_itself_is_asked_once(error: Exception, monkeypatch) -> None:
    while_it_sleeps(monkeypatch)
    with pytest.raises(type(error)):
        emr.ask(lambda: given(error))


def given(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


@some_passing
@pytest.mark.parametrize("operation", ["DescribeCluster", "ListSteps"])
def test_a_question_that_fails_for_a_while_does_no_harm(operation, error, aws, config, monkeypatch, caplog) -> None:
    seen = []
    while_it_sleeps(
        monkeypatch,
        lambda: Instead(aws.emr, operation, error, times=2),
        lambda: seen.extend(states()),
        lambda: seen.extend(states()),
        job_is("COMPLETED"),
    )
    assert run(config()) == 0
    assert seen == ["WAITING", "WAITING"]
    assert "no answer from AWS, asking again" in caplog.text


@some_passing
def test_a_question_that_fails_for_ever_leaves_the_job_alone_and_says_how_to_stop_it(
    error, aws, config, monkeypatch, caplog
) -> None:
    each_question_takes(monkeypatch, 100)
    while_it_sleeps(monkeypatch, lambda: Instead(aws.emr, "ListSteps", error), *[nothing] * 10)
    assert run(config()) == 1
    assert states() == ["WAITING"]
    line = caplog.messages[-1]
    assert "lost sight of cluster" in line and "no answer from AWS for 600 seconds" in line and "\n" not in line
    assert f"aws emr terminate-clusters --cluster-ids {clusters()[0].id}" in line


def test_a_question_that_aws_refuses_leaves_the_job_alone_at_once(aws, config, monkeypatch, caplog) -> None:
    while_it_sleeps(monkeypatch, lambda: Instead(aws.emr, "DescribeCluster", refusal(400, "AccessDeniedException")))
    assert run(config()) == 1
    assert states() == ["WAITING"]
    assert f"aws emr terminate-clusters --cluster-ids {clusters()[0].id}" in caplog.messages[-1]
    assert "iam/" in caplog.messages[-1]


def test_a_step_that_is_not_listed_yet_is_pending(aws, config, monkeypatch, caplog) -> None:
    Instead(aws.emr, "ListSteps", {"Steps": []}, times=1)
    while_it_sleeps(monkeypatch, job_is("COMPLETED"))
    assert run(config()) == 0
    assert "cluster waiting, job pending, 0 min" in caplog.text


def test_a_cluster_that_dies_without_a_step_is_a_failure(aws, config, monkeypatch, caplog) -> None:
    Instead(aws.emr, "ListSteps", {"Steps": []})
    while_it_sleeps(monkeypatch, lambda: setattr(clusters()[0], "state", "TERMINATED_WITH_ERRORS"))
    assert run(config()) == 1
    assert "job pending, cluster terminated_with_errors" in caplog.messages[-1]


def test_a_step_that_others_add_is_not_taken_for_the_job(aws, config, monkeypatch) -> None:
    def add() -> None:
        step = {"Name": "other", "HadoopJarStep": {"Jar": "command-runner.jar"}}
        aws.emr.add_job_flow_steps(JobFlowId=clusters()[0].id, Steps=[step])
        clusters()[0].steps.reverse()  # EMR lists the newest first
        clusters()[0].steps[0].state = "FAILED"

    def done() -> None:
        clusters()[0].steps[1].state = "COMPLETED"

    while_it_sleeps(monkeypatch, add, done)
    assert run(config()) == 0


# --- One launch ------------------------------------------------------------------------------------------------------


@some_passing
def test_a_launch_that_aws_does_not_take_is_tried_again(error, aws, config, monkeypatch) -> None:
    tried = Instead(aws.emr, "RunJobFlow", error, times=2)
    while_it_sleeps(monkeypatch, nothing, nothing, job_is("COMPLETED"))
    assert run(config()) == 0
    assert states() == ["TERMINATED"]
    assert tried.asked == 3


@some_passing
def test_a_launch_whose_answer_is_lost_is_found_by_its_tag_and_never_done_twice(
    error, aws, config, monkeypatch
) -> None:
    run_job_flow = aws.emr.run_job_flow

    def lose_the_answer(**request: Any) -> None:
        run_job_flow(**request)
        raise error

    monkeypatch.setattr(aws.emr, "run_job_flow", lose_the_answer)
    while_it_sleeps(monkeypatch, nothing, job_is("COMPLETED"))
    assert run(config()) == 0
    assert states() == ["TERMINATED"]


def test_boto3_itself_never_repeats_a_launch(aws, config, monkeypatch) -> None:
    assert aws.emr.meta.config.retries["total_max_attempts"] == 1


def test_a_launch_that_aws_never_takes_ends_with_the_command_that_looks_for_it(
    aws, config, monkeypatch, caplog
) -> None:
    each_question_takes(monkeypatch, 100)
    Instead(aws.emr, "RunJobFlow", THROTTLED)
    while_it_sleeps(monkeypatch, *[nothing] * 10)
    assert run(config()) == 1
    assert states() == []
    assert "aws emr list-clusters --active" in caplog.messages[-1]


def test_a_launch_that_aws_refuses_is_one_line_and_not_tried_again(aws, config, caplog) -> None:
    tried = Instead(aws.emr, "RunJobFlow", LASTING[-1])
    assert run(config()) == 1
    assert tried.asked == 1
    assert "Invalid InstanceType" in caplog.messages[-1] and "\n" not in caplog.messages[-1]


@pytest.mark.parametrize(
    ("service", "operation", "error"),
    [
        ("emr", "ListClusters", THROTTLED),
        ("emr", "ListClusters", NO_NETWORK),
        ("iam", "GetRole", refusal(400, "Throttling")),
        ("iam", "GetInstanceProfile", refusal(500, "InternalFailure")),
        ("s3", "PutObject", refusal(503, "SlowDown")),
    ],
)
def test_what_comes_before_the_launch_is_asked_again_for_a_minute(
    service, operation, error, aws, config, monkeypatch, caplog
) -> None:
    Instead(getattr(aws, service), operation, error, times=1)
    while_it_sleeps(monkeypatch, nothing, job_is("COMPLETED"))
    assert run(config()) == 0
    each_question_takes(monkeypatch, 70)
    Instead(getattr(aws, service), operation, error)
    while_it_sleeps(monkeypatch, nothing)
    assert run(config()) == 1
    assert "no answer from AWS for 60 seconds" in caplog.messages[-1]
    assert len(clusters()) == 1


@some_passing
def test_a_termination_that_aws_does_not_take_is_tried_again(error, aws, config, monkeypatch) -> None:
    Instead(aws.emr, "TerminateJobFlows", error, times=2)
    while_it_sleeps(monkeypatch, interrupt, nothing, nothing)
    assert run(config()) == 130
    assert states() == ["TERMINATED"]


@pytest.mark.parametrize("error", [THROTTLED, refusal(400, "AccessDeniedException", "no")])
def test_a_termination_that_fails_says_what_to_type_and_leaves_the_exit_code_alone(
    error, aws, config, monkeypatch, caplog
) -> None:
    each_question_takes(monkeypatch, 100)
    Instead(aws.emr, "TerminateJobFlows", error)
    while_it_sleeps(monkeypatch, job_is("COMPLETED"), *[nothing] * 10)
    assert run(config()) == 0
    [line] = [each for each in caplog.messages if "may still be running" in each]
    assert f"aws emr terminate-clusters --cluster-ids {clusters()[0].id}" in line


def test_a_second_ctrl_c_ends_the_wait_for_a_termination(aws, config, monkeypatch, caplog) -> None:
    Instead(aws.emr, "TerminateJobFlows", THROTTLED)
    while_it_sleeps(monkeypatch, interrupt, interrupt)
    assert run(config()) == 130
    assert "may still be running" in caplog.messages[-2]


def test_a_second_call_while_one_runs_says_which_and_launches_nothing(aws, config, caplog) -> None:
    request = emr.request_for(emr.read_cluster(config()), etl.read_settings(config()), "first")
    first = aws.emr.run_job_flow(**request)["JobFlowId"]
    assert run(config(OUTPUT=f"s3://{BUCKET}/lake")) == 1
    assert f"cluster {first} already writes to s3://{BUCKET}/lake" in caplog.text
    assert states() == ["WAITING"]


def test_another_lake_is_no_second_call(aws, config, monkeypatch) -> None:
    aws.emr.run_job_flow(**emr.request_for(emr.read_cluster(config()), etl.read_settings(config()), "first"))
    while_it_sleeps(monkeypatch, job_is("COMPLETED"))
    assert run(config(OUTPUT=f"s3://{BUCKET}/other")) == 0


@pytest.mark.parametrize("ours_is_older", [True, False])
def test_of_two_calls_at_once_the_older_cluster_stays(ours_is_older, aws, config, monkeypatch, caplog) -> None:
    run_job_flow = aws.emr.run_job_flow

    def launch_two(**request: Any) -> dict[str, str]:
        ids = [run_job_flow(**request)["JobFlowId"] for _ in range(2)]
        chosen = min(ids, key=age) if ours_is_older else max(ids, key=age)
        [other] = set(ids) - {chosen}
        aws.emr.add_tags(ResourceId=other, Tags=[{"Key": emr.RUN_TAG, "Value": "another"}])
        return {"JobFlowId": chosen}

    monkeypatch.setattr(aws.emr, "run_job_flow", launch_two)
    while_it_sleeps(monkeypatch, job_is("COMPLETED"))
    assert run(config()) == (0 if ours_is_older else 1)
    assert ("already writes to" in caplog.text) != ours_is_older
    by_age = [cluster.state for cluster in sorted(clusters(), key=lambda cluster: age(cluster.id))]
    assert by_age == (["TERMINATED", "WAITING"] if ours_is_older else ["WAITING", "TERMINATED"])


def age(cluster_id: str) -> tuple:
    """moto may create two clusters in one tick of the clock; then the id decides, as in emr.py."""
    return emr_backends[DEFAULT_ACCOUNT_ID][REGION].clusters[cluster_id].creation_datetime, cluster_id


# --- What is checked, shipped and asked for --------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["SERVICE_ROLE", "INSTANCE_PROFILE"])
def test_a_missing_role_is_named_before_anything_is_launched(key: str, aws, config, caplog) -> None:
    text = EMR.replace("INSTANCE_PROFILE = job\n", "") if key == "INSTANCE_PROFILE" else EMR
    assert run(config(emr=f"{text}{key} = nobody")) == 2
    assert f"[EMR] {key} = 'nobody' does not exist" in caplog.text
    assert not clusters()
    assert "Contents" not in aws.s3.list_objects_v2(Bucket=BUCKET)


def test_the_keys_never_leave_this_machine(aws, config, monkeypatch, caplog, capsys) -> None:
    while_it_sleeps(monkeypatch, job_is("COMPLETED"))
    assert run(config()) == 0 == run(config(), "--dry-run")
    listed = aws.s3.list_objects_v2(Bucket=BUCKET)["Contents"]
    bodies = {entry["Key"]: aws.s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in listed}
    assert {key.rsplit("/")[-1] for key in bodies} == {"etl.py", "dl.cfg"}
    everything = b"".join(bodies.values()).decode() + caplog.text + capsys.readouterr().out
    everything += json.dumps([cluster.steps[0].args for cluster in clusters()])
    assert SECRET not in everything and "AKIDCANARY" not in everything


def test_the_shipped_dl_cfg_is_one_that_etl_takes(config, tmp_path) -> None:
    (tmp_path / "shipped.cfg").write_text(emr.shipped_config(config(lake="SONGS_PARTITION_BY = year, artist_id")))
    shipped, ours = etl.read_settings(str(tmp_path / "shipped.cfg")), etl.read_settings(config())
    assert (shipped.input, shipped.aws_access_key_id, shipped.aws_secret_access_key) == (f"s3://{BUCKET}/raw", "", "")
    assert shipped.songs_partition_by != ours.songs_partition_by


def test_a_dry_run_prints_the_very_request_and_asks_nobody(config, capsys, monkeypatch) -> None:
    monkeypatch.setattr(emr, "connect", lambda settings: pytest.fail("it asks AWS"))
    monkeypatch.setattr(emr.uuid, "uuid4", lambda: type("Fixed", (), {"hex": "0" * 32}))
    assert run(config(), "--dry-run") == 0
    printed = capsys.readouterr().out.split("\n# ")[0]
    cluster, settings = emr.read_cluster(config()), etl.read_settings(config())
    assert json.loads(printed) == emr.request_for(cluster, settings, "0" * 12)


def test_the_cluster_ends_by_itself_even_if_nobody_waits(config) -> None:
    request = emr.request_for(emr.read_cluster(config()), etl.read_settings(config()), "run")
    assert request["Instances"]["KeepJobFlowAliveWhenNoSteps"] is False
    assert request["Instances"]["TerminationProtected"] is False
    assert request["Steps"][0]["ActionOnFailure"] == "TERMINATE_CLUSTER"
    assert "timeout 240m spark-submit" in request["Steps"][0]["HadoopJarStep"]["Args"][-1]


def test_task_nodes_are_on_spot_and_there_are_none_unless_asked_for(config) -> None:
    plain = emr.instance_groups(emr.read_cluster(config()))
    assert [(group["InstanceRole"], group["Market"]) for group in plain] == [
        ("MASTER", "ON_DEMAND"),
        ("CORE", "ON_DEMAND"),
    ]
    more = emr.instance_groups(emr.read_cluster(config(emr=f"{EMR}TASK_COUNT = 5\nCORE_TYPE = m6g.2xlarge")))
    assert more[2] == {
        "Name": "task",
        "InstanceRole": "TASK",
        "Market": "SPOT",
        "InstanceType": "m6g.2xlarge",
        "InstanceCount": 5,
    }


def test_tags_and_release_reach_the_request(config) -> None:
    path = config(emr=f"{EMR}TAGS = team=data, cost = 7\nRELEASE = emr-7.13.0")
    request = emr.request_for(emr.read_cluster(path), etl.read_settings(path), "run")
    assert {"Key": "team", "Value": "data"} in request["Tags"] and {"Key": "cost", "Value": "7"} in request["Tags"]
    assert request["ReleaseLabel"] == "emr-7.13.0"


def step(tmp_path: Path, script: str, **commands: str) -> subprocess.CompletedProcess:
    """Runs the step's script, with shell scripts instead of a cluster's commands."""
    for name, body in commands.items():
        path = tmp_path / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_step_runs_the_shipped_job_and_its_log_ends_with_the_exit_code(code: int, config, tmp_path: Path) -> None:
    spark = f'[ "$3" = boto3_here.py ] && exit 0; ls; echo "$@"; exit {code}'
    done = step(
        tmp_path, emr.script(emr.read_cluster(config()), "run1"), aws='touch etl.py; echo "$@"', spark_submit=spark
    )
    assert done.returncode == code
    assert done.stderr.splitlines() == [
        f"s3 cp --recursive --only-show-errors s3://{BUCKET}/emr/code/run1/ .",
        "boto3_here.py",
        "etl.py",
        "--master yarn etl.py",
        f"exit code {code}",
    ]
    assert emr.LAST_LINE.findall(done.stderr) == [str(code)]


@pytest.mark.parametrize("there", [True, False])
def test_the_step_brings_boto3_to_the_python_that_spark_starts_if_it_has_none(there, config, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "pip.py").write_text('import sys; print("pip", *sys.argv[1:])')
    if there:
        (tmp_path / "bare" / "boto3.py").touch()
    spark = f'[ "$2" = local ] || exit 0; PYTHONPATH={tmp_path}/bare exec {sys.executable} -S "$3"'
    done = step(tmp_path, emr.script(emr.read_cluster(config()), "run1"), aws=":", spark_submit=spark)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [*([] if there else ["pip install -q --target . boto3"]), "exit code 0"]


def test_a_step_whose_code_cannot_be_fetched_fails(config, tmp_path: Path) -> None:
    done = step(tmp_path, emr.script(emr.read_cluster(config()), "run1"), aws="exit 3", spark_submit="echo started")
    assert (done.returncode, done.stderr) == (3, "exit code 3\n")


@pytest.mark.parametrize(
    ("emr_text", "lake", "remedy"),
    [
        ("", {}, "[EMR] CODE is missing"),
        (EMR.replace("subnet-1", ""), {}, "[EMR] SUBNET is missing"),
        (EMR.replace("s3://lake/emr/code", "code"), {}, "[EMR] CODE = 'code': give an s3://"),
        (EMR + "COLOUR = red", {}, "[EMR] COLOUR is not a setting; use one of CODE"),
        (EMR + "CORE_COUNT = 0", {}, "[EMR] CORE_COUNT = '0': give a whole number, 1 or more"),
        (EMR + "TIMEOUT_MINUTES = soon", {}, "[EMR] TIMEOUT_MINUTES = 'soon'"),
        (EMR + "TAGS = data", {}, "[EMR] TAGS = 'data': write name=value"),
        (EMR, {"INPUT": "data"}, "[LAKE] INPUT = 'data': EMR needs an s3:// address"),
        (EMR, {"ENDPOINT": "http://127.0.0.1:9000"}, "[LAKE] ENDPOINT is set, but EMR works with Amazon S3 only"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(emr_text, lake, remedy, config, caplog, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    assert run(config(emr=emr_text, **lake), "--dry-run") == 2
    assert remedy in caplog.messages[-1] and "\n" not in caplog.messages[-1]


def test_no_region_is_one_line_that_says_where_to_put_it(config, caplog, monkeypatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    assert run(config(REGION="")) == 2
    assert "[LAKE] REGION" in caplog.text


# --- iam/ and docs/emr.md --------------------------------------------------------------------------------------------

POLICIES = sorted((ROOT / "iam").glob("*.json"))
GUIDE = (ROOT / "docs" / "emr.md").read_text(encoding="utf-8")


def statements(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["Statement"]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_a_policy_allows_no_wildcard_that_is_not_needed(path: Path) -> None:
    for statement in statements(path):
        if statement["Effect"] == "Deny":
            continue  # the more a denial covers the better
        assert not [action for action in listed(statement["Action"]) if "*" in action]
        free = {"elasticmapreduce:RunJobFlow", "elasticmapreduce:ListClusters"}  # these two know no resource
        assert "*" not in listed(statement.get("Resource", [])) or set(listed(statement["Action"])) <= free
        for resource in listed(statement.get("Resource", [])):
            assert resource.startswith("arn:aws:s3:::BUCKET") or "ACCOUNT" in resource or resource == "*"


def allowed(path: Path, action: str) -> list[dict]:
    return [statement for statement in statements(path) if action in listed(statement["Action"])]


def test_the_job_may_change_nothing_but_the_lake_and_its_logs() -> None:
    for action, places in {
        "s3:PutObject": {"lake", "emr/logs"},
        "s3:DeleteObject": {"lake"},
        "s3:GetObject": {"raw", "lake", "emr/code"},
    }.items():
        found = [place for each in allowed(ROOT / "iam/job.json", action) for place in listed(each["Resource"])]
        assert set(found) == {f"arn:aws:s3:::BUCKET/{place}/*" for place in places}


def test_the_job_may_do_what_etl_py_asks_of_s3_and_no_more() -> None:
    """What etl.py asks by boto3, and what Spark's S3A does to upload in parts."""
    asked = set(re.findall(r'ask\("(\w+)"', (ROOT / "etl.py").read_text(encoding="utf-8")))
    needed = {
        "list_objects_v2": {"s3:ListBucket"},
        "get_object": {"s3:GetObject"},
        "put_object": {"s3:PutObject"},
        "copy_object": {"s3:GetObject", "s3:PutObject"},
        "delete_object": {"s3:DeleteObject"},
    }
    by_s3a = {"s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"}
    granted = {action for each in statements(ROOT / "iam/job.json") for action in listed(each["Action"])}
    assert granted == set.union(by_s3a, *(needed[operation] for operation in asked))


def test_the_guide_says_what_each_policy_is_for() -> None:
    assert set(re.findall(r"^\| `(\w+\.json)` \|", GUIDE, re.M)) == {path.name for path in POLICIES}


def test_the_launcher_hands_out_the_two_roles_and_only_to_emr_and_its_machines() -> None:
    passed = {
        each["Resource"]: each["Condition"]["StringEquals"]["iam:PassedToService"]
        for each in allowed(ROOT / "iam/launcher.json", "iam:PassRole")
    }
    assert passed == {
        "arn:aws:iam::ACCOUNT:role/EMR_DefaultRole": "elasticmapreduce.amazonaws.com",
        "arn:aws:iam::ACCOUNT:role/sparkify-etl-job": "ec2.amazonaws.com",
    }


def test_the_launcher_may_do_what_emr_py_asks_for(aws, config, monkeypatch) -> None:
    asked = set()
    for client in aws:
        client.meta.events.register(
            "before-parameter-build.*.*", lambda model, **_: asked.add((model.service_model.service_name, model.name))
        )
    while_it_sleeps(monkeypatch, both(job_is("FAILED"), log_is("exit code 1")), interrupt)
    assert (run(config()), run(config())) == (1, 130)
    prefixes = {"emr": "elasticmapreduce"}
    missing = [
        f"{prefixes.get(service, service)}:{name}"
        for service, name in asked
        if not allowed(ROOT / "iam/launcher.json", f"{prefixes.get(service, service)}:{name}")
    ]
    assert len(asked) >= 9 and not missing


def test_plain_http_is_denied_to_everyone() -> None:
    [denial] = statements(ROOT / "iam/bucket.json")
    assert (denial["Effect"], denial["Principal"], denial["Action"]) == ("Deny", "*", "s3:*")
    assert denial["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert denial["Resource"] == ["arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"]


def guide_lines(*languages: str) -> list[str]:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE, re.M | re.S)
    return [line for language, block in blocks if language in languages for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("line", guide_lines("sh", "crontab"))
def test_every_command_in_the_guide_parses(line: str) -> None:
    command = line.split(maxsplit=5)[5] if line[0].isdigit() else line
    subprocess.run(["bash", "-n", "-c", command], check=True)
    words = shlex.split(command, comments=True)
    if "emr.py" in words:
        emr.arguments([word for word in words[words.index("emr.py") + 1 :] if word.startswith("--")])
    if "etl.py" in words:
        etl.arguments(words[words.index("etl.py") + 1 :])
    for operand in re.findall(r"iam/(\w+\.json)|filled/(\w+\.json)", command):
        assert (ROOT / "iam" / "".join(operand)).exists()


@pytest.mark.parametrize("line", [line for line in guide_lines("sh") if line.startswith("aws ") and " s3 " not in line])
def test_every_aws_command_in_the_guide_is_an_operation_of_amazons_with_these_options(line: str) -> None:
    words = shlex.split(line)
    service, command = {"s3api": "s3"}.get(words[1], words[1]), words[2]
    if command == "create-default-roles":
        return  # the command line's own, made of several operations
    client = SESSION.client(service, REGION)
    methods = {"list-clusters": "list_clusters"}
    shape = client.meta.service_model.operation_model(
        client.meta.method_to_api_mapping[methods.get(command, command.replace("-", "_"))]
    ).input_shape
    known = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in (shape.members if shape else {})}
    options = {word[2:] for word in words if word.startswith("--")} - {"query", "output", "region", "active"}
    assert options <= known
    for option, value in zip(words, words[1:], strict=False):
        if value.startswith("{"):
            name = "".join(part.capitalize() for part in option[2:].split("-"))
            assert not ParamValidator().validate(json.loads(value), shape.members[name]).has_errors()


def test_the_settings_in_the_guide_are_complete_and_fit_the_policies(tmp_path, aws) -> None:
    path = tmp_path / "dl.cfg"
    path.write_text("[AWS CREDS]\nAWS_ACCESS_KEY_ID =\nAWS_SECRET_ACCESS_KEY =\n" + "\n".join(guide_lines("ini")))
    cluster, settings = emr.read_cluster(str(path)), etl.read_settings(str(path))
    bucket = re.search("export BUCKET=(\\S+)", GUIDE)[1]
    places = [etl.s3_path(place) for place in (settings.input, settings.output, cluster.code, cluster.logs)]
    assert places == [f"{bucket}/{prefix}" for prefix in ("raw", "lake", "emr/code", "emr/logs")]
    assert cluster.instance_profile == "sparkify-etl-job" and cluster.service_role == "EMR_DefaultRole"


def test_dl_cfg_has_a_section_emr_whose_every_key_is_known() -> None:
    shipped = configparser.ConfigParser(interpolation=None)
    shipped.read(ROOT / "dl.cfg", encoding="utf-8")
    assert shipped.has_section("EMR")
    assert set(shipped["EMR"]) <= {field.name for field in emr.fields(emr.Cluster)}
