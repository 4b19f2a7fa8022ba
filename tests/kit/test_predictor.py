"""The predictor's construct: at zero, closed, and able to read one model."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_ec2 as ec2
from cdk_nag import AwsSolutionsChecks
from tests.kit.support import ROOT, flat

from holdfast import ClusterFoundation, FleetProps, PredictorClients, PredictorFleet, PrivateNetwork, PropertyError
from holdfast_node.contract.documents import NodeConfig, Output, Predictions
from holdfast_node.contract.roles import Serving
from stacks.config import load
from stacks.settings import Predictor

JOB = "digits-20260102-030405-ab12"
MODELS = "<FoundationBucketsModels.Arn>"


def synthesize(folder: Any, clients: Callable[[cdk.Stack, ec2.IVpc], PredictorClients | None]) -> tuple[Any, Any]:
    """Return the template's resources by kind and name, and the policy pack's report."""
    context = json.loads((ROOT / "cdk.json").read_text())["context"]
    app = cdk.App(outdir=str(folder), analytics_reporting=False, context=context)
    stack = cdk.Stack(app, "Vision")
    foundation = ClusterFoundation(
        stack, "Foundation", cluster_name="vision", cache_directory=ROOT / ".build", node_source=ROOT / "node"
    )
    network = PrivateNetwork(
        stack,
        "Network",
        cluster_name="vision",
        cidr="10.9.0.0/24",
        access=foundation.node_access(),
        s3_prefix_list_id="pl-63a5400a",
        encryption_key=foundation.keys.data,
    )
    PredictorFleet(
        stack,
        "Predictor",
        foundation=foundation,
        network=network,
        fleet=FleetProps(instance_type="m7i.large", max_count=2),
        predictions=Predictions(job_id=JOB, output=Output.PROBABILITIES),
        clients=clients(stack, network.vpc),
    )
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    template = app.synth().get_stack_by_name("Vision").template
    found: dict[str, dict[str, Any]] = {}
    for name, resource in template["Resources"].items():
        found.setdefault(resource["Type"], {})[name[:-8]] = flat(resource.get("Properties", {}))
    return found, json.loads((folder / "validation-report.json").read_text())


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return synthesize(tmp_path_factory.mktemp("closed"), lambda stack, vpc: None)


def rules(resources: Any, kind: str, group: str = "<PredictorSecurityGroup.GroupId>") -> list[tuple[Any, Any]]:
    found = resources[f"AWS::EC2::SecurityGroup{kind}"].values()
    peer = (
        ("SourceSecurityGroupId", "CidrIp") if kind == "Ingress" else ("DestinationSecurityGroupId", "DestinationPref")
    )
    return sorted(
        (rule.get(peer[0]) or rule.get(peer[1]) or rule.get("DestinationPrefixListId"), rule["FromPort"])
        for rule in found
        if rule["GroupId"] == group
    )


def test_nobody_may_connect_by_default_and_it_reaches_endpoints_and_s3_only(closed: tuple[Any, Any]) -> None:
    assert rules(closed[0], "Ingress") == []
    assert rules(closed[0], "Egress") == [("<NetworkEndpointGroup.GroupId>", 443), ("pl-63a5400a", 443)]


def test_clients_that_are_named_may_connect_to_one_port(tmp_path: Any) -> None:
    def clients(stack: cdk.Stack, vpc: ec2.IVpc) -> PredictorClients:
        return PredictorClients(security_groups=[ec2.SecurityGroup(stack, "App", vpc=vpc)], ranges=["10.20.0.0/16"])

    resources, report = synthesize(tmp_path, clients)
    assert rules(resources, "Ingress") == [("10.20.0.0/16", 9094), ("<App.GroupId>", 9094)]
    assert [v["ruleName"] for r in report["pluginReports"] for v in r["violations"]] == []


def test_it_is_at_zero_and_bounded(closed: tuple[Any, Any]) -> None:
    (group,) = closed[0]["AWS::AutoScaling::AutoScalingGroup"].values()
    assert (group["AutoScalingGroupName"], group["MinSize"], group["MaxSize"]) == ("vision-predictor", "0", "2")
    assert "DesiredCapacity" not in group


def test_it_may_do_this_and_nothing_else(closed: tuple[Any, Any]) -> None:
    policy = closed[0]["AWS::IAM::ManagedPolicy"]["PredictorNodesPolicy"]
    statements = {
        s["Sid"]: (s["Action"], s["Resource"], s.get("Condition")) for s in policy["PolicyDocument"]["Statement"]
    }
    bundle = statements.pop("FetchBundle")
    assert bundle[0] == "s3:GetObject" and len(bundle[1]) == 2 and "*" not in str(bundle[1])
    via_s3 = {"StringEquals": {"kms:ViaService": "s3.<AWS::Region>.amazonaws.com"}}
    jobs = "<FoundationBucketsJobs.Arn>"
    assert statements == {
        "Enrol": ("lambda:InvokeFunction", "<FoundationEnrolmentFunction.Arn>", None),
        "VerifyModels": ("kms:GetPublicKey", "<FoundationKeysModelSigning.Arn>", None),
        "EncryptedObjects": (["kms:Decrypt", "kms:GenerateDataKey"], "<FoundationKeysData.Arn>", via_s3),
        "RecordBoot": ("s3:PutObject", f"{jobs}/boot/predictor/*", None),
        "ReadModel": ("s3:GetObject", [f"{MODELS}/models/{JOB}/files/*", f"{MODELS}/models/{JOB}/model.sig"], None),
        "ListDenials": ("s3:ListBucket", jobs, {"StringEquals": {"s3:prefix": "denied/"}}),
        "WriteLogs": (["logs:CreateLogStream", "logs:PutLogEvents"], "<FoundationNodeLog.Arn>", None),
    }
    assert policy["Roles"] == ["<PredictorNodesRole>"]


def test_it_enrols_by_the_name_that_the_enrolment_function_admits(closed: tuple[Any, Any]) -> None:
    role = closed[0]["AWS::IAM::Role"]["PredictorNodesRole"]
    (function,) = closed[0]["AWS::Lambda::Function"].values()
    admitted = json.loads(function["Environment"]["Variables"]["HOLDFAST_ROLES"])["predictor"]
    assert admitted["role_arn"].endswith(f":role/{role['RoleName']}")
    assert admitted["group"] == "vision-predictor"


def test_its_user_data_says_what_leaves(closed: tuple[Any, Any]) -> None:
    script = closed[0]["AWS::EC2::LaunchTemplate"]["PredictorNodesTemplate"]["LaunchTemplateData"]["UserData"]
    text = script.partition("<<'HOLDFAST_NODE_JSON'\n")[2].partition("\nHOLDFAST_NODE_JSON")[0]
    config = NodeConfig.parse(text)
    assert config.role is Serving.PREDICTOR
    assert config.predictions == Predictions(job_id=JOB, output=Output.PROBABILITIES, digits=2)
    assert (config.file_system_id, config.job_signing_key) == ("", "")


def test_no_job_raises_it(closed: tuple[Any, Any]) -> None:
    assert "AWS::StepFunctions::StateMachine" not in closed[0]


def test_the_policy_pack_has_no_finding(closed: tuple[Any, Any]) -> None:
    assert [v["ruleName"] for r in closed[1]["pluginReports"] for v in r["violations"]] == []


def test_a_deployment_whose_settings_name_a_model_has_a_predictor_and_passes_cfn_lint(tmp_path: Path) -> None:
    import app as deployment  # after the fixture has told jsii not to warn

    context = json.loads((ROOT / "cdk.json").read_text())["context"]
    app = cdk.App(outdir=str(tmp_path), analytics_reporting=False, context=context)
    chosen = Predictor(job=JOB, client_ranges=["10.77.0.0/24"], rows_per_day=500)
    deployment.build(app, load("local").model_copy(update={"predictor": chosen}))
    app.synth()
    path = tmp_path / "Holdfast-local-Training.template.json"
    outputs = json.loads(path.read_text())["Outputs"]
    assert outputs["PredictorGroup"]
    # What `holdfast verify` holds the rules of the deployed group against.
    assert outputs["PredictorClients"] == {"Value": "10.77.0.0/24"}
    report = json.loads((tmp_path / "validation-report.json").read_text())
    assert [v["ruleName"] for r in report["pluginReports"] for v in r["violations"]] == []
    linter = Path(sys.executable).with_name("cfn-lint")
    result = subprocess.run([linter, "--regions", "us-east-1", "--", path], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


REFUSED = {
    "the internet": ("0.0.0.0/0", "a client range must be in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, got 0.0.0.0/0"),
    "a public range": ("8.8.8.0/24", "a client range must be in 10.0.0.0/8"),
    "a host's range": ("10.1.2.3/16", "a client range must be an IPv4 network, got '10.1.2.3/16'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_clients_from_outside_are_refused(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(PropertyError) as refusal:
        PredictorClients(ranges=[text])
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("settings", ["local", "dev", "prod"])
def test_settings_have_no_predictor_until_they_name_a_model(settings: str) -> None:
    assert load(settings).predictor.job is None
