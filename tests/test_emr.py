"""emr.py against moto's EMR. botocore checks the shape of every request by Amazon's own model before moto sees it.

EMR's control plane is the one thing here that is not real. moto is unlike it in this: a step is RUNNING from the first
moment, on a cluster that is WAITING, and never ends, so the tests end it; a cluster does not terminate after its last
step; terminating one takes no time and leaves its step RUNNING; there is no CancelSteps, so the tests answer it; roles,
subnets, releases and tags are taken as they come; IAM policies are not enforced; no log is written.
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
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError
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
    """The tests look at once, and at nobody's real account."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(emr, "LOG_WAIT", 0.2)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[emr.Aws]:
    """moto's AWS with the roles and the bucket in it; `cancelled` steps are kept in aws.emr.cancelled."""
    with mock_aws():
        boto3.client("s3", REGION).create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        iam = boto3.client("iam", REGION)
        iam.create_role(RoleName="EMR_DefaultRole", AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName="job")
        clients = emr.connect(etl.Settings(input="", output="", region=REGION))
        clients = clients._replace(emr=clients.emr_once)  # a dead line is a dead line at once
        clients.emr.cancelled = []

        def answer_cancel(request: Any, **_: Any) -> AWSResponse:
            clients.emr.cancelled.extend(json.loads(request.body)["StepIds"])
            return AWSResponse(request.url, 200, {}, Body(b'{"CancelStepsInfoList": []}'))

        clients.emr.meta.events.register_first("before-send.emr.CancelSteps", answer_cancel)
        monkeypatch.setattr(emr, "connect", lambda settings: clients)
        meanwhile(monkeypatch)
        yield clients


class Body:
    """The raw body of an answer, as urllib3 has it."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.content


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


def run(config: str, *args: str) -> int:
    return emr.main(["--config", config, *args])


def meanwhile(monkeypatch: pytest.MonkeyPatch, *events: Callable[[], None]) -> None:
    """While emr.py sleeps, the events happen, one a sleep."""
    left = list(events)
    monkeypatch.setattr(emr, "sleep", lambda seconds: left.pop(0)() if left else pytest.fail("it waits for ever"))


def job_is(state: str) -> Callable[[], None]:
    def change() -> None:
        for cluster in clusters():
            cluster.steps[0].state = state

    return change


def job_says(stderr: str) -> Callable[[], None]:
    """EMR has put the step's log where it belongs."""

    def put() -> None:
        [cluster] = clusters()
        key = f"emr/logs/{cluster.id}/steps/{cluster.steps[0].id}/stderr.gz"
        boto3.client("s3", REGION).put_object(Bucket=BUCKET, Key=key, Body=gzip.compress(stderr.encode()))

    return put


def both(*events: Callable[[], None]) -> Callable[[], None]:
    return lambda: [event() for event in events] and None


# --- The run ---------------------------------------------------------------------------------------------------------


def test_a_job_that_is_done_gives_0_and_its_cluster_is_terminated(aws, config, monkeypatch, caplog) -> None:
    meanwhile(monkeypatch, lambda: None, job_is("COMPLETED"))
    assert run(config()) == 0
    assert [cluster.state for cluster in clusters()] == ["TERMINATED"]
    assert "cluster waiting, job running, 0 min" in caplog.text and "job completed, 0 min" in caplog.text


def test_a_job_that_fails_gives_its_exit_code_and_the_end_of_its_log(aws, config, monkeypatch, caplog) -> None:
    log = "\n".join(["long ago", *["noise"] * emr.TAIL, "ERROR song_data: no file", "exit code 2"])
    meanwhile(monkeypatch, both(job_is("FAILED"), job_says(log)))
    assert run(config()) == 2
    assert "ERROR song_data: no file" in caplog.text and "long ago" not in caplog.text
    assert clusters()[0].state == "TERMINATED"


def test_a_log_that_comes_late_is_waited_for_and_one_that_never_comes_is_named(
    aws, config, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(emr, "LOG_WAIT", 60)
    meanwhile(monkeypatch, job_is("FAILED"), lambda: None, job_says("late but clear\nexit code 1"))
    assert run(config()) == 1
    assert "late but clear" in caplog.text
    monkeypatch.setattr(emr, "LOG_WAIT", 0)
    meanwhile(monkeypatch, job_is("FAILED"))
    assert run(config()) == 1
    assert f"look below s3://{BUCKET}/emr/logs/{clusters()[-1].id}/" in caplog.text


def test_a_cluster_that_dies_before_the_job_begins_is_a_failure_with_its_reason(
    aws, config, monkeypatch, caplog
) -> None:
    def dies() -> None:
        clusters()[0].state = "TERMINATED_WITH_ERRORS"
        clusters()[0].steps[0].state = "CANCELLED"

    meanwhile(monkeypatch, dies)
    assert run(config()) == 1
    assert "the job is cancelled" in caplog.text


@pytest.mark.parametrize("minutes", [1, 90])
def test_a_job_that_takes_too_long_is_cancelled_and_its_cluster_terminated(
    minutes, aws, config, monkeypatch, caplog
) -> None:
    clock = iter(range(0, 10**6, 600))
    monkeypatch.setattr(emr, "monotonic", lambda: next(clock))
    meanwhile(monkeypatch, *[lambda: None] * 20)
    assert run(config(emr=f"{EMR}TIMEOUT_MINUTES = {minutes}")) == 1
    assert f"did not end within {minutes} minutes" in caplog.text
    assert aws.emr.cancelled == [clusters()[0].steps[0].id]
    assert clusters()[0].state == "TERMINATED"


def interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_cancels_the_job_and_terminates_the_cluster(aws, config, monkeypatch, caplog) -> None:
    meanwhile(monkeypatch, interrupt)
    assert run(config()) == 130
    assert aws.emr.cancelled == [clusters()[0].steps[0].id]
    assert clusters()[0].state == "TERMINATED"


def test_a_terminate_signal_is_as_good_as_ctrl_c(aws, config, monkeypatch) -> None:
    meanwhile(monkeypatch, lambda: os.kill(os.getpid(), 15))
    assert run(config()) == 130
    assert clusters()[0].state == "TERMINATED"


def test_ctrl_c_during_the_launch_leaves_no_cluster_behind(aws, config, monkeypatch) -> None:
    launch = emr.launch
    monkeypatch.setattr(emr, "launch", lambda *args: launch(*args) and interrupt())
    assert run(config()) == 130
    assert [cluster.state for cluster in clusters()] == ["TERMINATED"]


def dead_line(request: Any, **_: Any) -> None:
    raise ConnectionClosedError(endpoint_url=request.url)


def test_a_connection_that_is_lost_for_a_while_does_no_harm(aws, config, monkeypatch, caplog) -> None:
    events = aws.emr.meta.events
    meanwhile(
        monkeypatch,
        lambda: events.register_first("before-send.emr.DescribeCluster", dead_line),
        lambda: events.unregister("before-send.emr.DescribeCluster", dead_line),
        job_is("COMPLETED"),
    )
    assert run(config()) == 0
    assert "no answer from AWS, trying again" in caplog.text


def test_a_connection_that_stays_lost_ends_with_the_one_command_that_stops_the_cluster(
    aws, config, monkeypatch, caplog
) -> None:
    def cut() -> None:
        aws.emr.meta.events.register_first("before-send.emr", dead_line)

    clock = iter(range(0, 10**6, 300))
    monkeypatch.setattr(emr, "monotonic", lambda: next(clock))
    meanwhile(monkeypatch, cut, *[lambda: None] * 10)
    assert run(config()) == 1
    assert f"aws emr terminate-clusters --cluster-ids {clusters()[0].id}" in caplog.messages[-2]
    assert "may still be running" in caplog.messages[-2]


def test_a_launch_whose_answer_is_lost_is_found_by_its_tag_and_never_tried_twice(aws, config, monkeypatch) -> None:
    run_job_flow = aws.emr_once.run_job_flow

    def lose_the_answer(**request: Any) -> None:
        run_job_flow(**request)
        raise ConnectionClosedError(endpoint_url="https://elasticmapreduce")

    monkeypatch.setattr(aws.emr_once, "run_job_flow", lose_the_answer)
    meanwhile(monkeypatch, job_is("COMPLETED"))
    assert run(config()) == 0
    assert [cluster.state for cluster in clusters()] == ["TERMINATED"]
    assert aws.emr_once.meta.config.retries["total_max_attempts"] == 1


def test_a_second_call_while_one_runs_says_which_and_launches_nothing(aws, config, monkeypatch, caplog) -> None:
    request = emr.request_for(emr.read_cluster(config()), etl.read_settings(config()), "first")
    first = aws.emr.run_job_flow(**request)["JobFlowId"]
    assert run(config(OUTPUT=f"s3://{BUCKET}/lake")) == 1
    assert f"cluster {first} already writes to s3://{BUCKET}/lake" in caplog.text
    assert [cluster.state for cluster in clusters()] == ["WAITING"]


def test_another_lake_is_no_second_call(aws, config, monkeypatch) -> None:
    aws.emr.run_job_flow(**emr.request_for(emr.read_cluster(config()), etl.read_settings(config()), "first"))
    meanwhile(monkeypatch, job_is("COMPLETED"))
    assert run(config(OUTPUT=f"s3://{BUCKET}/other")) == 0


@pytest.mark.parametrize("ours_is_older", [True, False])
def test_of_two_calls_at_once_the_older_cluster_stays(ours_is_older, aws, config, monkeypatch, caplog) -> None:
    launch = emr.launch

    def launch_two(aws: emr.Aws, request: dict, run: str) -> str:
        ids = [launch(aws, request, run), launch(aws, request, run)]
        return min(ids, key=age) if ours_is_older else max(ids, key=age)

    monkeypatch.setattr(emr, "launch", launch_two)
    meanwhile(monkeypatch, job_is("COMPLETED"))
    assert run(config()) == (0 if ours_is_older else 1)
    assert ("already writes to" in caplog.text) != ours_is_older
    states = [cluster.state for cluster in sorted(clusters(), key=lambda cluster: age(cluster.id))]
    assert states == (["TERMINATED", "WAITING"] if ours_is_older else ["WAITING", "TERMINATED"])


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
    meanwhile(monkeypatch, job_is("COMPLETED"))
    assert run(config()) == 0 == run(config(), "--dry-run")
    listed = aws.s3.list_objects_v2(Bucket=BUCKET)["Contents"]
    bodies = {entry["Key"]: aws.s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in listed}
    assert {key.rsplit("/")[-1] for key in bodies} == {"etl.py", "dl.cfg"}
    everything = b"".join(bodies.values()).decode() + caplog.text + capsys.readouterr().out
    everything += json.dumps([cluster.steps[0].args for cluster in clusters()])
    assert SECRET not in everything and "AKIDCANARY" not in everything


def test_the_shipped_dl_cfg_is_one_that_etl_takes(config, tmp_path) -> None:
    (tmp_path / "shipped.cfg").write_text(emr.shipped_config(config(lake="SSE = aws:kms")))
    settings = etl.read_settings(str(tmp_path / "shipped.cfg"))
    assert (settings.input, settings.sse, settings.aws_access_key_id) == (f"s3://{BUCKET}/raw", "aws:kms", "")


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
    more = emr.instance_groups(emr.read_cluster(config(emr=f"{EMR}TASK_COUNT = 5\nTASK_TYPE = m6g.2xlarge")))
    assert more[2] == {
        "Name": "task",
        "InstanceRole": "TASK",
        "Market": "SPOT",
        "InstanceType": "m6g.2xlarge",
        "InstanceCount": 5,
    }


def test_tags_key_and_release_reach_the_request(config) -> None:
    path = config(emr=f"{EMR}TAGS = team=data, cost = 7\nKEY_NAME = mine\nRELEASE = emr-7.13.0")
    request = emr.request_for(emr.read_cluster(path), etl.read_settings(path), "run")
    assert {"Key": "team", "Value": "data"} in request["Tags"] and {"Key": "cost", "Value": "7"} in request["Tags"]
    assert request["Instances"]["Ec2KeyName"] == "mine"
    assert request["ReleaseLabel"] == "emr-7.13.0"


def test_the_step_installs_boto3_where_the_release_has_none(config, tmp_path: Path) -> None:
    bare_python = '[ "$1" = -m ] && echo "$@"'
    for name, body in {"aws": "", "spark-submit": "", "sudo": 'exec "$@"', "python": bare_python}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYSPARK_PYTHON": "python"}
    script = emr.script(emr.read_cluster(config()), "run1")
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "-m pip install -q boto3\n")


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_step_runs_the_shipped_job_and_tells_its_exit_code(code: int, config, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in {"aws": 'touch etl.py; echo "$@"', "spark-submit": f'ls; echo "$@"; exit {code}'}.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    script = emr.script(emr.read_cluster(config()), "run1")
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout == f"s3 cp --recursive --only-show-errors s3://{BUCKET}/emr/code/run1/ .\n"
    assert done.stderr.splitlines() == ["etl.py", "--master yarn etl.py", f"exit code {code}"]


@pytest.mark.parametrize(
    ("emr_text", "lake", "remedy"),
    [
        ("", {}, "[EMR] CODE is missing"),
        (EMR.replace("subnet-1", ""), {}, "[EMR] SUBNET is missing"),
        (EMR.replace("s3://lake/emr/code", "code"), {}, "[EMR] CODE = 'code': give an s3://"),
        (EMR + "COLOUR = red", {}, "[EMR] COLOUR is no setting; known are CODE"),
        (EMR + "CORE_COUNT = 0", {}, "[EMR] CORE_COUNT = '0': give a whole number, 1 or more"),
        (EMR + "TIMEOUT_MINUTES = soon", {}, "[EMR] TIMEOUT_MINUTES = 'soon'"),
        (EMR + "TAGS = data", {}, "[EMR] TAGS = 'data': write name=value"),
        (EMR, {"INPUT": "data"}, "[LAKE] INPUT = 'data': EMR needs an s3:// address"),
        (EMR, {"ENDPOINT": "http://127.0.0.1:9000"}, "[LAKE] ENDPOINT names a store that is not Amazon's"),
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
    meanwhile(monkeypatch, both(job_is("FAILED"), job_says("exit code 1")), interrupt)
    assert (run(config()), run(config())) == (1, 130)
    prefixes = {"emr": "elasticmapreduce"}
    missing = [
        f"{prefixes.get(service, service)}:{name}"
        for service, name in asked
        if not allowed(ROOT / "iam/launcher.json", f"{prefixes.get(service, service)}:{name}")
    ]
    assert len(asked) >= 10 and not missing


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
    client = boto3.client(service, REGION)
    methods = {"list-clusters": "list_clusters"}
    shape = client.meta.service_model.operation_model(
        client.meta.method_to_api_mapping[methods.get(command, command.replace("-", "_"))]
    ).input_shape
    known = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in (shape.members if shape else {})}
    options = {word[2:] for word in words if word.startswith("--")} - {"query", "output", "region", "active"}
    assert options <= known


def test_the_settings_in_the_guide_are_complete_and_fit_the_policies(tmp_path, aws) -> None:
    path = tmp_path / "dl.cfg"
    path.write_text("[AWS CREDS]\nAWS_ACCESS_KEY_ID =\nAWS_SECRET_ACCESS_KEY =\n" + "\n".join(guide_lines("ini")))
    cluster, settings = emr.read_cluster(str(path)), etl.read_settings(str(path))
    bucket = re.search("export BUCKET=(\\S+)", GUIDE)[1]
    places = [emr.etl.s3_place(place) for place in (settings.input, settings.output, cluster.code, cluster.logs)]
    assert places == [(bucket, "raw"), (bucket, "lake"), (bucket, "emr/code"), (bucket, "emr/logs")]
    assert cluster.instance_profile == "sparkify-etl-job" and cluster.service_role == "EMR_DefaultRole"


def test_dl_cfg_has_a_section_emr_whose_every_key_is_known() -> None:
    shipped = configparser.ConfigParser(interpolation=None)
    shipped.read(ROOT / "dl.cfg", encoding="utf-8")
    assert shipped.has_section("EMR")
    assert set(shipped["EMR"]) <= {field.name for field in emr.fields(emr.Cluster)}
