"""DNS Firewall as stacks make it and as Route 53 Resolver's API reads it back."""

from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError

from .conftest import Cloud, allow

KIND = "AWS::Route53Resolver::Firewall"


def resources(**rule: Any) -> dict[str, Any]:
    names = {"Type": f"{KIND}DomainList", "Properties": {"Domains": ["kms.us-east-1.amazonaws.com", "*.example.com."]}}
    rules = [
        {"Action": "BLOCK", "Priority": 2, "FirewallDomainListId": {"Fn::GetAtt": ["Every", "Id"]}} | rule,
        {"Action": "ALLOW", "Priority": "1", "FirewallDomainListId": {"Fn::GetAtt": ["Names", "Id"]}},
    ]
    association = {"FirewallRuleGroupId": {"Fn::GetAtt": ["Rules", "Id"]}, "VpcId": {"Ref": "Vpc"}, "Priority": 101}
    return {
        "Vpc": {"Type": "AWS::EC2::VPC", "Properties": {"CidrBlock": "10.8.0.0/16"}},
        "Names": names,
        "Every": {"Type": f"{KIND}DomainList", "Properties": {"Domains": ["*"]}},
        "Rules": {"Type": f"{KIND}RuleGroup", "Properties": {"FirewallRules": rules}},
        "Association": {"Type": f"{KIND}RuleGroupAssociation", "Properties": association},
    }


def test_a_vpcs_rules_and_their_domains_are_read_back_in_order(cloud: Cloud) -> None:
    stack = cloud.deploy(resources(BlockResponse="NXDOMAIN"))
    client = cloud.client("route53resolver")
    (found,) = client.list_firewall_rule_group_associations(VpcId=cloud.resource(stack, "Vpc"))[
        "FirewallRuleGroupAssociations"
    ]
    rules = client.list_firewall_rules(FirewallRuleGroupId=found["FirewallRuleGroupId"])["FirewallRules"]
    assert [(rule["Action"], rule["Priority"], rule.get("BlockResponse")) for rule in rules] == [
        ("ALLOW", 1, None),
        ("BLOCK", 2, "NXDOMAIN"),
    ]
    listed = client.list_firewall_domains(FirewallDomainListId=rules[0]["FirewallDomainListId"])["Domains"]
    assert listed == ["kms.us-east-1.amazonaws.com.", "*.example.com."]


def test_a_removed_firewall_is_gone(cloud: Cloud) -> None:
    stack = cloud.deploy(resources())
    vpc, rules = cloud.resource(stack, "Vpc"), cloud.resource(stack, "Rules")
    cloud.delete(stack)
    client = cloud.client("route53resolver")
    assert client.list_firewall_rule_group_associations(VpcId=vpc)["FirewallRuleGroupAssociations"] == []
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        client.list_firewall_rules(FirewallRuleGroupId=rules)


def test_a_rule_group_without_rules_fails_the_stack(cloud: Cloud) -> None:
    with pytest.raises(WaiterError):
        cloud.deploy({"Rules": {"Type": f"{KIND}RuleGroup", "Properties": {}}})


def test_reading_a_firewall_takes_its_permission(cloud: Cloud, refused: Any) -> None:
    reader = cloud.session(allow("route53resolver:ListFirewallRuleGroupAssociations"))
    stranger = cloud.session(allow("ec2:DescribeVpcs"))
    assert cloud.client("route53resolver", reader).list_firewall_rule_group_associations()
    with refused("AccessDeniedException"):
        cloud.client("route53resolver", stranger).list_firewall_rule_group_associations()


def test_a_detached_firewall_can_be_attached_again(cloud: Cloud) -> None:
    stack = cloud.deploy(resources())
    vpc, client = cloud.resource(stack, "Vpc"), cloud.client("route53resolver")

    def found() -> list[dict[str, Any]]:
        return list(client.list_firewall_rule_group_associations(VpcId=vpc)["FirewallRuleGroupAssociations"])

    (first,) = found()
    client.disassociate_firewall_rule_group(FirewallRuleGroupAssociationId=first["Id"])
    assert found() == []
    client.associate_firewall_rule_group(
        CreatorRequestId="again",
        FirewallRuleGroupId=first["FirewallRuleGroupId"],
        VpcId=vpc,
        Priority=101,
        Name="again",
    )
    assert [item["FirewallRuleGroupId"] for item in found()] == [first["FirewallRuleGroupId"]]


def test_a_firewall_fails_closed_unless_told_otherwise(cloud: Cloud) -> None:
    client, vpc = cloud.client("route53resolver"), cloud.resource(cloud.deploy(resources()), "Vpc")
    assert client.get_firewall_config(ResourceId=vpc)["FirewallConfig"]["FirewallFailOpen"] == "DISABLED"
    client.update_firewall_config(ResourceId=vpc, FirewallFailOpen="ENABLED")
    assert client.get_firewall_config(ResourceId=vpc)["FirewallConfig"]["FirewallFailOpen"] == "ENABLED"


def test_an_unknown_operation_is_refused(cloud: Cloud, refused: Any) -> None:
    with refused("UnknownOperationException"):
        cloud.client("route53resolver").list_resolver_rules()
