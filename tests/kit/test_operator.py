"""What an operator's grant allows: the real commands, with nothing but the grant, on the embedded AWS."""

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_iam as iam
from botocore.exceptions import ClientError
from tests.kit.deployed import CLUSTER, Account, until
from tests.kit.support import ROOT, Deployment

from holdfast_cli import boots, jobs, logs, models, status
from holdfast_cli.aws import Aws, Cluster, find_cluster
from holdfast_cli.errors import NotFoundError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role
from stacks.config import load
from stacks.foundation import FoundationStack
from stacks.network import NetworkStack
from stacks.training import TrainingStack

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def grant(account: Account, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The policy that `grant_submit` makes, with the deployment's own names in it."""
    folder = tmp_path_factory.mktemp("operator")
    context = json.loads((ROOT / "cdk.json").read_text())["context"]
    app = cdk.App(outdir=str(folder), analytics_reporting=False, context=context)
    settings = load(CLUSTER)
    foundation = FoundationStack(
        app, settings=settings, node_source=ROOT / "node", cache_directory=ROOT / ".build"
    ).foundation
    network = NetworkStack(app, settings=settings, foundation=foundation).network
    stack = TrainingStack(app, settings=settings, foundation=foundation, network=network)
    role = iam.Role(stack, "Operator", assumed_by=iam.AccountRootPrincipal())
    stack.cluster.grant_submit(role)
    app.synth()
    (policy,) = Deployment(folder, CLUSTER).properties("AWS::IAM::Policy").values()
    text = json.dumps(policy["PolicyDocument"])
    own, outputs = account.client("sts").get_caller_identity()["Account"], account.outputs
    for name, value in {
        "FoundationKeysData.Arn": outputs["DataKey"],
        "FoundationKeysJobSigning.Arn": outputs["JobSigningKey"],
        "FoundationKeysModelSigning.Arn": outputs["ModelSigningKey"],
        "FoundationBucketsJobs.Arn": f"arn:aws:s3:::{outputs['JobsBucket']}",
        "FoundationBucketsModels.Arn": f"arn:aws:s3:::{outputs['ModelsBucket']}",
        "FoundationNodeLog.Arn": f"arn:aws:logs:us-east-1:{own}:log-group:{outputs['NodeLogGroup']}:*",
        "ClusterJobsStateMachine": outputs["StateMachine"],
        "AWS::AccountId": own,
        "AWS::Partition": "aws",
    }.items():
        text = text.replace(f"<{name}>", value)
    assert "<" not in text
    return dict(json.loads(text))


@pytest.fixture(scope="module")
def operator(account: Account, grant: dict[str, Any]) -> Any:
    """A session of a role with the grant and nothing else."""
    own = account.client("sts").get_caller_identity()["Account"]
    trust = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{own}:root"}, "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = account.client("iam").create_role(RoleName="operator", AssumeRolePolicyDocument=policy)["Role"]
    account.client("iam").put_role_policy(RoleName="operator", PolicyName="grant", PolicyDocument=json.dumps(grant))
    return account.assume(role["Arn"], "operator")


@pytest.fixture(scope="module")
def cluster(account: Account, operator: Any) -> Cluster:
    class OperatorsAws(Aws):
        def client(self, service: str) -> Any:
            return account.client(service, operator)

    found = find_cluster(OperatorsAws(), CLUSTER)
    # The grant is the same where instances boot; the local hosts are not up here.
    return dataclasses.replace(found, node_boot="ec2")


@pytest.fixture(scope="module")
def job_id(account: Account, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job that the operator submitted, and that has ended."""
    code = tmp_path_factory.mktemp("code")
    (code / "train.py").write_text("print('trained')\n")
    submission = jobs.submit(cluster, jobs.Request(directory=code, entry="train.py"), lambda line: None)
    view = status.job(cluster, submission.job_id)  # no record of it is there yet
    assert (view.execution, view.phase) == ("RUNNING", "starting instances")
    token = until(account.control).task_token
    account.client("stepfunctions").send_task_success(taskToken=token, output="{}")
    assert account.ended(submission.execution)["status"] == "SUCCEEDED"
    return submission.job_id


def test_operator_submits_a_job_and_sees_it(cluster: Cluster, job_id: str) -> None:
    assert status.job(cluster, job_id).succeeded
    assert job_id in {view.job_id for view in status.latest(cluster)}


def test_operator_reads_a_jobs_record(account: Account, cluster: Cluster, job_id: str) -> None:
    scheduler = account.client("s3", account.node(Role.SCHEDULER))
    record = json.dumps({"phase": "succeeded", "nodes": [{"role": "worker", "rank": 0}]}).encode()
    scheduler.put_object(Bucket=cluster.jobs_bucket, Key=JobsBucket.status(job_id), Body=record)
    assert [node.role for node in status.job(cluster, job_id).nodes] == ["worker"]


def test_operator_sees_how_a_jobs_nodes_booted(account: Account, cluster: Cluster, job_id: str) -> None:
    phase = {"phase": "fetch", "start": "2026-11-24T18:31:29Z", "end": "2026-11-24T18:31:31Z", "timeout_seconds": 9}
    record = {"role": "worker", "instance_id": "i-0123456789abcdef0", "phases": [{**phase, "status": "ok"}]}
    account.client("s3", account.node(Role.WORKER)).put_object(
        Bucket=cluster.jobs_bucket,
        Key=JobsBucket.boot(Role.WORKER, "i-0123456789abcdef0"),
        Body=json.dumps(record).encode(),
    )
    running = dataclasses.replace(status.job(cluster, job_id), stopped_at=None)  # later ones are another job's
    assert [boot.instance_id for boot in boots.of_job(cluster, running)] == ["i-0123456789abcdef0"]


def test_operator_reads_a_jobs_logs(account: Account, cluster: Cluster, job_id: str) -> None:
    writer, stream = account.client("logs"), f"{job_id}/worker/i-0123456789abcdef0/trainer"
    writer.create_log_stream(logGroupName=cluster.log_group, logStreamName=stream)
    now = int(status.job(cluster, job_id).started_at.timestamp() * 1000)
    event = {"timestamp": now, "message": "epoch 1"}
    writer.put_log_events(logGroupName=cluster.log_group, logStreamName=stream, logEvents=[event])
    assert [line.message for line in logs.read(cluster, job_id)] == ["epoch 1"]


def test_operator_is_told_that_a_job_has_no_model(cluster: Cluster, job_id: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="has published no model"):
        models.fetch(cluster, job_id, tmp_path / "model", lambda line: None)


def test_operator_reads_models_and_the_key_that_verifies_them(
    account: Account, cluster: Cluster, operator: Any, job_id: str
) -> None:
    place = {"Bucket": cluster.models_bucket, "Key": f"models/{job_id}/files/model.params"}
    account.client("s3", account.node(Role.WORKER)).put_object(**place, Body=b"weights")
    assert account.client("s3", operator).get_object(**place)["Body"].read() == b"weights"
    assert models.public_key(cluster).startswith(b"-----BEGIN PUBLIC KEY-----")


#: (service, operation, arguments): what an operator could do harm with.
DENIED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "abort a job": ("stepfunctions", "stop_execution", {"executionArn": "{execution}"}),
    "end a job": ("stepfunctions", "send_task_success", {"taskToken": "x", "output": "{{}}"}),
    "read another job's code": ("s3", "get_object", {"Bucket": "{jobs}", "Key": "jobs/other/code.tar.gz"}),
    "write a job's record": ("s3", "put_object", {"Bucket": "{jobs}", "Key": "status/other.json", "Body": b"{}"}),
    "revoke an instance": ("s3", "put_object", {"Bucket": "{jobs}", "Key": "denied/i-0123456789abcdef0.json"}),
    "take the lock away": ("s3", "delete_object", {"Bucket": "{jobs}", "Key": "control/lock.json"}),
    "write how a node booted": ("s3", "put_object", {"Bucket": "{jobs}", "Key": "boot/worker/i-1.json", "Body": b""}),
    "replace a model": ("s3", "put_object", {"Bucket": "{models}", "Key": "models/a/files/b", "Body": b""}),
    "list registrations": ("s3", "list_objects_v2", {"Bucket": "{jobs}", "Prefix": "nodes/"}),
    "sign a model": (
        *("kms", "sign"),
        {
            **{"KeyId": "{model_key}", "Message": bytes(32)},
            **{"MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"},
        },
    ),
    "scale a group": (
        *("autoscaling", "set_desired_capacity"),
        {"AutoScalingGroupName": "local-worker", "DesiredCapacity": 1},
    ),
}


@pytest.mark.parametrize("case", DENIED)
def test_operator_cannot(account: Account, cluster: Cluster, operator: Any, case: str) -> None:
    service, operation, arguments = DENIED[case]
    names = {
        "jobs": cluster.jobs_bucket,
        "models": cluster.models_bucket,
        "model_key": cluster.model_signing_key,
        "execution": cluster.execution_arn(uuid.uuid4().hex),
    }
    filled = {k: v.format(**names) if isinstance(v, str) else v for k, v in arguments.items()}
    with pytest.raises(ClientError) as refusal:
        getattr(account.client(service, operator), operation)(**filled)
    assert refusal.value.response["Error"]["Code"] in ("AccessDenied", "AccessDeniedException")
