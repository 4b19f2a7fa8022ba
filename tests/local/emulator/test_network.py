from typing import Any

import pytest
from botocore.exceptions import WaiterError

from .conftest import Cloud

VPC = {"Type": "AWS::EC2::VPC", "Properties": {"CidrBlock": "10.7.0.0/16"}}


def group(word: str) -> dict[str, Any]:
    return {
        "Type": "AWS::EC2::SecurityGroup",
        "Properties": {"GroupDescription": word, "VpcId": {"Ref": "Vpc"}},
    }


def rule(kind: str, peer: str, port: int) -> dict[str, Any]:
    return {
        "Type": f"AWS::EC2::SecurityGroup{kind}",
        "Properties": {
            "GroupId": {"Fn::GetAtt": ["Server", "GroupId"]},
            "IpProtocol": "tcp",
            "FromPort": port,
            "ToPort": port,
            peer: {"Fn::GetAtt": ["Worker", "GroupId"]},
        },
    }


def resources(port: int = 9092) -> dict[str, Any]:
    return {
        "Vpc": VPC,
        "Server": group("server"),
        "Worker": group("worker"),
        "In": rule("Ingress", "SourceSecurityGroupId", port),
        "Out": rule("Egress", "DestinationSecurityGroupId", port),
    }


def described(cloud: Cloud, stack: str) -> dict[str, Any]:
    server = cloud.resource(stack, "Server")
    found: dict[str, Any] = cloud.client("ec2").describe_security_groups(GroupIds=[server])["SecurityGroups"][0]
    return found


def pairs(rules: list[dict[str, Any]]) -> list[tuple[int, list[str]]]:
    return [(rule["FromPort"], [pair["GroupId"] for pair in rule["UserIdGroupPairs"]]) for rule in rules]


def test_rules_between_groups_are_the_only_rules(cloud: Cloud) -> None:
    stack = cloud.deploy(resources())
    worker = cloud.resource(stack, "Worker")
    server = described(cloud, stack)
    assert pairs(server["IpPermissions"]) == [(9092, [worker])]
    # The first egress rule replaces the default one, which allows everything.
    assert pairs(server["IpPermissionsEgress"]) == [(9092, [worker])]


def test_changed_rule_replaces_the_old_one(cloud: Cloud) -> None:
    stack = cloud.deploy(resources())
    cloud.update(stack, resources(port=9093))
    worker = cloud.resource(stack, "Worker")
    server = described(cloud, stack)
    assert pairs(server["IpPermissions"]) == [(9093, [worker])]
    assert pairs(server["IpPermissionsEgress"]) == [(9093, [worker])]


def test_removed_rule_is_gone(cloud: Cloud) -> None:
    stack = cloud.deploy(resources())
    remaining = resources()
    del remaining["In"], remaining["Out"]
    cloud.update(stack, remaining)
    server = described(cloud, stack)
    assert server["IpPermissions"] == server["IpPermissionsEgress"] == []


def test_same_rule_twice_fails_the_stack(cloud: Cloud) -> None:
    with pytest.raises(WaiterError):
        cloud.deploy(resources() | {"Again": rule("Ingress", "SourceSecurityGroupId", 9092)})


def test_flow_log_follows_its_network(cloud: Cloud) -> None:
    flow_log = {
        "Type": "AWS::EC2::FlowLog",
        "Properties": {
            "ResourceId": {"Ref": "Vpc"},
            "ResourceType": "VPC",
            "TrafficType": "REJECT",
            "LogGroupName": "flows",
            "Tags": [{"Key": "Cluster", "Value": "demo"}],
        },
    }
    stack = cloud.deploy({"Vpc": VPC, "Log": flow_log})
    ec2, name = cloud.client("ec2"), cloud.resource(stack, "Log")
    (found,) = ec2.describe_flow_logs(FlowLogIds=[name])["FlowLogs"]
    assert (found["ResourceId"], found["TrafficType"]) == (cloud.resource(stack, "Vpc"), "REJECT")
    assert found["Tags"] == [{"Key": "Cluster", "Value": "demo"}]
    cloud.delete(stack)
    assert ec2.describe_flow_logs(FlowLogIds=[name])["FlowLogs"] == []
