"""Rules of the network: no way in or out but the ones that are named."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Any

from tests.kit.posture.model import (
    ACCOUNT,
    AGENT_CHANNELS,
    ANYONE,
    Problem,
    Resource,
    Templates,
    actions,
    allowed,
    expect,
    label,
    targets,
    wrong,
)
from tests.kit.support import as_list

from holdfast_node.contract.roles import DEFAULT_PORTS, DIALS, PREDICTOR_PORT, PRIVATE_RANGES, Role

HTTPS, NFS = 443, 2049
INGRESS, EGRESS = "AWS::EC2::SecurityGroupIngress", "AWS::EC2::SecurityGroupEgress"
GROUPS = {role: f"<Cluster{role.title()}Group.GroupId>" for role in Role}
PREDICTOR = "<PredictorSecurityGroup.GroupId>"
BAKING = ("<NodesSecurityGroup.GroupId>", "<GpuNodesSecurityGroup.GroupId>")
ENDPOINTS, CHECKPOINTS = "<NetworkEndpointGroup.GroupId>", "<ClusterCheckpointsGroup.GroupId>"
#: What the settings name in their region: the only public range.
S3_PREFIX_LIST = "pl-63a5400a"
#: The ports of the settings files, by who is dialled.
PORTS = {
    **{GROUPS[role]: DEFAULT_PORTS[role] for role in Role},
    PREDICTOR: PREDICTOR_PORT,
    ENDPOINTS: HTTPS,
    S3_PREFIX_LIST: HTTPS,
    CHECKPOINTS: NFS,
}
#: Who dials whom.
PAIRS = {
    *((GROUPS[role], GROUPS[peer]) for role, peers in DIALS.items() for peer in peers),
    *((group, target) for group in (*GROUPS.values(), PREDICTOR, *BAKING) for target in (ENDPOINTS, S3_PREFIX_LIST)),
    *((GROUPS[role], CHECKPOINTS) for role in (Role.SERVER, Role.WORKER)),
}
_PLACEHOLDER = ("127.0.0.1/32", "tcp", 65535, 65535)
#: Buckets of AWS's own that anybody may read: Amazon Linux's packages, and what Image Builder runs.
_REGION = r"[a-z]{2}(-[a-z]+)+-\d"
_PUBLIC = re.compile(
    rf"arn:aws:s3:::(al2023-repos-{_REGION}-de612dc2|ec2imagebuilder-(toe|managed-resources)-{_REGION}-prod)/\*"
)
_SERVICES = "imagebuilder|kms|lambda|logs|ssm|ssmmessages|states"
_SERVICE = re.compile(rf"com\.amazonaws\.(<AWS::Region>|{_REGION})\.(s3|{_SERVICES})")
#: Buckets and file systems have names of their own below their service's; no other name's children are let through.
_NAME = re.compile(
    rf"((\*\.)?s3(\.dualstack)?(\.{_REGION})?|\*\.efs\.{_REGION}|({_SERVICES})\.{_REGION})\.<AWS::URLSuffix>"
)


def subnets_are_private(templates: Templates) -> Iterator[Problem]:
    for subnet in templates.of("AWS::EC2::Subnet"):
        yield from expect(subnet, False, "MapPublicIpOnLaunch")
        yield from expect(subnet, None, "AssignIpv6AddressOnCreation")


def _ends(rule: Resource) -> tuple[Any, Any]:
    """Return who opens a rule's connections and to whom, as the rule names them."""
    others = [value for key, value in rule.properties.items() if re.match("Cidr|Source|Destination", key)]
    other = others[0] if len(others) == 1 else str(others)
    own = rule.at("GroupId")
    return (other, own) if rule.kind == INGRESS else (own, other)


def rules_name_their_peers(templates: Templates) -> Iterator[Problem]:
    for rule in templates.of(INGRESS, EGRESS):
        source, target = _ends(rule)
        if (source, target) in PAIRS or (target == PREDICTOR and _is_private(source)):
            continue
        yield wrong(rule, "a rule", f"{source} to {target}", "between two groups that dial each other, or to S3")


def _is_private(source: Any) -> bool:
    try:
        return any(IPv4Network(source).subnet_of(network) for network in PRIVATE_RANGES)
    except ValueError:
        return False


def rules_open_their_port(templates: Templates) -> Iterator[Problem]:
    for rule in templates.of(INGRESS, EGRESS):
        port = PORTS.get(str(_ends(rule)[1]))
        got = tuple(rule.at(key) for key in ("IpProtocol", "FromPort", "ToPort"))
        if port is not None and got != ("tcp", port, port):
            yield wrong(rule, "what a rule opens", got, f"tcp port {port}")


def groups_hold_no_rule_of_their_own(templates: Templates) -> Iterator[Problem]:
    for group in templates.of("AWS::EC2::SecurityGroup"):
        yield from expect(group, None, "SecurityGroupIngress")
        out = [
            tuple(rule.get(key) for key in ("CidrIp", "IpProtocol", "FromPort", "ToPort"))
            for rule in group.at("SecurityGroupEgress") or []
        ]
        if out != [_PLACEHOLDER]:
            yield wrong(group, "SecurityGroupEgress", out, "the placeholder alone; without it AWS allows everything")


def _is_public(statement: dict[str, Any]) -> bool:
    """Whether a statement lets anybody read AWS's own public objects, and no more."""
    return actions(statement) == ["s3:GetObject"] and all(map(_PUBLIC.fullmatch, targets(statement)))


def endpoints_lead_to_aws_alone(templates: Templates) -> Iterator[Problem]:
    for endpoint in templates.of("AWS::EC2::VPCEndpoint"):
        if not _SERVICE.fullmatch(name := str(endpoint.at("ServiceName"))):
            yield wrong(endpoint, "ServiceName", name, "one of the services of AWS that nodes call")


def endpoints_are_private(templates: Templates) -> Iterator[Problem]:
    for endpoint in templates.of("AWS::EC2::VPCEndpoint"):
        if endpoint.at("VpcEndpointType") == "Gateway":
            continue
        yield from expect(endpoint, True, "PrivateDnsEnabled")
        yield from expect(endpoint, [ENDPOINTS], "SecurityGroupIds")


def endpoint_policies_name_actions(templates: Templates) -> Iterator[Problem]:
    for endpoint in templates.of("AWS::EC2::VPCEndpoint"):
        if endpoint.at("PolicyDocument") is None:
            yield wrong(endpoint, "PolicyDocument", None, "there: without one everything is allowed")
        for statement in allowed(endpoint.at("PolicyDocument")):
            if wild := [action for action in actions(statement) if "*" in action]:
                yield wrong(endpoint, f"actions of {label(statement)}", wild, "named one by one")


def endpoint_policies_name_resources(templates: Templates) -> Iterator[Problem]:
    for endpoint in templates.of("AWS::EC2::VPCEndpoint"):
        for statement in allowed(endpoint.at("PolicyDocument")):
            if set(actions(statement)) <= AGENT_CHANNELS or _is_public(statement):
                continue
            if strange := [name for name in targets(statement) if not (name.startswith("<") or ACCOUNT in name)]:
                yield wrong(endpoint, f"resources of {label(statement)}", strange, "of this account")


def endpoints_admit_this_account(templates: Templates) -> Iterator[Problem]:
    wanted = {"StringEquals": {"aws:PrincipalAccount": ACCOUNT}}
    for endpoint in templates.of("AWS::EC2::VPCEndpoint"):
        for statement in allowed(endpoint.at("PolicyDocument")):
            own = statement.get("Condition") == wanted or _is_public(statement)
            if statement.get("Principal") != ANYONE or not own:
                yield wrong(
                    endpoint,
                    f"callers of {label(statement)}",
                    statement.get("Condition"),
                    "this account's; anybody's only to read AWS's own public objects",
                )


def other_names_are_blocked(templates: Templates) -> Iterator[Problem]:
    for vpc in templates.of("AWS::EC2::VPC"):
        groups = {f"<{r.name}.Id>": r for r in templates.of("AWS::Route53Resolver::FirewallRuleGroup", part=vpc.part)}
        lists = {f"<{r.name}.Id>": r for r in templates.of("AWS::Route53Resolver::FirewallDomainList", part=vpc.part)}
        attached = [
            groups.get(association.at("FirewallRuleGroupId"))
            for association in templates.of("AWS::Route53Resolver::FirewallRuleGroupAssociation", part=vpc.part)
            if association.at("VpcId") == f"<{vpc.name}>"
        ]
        if not attached:
            yield wrong(vpc, "the VPC's DNS firewall", None, "a rule group that is associated with it")
        for group in filter(None, attached):
            last = max(group.at("FirewallRules"), key=lambda rule: rule["Priority"])
            names = lists.get(last["FirewallDomainListId"])
            got = (last["Action"], names.at("Domains") if names else None)
            if got != ("BLOCK", ["*"]):
                yield wrong(group, "the last rule", got, "BLOCK of every name")


def allowed_names_are_aws_services(templates: Templates) -> Iterator[Problem]:
    for group in templates.of("AWS::Route53Resolver::FirewallRuleGroup"):
        lists = {f"<{r.name}.Id>": r for r in templates.of("AWS::Route53Resolver::FirewallDomainList", part=group.part)}
        for rule in group.at("FirewallRules"):
            if rule["Action"] == "BLOCK":
                continue
            if (names := lists.get(rule["FirewallDomainListId"])) is None:
                yield wrong(group, "a list of allowed names", rule["FirewallDomainListId"], "in the same stack")
            elif strange := [name for name in as_list(names.at("Domains")) if not _NAME.fullmatch(name)]:
                yield wrong(names, "allowed names", strange, "names of AWS services, not of their parent")


def flows_are_logged(templates: Templates) -> Iterator[Problem]:
    for vpc in templates.of("AWS::EC2::VPC"):
        logged = [
            (flow.at("TrafficType"), flow.at("LogDestinationType"))
            for flow in templates.of("AWS::EC2::FlowLog", part=vpc.part)
            if flow.at("ResourceId") == f"<{vpc.name}>"
        ]
        if ("ALL", "cloud-watch-logs") not in logged:
            yield wrong(vpc, "the VPC's flow logs", logged, "of ALL traffic, to CloudWatch Logs")


RULES = (
    subnets_are_private,
    rules_name_their_peers,
    rules_open_their_port,
    groups_hold_no_rule_of_their_own,
    endpoints_lead_to_aws_alone,
    endpoints_are_private,
    endpoint_policies_name_actions,
    endpoint_policies_name_resources,
    endpoints_admit_this_account,
    other_names_are_blocked,
    allowed_names_are_aws_services,
    flows_are_logged,
)
