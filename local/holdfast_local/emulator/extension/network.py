"""Security group rules and flow logs as resources of their own: the form that rules between groups take.

And rules for prefix lists in requests, where ministack drops what they name.
"""

import secrets
from collections.abc import Callable
from typing import Any

from holdfast_local.emulator.extension.cloudformation import Create, Delete, register
from holdfast_local.emulator.extension.seams import seam

_ALLOW_ALL = [{"CidrIp": "0.0.0.0/0"}]


def install() -> None:
    """Add AWS::EC2::SecurityGroupIngress, AWS::EC2::SecurityGroupEgress and AWS::EC2::FlowLog."""
    ec2 = seam("ministack.services.ec2", "_security_groups", "_sg_rule_id", "_flow_logs", "_tags", "_now_ts")
    templates = seam("ministack.services.cloudformation.provisioners", "_ec2_sg_permissions", "_ec2_apply_tags")
    register("AWS::EC2::SecurityGroupIngress", *_rule(ec2, templates._ec2_sg_permissions, "IpPermissions"))
    register("AWS::EC2::SecurityGroupEgress", *_rule(ec2, templates._ec2_sg_permissions, "IpPermissionsEgress"))
    register("AWS::EC2::FlowLog", *_flow_log(ec2, templates._ec2_apply_tags))
    _install_prefix_lists()


def _install_prefix_lists() -> None:
    ec2 = seam("ministack.services.ec2", "_p", "_parse_ip_permissions")
    stock = ec2._parse_ip_permissions

    def parse_ip_permissions(request: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
        rules: list[dict[str, Any]] = stock(request, prefix)
        for number, rule in enumerate(rules, start=1):
            position = 1
            while name := ec2._p(request, f"{prefix}.{number}.PrefixListIds.{position}.PrefixListId"):
                rule["PrefixListIds"].append({"PrefixListId": name})
                position += 1
        return rules

    ec2._parse_ip_permissions = parse_ip_permissions


def _rule(ec2: Any, parse: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], field: str) -> tuple[Create, Delete]:
    egress = field == "IpPermissionsEgress"

    def create(logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, str]]:
        group_id = properties["GroupId"]
        group = ec2._security_groups.get(group_id)
        if group is None:
            raise ValueError(f"The security group '{group_id}' does not exist")
        (rule,) = parse([properties])
        if any(_same(rule, known) for known in group.get(field, [])):
            raise ValueError("the specified rule already exists (InvalidPermission.Duplicate)")
        rule_id = rule["SecurityGroupRuleId"] = ec2._sg_rule_id(group_id, egress, rule)
        # The first egress rule of a group takes the place of its default rule, which allows everything
        # (AWS CloudFormation, AWS::EC2::SecurityGroupEgress).
        kept = [known for known in group.get(field, []) if not (egress and _allows_all(known))]
        group[field] = [*kept, rule]
        return rule_id, {"Id": rule_id}

    def delete(physical_id: str, properties: dict[str, Any]) -> None:
        group = ec2._security_groups.get(properties.get("GroupId", ""))
        if group is not None:
            group[field] = [rule for rule in group.get(field, []) if rule.get("SecurityGroupRuleId") != physical_id]

    return create, delete


def _allows_all(rule: dict[str, Any]) -> bool:
    return rule.get("IpProtocol") == "-1" and rule.get("IpRanges") == _ALLOW_ALL


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    def essence(rule: dict[str, Any]) -> list[Any]:
        peers = [
            sorted((name, value) for name, value in peer.items() if name != "Description")
            for field in ("IpRanges", "Ipv6Ranges", "PrefixListIds", "UserIdGroupPairs")
            for peer in rule.get(field, [])
        ]
        return [rule.get("IpProtocol"), rule.get("FromPort"), rule.get("ToPort"), peers]

    return essence(first) == essence(second)


def _flow_log(ec2: Any, apply_tags: Callable[[str, dict[str, Any]], None]) -> tuple[Create, Delete]:
    def create(logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, str]]:
        flow_log_id = f"fl-{secrets.token_hex(9)[:17]}"
        ec2._flow_logs[flow_log_id] = {
            "FlowLogId": flow_log_id,
            "ResourceId": properties["ResourceId"],
            "ResourceType": properties["ResourceType"],
            "TrafficType": properties.get("TrafficType", "ALL"),
            "LogDestinationType": properties.get("LogDestinationType", "cloud-watch-logs"),
            "LogDestination": properties.get("LogDestination") or properties.get("LogGroupName", ""),
            "FlowLogStatus": "ACTIVE",
            "CreationTime": ec2._now_ts(),
        }
        apply_tags(flow_log_id, properties)
        return flow_log_id, {"Id": flow_log_id}

    def delete(physical_id: str, properties: dict[str, Any]) -> None:
        ec2._flow_logs.pop(physical_id, None)
        ec2._tags.pop(physical_id, None)

    return create, delete
