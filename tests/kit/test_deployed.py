"""The kit deployed to the embedded AWS: what the templates promise is what happens there."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.kit.deployed import CLUSTER, EMPTY, Account, sweep_of, until

from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role
from holdfast_node.identity import IdentityError, enrol

pytestmark = pytest.mark.e2e


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
    assert account.at_rest()


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
    assert account.at_rest()


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
    execution = account.start(**JOB)
    until(account.control)
    account.client("stepfunctions").stop_execution(executionArn=execution)
    assert account.ended(execution)["status"] == "ABORTED"
    assert account.ended(until(lambda: sweep_of(account, execution)))["status"] == "SUCCEEDED"
    assert account.at_rest()


@pytest.fixture
def running(account: Account) -> Iterator[str]:
    """A job that runs, with what it raised; ended after the test."""
    execution = account.start(**JOB)
    token = until(account.control).task_token
    yield execution
    account.client("stepfunctions").send_task_success(taskToken=token, output="{}")
    assert account.ended(execution)["status"] == "SUCCEEDED"
    assert account.at_rest()


RAISED = {"local-scheduler": 1, "local-server": 1, "local-worker": 2}


def test_a_second_job_is_refused_and_does_not_disturb_the_first(account: Account, running: str) -> None:
    second = account.start(**{**JOB, "job_id": "second", "workers": 1})
    ended = account.ended(second)
    assert (ended["status"], ended["error"]) == ("FAILED", "Holdfast.ClusterBusy")
    assert ended["cause"].startswith("another job holds the cluster, or its lock could not be written: ")
    # The refusal is a failure, so it is swept too: that must not touch the first job either.
    assert account.ended(until(lambda: sweep_of(account, second)))["status"] == "SUCCEEDED"
    assert (account.lock(), account.desired()) == (running, RAISED)
    assert account.control().job_id == JOB["job_id"]


def test_a_sweep_for_another_execution_lowers_nothing(account: Account, running: str) -> None:
    assert account.ended(account.start(lower=f"{running}-other"))["status"] == "SUCCEEDED"
    assert (account.lock(), account.desired()) == (running, RAISED)


def test_a_sweep_lowers_what_a_failed_lowering_left(account: Account) -> None:
    # An execution that never was: a real one's end would start a sweep of its own, beside the test's.
    ended = "arn:aws:states:us-east-1:000000000000:execution:gone:gone"
    account.client("autoscaling").set_desired_capacity(AutoScalingGroupName=f"{CLUSTER}-worker", DesiredCapacity=1)
    place = {"Bucket": account.outputs["JobsBucket"], "Key": JobsBucket.LOCK}
    account.client("s3").put_object(**place, Body=json.dumps({"execution": ended}).encode())
    assert account.ended(account.start(lower=ended))["status"] == "SUCCEEDED"
    assert account.at_rest()


def test_a_cluster_at_rest_is_swept_without_effect(account: Account) -> None:
    assert account.ended(account.start(lower="arn:aws:states:us-east-1:0:execution:none:none"))["status"] == "SUCCEEDED"
    assert account.at_rest()


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
        config = node_config(account, role)
        assert (config.role, config.jobs_bucket) == (role, account.outputs["JobsBucket"])
        assert config.file_system_id == ("" if role is Role.SCHEDULER else account.outputs["FileSystem"])


def decoded(user_data: str) -> str:
    return base64.b64decode(user_data).decode()


def test_node_fetches_bundle_and_wheels_and_their_digests_are_the_configurations(account: Account) -> None:
    config = node_config(account, Role.SERVER)
    s3 = account.client("s3", account.node(Role.SERVER))
    assert config.wheelhouse is not None
    for part in (config.bundle, config.wheelhouse):
        content = s3.get_object(Bucket=part.bucket, Key=part.key)["Body"].read()
        assert hashlib.sha256(content).hexdigest() == part.sha256


@pytest.mark.parametrize("role", Role)
def test_resolved_user_data_stays_below_eight_kilobytes(account: Account, role: Role) -> None:
    assert len(user_data(account, role).encode()) < 8192


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
    "a server cannot replace the CA": (Role.SERVER, False, "put", JobsBucket.ca_certificate(1)),
    "a worker cannot revoke another node": (Role.WORKER, False, "put", JobsBucket.denial("i-0123456789abcdef0")),
    "the scheduler cannot revoke a node": (Role.SCHEDULER, False, "put", JobsBucket.denial("i-0123456789abcdef0")),
    "a worker cannot use up another's proof": (Role.WORKER, False, "put", f"{JobsBucket.PROOFS}{'0' * 64}"),
    "the scheduler keeps a job's record": (Role.SCHEDULER, True, "put", "status/sample.json"),
    "a worker cannot read a registration, not even its own": (Role.WORKER, False, "get", "nodes/worker/i-1.json"),
    "the scheduler cannot take the lock away": (Role.SCHEDULER, False, "put", JobsBucket.LOCK),
    "a worker cannot rewrite a job's record": (Role.WORKER, False, "put", "status/sample.json"),
    "a worker says how it booted": (Role.WORKER, True, "put", JobsBucket.boot(Role.WORKER, "i-1")),
    "a worker cannot say how a server booted": (Role.WORKER, False, "put", JobsBucket.boot(Role.SERVER, "i-1")),
    "the scheduler reads how a worker booted": (Role.SCHEDULER, True, "get", JobsBucket.boot(Role.WORKER, "i-1")),
    "a server cannot read how a worker booted": (Role.SERVER, False, "get", JobsBucket.boot(Role.WORKER, "i-1")),
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


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("prefix", "allowed"), [(JobsBucket.DENIED, True), ("denied", False), ("pki/", False)])
def test_every_node_lists_the_denials_and_no_more(account: Account, role: Role, prefix: str, allowed: bool) -> None:
    s3 = account.client("s3", account.node(role))
    try:
        s3.list_objects_v2(Bucket=account.outputs["JobsBucket"], Prefix=prefix)
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


DIGEST: dict[str, Any] = {"Message": bytes(32), "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"}


@pytest.fixture(scope="module")
def signing_keys(account: Account) -> dict[str, str]:
    """The ARN of each signing key, by the last part of its alias."""
    aliases = account.client("kms").list_aliases()["Aliases"]
    prefix = f"alias/holdfast/{CLUSTER}/"
    return {a["AliasName"].removeprefix(prefix): a["TargetKeyId"] for a in aliases if a["AliasName"].startswith(prefix)}


@pytest.mark.parametrize("key", ["ca", "models"])
def test_not_even_an_administrator_signs_for_the_enrolment_function_or_a_worker(
    account: Account, writer_keys: Any, signing_keys: dict[str, str], key: str
) -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        writer_keys.sign(KeyId=signing_keys[key], **DIGEST)
    assert writer_keys.get_public_key(KeyId=signing_keys[key])["KeySpec"] == "ECC_NIST_P256"


@pytest.fixture(scope="module")
def writer_keys(account: Account, writer: Any) -> Any:
    """KMS as a role whose own policy allows everything there."""
    role = account.client("iam").get_role(RoleName="writer")["Role"]["Arn"]
    return account.client("kms", account.assume(role, "writer"))


def test_the_enrolment_function_signs_with_the_authority_and_digests_only(
    account: Account, signing_keys: dict[str, str]
) -> None:
    configuration = account.client("lambda").get_function_configuration(FunctionName=f"{CLUSTER}-enrolment")
    kms = account.client("kms", account.assume(configuration["Role"], "enrolment"))
    assert kms.sign(KeyId=signing_keys["ca"], **DIGEST)["Signature"]
    with pytest.raises(ClientError, match="AccessDenied"):
        kms.sign(KeyId=signing_keys["ca"], Message=b"whole", MessageType="RAW", SigningAlgorithm="ECDSA_SHA_256")


def test_the_deployed_function_answers_with_its_own_packed_sdk(account: Account) -> None:
    answer = account.client("lambda").invoke(FunctionName=f"{CLUSTER}-enrolment", Payload=b'{"csr": "none"}')
    assert "FunctionError" not in answer
    assert json.loads(answer["Payload"].read())["refused"]["reason"] == "bad_request"


def user_data(account: Account, role: Role) -> str:
    data = account.client("ec2").describe_launch_template_versions(
        LaunchTemplateName=f"{CLUSTER}-{role}", Versions=["$Latest"]
    )["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    return decoded(data["UserData"])


def node_config(account: Account, role: Role) -> NodeConfig:
    script = user_data(account, role)
    return NodeConfig.parse(script.split("<<'HOLDFAST_NODE_JSON'\n")[1].split("\nHOLDFAST_NODE_JSON")[0])


def test_the_deployed_function_enrols_an_instance_and_no_stranger_nor_revoked_one(
    account: Account, running: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in account.endpoint().items():
        monkeypatch.setenv(name, value)
    groups = account.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[f"{CLUSTER}-server"])
    instance = groups["AutoScalingGroups"][0]["Instances"][0]["InstanceId"]
    config = node_config(account, Role.SERVER)
    role_arn = account.node_role(Role.SERVER)
    enrolled = enrol(config, account.assume(role_arn, instance), instance_id=instance, tls_dir=tmp_path)
    assert enrolled.spiffe_id == f"spiffe://{CLUSTER}/server/{instance}"
    stranger = "i-0123456789abcdef0"
    with pytest.raises(IdentityError) as refusal:
        enrol(config, account.assume(role_arn, stranger), instance_id=stranger, tls_dir=tmp_path)
    assert refusal.value.reason == "not_in_group"
    account.client("s3").put_object(Bucket=config.jobs_bucket, Key=JobsBucket.denial(instance), Body=b"{}")
    with pytest.raises(IdentityError, match=f"{instance} was revoked by an operator") as refusal:
        enrol(config, account.assume(role_arn, instance), instance_id=instance, tls_dir=tmp_path)
    assert refusal.value.reason == "revoked"
