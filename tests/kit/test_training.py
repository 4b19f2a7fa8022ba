"""The training stack's template: rules, launch templates, groups, checkpoints, outputs."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.kit.support import PARTS, ROOT, Deployment, synthesize

from holdfast_local.hosts.userdata import node_config
from holdfast_node.contract.documents import NodeConfig, Retention
from holdfast_node.contract.layout import UIDS, User
from holdfast_node.contract.roles import DEFAULT_PORTS, DIALS, Role

GROUPS = {role: f"<Cluster{role.title()}Group.GroupId>" for role in Role}
ENDPOINTS, CHECKPOINTS = "<NetworkEndpointGroup.GroupId>", "<ClusterCheckpointsGroup.GroupId>"
PAIRS = {(GROUPS[a], GROUPS[b], DEFAULT_PORTS[b]) for a, targets in DIALS.items() for b in targets}
AROUND = {(group, ENDPOINTS, 443) for group in GROUPS.values()} | {
    (GROUPS[role], CHECKPOINTS, 2049) for role in (Role.SERVER, Role.WORKER)
}
PLACEHOLDER = {"CidrIp": "127.0.0.1/32", "IpProtocol": "tcp", "FromPort": 65535, "ToPort": 65535}


def launch_data(deployment: Deployment, role: Role) -> dict[str, Any]:
    found = deployment.properties("AWS::EC2::LaunchTemplate")[f"Cluster{role.title()}Template"]
    return dict(found["LaunchTemplateData"])


def test_six_pairs_of_roles_dial_each_other_all_reach_endpoints_and_two_reach_checkpoints(dev: Deployment) -> None:
    rules = [
        (r["SourceSecurityGroupId"], r["GroupId"], r["FromPort"])
        for r in dev.properties("AWS::EC2::SecurityGroupIngress").values()
    ]
    assert set(rules) == PAIRS | AROUND
    assert len(rules) == 6 + 3 + 2


def test_every_way_out_names_a_peer_group_or_s3(dev: Deployment) -> None:
    rules = dev.properties("AWS::EC2::SecurityGroupEgress").values()
    to_groups = {
        (r["GroupId"], r["DestinationSecurityGroupId"], r["FromPort"])
        for r in rules
        if "DestinationSecurityGroupId" in r
    }
    to_s3 = {
        (r["GroupId"], r["FromPort"], r["DestinationPrefixListId"]) for r in rules if "DestinationPrefixListId" in r
    }
    assert to_groups == PAIRS | AROUND
    assert to_s3 == {(group, 443, "pl-63a5400a") for group in GROUPS.values()}
    assert len(rules) == len(to_groups) + len(to_s3)


@pytest.mark.parametrize("kind", ["Ingress", "Egress"])
def test_every_rule_opens_one_tcp_port(dev: Deployment, kind: str) -> None:
    for rule in dev.properties(f"AWS::EC2::SecurityGroup{kind}").values():
        assert rule["IpProtocol"] == "tcp"
        assert rule["FromPort"] == rule["ToPort"]
        assert not {"CidrIp", "CidrIpv6"} & set(rule)


def test_security_groups_hold_no_rule_but_the_placeholder(dev: Deployment) -> None:
    groups = dev.properties("AWS::EC2::SecurityGroup")
    assert len(groups) == 5
    for group in groups.values():
        assert "SecurityGroupIngress" not in group
        (rule,) = group["SecurityGroupEgress"]
        assert {key: rule[key] for key in PLACEHOLDER} == PLACEHOLDER


@pytest.mark.parametrize("part", PARTS)
def test_no_template_names_the_whole_internet(prod: Deployment, part: str) -> None:
    text = json.dumps(prod.template(part))
    assert "0.0.0.0/0" not in text
    assert "::/0" not in text


@pytest.mark.parametrize("role", Role)
def test_metadata_needs_a_token_and_goes_one_hop(dev: Deployment, role: Role) -> None:
    assert launch_data(dev, role)["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "InstanceMetadataTags": "disabled",
    }


@pytest.mark.parametrize("role", Role)
def test_every_volume_is_encrypted_with_the_data_key_and_goes_with_the_instance(dev: Deployment, role: Role) -> None:
    mappings = launch_data(dev, role)["BlockDeviceMappings"]
    scratch = [] if role is Role.SCHEDULER else [("/dev/sdb", 64)]
    root = 150 if role is Role.WORKER else 30
    assert [(m["DeviceName"], m["Ebs"]["VolumeSize"]) for m in mappings] == [("/dev/xvda", root), *scratch]
    for mapping in mappings:
        volume = {name: value for name, value in mapping["Ebs"].items() if name != "VolumeSize"}
        assert volume == {
            **{"Encrypted": True, "KmsKeyId": "<FoundationKeysData.Arn>"},
            **{"VolumeType": "gp3", "DeleteOnTermination": True},
        }


@pytest.mark.parametrize("settings", ["local", "dev", "prod"])
def test_no_volume_of_any_template_is_without_the_data_key(
    synthesized: Callable[[str], Deployment], settings: str
) -> None:
    templates = synthesized(settings).properties("AWS::EC2::LaunchTemplate").values()
    volumes = [m["Ebs"] for t in templates for m in t["LaunchTemplateData"]["BlockDeviceMappings"]]
    assert len(volumes) >= len(Role)
    assert {(v["Encrypted"], v["KmsKeyId"]) for v in volumes} == {(True, "<FoundationKeysData.Arn>")}


@pytest.mark.parametrize("role", Role)
def test_a_node_is_told_of_the_scratch_volume_that_it_has(dev: Deployment, local: Deployment, role: Role) -> None:
    def told(deployment: Deployment) -> str:
        line = next(line for line in user_data(deployment, role).splitlines() if line.startswith('{"'))
        return NodeConfig.parse(line).scratch_device

    assert (told(dev), told(local)) == ("" if role is Role.SCHEDULER else "/dev/sdb", "")


@pytest.mark.parametrize("role", Role)
def test_instances_share_hardware_unless_the_settings_say_otherwise(dev: Deployment, role: Role) -> None:
    assert "Placement" not in launch_data(dev, role)


def test_dedicated_tenancy_is_every_instances(tmp_path: Path) -> None:
    changes = {"cluster": {"dedicated_tenancy": True}, "predictor": {"job": "digits-20260102-030405-ab12"}}
    templates = synthesize(tmp_path, changes).properties("AWS::EC2::LaunchTemplate").values()
    assert [t["LaunchTemplateData"]["Placement"] for t in templates] == [{"Tenancy": "dedicated"}] * (len(Role) + 1)


@pytest.mark.parametrize("role", Role)
def test_instances_have_no_key_pair_no_public_address_and_one_group(dev: Deployment, role: Role) -> None:
    data = launch_data(dev, role)
    assert "KeyName" not in data
    assert "SecurityGroupIds" not in data
    assert data["NetworkInterfaces"] == [
        {"AssociatePublicIpAddress": False, "DeviceIndex": 0, "Groups": [GROUPS[role]]}
    ]


def test_images_are_public_parameters_that_the_deployment_resolves(dev: Deployment) -> None:
    parameters = {
        name: value for name, value in dev.template("Training")["Parameters"].items() if name != "BootstrapVersion"
    }
    assert {p["Type"] for p in parameters.values()} == {"AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>"}
    images = {role: launch_data(dev, role)["ImageId"] for role in Role}
    defaults = {
        role: next(p["Default"] for n, p in parameters.items() if n.startswith(i[1:-1])) for role, i in images.items()
    }
    linux = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
    gpu = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"
    assert defaults == {Role.SCHEDULER: linux, Role.SERVER: linux, Role.WORKER: gpu}


@pytest.mark.parametrize("role", Role)
def test_local_nodes_install_mxnets_build_for_cpus(local: Deployment, role: Role) -> None:
    config = node_config(user_data(local, role))
    assert config.wheelhouse is not None
    assert config.wheelhouse.lock == "requirements.txt"


def test_local_workers_boot_an_image_without_a_gpu_driver(local: Deployment) -> None:
    assert {launch_data(local, role)["ImageId"] for role in Role} == {launch_data(local, Role.SCHEDULER)["ImageId"]}


MAXIMA = {Role.SCHEDULER: "1", Role.SERVER: "2", Role.WORKER: "4"}


@pytest.mark.parametrize("role", Role)
def test_groups_are_empty_at_rest_and_bounded(dev: Deployment, role: Role) -> None:
    group = dev.properties("AWS::AutoScaling::AutoScalingGroup")[f"Cluster{role.title()}GroupASG"]
    assert (group["AutoScalingGroupName"], group["MinSize"], group["MaxSize"]) == (f"dev-{role}", "0", MAXIMA[role])
    assert "DesiredCapacity" not in group
    assert len(group["VPCZoneIdentifier"]) == 2


@pytest.mark.parametrize("role", Role)
def test_only_ec2_takes_a_nodes_role(dev: Deployment, role: Role) -> None:
    document = dev.properties("AWS::IAM::Role")[f"Cluster{role.title()}Role"]["AssumeRolePolicyDocument"]
    assert [(s["Action"], s["Principal"]) for s in document["Statement"]] == [
        ("sts:AssumeRole", {"Service": "ec2.amazonaws.com"})
    ]


def user_data(deployment: Deployment, role: Role) -> str:
    return str(launch_data(deployment, role)["UserData"])


@pytest.mark.parametrize("role", Role)
def test_user_data_holds_a_nodes_configuration_between_its_markers(dev: Deployment, role: Role) -> None:
    script = user_data(dev, role)
    config = node_config(script)
    assert (config.cluster, config.role, config.region, config.ports) == ("dev", role, "us-east-1", DEFAULT_PORTS)
    assert config.retention == Retention(max_age_days=7)
    assert config.jobs_bucket == "<FoundationBucketsJobs>"
    assert config.enrolment_function == "<FoundationEnrolmentFunction>"
    assert config.wheelhouse is not None
    assert config.wheelhouse.lock == ("requirements-gpu.txt" if role is Role.WORKER else "requirements.txt")
    assert not re.search(r"@[A-Z_0-9]+@", script)


@pytest.mark.parametrize("role", Role)
def test_user_data_is_a_script_that_bash_can_parse_and_ec2_accepts(dev: Deployment, role: Role) -> None:
    script = user_data(dev, role)
    result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stderr) == (0, "")
    # Without what CloudFormation makes of 15 names and ARNs; tests/kit/test_deployed.py measures the resolved one.
    assert len(script.encode()) < 8192


@pytest.mark.parametrize("role", Role)
def test_user_data_is_readable_as_it_is(dev: Deployment, role: Role) -> None:
    lines = user_data(dev, role).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith('{"')] == []
    assert not any(re.search(r"base64|gzip|eval", line) for line in lines)


@pytest.mark.parametrize("role", Role)
def test_user_data_leaves_out_what_a_node_knows_as_its_schemas_default(dev: Deployment, role: Role) -> None:
    line = next(line for line in user_data(dev, role).splitlines() if line.startswith('{"'))
    assert not {"remote_access", "predictions"} & set(json.loads(line))
    assert json.loads(line)["retention"] == {"max_age_days": 7}
    assert NodeConfig.parse(line).retention == Retention(max_age_days=7)


PHASES = (
    *("metadata", "fetch", "packages", "wheels", "environment"),
    *("install", "scratch", "mount", "firewall", "ports", "enrol"),
)


def test_every_phase_of_the_boot_has_a_name_and_a_time_out(dev: Deployment) -> None:
    phases = re.findall(r"\bphase ([a-z]+) ([0-9]+) ", user_data(dev, Role.WORKER))
    assert tuple(name for name, _ in phases) == PHASES
    assert all(0 < int(seconds) <= 300 for _, seconds in phases)
    assert user_data(dev, Role.WORKER).count("timeout -k 5 ") == 1


def test_every_step_of_the_installer_is_a_phase(dev: Deployment) -> None:
    asked = set(re.findall(r'bash "\$install" ([a-z-]+)', user_data(dev, Role.WORKER)))
    steps = set(re.findall(r"^  ([a-z-]+)\) ", (ROOT / "node/install.sh").read_text(), re.M)) - {"--bake"}
    assert asked == steps


MOUNTS = {
    Role.SCHEDULER: "",
    Role.SERVER: "<ClusterCheckpointsFileSystem>",
    Role.WORKER: "<ClusterCheckpointsFileSystem>",
}


@pytest.mark.parametrize("role", Role)
def test_only_roles_that_keep_checkpoints_have_a_file_system_to_mount(dev: Deployment, role: Role) -> None:
    config = node_config(user_data(dev, role))
    assert config.file_system_id == MOUNTS[role]
    assert bool(config.access_point_id) is bool(MOUNTS[role])


def test_user_data_leaves_no_bundle_behind(dev: Deployment) -> None:
    script = user_data(dev, Role.WORKER)
    assert "disk=$(mktemp -d /var/tmp/holdfast-boot.XXXXXX)" in script
    assert "trap 'rm -rf \"$disk\"' EXIT" in script
    assert '"$disk/bundle.zip"' in script and '"$disk/wheels.zip"' in script


def test_checkpoints_are_encrypted_with_the_data_key(dev: Deployment) -> None:
    (file_system,) = dev.properties("AWS::EFS::FileSystem").values()
    assert (file_system["Encrypted"], file_system["KmsKeyId"]) == (True, "<FoundationKeysData.Arn>")


def test_checkpoints_refuse_plaintext_root_and_mounts_beside_the_access_point(dev: Deployment) -> None:
    (file_system,) = dev.properties("AWS::EFS::FileSystem").values()
    client = ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"]
    assert [
        (s["Sid"], s["Effect"], s["Action"], s.get("Condition")) for s in file_system["FileSystemPolicy"]["Statement"]
    ] == [
        ("DenyPlaintext", "Deny", "*", {"Bool": {"aws:SecureTransport": "false"}}),
        ("DenyWithoutAccessPoint", "Deny", client, {"Null": {"elasticfilesystem:AccessPointArn": "true"}}),
        ("DenyRoot", "Deny", "elasticfilesystem:ClientRootAccess", None),
    ]


def test_access_point_pins_the_trainers_user_id(dev: Deployment) -> None:
    (access_point,) = dev.properties("AWS::EFS::AccessPoint").values()
    trainer = str(UIDS[User.TRAINER])
    assert access_point["PosixUser"] == {"Uid": trainer, "Gid": trainer}
    assert access_point["RootDirectory"] == {
        "Path": "/checkpoints",
        "CreationInfo": {"OwnerUid": trainer, "OwnerGid": trainer, "Permissions": "700"},
    }


def test_checkpoints_are_mounted_in_both_zones(dev: Deployment) -> None:
    targets = dev.properties("AWS::EFS::MountTarget").values()
    assert len({target["SubnetId"] for target in targets}) == 2
    assert {group for target in targets for group in target["SecurityGroups"]} == {CHECKPOINTS}


def test_retention_is_stamped_on_the_file_system(dev: Deployment) -> None:
    (file_system,) = dev.properties("AWS::EFS::FileSystem").values()
    tags = {tag["Key"]: tag["Value"] for tag in file_system["FileSystemTags"]}
    assert (tags["holdfast:keep-last"], tags["holdfast:max-age-days"]) == ("3", "7")
    assert tags["holdfast:keep-best"] == "1 by lowest loss"


def test_every_taggable_resource_names_its_cluster(dev: Deployment) -> None:
    for kind in ("AWS::KMS::Key", "AWS::S3::Bucket", "AWS::EC2::VPC", "AWS::Lambda::Function"):
        for properties in dev.properties(kind).values():
            assert {"Key": "holdfast:cluster", "Value": "dev"} in properties["Tags"]


OUTPUTS = """ClusterName Engine JobsBucket ModelsBucket JobSigningKey ModelSigningKey DataKey StateMachine NodeLogGroup
MaxWorkers MaxServers MaxJobSeconds MinJobSeconds MaxRestarts SchedulerGroup ServerGroup WorkerGroup FileSystem
NodeBoot"""


def test_outputs_are_what_operators_tools_read(dev: Deployment) -> None:
    outputs = dev.template("Training")["Outputs"]
    assert set(outputs) == set(OUTPUTS.split())
    literal = {name: output["Value"] for name, output in outputs.items() if isinstance(output["Value"], str)}
    assert literal == {
        "ClusterName": "dev",
        "Engine": "mxnet",
        "MaxWorkers": "4",
        "MaxServers": "2",
        "MaxJobSeconds": "14400",
        "MinJobSeconds": "601",
        "MaxRestarts": "2",
        "NodeBoot": "ec2",
    }
