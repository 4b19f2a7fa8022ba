"""The golden image: off by default; a pipeline that may little, bakes what was checked, and that nodes then boot."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.kit.support import PARTS, ROOT, Deployment, by_sid, synthesize

PART = "Images"
PREDICTOR = {"predictor": {"job": "digits-20260102-030405-ab12"}}
INSTANCES = "arn:aws:ec2:us-east-1:<AWS::AccountId>:instance/*"
CHANNELS = [f"ssmmessages:{verb}{kind}Channel" for verb in ("Create", "Open") for kind in ("Control", "Data")]
OWN_ACCOUNT = {"StringEquals": {"aws:PrincipalAccount": "<AWS::AccountId>"}}
LOG = ["logs:CreateLogStream", "logs:PutLogEvents"]


@pytest.fixture(scope="module")
def baking(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Workers with GPUs, so that there are two images."""
    changes = {"images": {"pipeline": True}, "workers": {"instance_type": "g5.xlarge"}}
    return synthesize(tmp_path_factory.mktemp("baking"), changes)


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    changes = {"images": {"baked": True}, "workers": {"instance_type": "g5.xlarge"}, **PREDICTOR}
    return synthesize(tmp_path_factory.mktemp("baked"), changes)


def one(deployment: Deployment, kind: str, name: str) -> dict[str, Any]:
    return deployment.properties(f"AWS::{kind}", PART)[name]


def components(deployment: Deployment) -> dict[str, dict[str, Any]]:
    return {
        name: json.loads(properties["Data"])
        for name, properties in deployment.properties("AWS::ImageBuilder::Component", PART).items()
    }


def test_by_default_nothing_is_baked_and_nodes_boot_awss_image(dev: Deployment) -> None:
    assert not list(dev.directory.glob(f"*-{PART}.template.json"))
    assert not [kind for kind in dev.types() if "ImageBuilder" in kind]
    assert "/imagebuilder/" not in json.dumps(dev.template("Training"))


def test_the_other_stacks_do_not_know_whether_images_are_baked(baking: Deployment, tmp_path: Path) -> None:
    without = synthesize(tmp_path, {"workers": {"instance_type": "g5.xlarge"}})

    def own(deployment: Deployment, part: str) -> dict[str, Any]:
        template = deployment.template(part)
        template.pop("Outputs", None)  # exports that the further stack reads
        return template

    for part in PARTS:
        assert own(baking, part) == own(without, part), part


@pytest.mark.parametrize("name", ["Nodes", "GpuNodes"])
def test_an_instance_that_bakes_may_nothing_else(baking: Deployment, name: str) -> None:
    policy = one(baking, "IAM::ManagedPolicy", f"{name}Policy")["PolicyDocument"]
    statements = by_sid(policy)
    fetched = statements.pop("FetchBundle")
    assert {sid: (s["Action"], s["Resource"]) for sid, s in statements.items()} == {
        "ReadComponent": ("imagebuilder:GetComponent", f"<{name}Component.Arn>"),
        "TakeCommands": (CHANNELS, "*"),
        "ReportAgent": ("ssm:UpdateInstanceInformation", INSTANCES),
        "WriteLog": (LOG, f"<{name}BuildLog.Arn>"),
    }
    assert fetched["Action"] == "s3:GetObject"
    assert len(fetched["Resource"]) == 2, "the bundle and one lock's wheels"
    assert all("*" not in arn for arn in fetched["Resource"])
    role = one(baking, "IAM::Role", f"{name}Role")
    assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert role.get("ManagedPolicyArns", []) == []


def test_it_reaches_what_a_build_needs_and_no_more(baking: Deployment, dev: Deployment) -> None:
    policies = {
        properties["ServiceName"].rsplit(".", 1)[1]: by_sid(properties["PolicyDocument"])
        for properties in baking.properties("AWS::EC2::VPCEndpoint", PART).values()
    }
    objects = policies.pop("s3")
    assert {service: (p["Nodes"]["Action"], p["Nodes"]["Resource"]) for service, p in policies.items()} == {
        "ssm": ("ssm:UpdateInstanceInformation", INSTANCES),
        "ssmmessages": (CHANNELS, "*"),
        "imagebuilder": (
            "imagebuilder:GetComponent",
            "arn:aws:imagebuilder:us-east-1:<AWS::AccountId>:component/dev-*/1.0.0/*",
        ),
        "logs": (LOG, "arn:aws:logs:us-east-1:<AWS::AccountId>:log-group:/aws/imagebuilder/dev/*"),
    }
    assert all(p["Nodes"]["Condition"] == OWN_ACCOUNT for p in policies.values())
    assert set(objects) == {"NodeBundle", "PublicObjects", "OperatingSystemPackages"}
    assert len(objects["NodeBundle"]["Resource"]) == 3, "the bundle, and the wheels of both locks"
    assert objects["NodeBundle"]["Condition"] == OWN_ACCOUNT
    assert set(objects["PublicObjects"]["Resource"]) == {
        f"arn:aws:s3:::ec2imagebuilder-{what}-us-east-1-prod/*" for what in ("toe", "managed-resources")
    }
    nodes = {p["ServiceName"].rsplit(".", 1)[1] for p in dev.properties("AWS::EC2::VPCEndpoint", "Network").values()}
    assert not nodes & {"ssm", "ssmmessages", "imagebuilder"}


def test_its_stack_can_go_and_come_again(tmp_path: Path) -> None:
    prod = synthesize(tmp_path, {"images": {"pipeline": True}}, "prod")
    assert prod.termination_protection("Training")
    assert not prod.termination_protection(PART)
    # What stays would be in its own way: these have names.
    kept = {
        name
        for name, resource in prod.resources("AWS::Logs::LogGroup", PART).items()
        if resource.get("DeletionPolicy") != "Delete"
    }
    assert kept == set()


def test_nobody_reaches_it_and_it_has_no_public_address(baking: Deployment) -> None:
    for kind in ("InternetGateway", "NatGateway", "Route", "VPCPeeringConnection"):
        assert baking.properties(f"AWS::EC2::{kind}", PART) == {}
    ingress = baking.properties("AWS::EC2::SecurityGroupIngress", PART).values()
    assert {rule["GroupId"] for rule in ingress} == {"<NetworkEndpointGroup.GroupId>"}
    for rule in baking.properties("AWS::EC2::SecurityGroupEgress", PART).values():
        assert (rule["FromPort"], rule["ToPort"]) == (443, 443)
        assert ("DestinationPrefixListId" in rule) != ("DestinationSecurityGroupId" in rule)


def test_its_network_shares_no_name_with_the_nodes(baking: Deployment) -> None:
    for kind, key in (
        ("AWS::Logs::LogGroup", "LogGroupName"),
        ("AWS::Route53Resolver::FirewallDomainList", "Name"),
        ("AWS::Route53Resolver::FirewallRuleGroup", "Name"),
    ):
        own, others = (
            {properties[key] for properties in baking.properties(kind, part).values()} for part in (PART, "Network")
        )
        assert own
        assert others
        assert not own & others


@pytest.mark.parametrize("name", ["Nodes", "GpuNodes"])
def test_instances_and_images_are_encrypted_and_ask_for_tokens(baking: Deployment, name: str) -> None:
    recipe = one(baking, "ImageBuilder::ImageRecipe", f"{name}Recipe")
    (device,) = recipe["BlockDeviceMappings"]
    key = "<FoundationKeysData.Arn>"
    assert device["DeviceName"] == "/dev/xvda"
    assert device["Ebs"] == {
        "DeleteOnTermination": True,
        "Encrypted": True,
        "KmsKeyId": key,
        "VolumeSize": 150 if name == "GpuNodes" else 30,
        "VolumeType": "gp3",
    }
    infrastructure = one(baking, "ImageBuilder::InfrastructureConfiguration", f"{name}Infrastructure")
    assert infrastructure["InstanceMetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    assert infrastructure["TerminateInstanceOnFailure"] is True
    assert "KeyPair" not in infrastructure
    (distribution,) = one(baking, "ImageBuilder::DistributionConfiguration", f"{name}Distribution")["Distributions"]
    assert distribution["AmiDistributionConfiguration"]["KmsKeyId"] == key
    assert "LaunchPermissionConfiguration" not in distribution["AmiDistributionConfiguration"]
    pipeline = one(baking, "ImageBuilder::ImagePipeline", f"{name}Pipeline")
    assert "Schedule" not in pipeline
    assert pipeline["ImageTestsConfiguration"]["ImageTestsEnabled"] is True
    for log in ("BuildLog", "PipelineLog"):
        assert one(baking, "Logs::LogGroup", f"{name}{log}")["KmsKeyId"] == key


def test_the_key_encrypts_image_builders_logs_of_this_cluster_alone(baking: Deployment) -> None:
    policy = baking.properties("AWS::KMS::Key", "Foundation")["FoundationKeysData"]["KeyPolicy"]["Statement"]
    (statement,) = [statement for statement in policy if statement.get("Sid") == "CloudWatchLogs"]
    allowed = statement["Condition"]["ArnLike"]["kms:EncryptionContext:aws:logs:arn"]
    prefix = "arn:aws:logs:us-east-1:<AWS::AccountId>:log-group:"
    groups = [p["LogGroupName"] for p in baking.properties("AWS::Logs::LogGroup", PART).values()]
    builders = [name for name in groups if name.startswith("/aws/imagebuilder/")]
    assert len(builders) == 4
    assert f"{prefix}/aws/imagebuilder/dev/*" in allowed
    assert all(name.startswith("/aws/imagebuilder/dev/") for name in builders)


def test_what_is_baked_is_named_by_its_digests(baking: Deployment) -> None:
    for name, lock in {"Nodes": "requirements.txt", "GpuNodes": "requirements-gpu.txt"}.items():
        text = json.dumps(components(baking)[f"{name}Component"])
        assert f"--bake '{lock}'" in text
        assert hashlib.sha256((ROOT / "node" / lock).read_bytes()).hexdigest() in text
        outputs = baking.template("Foundation")["Outputs"]
        assert outputs["NodeBundle"]["Value"] in text
        assert "{{" not in text, "Image Builder would take it for its own"
        component = one(baking, "ImageBuilder::Component", f"{name}Component")
        assert len(component["Data"]) < 16_000
        recipe = one(baking, "ImageBuilder::ImageRecipe", f"{name}Recipe")
        assert recipe["Name"] == component["Name"]
    parents = {n: p["ParentImage"] for n, p in baking.properties("AWS::ImageBuilder::ImageRecipe", PART).items()}
    assert parents["NodesRecipe"].startswith("ssm:/aws/service/ami-amazon-linux-latest/")
    assert parents["GpuNodesRecipe"].startswith("ssm:/aws/service/deeplearning/")


def test_another_bundle_is_another_component_and_recipe(baking: Deployment, tmp_path: Path) -> None:
    # Image Builder changes neither: a deployment that tried to would fail.
    import aws_cdk as cdk

    from holdfast import ClusterFoundation, GoldenImage, PrivateNetwork, image_access

    def names(app: cdk.App, source: Path | None) -> set[str]:
        stack = cdk.Stack(app, "Stack")
        foundation = ClusterFoundation(
            stack, "Foundation", cluster_name="dev", node_source=source, cache_directory=ROOT / ".build"
        )
        network = PrivateNetwork(
            stack,
            "Network",
            cluster_name="dev",
            cidr="10.0.0.0/26",
            access=image_access(foundation),
            s3_prefix_list_id="pl-63a5400a",
            encryption_key=foundation.keys.data,
        )
        image = GoldenImage(stack, "Image", foundation=foundation, network=network)
        return {image.component.name, str(image.recipe.name)}

    source = tmp_path / "node"
    (source / "holdfast_node").mkdir(parents=True)
    (source / "holdfast_node/__init__.py").write_text("")
    for name in ("requirements.txt", "install.sh"):
        (source / name).write_bytes((ROOT / "node" / name).read_bytes())
    before, again, after = (names(cdk.App(), place) for place in (ROOT / "node", ROOT / "node", source))
    assert before == again
    assert len(before) == 1
    assert before != after


@pytest.mark.parametrize(
    ("template", "image"),
    [
        ("ClusterSchedulerTemplate", "nodes"),
        ("ClusterServerTemplate", "nodes"),
        ("ClusterWorkerTemplate", "gpu-nodes"),
        ("PredictorNodesTemplate", "nodes"),
    ],
)
def test_nodes_boot_the_baked_image_where_the_settings_say_so(
    baked: Deployment, baking: Deployment, template: str, image: str
) -> None:
    data = baked.properties("AWS::EC2::LaunchTemplate")[template]["LaunchTemplateData"]
    parameters = {f"<{name}>": value for name, value in baked.template("Training")["Parameters"].items()}
    parameter = next(value for name, value in parameters.items() if name.startswith(data["ImageId"][:-1]))
    assert parameter["Type"] == "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>"
    assert parameter["Default"] == f"/imagebuilder/holdfast/dev/{image}"
    written = {
        d["Distributions"][0]["SsmParameterConfigurations"][0]["ParameterName"]
        for d in baking.properties("AWS::ImageBuilder::DistributionConfiguration", PART).values()
    }
    assert parameter["Default"] in written


def test_scripts_parse_and_the_template_is_judged(baking: Deployment) -> None:
    for document in components(baking).values():
        assert [phase["name"] for phase in document["phases"]] == ["build", "test"]
        for phase in document["phases"]:
            (step,) = phase["steps"]
            assert step["action"] == "ExecuteBash"
            (command,) = step["inputs"]["commands"]
            assert command.isascii()
            result = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, timeout=30)
            assert (result.returncode, result.stderr) == (0, "")
    report = json.loads((baking.directory / "validation-report.json").read_text())
    assert [v["ruleName"] for r in report["pluginReports"] for v in r["violations"]] == []
    template = str(baking.directory / f"Holdfast-dev-{PART}.template.json")
    linter = Path(sys.executable).with_name("cfn-lint")
    result = subprocess.run(
        [linter, "--regions", "us-east-1", "--", template], capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
