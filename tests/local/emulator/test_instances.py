import base64
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from .conftest import ACCOUNT, REGION, Cloud, allow, unique

USER_DATA = "#!/bin/bash\necho <hello> & welcome\n"
SUBNETS = ("10.9.0.0/24", "10.9.1.0/24")
TRUST = allow("sts:AssumeRole", None) | {"Principal": {"Service": "ec2.amazonaws.com"}}


def resources(name: str, **group: Any) -> dict[str, Any]:
    subnets = {
        f"Subnet{index}": {
            "Type": "AWS::EC2::Subnet",
            "Properties": {"VpcId": {"Ref": "Vpc"}, "CidrBlock": block, "AvailabilityZone": f"{REGION}{zone}"},
        }
        for index, (block, zone) in enumerate(zip(SUBNETS, "ab", strict=True))
    }
    data = {
        "ImageId": "ami-0123456789abcdef0",
        "InstanceType": "c5.large",
        "UserData": {"Fn::Base64": USER_DATA},
        "SecurityGroupIds": [{"Fn::GetAtt": ["Group", "GroupId"]}],
        "IamInstanceProfile": {"Arn": {"Fn::GetAtt": ["Profile", "Arn"]}},
        "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "Role", "Value": "worker"}]}],
    }
    return {
        "Vpc": {"Type": "AWS::EC2::VPC", "Properties": {"CidrBlock": "10.9.0.0/16"}},
        **subnets,
        "Group": {
            "Type": "AWS::EC2::SecurityGroup",
            "Properties": {"GroupDescription": "workers", "VpcId": {"Ref": "Vpc"}},
        },
        "NodeRole": {
            "Type": "AWS::IAM::Role",
            "Properties": {"AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [TRUST]}},
        },
        "Profile": {"Type": "AWS::IAM::InstanceProfile", "Properties": {"Roles": [{"Ref": "NodeRole"}]}},
        "Template": {"Type": "AWS::EC2::LaunchTemplate", "Properties": {"LaunchTemplateData": data}},
        "Fleet": {
            "Type": "AWS::AutoScaling::AutoScalingGroup",
            "Properties": {
                "AutoScalingGroupName": name,
                "MinSize": "0",
                "MaxSize": "4",
                "VPCZoneIdentifier": [{"Ref": f"Subnet{index}"} for index in range(len(SUBNETS))],
                "LaunchTemplate": {
                    "LaunchTemplateId": {"Ref": "Template"},
                    "Version": {"Fn::GetAtt": ["Template", "LatestVersionNumber"]},
                },
                "Tags": [{"Key": "Cluster", "Value": "demo", "PropagateAtLaunch": True}],
                **group,
            },
        },
    }


class Fleet:
    def __init__(self, cloud: Cloud, **group: Any) -> None:
        self.name = unique("fleet")
        self.stack = cloud.deploy(resources(self.name, **group))
        self.cloud, self.scaling, self.ec2 = cloud, cloud.client("autoscaling"), cloud.client("ec2")

    def set(self, count: int) -> None:
        self.scaling.set_desired_capacity(AutoScalingGroupName=self.name, DesiredCapacity=count)

    def members(self) -> list[str]:
        (group,) = self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])["AutoScalingGroups"]
        return [member["InstanceId"] for member in group["Instances"]]

    def instances(self, state: str = "running") -> list[dict[str, Any]]:
        filters = [
            {"Name": "tag:aws:autoscaling:groupName", "Values": [self.name]},
            {"Name": "instance-state-name", "Values": [state]},
        ]
        pages = self.ec2.describe_instances(Filters=filters)["Reservations"]
        return [instance for page in pages for instance in page["Instances"]]


@pytest.fixture(scope="module")
def shared(cloud: Cloud) -> Fleet:
    return Fleet(cloud)


@pytest.fixture
def fleet(shared: Fleet) -> Fleet:
    shared.set(0)
    return shared


def test_group_at_rest_has_no_instances(fleet: Fleet) -> None:
    assert fleet.members() == []
    assert fleet.instances() == []


def test_raised_group_launches_the_templates_instances(fleet: Fleet) -> None:
    fleet.set(3)
    instances = fleet.instances()
    assert sorted(instance["InstanceId"] for instance in instances) == sorted(fleet.members())
    group, profile = (fleet.cloud.resource(fleet.stack, name) for name in ("Group", "Profile"))
    for instance in instances:
        assert (instance["ImageId"], instance["InstanceType"]) == ("ami-0123456789abcdef0", "c5.large")
        assert [attached["GroupId"] for attached in instance["SecurityGroups"]] == [group]
        assert instance["IamInstanceProfile"]["Arn"] == profile
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        assert tags == {"Role": "worker", "Cluster": "demo", "aws:autoscaling:groupName": fleet.name}
        answer = fleet.ec2.describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute="userData")
        assert base64.b64decode(answer["UserData"]["Value"]).decode() == USER_DATA


def test_instances_spread_over_the_subnets_with_private_addresses_only(fleet: Fleet) -> None:
    fleet.set(4)
    instances = fleet.instances()
    ids = [fleet.cloud.resource(fleet.stack, f"Subnet{index}") for index in range(len(SUBNETS))]
    assert sorted(instance["SubnetId"] for instance in instances) == sorted(ids * 2)
    networks = dict(zip(ids, SUBNETS, strict=True))
    addresses = {ip_address(instance["PrivateIpAddress"]) for instance in instances}
    assert len(addresses) == 4
    for instance in instances:
        assert ip_address(instance["PrivateIpAddress"]) in ip_network(networks[instance["SubnetId"]])
        assert instance["Placement"]["AvailabilityZone"] == f"{REGION}{'ab'[ids.index(instance['SubnetId'])]}"
        assert instance["VpcId"] == fleet.cloud.resource(fleet.stack, "Vpc")
        assert not instance.get("PublicIpAddress")


def test_lowered_group_terminates(fleet: Fleet) -> None:
    fleet.set(3)
    before = set(fleet.members())
    fleet.set(1)
    (left,) = fleet.members()
    assert [instance["InstanceId"] for instance in fleet.instances()] == [left]
    ended = {instance["InstanceId"] for instance in fleet.instances("terminated")}
    assert before - {left} <= ended


def test_group_replaces_a_terminated_member(fleet: Fleet) -> None:
    fleet.set(2)
    lost, kept = fleet.members()
    fleet.ec2.terminate_instances(InstanceIds=[lost])
    after = fleet.members()
    assert kept in after
    assert lost not in after
    assert len(after) == len(fleet.instances()) == 2


def test_update_moves_capacity_and_bounds(fleet: Fleet) -> None:
    fleet.scaling.update_auto_scaling_group(AutoScalingGroupName=fleet.name, MinSize=0, MaxSize=4, DesiredCapacity=2)
    assert len(fleet.instances()) == 2
    fleet.scaling.update_auto_scaling_group(AutoScalingGroupName=fleet.name, DesiredCapacity=0)
    assert fleet.instances() == []


REFUSALS: dict[str, tuple[str, dict[str, int], str]] = {
    "desired above max": ("set_desired_capacity", {"DesiredCapacity": 5}, "5 is above max value 4"),
    "update above max": ("update_auto_scaling_group", {"DesiredCapacity": 5}, "must be between the specified min"),
    "min above max": ("update_auto_scaling_group", {"MinSize": 3, "MaxSize": 2}, "must be greater than min bound"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_capacity_outside_the_bounds_is_refused(fleet: Fleet, name: str) -> None:
    action, arguments, message = REFUSALS[name]
    with pytest.raises(fleet.scaling.exceptions.ClientError, match=message):
        getattr(fleet.scaling, action)(AutoScalingGroupName=fleet.name, **arguments)
    assert fleet.instances() == []


def test_desired_below_min_is_refused(cloud: Cloud) -> None:
    fleet = Fleet(cloud, MinSize="1")
    assert len(fleet.instances()) == 1
    with pytest.raises(fleet.scaling.exceptions.ClientError, match="0 is below min value 1"):
        fleet.set(0)


def test_deleted_stack_leaves_no_instance(cloud: Cloud) -> None:
    fleet = Fleet(cloud, DesiredCapacity="2")
    assert len(fleet.instances()) == 2
    cloud.delete(fleet.stack)
    assert fleet.instances() == []


def test_role_raises_only_the_groups_of_its_policy(fleet: Fleet, refused: Any) -> None:
    pattern = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:*:autoScalingGroupName/"
    action = "autoscaling:SetDesiredCapacity"
    whole = fleet.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[fleet.name])["AutoScalingGroups"][0]
    for resource in (pattern + fleet.name, whole["AutoScalingGroupARN"]):
        session = fleet.cloud.session(allow(action, resource))
        fleet.cloud.client("autoscaling", session).set_desired_capacity(
            AutoScalingGroupName=fleet.name, DesiredCapacity=0
        )
    session = fleet.cloud.session(allow(action, pattern + "another"))
    with refused("AccessDenied"):
        fleet.cloud.client("autoscaling", session).set_desired_capacity(
            AutoScalingGroupName=fleet.name, DesiredCapacity=1
        )
    assert fleet.instances() == []


def test_role_suspends_processes_only_of_the_groups_of_its_policy(fleet: Fleet, refused: Any) -> None:
    pattern = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:*:autoScalingGroupName/"
    request = {"AutoScalingGroupName": fleet.name, "ScalingProcesses": ["AZRebalance", "ReplaceUnhealthy"]}
    session = fleet.cloud.session(allow("autoscaling:SuspendProcesses", pattern + fleet.name))
    fleet.cloud.client("autoscaling", session).suspend_processes(**request)
    session = fleet.cloud.session(allow("autoscaling:SuspendProcesses", pattern + "another"))
    with refused("AccessDenied"):
        fleet.cloud.client("autoscaling", session).suspend_processes(**request)
    with refused("ValidationError"):
        fleet.scaling.suspend_processes(**request | {"AutoScalingGroupName": "nobody"})


def test_enrolment_finds_the_group_of_an_instance(fleet: Fleet) -> None:
    fleet.set(1)
    (instance,) = fleet.members()
    (found,) = fleet.scaling.describe_auto_scaling_instances(InstanceIds=[instance])["AutoScalingInstances"]
    assert (found["AutoScalingGroupName"], found["LifecycleState"]) == (fleet.name, "InService")
