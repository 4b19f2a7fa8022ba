"""The kit deployed to the embedded AWS: what the templates promise is what happens there."""

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from tests.kit.support import ROOT

from holdfast_node.contract.documents import Control, NodeConfig
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role

pytestmark = pytest.mark.e2e

WAIT_SECONDS = 60
CLUSTER = "local"
_CONFIG = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 2})


class Account:
    """The embedded account with the kit in it."""

    def __init__(self, environment: dict[str, str], outputs: dict[str, str]) -> None:
        self.outputs = outputs
        self._endpoint, self._ca = environment["AWS_ENDPOINT_URL"], environment["AWS_CA_BUNDLE"]
        self.session = boto3.Session(
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_REGION"],
        )

    def client(self, service: str, session: boto3.Session | None = None) -> Any:
        return (session or self.session).client(service, endpoint_url=self._endpoint, verify=self._ca, config=_CONFIG)

    def assume(self, role_arn: str, name: str) -> boto3.Session:
        keys = self.client("sts").assume_role(RoleArn=role_arn, RoleSessionName=name)["Credentials"]
        return boto3.Session(
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys["SessionToken"],
            region_name=self.session.region_name,
        )

    def node(self, role: Role) -> boto3.Session:
        account = self.client("sts").get_caller_identity()["Account"]
        return self.assume(f"arn:aws:iam::{account}:role/{CLUSTER}-us-east-1-{role}", "i-0123456789abcdef0")

    def start(self, **job: Any) -> str:
        execution = self.client("stepfunctions").start_execution(
            stateMachineArn=self.outputs["StateMachine"], name=uuid.uuid4().hex, input=json.dumps(job)
        )
        return str(execution["executionArn"])

    def ended(self, execution: str) -> dict[str, Any]:
        states = self.client("stepfunctions")
        return dict(
            until(lambda: (d := states.describe_execution(executionArn=execution))["status"] != "RUNNING" and d)
        )

    def desired(self) -> dict[str, int]:
        groups = self.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        return {group["AutoScalingGroupName"]: group["DesiredCapacity"] for group in groups}

    def control(self) -> Control | None:
        try:
            body = self.client("s3").get_object(Bucket=self.outputs["JobsBucket"], Key=JobsBucket.CONTROL)["Body"]
        except ClientError:
            return None
        return Control.parse(body.read())


def until(condition: Callable[[], Any]) -> Any:
    """Return the condition's first true value; fail after a minute."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
    return value


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    from holdfast_local.emulator.deploy import bootstrap_and_deploy
    from holdfast_local.emulator.process import Emulator

    state = tmp_path_factory.mktemp("aws")
    emulator = Emulator(state, ROOT / ".venv-aws/bin/python", port=0)
    emulator.start()
    try:
        environment = emulator.environment()
        bootstrap_and_deploy(ROOT, environment, "local", state / "outputs.json", lambda line: None)
        outputs = json.loads((state / "outputs.json").read_text())[f"Holdfast-{CLUSTER}-Training"]
        yield Account(environment, outputs)
    finally:
        emulator.stop()


EMPTY = dict.fromkeys((f"{CLUSTER}-{role}" for role in Role), 0)
JOB = {"job_id": "sample", "workers": 2, "servers": 1, "timeout_seconds": 300}


def test_there_is_no_instance_at_rest(account: Account) -> None:
    assert account.desired() == EMPTY


def test_a_job_raises_what_it_asked_for_and_lowers_it_after_success(account: Account) -> None:
    execution = account.start(**JOB)
    control = until(account.control)
    assert control.job_id == "sample"
    assert account.desired() == {"local-scheduler": 1, "local-server": 1, "local-worker": 2}
    account.client("stepfunctions", account.node(Role.SCHEDULER)).send_task_success(
        taskToken=control.task_token, output="{}"
    )
    assert account.ended(execution)["status"] == "SUCCEEDED"
    assert (account.desired(), account.control()) == (EMPTY, None)


def test_a_failed_job_keeps_its_cause_and_is_lowered(account: Account) -> None:
    execution = account.start(**JOB)
    token = until(account.control).task_token
    account.client("stepfunctions", account.node(Role.SCHEDULER)).send_task_failure(
        taskToken=token, error="Holdfast.JobFailed", cause="worker 0: train.py ended with status 1"
    )
    ended = account.ended(execution)
    assert (ended["status"], ended["error"], ended["cause"]) == (
        *("FAILED", "Holdfast.JobFailed"),
        "worker 0: train.py ended with status 1",
    )
    assert (account.desired(), account.control()) == (EMPTY, None)


@pytest.mark.parametrize("role", [Role.SERVER, Role.WORKER])
def test_only_the_scheduler_ends_a_job(account: Account, role: Role) -> None:
    execution = account.start(**JOB)
    token = until(account.control).task_token
    with pytest.raises(ClientError, match="AccessDenied"):
        account.client("stepfunctions", account.node(role)).send_task_success(taskToken=token, output="{}")
    account.client("stepfunctions").send_task_failure(taskToken=token, error="Test", cause="over")
    assert account.ended(execution)["error"] == "Test"


REFUSED_JOBS: dict[str, dict[str, Any]] = {
    "more workers than the settings allow": {"workers": 3},
    "no server": {"servers": 0},
    "longer than the settings allow": {"timeout_seconds": 3601},
    "shorter than a heartbeat": {"timeout_seconds": 120},
    "workers as text": {"workers": "2"},
    "a job id that is a number": {"job_id": 7},
}


@pytest.mark.parametrize("case", REFUSED_JOBS)
def test_a_job_beyond_the_limits_is_refused_before_anything_is_raised(account: Account, case: str) -> None:
    ended = account.ended(account.start(**{**JOB, **REFUSED_JOBS[case]}))
    assert (ended["status"], ended["error"]) == ("FAILED", "Holdfast.JobRefused")
    assert account.desired() == EMPTY


def test_an_aborted_job_is_lowered_by_itself(account: Account) -> None:
    states, machine = account.client("stepfunctions"), account.outputs["StateMachine"]
    before = {e["executionArn"] for e in states.list_executions(stateMachineArn=machine)["executions"]}
    execution = account.start(**JOB)
    until(account.control)
    states.stop_execution(executionArn=execution)
    assert account.ended(execution)["status"] == "ABORTED"

    def new() -> set[str]:
        now = {e["executionArn"] for e in states.list_executions(stateMachineArn=machine)["executions"]}
        return now - before - {execution}

    (lowering,) = until(new)
    assert account.ended(lowering)["status"] == "SUCCEEDED"
    assert (account.desired(), account.control()) == (EMPTY, None)


@pytest.fixture(scope="module")
def writer(account: Account) -> Any:
    """S3 as a role that may do everything with objects and keys: only the bucket's policy stands in its way."""
    own = account.client("sts").get_caller_identity()["Account"]
    trust = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{own}:root"}, "Action": "sts:AssumeRole"}
    every = {"Effect": "Allow", "Action": ["s3:*", "kms:*"], "Resource": "*"}
    iam = account.client("iam")
    role = iam.create_role(RoleName="writer", AssumeRolePolicyDocument=document(trust))["Role"]
    iam.put_role_policy(RoleName="writer", PolicyName="all", PolicyDocument=document(every))
    return account.client("s3", account.assume(role["Arn"], "writer"))


def document(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


@pytest.mark.parametrize("bucket", ["JobsBucket", "ModelsBucket"])
def test_upload_without_a_header_is_encrypted_with_the_data_key(account: Account, writer: Any, bucket: str) -> None:
    place = {"Bucket": account.outputs[bucket], "Key": "jobs/plain"}
    writer.put_object(**place, Body=b"content")
    head = writer.head_object(**place)
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", account.outputs["DataKey"])


def test_upload_that_names_the_data_key_is_accepted(account: Account, writer: Any) -> None:
    key = account.outputs["DataKey"]
    writer.put_object(
        Bucket=account.outputs["JobsBucket"], Key="jobs/named", ServerSideEncryption="aws:kms", SSEKMSKeyId=key
    )


UPLOADS = {
    "AES256": {"ServerSideEncryption": "AES256"},
    "KMS with no key named": {"ServerSideEncryption": "aws:kms"},
    "a customer's key": {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "0" * 32},
}


@pytest.mark.parametrize("bucket", ["JobsBucket", "ModelsBucket"])
@pytest.mark.parametrize("case", UPLOADS)
def test_upload_with_another_encryption_is_denied(account: Account, writer: Any, bucket: str, case: str) -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        writer.put_object(Bucket=account.outputs[bucket], Key="jobs/other", Body=b"content", **UPLOADS[case])


def test_upload_under_another_key_is_denied(account: Account, writer: Any) -> None:
    other = account.client("kms").create_key()["KeyMetadata"]["Arn"]
    with pytest.raises(ClientError, match="AccessDenied"):
        writer.put_object(
            Bucket=account.outputs["JobsBucket"], Key="jobs/other", ServerSideEncryption="aws:kms", SSEKMSKeyId=other
        )


def test_launch_template_carries_a_configuration_that_nodes_accept(account: Account) -> None:
    for role in Role:
        data = account.client("ec2").describe_launch_template_versions(
            LaunchTemplateName=f"{CLUSTER}-{role}", Versions=["$Latest"]
        )["LaunchTemplateVersions"][0]["LaunchTemplateData"]
        script = decoded(data["UserData"])
        config = NodeConfig.parse(script.split("<<'HOLDFAST_NODE_JSON'\n")[1].split("\nHOLDFAST_NODE_JSON")[0])
        assert (config.role, config.jobs_bucket) == (role, account.outputs["JobsBucket"])
        assert config.file_system_id == account.outputs["FileSystem"]


def decoded(user_data: str) -> str:
    return base64.b64decode(user_data).decode()


def test_node_fetches_the_bundle_and_its_digest_is_the_configurations(account: Account) -> None:
    data = account.client("ec2").describe_launch_template_versions(
        LaunchTemplateName=f"{CLUSTER}-server", Versions=["$Latest"]
    )["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    script = decoded(data["UserData"])
    config = NodeConfig.parse(script.split("<<'HOLDFAST_NODE_JSON'\n")[1].split("\nHOLDFAST_NODE_JSON")[0])
    s3 = account.client("s3", account.node(Role.SERVER))
    content = s3.get_object(Bucket=config.bundle.bucket, Key=config.bundle.key)["Body"].read()
    assert hashlib.sha256(content).hexdigest() == config.bundle.sha256


#: (role, may it, operation, key)
OBJECTS = {
    "a worker registers itself": (Role.WORKER, True, "put", "nodes/worker/i-1.json"),
    "a worker cannot register a server": (Role.WORKER, False, "put", "nodes/server/i-1.json"),
    "a server cannot publish the rendezvous": (Role.SERVER, False, "put", JobsBucket.RENDEZVOUS),
    "the scheduler publishes the rendezvous": (Role.SCHEDULER, True, "put", JobsBucket.RENDEZVOUS),
    "a worker reads the rendezvous": (Role.WORKER, True, "get", JobsBucket.RENDEZVOUS),
    "a worker cannot take the token": (Role.WORKER, False, "get", JobsBucket.CONTROL),
    "the scheduler cannot hand a token over": (Role.SCHEDULER, False, "put", JobsBucket.CONTROL),
    "a worker cannot replace a job": (Role.WORKER, False, "put", "jobs/sample/code.tar.gz"),
    "the scheduler cannot replace a job": (Role.SCHEDULER, False, "put", "jobs/sample/job.dsse.json"),
    "a server cannot replace the CA": (Role.SERVER, False, "put", JobsBucket.CA_CERTIFICATE),
    "the scheduler keeps a job's record": (Role.SCHEDULER, True, "put", "status/sample.json"),
    "a worker cannot rewrite a job's record": (Role.WORKER, False, "put", "status/sample.json"),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_each_prefix_has_its_writer(account: Account, case: str) -> None:
    role, allowed, operation, key = OBJECTS[case]
    place = {"Bucket": account.outputs["JobsBucket"], "Key": key}
    s3 = account.client("s3", account.node(role))
    try:
        s3.put_object(**place, Body=b"{}") if operation == "put" else s3.get_object(**place)
        done = True
    except ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied"
        done = False
    assert done is allowed


SIGNERS = {Role.SCHEDULER: False, Role.SERVER: False, Role.WORKER: True}


@pytest.mark.parametrize("role", Role)
def test_only_workers_sign_models_and_nobody_signs_jobs(account: Account, role: Role) -> None:
    kms = account.client("kms", account.node(role))
    digest = {"Message": bytes(32), "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"}
    for key, allowed in (("ModelSigningKey", SIGNERS[role]), ("JobSigningKey", False)):
        try:
            kms.sign(KeyId=account.outputs[key], **digest)
            signed = True
        except ClientError as error:
            assert error.response["Error"]["Code"] in ("AccessDenied", "AccessDeniedException")
            signed = False
        assert signed is allowed, key


def test_model_key_signs_digests_only(account: Account) -> None:
    kms = account.client("kms", account.node(Role.WORKER))
    with pytest.raises(ClientError, match="AccessDenied"):
        kms.sign(
            KeyId=account.outputs["ModelSigningKey"],
            Message=b"a whole message",
            MessageType="RAW",
            SigningAlgorithm="ECDSA_SHA_256",
        )
