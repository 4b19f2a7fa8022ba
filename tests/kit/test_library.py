"""The kit as a library: a consumer's own app, in one stack and with its own names."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import assertions
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from cdk_nag import AwsSolutionsChecks
from constructs import Construct
from tests.kit.support import ROOT, flat

import holdfast
from holdfast import (
    AcknowledgementError,
    CheckpointRetention,
    ClusterFoundation,
    ClusterKeys,
    FleetProps,
    JobLimits,
    NodeAccess,
    PrivateNetwork,
    PropertyError,
    TrainingCluster,
    acknowledge,
)
from holdfast.packing import file_digest
from holdfast.training.user_data import node_user_data
from holdfast_node.contract.documents import Bundle, NodeConfig
from holdfast_node.contract.roles import DEFAULT_PORTS, Role


class Consumer(cdk.Stack):
    """What a platform team writes."""

    def __init__(self, scope: Construct, construct_id: str) -> None:
        super().__init__(scope, construct_id)
        self.foundation = ClusterFoundation(
            self,
            "Foundation",
            cluster_name="vision",
            gpu=True,
            cache_directory=ROOT / ".build",
            node_source=ROOT / "node",
        )
        self.private = PrivateNetwork(
            self,
            "Network",
            cluster_name="vision",
            cidr="10.9.0.0/24",
            access=self.foundation.node_access(),
            s3_prefix_list_id="pl-63a5400a",
            encryption_key=self.foundation.keys.data,
        )
        self.training = TrainingCluster(
            self,
            "Training",
            foundation=self.foundation,
            network=self.private,
            scheduler=FleetProps(instance_type="m7i.large"),
            servers=FleetProps(instance_type="m7i.large", max_count=2),
            workers=FleetProps(
                instance_type="g5.xlarge",
                max_count=2,
                gpu=True,
                machine_image=ec2.MachineImage.generic_linux({"eu-west-1": "ami-0123456789abcdef0"}),
            ),
            ports={Role.SCHEDULER: 7001, Role.SERVER: 7002, Role.WORKER: 7003},
        )
        self.operator = iam.Role(self, "Operator", assumed_by=iam.ServicePrincipal("codebuild.amazonaws.com"))
        self.training.grant_submit(self.operator)
        self.training.checkpoints.grant_mount(self.operator)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    context = json.loads((ROOT / "cdk.json").read_text())["context"]
    app = cdk.App(outdir=str(tmp_path_factory.mktemp("consumer")), analytics_reporting=False, context=context)
    stack = Consumer(app, "VisionPlatform")
    policy = stack.operator.node.find_child("DefaultPolicy")
    reason = "The operator's jobs have ids of their own."
    buckets = stack.foundation.buckets
    holdfast.acknowledge_keys(policy, buckets.jobs, "boot/*", "jobs/*", "status/*", reason=reason)
    holdfast.acknowledge_keys(policy, buckets.models, "models/*", reason=reason)
    own = "arn:<AWS::Partition>:{}:<AWS::Region>:<AWS::AccountId>:{}"
    for arn in (
        own.format("states", "execution:vision-jobs:*"),
        own.format("cloudformation", "stack/VisionPlatform/*"),
    ):
        holdfast.acknowledge(policy, f"AwsSolutions-IAM5[Resource::{arn}]", reason=reason)
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    return dict(app.synth().get_stack_by_name("VisionPlatform").template)


def test_consumers_app_passes_the_policy_pack_in_one_stack(template: dict[str, Any]) -> None:
    assert len(template["Resources"]) > 80


def test_consumers_ports_are_the_rules(template: dict[str, Any]) -> None:
    rules = [r for r in template["Resources"].values() if r["Type"] == "AWS::EC2::SecurityGroupIngress"]
    ports = {r["Properties"]["FromPort"] for r in rules}
    assert ports == {7001, 7002, 7003, 443, 2049}


def test_operator_is_granted_what_the_consumer_granted_and_no_more(template: dict[str, Any]) -> None:
    (policy,) = [r["Properties"] for r in template["Resources"].values() if r["Type"] == "AWS::IAM::Policy"]
    actions = {a for s in policy["PolicyDocument"]["Statement"] for a in as_list(s["Action"])}
    assert actions == {
        "cloudformation:DescribeStacks",
        *("kms:Decrypt", "kms:GenerateDataKey", "kms:GetPublicKey", "kms:Sign"),
        "logs:FilterLogEvents",
        *("s3:GetObject", "s3:ListBucket", "s3:PutObject"),
        *("states:DescribeExecution", "states:ListExecutions", "states:StartExecution"),
        *("elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"),
    }


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_public_names_exist() -> None:
    assert [name for name in holdfast.__all__ if not hasattr(holdfast, name)] == []
    assert list(holdfast.__all__) == sorted(holdfast.__all__)


@pytest.fixture
def stack() -> cdk.Stack:
    return cdk.Stack(cdk.App(), "Sample")


def sample_foundation(stack: cdk.Stack, **changes: Any) -> ClusterFoundation:
    places = {"cache_directory": ROOT / ".build", "node_source": ROOT / "node"}
    return ClusterFoundation(stack, "Foundation", cluster_name="vision", **places, **changes)


def test_who_may_revoke_writes_and_reads_denials_and_deletes_none(stack: cdk.Stack) -> None:
    foundation = sample_foundation(stack)
    role = iam.Role(stack, "Guard", assumed_by=iam.AccountRootPrincipal())
    foundation.grant_revoke(role)
    (policy,) = assertions.Template.from_stack(stack).find_resources("AWS::IAM::Policy").values()
    statements = flat(policy["Properties"]["PolicyDocument"]["Statement"])
    assert [(s["Action"], s["Resource"], s.get("Condition")) for s in statements] == [
        (["s3:GetObject", "s3:PutObject"], "<FoundationBucketsJobs.Arn>/denied/*", None),
        ("s3:ListBucket", "<FoundationBucketsJobs.Arn>", {"StringEquals": {"s3:prefix": "denied/"}}),
        (
            ["kms:Decrypt", "kms:GenerateDataKey"],
            "<FoundationKeysData.Arn>",
            {"StringEquals": {"kms:ViaService": "s3.<AWS::Region>.amazonaws.com"}},
        ),
        ("autoscaling:DescribeAutoScalingGroups", "*", None),
    ]


def test_certificates_live_as_long_as_the_property_says(stack: cdk.Stack) -> None:
    sample_foundation(stack, certificate_hours=6)
    (function,) = assertions.Template.from_stack(stack).find_resources("AWS::Lambda::Function").values()
    assert function["Properties"]["Environment"]["Variables"]["HOLDFAST_CERT_HOURS"] == "6"


def test_refusals_have_metrics(stack: cdk.Stack) -> None:
    enrolment = sample_foundation(stack).enrolment
    every, revoked = enrolment.metric_refused_enrolments(), enrolment.metric_refused_enrolments("revoked")
    assert (every.namespace, every.metric_name, every.dimensions) == ("Holdfast/vision", "RefusedEnrolments", None)
    assert (revoked.metric_name, revoked.dimensions) == ("RefusedEnrolmentsByReason", {"Reason": "revoked"})
    assert (every.statistic, revoked.statistic) == ("Sum", "Sum")


REFUSED_PROPS = {
    "cluster name": (
        lambda s: ClusterKeys(s, "Keys", cluster_name="My Cluster"),
        "cluster_name must match [a-z][a-z0-9-]{1,30}[a-z0-9], got 'My Cluster'; "
        "use lower-case letters, digits and hyphens",
    ),
    "no instance": (
        lambda _: FleetProps(instance_type="m7i.large", max_count=0),
        "max_count must be between 1 and 150, got 0; the overlay has no more addresses for a role",
    ),
    "no checkpoint": (
        lambda _: CheckpointRetention(keep_last=0),
        "keep_last must be at least 1, got 0; keep one checkpoint at least",
    ),
    "a heartbeat longer than a job": (
        lambda _: JobLimits(max_seconds=60, heartbeat_seconds=60),
        "heartbeat_seconds must be between 1 and max_seconds - 1 (59), got 60; "
        "a scheduler is found dead before the job's deadline",
    ),
    "no time to be slow": (
        lambda _: JobLimits(lost_seconds=9),
        "lost_seconds must be between 10 and heartbeat_seconds - 1 (599), got 9; a slow node is not a lost one",
    ),
    "no time to start": (
        lambda _: JobLimits(join_seconds=59),
        "join_seconds must be at least 60, got 59; MXNet itself needs some of it",
    ),
    "a job of more than a week": (
        lambda _: JobLimits(max_seconds=169 * 3600),
        "max_seconds must be at most 604800 (168 h), got 608400; split the job: it can go on from its last checkpoint",
    ),
    "certificates of more than a week": (
        lambda s: ClusterFoundation(s, "Foundation", cluster_name="vision", certificate_hours=169),
        "certificate_hours must be between 1 and 168, got 169; short lives are what ends a stolen key's use",
    ),
    "a prefix list that is a range": (
        lambda s: PrivateNetwork(
            s,
            "Network",
            cluster_name="vision",
            cidr="10.9.0.0/24",
            access=NodeAccess(services=(), objects=()),
            s3_prefix_list_id="0.0.0.0/0",
            encryption_key=kms.Key(s, "Key"),
        ),
        "s3_prefix_list_id must look like pl-63a5400a, got '0.0.0.0/0'; "
        "aws ec2 describe-managed-prefix-lists prints the region's",
    ),
}


@pytest.mark.parametrize("case", REFUSED_PROPS)
def test_property_that_cannot_work_is_refused(case: str, stack: cdk.Stack) -> None:
    make, message = REFUSED_PROPS[case]
    with pytest.raises(PropertyError) as refusal:
        make(stack)
    assert str(refusal.value) == message


@pytest.mark.parametrize("reason", ["", "   ", "TODO", "it is fine"])
def test_finding_is_not_excused_without_a_reason(stack: cdk.Stack, reason: str) -> None:
    with pytest.raises(AcknowledgementError, match="needs a reason of at least 5 words"):
        acknowledge(stack, "AwsSolutions-S1", reason=reason)


def test_node_source_without_the_package_is_refused(stack: cdk.Stack, tmp_path: Path) -> None:
    with pytest.raises(holdfast.BundleError, match="must hold the package holdfast_node"):
        holdfast.NodeBundle(stack, "Bundle", source=tmp_path, cache_directory=tmp_path)


def node_source(folder: Path, *extras: str) -> Path:
    package = folder / "holdfast_node"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name in extras:
        (folder / name).write_text("true\n")
    return folder


BOOTS = {"install.sh": True, "requirements.txt": False}


@pytest.mark.parametrize("extra", BOOTS)
def test_a_bundle_boots_on_ec2_only_with_an_installer(stack: cdk.Stack, tmp_path: Path, extra: str) -> None:
    source = node_source(tmp_path / "source", "requirements.txt", extra)
    bundle = holdfast.NodeBundle(stack, "Bundle", source=source, cache_directory=tmp_path / "cache")
    assert bundle.boots_on_ec2 is BOOTS[extra]


def test_an_installer_without_its_lock_is_refused(stack: cdk.Stack, tmp_path: Path) -> None:
    with pytest.raises(holdfast.BundleError, match=r"must hold requirements.txt, which install.sh installs, got none"):
        holdfast.NodeBundle(stack, "Bundle", source=node_source(tmp_path, "install.sh"), cache_directory=tmp_path)


def test_the_bundle_holds_runtime_lock_installer_and_units(stack: cdk.Stack) -> None:
    bundle = holdfast.NodeBundle(stack, "Bundle", source=ROOT / "node", cache_directory=ROOT / ".build")
    (target,) = [p for p in (ROOT / ".build").glob("node-bundle-*.zip") if file_digest(p) == bundle.sha256]
    names = zipfile.ZipFile(target).namelist()
    assert {"install.sh", "requirements.txt", "holdfast_node/boot.py"} <= set(names)
    files = [path for folder in ("units", "host") for path in (ROOT / "node" / folder).rglob("*") if path.is_file()]
    assert {path.relative_to(ROOT / "node").as_posix() for path in files} <= set(names)


def test_two_bundles_in_one_directory_never_overwrite_each_other(stack: cdk.Stack, tmp_path: Path) -> None:
    for name in ("requirements.txt", "README"):
        holdfast.NodeBundle(stack, name, source=node_source(tmp_path / name, name), cache_directory=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("node-bundle-*.zip"))) == 2


def test_enrolments_share_of_the_quota_is_the_consumers(stack: cdk.Stack) -> None:
    ClusterFoundation(
        stack,
        "Foundation",
        cluster_name="vision",
        enrolment_concurrency=7,
        cache_directory=ROOT / ".build",
        node_source=ROOT / "node",
    )
    assertions.Template.from_stack(stack).has_resource_properties(
        "AWS::Lambda::Function", {"ReservedConcurrentExecutions": 7}
    )


def test_user_data_too_long_for_ec2_is_refused() -> None:
    config = NodeConfig(
        cluster="vision",
        role=Role.WORKER,
        region="eu-west-1",
        ports=DEFAULT_PORTS,
        jobs_bucket="b" * 14336,
        **dict.fromkeys(CONSTANTS, "name"),
        bundle=Bundle(bucket="assets", key="bundle.zip", sha256="0" * 64),
    )
    with pytest.raises(PropertyError, match="a node's user data must be at most 14336 bytes, got "):
        node_user_data(config)


CONSTANTS = (
    *("models_bucket", "enrolment_function", "job_signing_key", "model_signing_key", "log_group"),
    *("file_system_id", "access_point_id"),
)


def test_the_example_app_synthesizes(tmp_path: Path) -> None:
    example = subprocess.run(
        [sys.executable, str(ROOT / "examples/consumer/app.py")],
        cwd=tmp_path,
        env={**os.environ, "CDK_OUTDIR": str(tmp_path / "out"), "PYTHONPATH": f"{ROOT / 'constructs'}:{ROOT / 'node'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert example.returncode == 0, example.stderr
    assert (tmp_path / "out/Vision.template.json").is_file()
