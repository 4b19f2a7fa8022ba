"""The command as a whole: cluster lookup, errors without tracebacks, help that teaches, a quick start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from botocore import exceptions as b

from holdfast_cli import main as command
from holdfast_cli.aws_errors import explain
from holdfast_cli.main import cli
from holdfast_cli.terminal import duration, safe, safe_lines

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    code = "from holdfast_cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": f"{ROOT}/cli:{ROOT}/node:{ROOT}/local", "LANG": "C.UTF-8"} | inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_only_cluster_needs_no_name_and_several_are_listed(aws, holdfast) -> None:
    result = holdfast("status")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: which cluster? There are 2: demo, other; choose with --cluster NAME or HOLDFAST_CLUSTER\n"
    )


def test_cluster_can_come_from_the_environment(aws, holdfast, monkeypatch) -> None:
    monkeypatch.setenv("HOLDFAST_CLUSTER", "other")
    assert "cluster other has run no job yet" in holdfast("status").stdout


CLUSTERS = {
    "unknown": ("nope", "no cluster named 'nope' (found: demo, other); check --cluster, --region and AWS_PROFILE"),
    "impossible": ("../x", "a cluster's name matches [a-z][a-z0-9-]{1,30}[a-z0-9], got '../x'; correct --cluster"),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_wrong_cluster_is_refused(name, aws, holdfast) -> None:
    cluster, message = CLUSTERS[name]
    result = holdfast("--cluster", cluster, "status")
    assert (result.exit_code, result.stderr) == (1, f"error: {message}\n")


def test_stack_without_outputs_says_what_is_missing(aws, holdfast) -> None:
    cloudformation = aws.client("cloudformation")
    template = {"Resources": {"Logs": {"Type": "AWS::Logs::LogGroup"}}, "Outputs": {"Engine": {"Value": "mxnet"}}}
    cloudformation.create_stack(StackName="Holdfast-half-Training", TemplateBody=json.dumps(template))
    cloudformation.get_waiter("stack_create_complete").wait(
        StackName="Holdfast-half-Training", WaiterConfig={"Delay": 1, "MaxAttempts": 20}
    )
    try:
        error = holdfast("--cluster", "half", "status").stderr
    finally:
        cloudformation.delete_stack(StackName="Holdfast-half-Training")
    assert "stack Holdfast-half-Training is CREATE_COMPLETE and lacks the outputs ClusterName, JobSigningKey" in error
    assert "deploy it completely with `cdk deploy --all`" in error


def client_error(code: str, message: str = "no", operation: str = "Sign") -> b.ClientError:
    return b.ClientError({"Error": {"Code": code, "Message": message}}, operation)


ERRORS = {
    "no credentials": (b.NoCredentialsError(), "no usable AWS credentials found; log in again (`aws sso login`)"),
    "expired token": (client_error("ExpiredTokenException"), "the AWS credentials have expired; log in again"),
    "expired login": (b.UnauthorizedSSOTokenError(), "the AWS login has expired; log in again (`aws sso login`)"),
    "bad credentials": (
        client_error("UnrecognizedClientException"),
        "AWS does not accept these credentials (UnrecognizedClientException); log in again",
    ),
    "denied, with the action": (
        client_error("AccessDeniedException", "User: x is not authorized to perform: kms:Sign on resource: y"),
        "access denied: these credentials may not kms:Sign; ask for that permission, or use another AWS_PROFILE",
    ),
    "denied, without it": (client_error("AccessDenied", operation="PutObject"), "these credentials may not PutObject;"),
    "throttled": (
        client_error("ThrottlingException", operation="StartExecution"),
        "AWS throttled StartExecution after several attempts (ThrottlingException); wait a minute and try again",
    ),
    "unreachable": (
        b.EndpointConnectionError(endpoint_url="https://kms.example"),
        "cannot reach https://kms.example (EndpointConnectionError); check the network, --region and AWS_ENDPOINT_URL",
    ),
    "slow": (
        b.ReadTimeoutError(endpoint_url="https://kms.example"),
        "cannot reach https://kms.example (ReadTimeoutError); check the network",
    ),
    "certificate": (
        b.SSLError(endpoint_url="https://kms.example", error="x"),
        "the certificate of https://kms.example was not accepted; check AWS_CA_BUNDLE and the clock of this machine",
    ),
    "no region": (b.NoRegionError(), "no AWS region is set; use --region REGION or set AWS_REGION"),
    "wrong profile": (
        b.ProfileNotFound(profile="x"),
        "The config profile (x) could not be found; correct AWS_PROFILE or run `aws configure --profile NAME`",
    ),
    "bucket gone": (client_error("NoSuchBucket"), "a bucket of this cluster is gone (NoSuchBucket); deploy it again"),
    "anything else": (client_error("Odd", "a\x1b[2Jb"), r"AWS refused Sign: Odd: a\x1b[2Jb"),
    "another of botocore's": (b.UnknownServiceError(service_name="x", known_service_names="y"), "AWS call failed: "),
}


@pytest.mark.parametrize("name", ERRORS)
def test_aws_error_has_a_remedy(name) -> None:
    error, message = ERRORS[name]
    explained = explain(error)
    assert message in str(explained)
    assert "\n" not in str(explained)


def test_errors_that_are_not_aws_s_are_not_hidden() -> None:
    assert explain(ValueError("a bug")) is None


def test_missing_credentials_are_one_line_and_no_traceback() -> None:
    result = run("--region", "us-east-1", "status", AWS_EC2_METADATA_DISABLED="true", AWS_CONFIG_FILE="/nonexistent",
                 AWS_SHARED_CREDENTIALS_FILE="/nonexistent")  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no usable AWS credentials found; ") and result.stderr.count("\n") == 1


def test_unreachable_endpoint_is_one_line_and_no_traceback() -> None:
    result = run("--output", "json", "status", AWS_ENDPOINT_URL="http://127.0.0.1:1", AWS_ACCESS_KEY_ID="x",
                 AWS_SECRET_ACCESS_KEY="x", AWS_REGION="us-east-1")  # fmt: skip
    assert result.returncode == 1
    error = json.loads(result.stderr)
    assert error["kind"] == "AwsError" and error["error"].startswith("cannot reach http://127.0.0.1:1")


def test_local_without_a_running_cluster_says_how_to_start_it(tmp_path) -> None:
    result = run("--local", "status", HOLDFAST_STATE_DIR=str(tmp_path / "state"))
    assert result.returncode == 1
    assert result.stderr == "error: no local cluster is running; start one with `holdfast local up`\n"


def test_denied_role_is_told_the_action(aws, demo, holdfast, monkeypatch) -> None:
    iam = aws.client("iam")
    iam.create_user(UserName="nobody")
    key = iam.create_access_key(UserName="nobody")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    result = holdfast("--cluster", "demo", "status")
    assert result.exit_code == 1
    assert "error: access denied: these credentials may not cloudformation:DescribeStacks" in result.stderr


def test_unreadable_file_is_one_line(holdfast, tmp_path) -> None:
    result = holdfast("verify-model", tmp_path, "--public-key", tmp_path / "none.pem")
    assert result.stderr.startswith(f"error: cannot use {tmp_path / 'none.pem'}: No such file or directory;")


def test_interrupt_while_waiting_says_that_the_job_goes_on(on_demo, project, monkeypatch) -> None:
    from holdfast_cli import status

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", interrupted)
    result = on_demo("submit", project, "--entry", "train.py", "--servers", 3, "--wait")
    assert result.exit_code == 130
    assert "error: interrupted; the job goes on: `holdfast status my-project-" in result.stderr


def test_help_loads_neither_boto3_nor_the_verifier() -> None:
    code = (
        "import sys; from holdfast_cli.main import cli; cli(['--help'], standalone_mode=False); "
        "print([m for m in ('boto3', 'botocore', 'rich', 'model_signing', 'cryptography') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT}/cli:{ROOT}/node"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_documents_examples_and_every_exit_code(holdfast) -> None:
    text = holdfast("--help").stdout
    assert "holdfast submit examples/digits --entry train.py" in text
    assert all(f"    {code}" in text for code in ("0 ", "1 ", "2 ", "3 ", "130 "))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help(name, holdfast) -> None:
    result = holdfast(name, "--help")
    assert result.exit_code == 0 and result.stdout.startswith(f"Usage: cli {name}")


def test_wrong_usage_exits_with_two(holdfast) -> None:
    assert holdfast("submit").exit_code == 2
    assert holdfast("no-such-command").exit_code == 2


def test_local_commands_are_added_where_they_are_installed(monkeypatch) -> None:
    monkeypatch.setattr(cli, "commands", dict(cli.commands))
    command._add_local_commands()
    assert "local" in cli.commands


def test_a_missing_local_package_is_no_error(monkeypatch) -> None:
    monkeypatch.setattr(cli, "commands", dict(cli.commands))
    monkeypatch.setitem(sys.modules, "holdfast_local", None)
    monkeypatch.setitem(sys.modules, "holdfast_local.commands", None)
    command._add_local_commands()
    assert "local" not in cli.commands


ESCAPES = {
    "plain": ("plain text", "plain text"),
    "letters of any script": ("été 数字", "été 数字"),
    "escape": ("\x1b[31m", r"\x1b[31m"),
    "C1 control": ("\x9b2J", r"\x9b2J"),
    "bell and backspace": ("\x07\x08", r"\x07\x08"),
    "carriage return": ("ok\rno", r"ok\rno"),
    "right-to-left override": ("\u202eabc", r"\u202eabc"),
    "zero width": ("a\u200bb", r"a\u200bb"),
    "line separator": ("a\u2028b", r"a\u2028b"),
    "lone surrogate": ("\udc80", r"\udc80"),
    "not text": (7, "7"),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_safe_escapes(name) -> None:
    value, expected = ESCAPES[name]
    assert safe(value) == expected


def test_safe_lines_splits_and_escapes() -> None:
    assert safe_lines("a\r\n\x1bb\n\n") == ["a", r"\x1bb"]
    assert safe_lines("") == [""]


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0s"), (59.9, "59s"), (61, "1m 01s"), (3720, "1h 02m")])
def test_duration(seconds, text) -> None:
    assert duration(seconds) == text
