import json
import os
import textwrap
import time
from pathlib import Path

import pytest

from holdfast_local.emulator import deploy
from holdfast_local.emulator.deploy import bootstrap_and_deploy, readable
from holdfast_local.emulator.errors import DeployError
from holdfast_local.emulator.process import Emulator
from holdfast_local.traces import is_alive

from .conftest import ROOT, Cloud

APP = """
import sys
import aws_cdk as cdk
from aws_cdk import aws_autoscaling as autoscaling, aws_ec2 as ec2, aws_iam as iam, aws_kms as kms
from aws_cdk import aws_lambda as lambda_, aws_logs as logs, aws_s3 as s3
from aws_cdk import aws_stepfunctions as sfn, aws_stepfunctions_tasks as tasks

app = cdk.App()
if app.node.try_get_context("settings") == "broken":
    cdk.CfnResource(cdk.Stack(app, "Broken"), "Broken", type="AWS::Nowhere::Nothing")
    app.synth()
    sys.exit()
foundation = cdk.Stack(app, "Foundation")
key = kms.Key(foundation, "Data", enable_key_rotation=True)
bucket = s3.Bucket(
    foundation, "Jobs", encryption=s3.BucketEncryption.KMS, encryption_key=key, bucket_key_enabled=True,
    enforce_ssl=True, minimum_tls_version=1.2, versioned=True,
    lifecycle_rules=[s3.LifecycleRule(noncurrent_version_expiration=cdk.Duration.days(30))],
)
function = lambda_.Function(
    foundation, "Enrol", runtime=lambda_.Runtime.PYTHON_3_11, handler="index.handler",
    code=lambda_.Code.from_asset("function"), environment={"BUCKET": bucket.bucket_name},
)
bucket.grant_read(function)

training = cdk.Stack(app, "Training")
vpc = ec2.Vpc(
    training, "Network", nat_gateways=0, availability_zones=["us-east-1a", "us-east-1b"],
    subnet_configuration=[ec2.SubnetConfiguration(name="Isolated", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)],
    restrict_default_security_group=False,
    flow_logs={"All": ec2.FlowLogOptions(destination=ec2.FlowLogDestination.to_cloud_watch_logs(
        logs.LogGroup(training, "Flows", retention=logs.RetentionDays.ONE_WEEK)))},
)
groups = [ec2.SecurityGroup(training, name, vpc=vpc, allow_all_outbound=False) for name in ("Server", "Worker")]
groups[0].connections.allow_from(groups[1], ec2.Port.tcp(9092))
groups[1].connections.allow_to(groups[0], ec2.Port.tcp(9092))
template = ec2.LaunchTemplate(
    training, "Template", machine_image=ec2.MachineImage.latest_amazon_linux2023(), security_group=groups[1],
    instance_type=ec2.InstanceType("c5.large"), require_imdsv2=True, user_data=ec2.UserData.custom("#!/bin/sh\\ntrue"),
    role=iam.Role(training, "NodeRole", assumed_by=iam.ServicePrincipal("ec2.amazonaws.com")),
)
fleet = autoscaling.AutoScalingGroup(
    training, "Fleet", vpc=vpc, launch_template=template, min_capacity=0, max_capacity=2,
    vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
)
arn = f"arn:aws:autoscaling:{training.region}:{training.account}:autoScalingGroup:*:autoScalingGroupName/"
raise_fleet = tasks.CallAwsService(
    training, "Raise", service="autoscaling", action="setDesiredCapacity",
    iam_resources=[arn + fleet.auto_scaling_group_name],
    parameters={"AutoScalingGroupName": fleet.auto_scaling_group_name, "DesiredCapacity": 1},
)
machine = sfn.StateMachine(training, "Machine", definition_body=sfn.DefinitionBody.from_chainable(raise_fleet))
for name, value in {
    "Bucket": bucket.bucket_name, "Function": function.function_name}.items():
    cdk.CfnOutput(foundation, name, value=value)
for name, value in {"MachineArn": machine.state_machine_arn, "FleetName": fleet.auto_scaling_group_name}.items():
    cdk.CfnOutput(training, name, value=value)
app.synth()
"""
FUNCTION = """
import os, boto3
def handler(event, context):
    body = boto3.client("s3").get_object(Bucket=os.environ["BUCKET"], Key=event["key"])["Body"].read().decode()
    return {"body": body}
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    (folder / "app.py").write_text(textwrap.dedent(APP))
    (folder / "cdk.json").write_text(json.dumps({"app": "python app.py"}))
    (folder / "function").mkdir()
    (folder / "function/index.py").write_text(FUNCTION)
    for name in (".venv", "node_modules"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def deployed(app: Path, emulator: Emulator) -> tuple[dict[str, dict[str, str]], list[str]]:
    outputs, said = emulator.state_dir / "deployed/outputs.json", list[str]()
    bootstrap_and_deploy(app, emulator.environment(), "local", outputs, said.append)
    return json.loads(outputs.read_text()), said


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_real_cdk_deploys_and_says_how_far_it_is(deployed: tuple[dict[str, dict[str, str]], list[str]]) -> None:
    outputs, said = deployed
    assert set(outputs) == {"Foundation", "Training"}
    assert said[:2] == ["bootstrapping the account", "synthesizing and deploying the stacks"]
    assert "Foundation: deployed" in said
    assert any(line.startswith("Training: deploying [") for line in said)


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_deployed_function_reads_the_encrypted_bucket(
    cloud: Cloud, deployed: tuple[dict[str, dict[str, str]], list[str]]
) -> None:
    names = deployed[0]["Foundation"]
    cloud.client("s3").put_object(Bucket=names["Bucket"], Key="job", Body=b"content")
    answer = cloud.client("lambda").invoke(FunctionName=names["Function"], Payload=b'{"key": "job"}')
    assert json.loads(answer["Payload"].read()) == {"body": "content"}


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_deployed_machine_raises_the_deployed_fleet(
    cloud: Cloud, deployed: tuple[dict[str, dict[str, str]], list[str]]
) -> None:
    names, states = deployed[0]["Training"], cloud.client("stepfunctions")
    execution = states.start_execution(stateMachineArn=names["MachineArn"])["executionArn"]
    while (ended := states.describe_execution(executionArn=execution))["status"] == "RUNNING":
        pass
    assert ended["status"] == "SUCCEEDED", ended
    (group,) = cloud.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[names["FleetName"]])[
        "AutoScalingGroups"
    ]
    assert len(group["Instances"]) == 1


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_failed_deploy_shows_the_last_lines(app: Path, emulator: Emulator) -> None:
    said = list[str]()
    with pytest.raises(DeployError) as error:
        bootstrap_and_deploy(app, emulator.environment(), "broken", emulator.state_dir / "broken/o.json", said.append)
    assert "`cdk deploy` failed with status 1; its log ends with" in str(error.value)
    assert "AWS::Nowhere::Nothing" in str(error.value)


def test_missing_cdk_says_what_to_run(tmp_path: Path, emulator: Emulator) -> None:
    with pytest.raises(DeployError, match="does not exist; run `make setup`"):
        bootstrap_and_deploy(tmp_path, emulator.environment(), "local", tmp_path / "outputs.json", lambda _: None)


def test_users_own_aws_settings_never_reach_the_cdk(
    tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "real")
    fake = tmp_path / "node_modules/.bin/cdk"
    fake.parent.mkdir(parents=True)
    fake.write_text(f'#!/bin/sh\nenv > "{tmp_path}/seen.$1"\n')
    fake.chmod(0o755)
    bootstrap_and_deploy(tmp_path, emulator.environment(), "local", tmp_path / "outputs.json", lambda _: None)
    for command in ("bootstrap", "deploy"):
        seen = dict(line.partition("=")[::2] for line in (tmp_path / f"seen.{command}").read_text().splitlines())
        assert "AWS_PROFILE" not in seen
        assert "AWS_SESSION_TOKEN" not in seen
        assert seen["AWS_ENDPOINT_URL"] == emulator.endpoint
        assert seen["HOME"] == str(tmp_path / "cdk/home")
        assert seen["PATH"].split(os.pathsep)[0] == str(tmp_path / ".venv/bin")


def test_hanging_cdk_is_ended_with_its_children(
    tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "DEPLOY_LIMIT_SECONDS", 0.5)
    fake = tmp_path / "node_modules/.bin/cdk"
    fake.parent.mkdir(parents=True)
    fake.write_text(f'#!/bin/sh\necho started\nsleep 600 & echo $! > "{tmp_path}/child"\nwait\n')
    fake.chmod(0o755)
    with pytest.raises(DeployError, match=r"`cdk bootstrap` did not end within 0 s(.|\n)*started"):
        bootstrap_and_deploy(tmp_path, emulator.environment(), "local", tmp_path / "outputs.json", lambda _: None)
    child, deadline = int((tmp_path / "child").read_text()), time.monotonic() + 5
    while is_alive(child):  # it is killed; the kernel may take an instant
        assert time.monotonic() < deadline
        time.sleep(0.01)


LINES = {
    "A: deploying... [1/3]": "A: deploying [1/3]",
    " ✅  A": "A: deployed",
    " ✅  Environment aws://000000000000/us-east-1 bootstrapped.": None,
    " ✅  A (no changes)": "A: deployed (no changes)",
    "A | 3/9 | 6:52:16 AM | CREATE_COMPLETE | AWS::KMS::Key | K (K1) ": None,
    "A | 3/9 | 6:52:16 AM | CREATE_FAILED   | AWS::KMS::Key | K (K1) denied": "A: FAILED AWS::KMS::Key | K (K1) denied",
    "✨  Deployment time: 0.08s": None,
}


@pytest.mark.parametrize("line", LINES)
def test_progress_is_readable(line: str) -> None:
    assert readable(line) == LINES[line]
