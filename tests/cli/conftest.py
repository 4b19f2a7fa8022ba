"""An embedded AWS with two small clusters: what the commands read, without the network and the nodes."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.loaders
import pytest
from click.testing import CliRunner, Result

from holdfast_cli import options
from holdfast_cli.aws import Aws, Cluster, find_cluster
from holdfast_cli.main import cli
from holdfast_local.emulator.process import Emulator

ROOT = Path(__file__).parents[2]
LOADER = botocore.loaders.create_loader()

#: The number of servers decides how a job ends: 1 succeeds, 2 fails, 3 runs until it is stopped.
DEFINITION = {
    "StartAt": "Which",
    "States": {
        "Which": {
            "Type": "Choice",
            "Choices": [
                {"Variable": "$.servers", "NumericEquals": 1, "Next": "Good"},
                {"Variable": "$.servers", "NumericEquals": 2, "Next": "Bad"},
            ],
            "Default": "Long",
        },
        "Good": {"Type": "Succeed"},
        "Bad": {"Type": "Fail", "Error": "JobFailed", "Cause": "worker 0: ValueError: no data"},
        "Long": {"Type": "Wait", "Seconds": 600, "Next": "Good"},
    },
}


def template(cluster: str) -> dict[str, Any]:
    key = {
        "Type": "AWS::KMS::Key",
        "Properties": {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY", "KeyPolicy": {"Version": "2012-10-17"}},
    }
    key["Properties"]["KeyPolicy"]["Statement"] = [
        {"Effect": "Allow", "Principal": {"AWS": {"Ref": "AWS::AccountId"}}, "Action": "kms:*", "Resource": "*"}
    ]
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "states.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ],
    }
    outputs: dict[str, Any] = {
        "ClusterName": cluster,
        "JobsBucket": {"Ref": "Jobs"},
        "ModelsBucket": {"Ref": "Models"},
        "JobSigningKey": {"Fn::GetAtt": ["JobKey", "Arn"]},
        "ModelSigningKey": {"Fn::GetAtt": ["ModelKey", "Arn"]},
        "StateMachine": {"Ref": "Machine"},
        "NodeLogGroup": {"Ref": "Logs"},
        "MaxWorkers": "2",
        "MaxServers": "3",
        "MinJobSeconds": "121",
        "NodeBoot": "local-hosts-only",
        "MaxJobSeconds": "7200",
        "MaxRestarts": "2",
        "Engine": "mxnet",
    }
    return {
        "Resources": {
            "Jobs": {"Type": "AWS::S3::Bucket"},
            "Models": {"Type": "AWS::S3::Bucket"},
            "JobKey": key,
            "ModelKey": key,
            "Logs": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": f"/holdfast/{cluster}/nodes"}},
            "Role": {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": trust}},
            "Machine": {
                "Type": "AWS::StepFunctions::StateMachine",
                "Properties": {
                    "RoleArn": {"Fn::GetAtt": ["Role", "Arn"]},
                    "DefinitionString": json.dumps(DEFINITION),
                },
            },
        },
        "Outputs": {name: {"Value": value} for name, value in outputs.items()},
    }


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    embedded = Emulator(tmp_path_factory.mktemp("aws"), ROOT / ".venv-aws/bin/python", port=0)
    embedded.start()
    yield embedded
    embedded.stop()


def deploy(environment: dict[str, str], cluster: str) -> None:
    cloudformation = session(environment).client("cloudformation", **connection(environment))
    name = f"Holdfast-{cluster}-Training"
    cloudformation.create_stack(
        StackName=name, TemplateBody=json.dumps(template(cluster)), Capabilities=["CAPABILITY_IAM"]
    )
    cloudformation.get_waiter("stack_create_complete").wait(
        StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30}
    )


def session(environment: dict[str, str]) -> boto3.Session:
    return boto3.Session(
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )


def connection(environment: dict[str, str]) -> dict[str, str]:
    return {"endpoint_url": environment["AWS_ENDPOINT_URL"], "verify": environment["AWS_CA_BUNDLE"]}


@pytest.fixture(scope="session")
def clusters(emulator: Emulator) -> dict[str, str]:
    """Deploy `demo` and `other` and return the environment that reaches them."""
    environment = emulator.environment()
    for cluster in ("demo", "other"):
        deploy(environment, cluster)
    return environment


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every AWS and Holdfast setting out of the environment, so that no test can reach a real account."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "HOLDFAST_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


@pytest.fixture(scope="session")
def demo_cluster(clusters: dict[str, str]) -> Cluster:
    """Return the cluster `demo` with its clients made: they cost more than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clusters.items():
            patch.setenv(name, value)
        cluster = find_cluster(Aws(), "demo")
        for service in ("s3", "kms", "stepfunctions", "logs", "iam"):
            cluster.client(service)
    return cluster


@pytest.fixture
def aws(demo_cluster: Cluster, clusters: dict[str, str], no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """Point the environment at the embedded AWS."""
    for name, value in clusters.items():
        monkeypatch.setenv(name, value)
    return demo_cluster.aws


@dataclass
class Operator:
    """Runs `holdfast` in this process."""

    arguments: list[str] = field(default_factory=list)

    def __call__(self, *arguments: object) -> Result:
        result = CliRunner().invoke(cli, [*self.arguments, *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result


@pytest.fixture(autouse=True)
def shared_service_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all sessions of this process share botocore's cache of service models, which take most of a test's time."""
    monkeypatch.setattr(botocore.loaders, "create_loader", lambda search_path_string=None: LOADER)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "POLL_SECONDS", 0.1)


@pytest.fixture
def holdfast(no_aws: None) -> Operator:
    return Operator()


@pytest.fixture
def demo(demo_cluster: Cluster, aws: Aws) -> Iterator[Cluster]:
    """The cluster `demo`, with nothing running afterwards."""
    yield demo_cluster
    states = demo_cluster.client("stepfunctions")
    running = states.list_executions(stateMachineArn=demo_cluster.state_machine, statusFilter="RUNNING")
    for execution in running["executions"]:
        with contextlib.suppress(states.exceptions.ClientError):
            states.stop_execution(executionArn=execution["executionArn"])  # it may just have ended by itself


@pytest.fixture
def on_demo(demo: Cluster) -> Operator:
    return Operator(["--cluster", "demo"])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A job's directory."""
    directory = tmp_path / "My Project"
    (directory / "lib").mkdir(parents=True)
    (directory / "train.py").write_text("print('hello')\n")
    (directory / "lib/data.py").write_text("DATA = 1\n")
    return directory


@pytest.fixture
def kms_signer(demo: Cluster) -> Callable[[str], Callable[[bytes], bytes]]:
    """Return a function from a KMS key to what signs with it, as a node does."""
    import hashlib

    def signer(key: str) -> Callable[[bytes], bytes]:
        def sign(message: bytes) -> bytes:
            reply = demo.client("kms").sign(
                KeyId=key,
                Message=hashlib.sha256(message).digest(),
                MessageType="DIGEST",
                SigningAlgorithm="ECDSA_SHA_256",
            )
            return bytes(reply["Signature"])

        return sign

    return signer
