"""Checks of what nodes reach on AWS: the endpoints with their policies, and the names that resolve."""

import re
from collections.abc import Iterator
from typing import Any

from holdfast_cli.posture.inventory import ENDPOINTS, Inventory
from holdfast_cli.posture.report import Check, Outcome
from holdfast_cli.posture.statements import Statement, parse, said
from holdfast_node.contract.documents import RemoteAccess
from holdfast_node.contract.roles import Role

SERVICES = ("kms", "lambda", "logs", "s3", "states")
SESSION_SERVICES = ("ssm", "ssmmessages")
#: The buckets of Amazon Linux 2023's package repositories, read without credentials.
_PACKAGES = re.compile(r"arn:[a-z-]+:s3:::al2023-repos-[a-z0-9-]+/\*")
_NAMES = r"((\*\.)?(s3|s3\.dualstack)|\*\.efs|kms|lambda|logs|states|ssm|ssmmessages)"


def services(inventory: Inventory) -> set[str]:
    """Return the services that nodes need an endpoint for."""
    asked = inventory.config(Role.SCHEDULER).remote_access is RemoteAccess.SESSION_MANAGER
    return {*SERVICES, *(SESSION_SERVICES if asked else ())}


def look_at_endpoints(inventory: Inventory) -> Outcome:
    """Look whether each service has an endpoint, no other has one, and what each one's policy lets through."""
    found = inventory.reader.every("ec2:DescribeVpcEndpoints", Filters=inventory.in_vpc)
    own, group = inventory.of("EC2::VPCEndpoint"), inventory.group_id(ENDPOINTS)
    problems: list[str] = []
    reached: set[str] = set()
    for endpoint in found:
        service = str(endpoint["ServiceName"]).rpartition(".")[2]
        where = f"endpoint {endpoint['VpcEndpointId']} ({service})"
        if endpoint["VpcEndpointId"] not in own:
            problems.append(f"{where} is not the cluster's")
            continue
        reached.add(service)
        if str(endpoint.get("State")).lower() != "available":
            problems.append(f"{where} is {endpoint.get('State')}")
        groups = {item["GroupId"] for item in endpoint.get("Groups", ())}
        if endpoint["VpcEndpointType"] == "Interface" and groups != {group}:
            problems.append(f"{where} carries the security groups {', '.join(sorted(groups)) or '(none)'}")
        statements = parse(endpoint.get("PolicyDocument"), f"the policy of {where}")
        problems += [f"{where}: {fault}" for item in statements for fault in _faults(item, service, inventory.account)]
    wanted = services(inventory)
    problems += [f"there is no endpoint for {service}" for service in sorted(wanted - reached)]
    problems += [f"there is an endpoint for {service}, which nobody asked for" for service in sorted(reached - wanted)]
    return Outcome(f"{len(found)} endpoints: {', '.join(sorted(reached))}", tuple(problems))


def _faults(statement: Statement, service: str, account: str) -> Iterator[str]:
    if not statement.allows:
        return
    name = said(statement)
    if statement.inverted:
        yield f"{name} names what it leaves out"
    if any("*" in action for action in statement.actions):
        yield f"{name} allows {', '.join(statement.actions)}"
    # AWS gives the message gateway's actions no resource to name.
    if "*" in statement.resources and service != "ssmmessages":
        yield f"{name} allows every resource"
    packages = statement.actions == ("s3:GetObject",) and all(map(_PACKAGES.fullmatch, statement.resources))
    if not packages and not statement.holds_to(account):
        yield f"{name} admits other accounts"


def look_at_names(inventory: Inventory) -> Outcome:
    """Look whether the VPC's resolver answers for the endpoints' names and for no other."""
    reader, vpc = inventory.reader, inventory.vpc
    found = reader.every("route53resolver:ListFirewallRuleGroupAssociations", VpcId=vpc)
    problems = [
        f"rule group {item['FirewallRuleGroupId']} is {item['Status'].lower()} on the VPC"
        for item in found
        if item.get("Status", "COMPLETE") != "COMPLETE"
    ]
    own = [item for item in found if item["FirewallRuleGroupId"] in inventory.of("Route53Resolver::FirewallRuleGroup")]
    if not own:
        problems.append(f"the cluster's DNS firewall rule group is not associated with VPC {vpc}")
    problems += [
        f"rule group {item['FirewallRuleGroupId']}, which is not the cluster's, is associated with the VPC"
        for item in found
        if item not in own
    ]
    names = 0
    for association in own:
        group = association["FirewallRuleGroupId"]
        rules = reader.every("route53resolver:ListFirewallRules", FirewallRuleGroupId=group)
        names += len(rules)
        problems += _rule_faults(inventory, sorted(rules, key=lambda rule: int(rule["Priority"])))
    answer = reader.get("route53resolver:GetFirewallConfig", ResourceId=vpc) or {}
    if (state := answer.get("FirewallConfig", {}).get("FirewallFailOpen")) != "DISABLED":
        problems.append(f"the VPC's DNS firewall may fail open: FirewallFailOpen is {state}")
    return Outcome(f"{len(found)} rule group on {vpc}, {names} rules", tuple(problems))


def _rule_faults(inventory: Inventory, rules: list[dict[str, Any]]) -> Iterator[str]:
    allowed = re.compile(
        rf"{_NAMES}\.{re.escape(inventory.region)}\.amazonaws\.com(\.cn)?\.?|(\*\.)?s3\.amazonaws\.com\.?"
    )
    blocks = False
    for rule in rules:
        domains = inventory.reader.every(
            "route53resolver:ListFirewallDomains", FirewallDomainListId=rule["FirewallDomainListId"]
        )
        if rule["Action"] == "BLOCK":
            blocks = blocks or "*" in {domain.rstrip(".") for domain in domains}
        else:
            for domain in domains:
                if not allowed.fullmatch(domain):
                    yield f"rule {rule['Priority']} lets the name {domain} through ({rule['Action']})"
    if not blocks:
        yield "no rule blocks every other name"


def look_at_remote_access(inventory: Inventory) -> Outcome:
    """Look whether nodes run the SSM agent, and whether that was asked for."""
    asked = {str(role): inventory.config(role).remote_access for role in inventory.roles}
    found = inventory.reader.every("ec2:DescribeVpcEndpoints", Filters=inventory.in_vpc)
    reached = {str(endpoint["ServiceName"]).rpartition(".")[2] for endpoint in found}
    problems = []
    if len(set(asked.values())) > 1:
        problems.append(f"the roles' nodes differ: {', '.join(f'{role} {value}' for role, value in asked.items())}")
    if set(asked.values()) == {RemoteAccess.NONE}:
        ways = sorted(reached & {*SESSION_SERVICES, "ec2messages", "ec2-instance-connect"})
        problems += [f"there is an endpoint for {service}, though remote access is off" for service in ways]
    return Outcome(f"remote access: {', '.join(sorted({str(value) for value in asked.values()}))}", tuple(problems))


CHECKS = (
    Check(
        name="endpoints",
        row="B2",
        claim="each service that nodes call has an endpoint that admits this account, the actions and resources of "
        "nodes; no other service has one",
        remedy="put the endpoint's policy and security group back as the network stack has them, or delete the "
        "endpoint that is not the cluster's",
        look=look_at_endpoints,
    ),
    Check(
        name="dns-firewall",
        row="B2",
        claim="the VPC's resolver answers for the endpoints' names only, and fails closed",
        remedy="associate the cluster's rule group with the VPC again, with its last rule blocking every name, and "
        "set FirewallFailOpen to DISABLED",
        look=look_at_names,
    ),
    Check(
        name="remote-access",
        row="B3",
        claim="nobody reaches a shell on a node but through Session Manager, and only where it was asked for",
        remedy="delete the endpoint, or ask for it with [cluster] remote_access and deploy",
        look=look_at_remote_access,
    ),
)
