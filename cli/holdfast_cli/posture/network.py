"""Checks of the network: who may connect, and that there is no way out."""

import re
from collections.abc import Iterator
from typing import Any

from holdfast_cli.posture.inventory import CHECKPOINTS, ENDPOINTS, Inventory
from holdfast_cli.posture.reading import Unreadable
from holdfast_cli.posture.report import Check, Outcome
from holdfast_node.contract.roles import DIALS, Role, Serving

HTTPS, NFS = 443, 2049
_CHECKPOINTING = (Role.SERVER, Role.WORKER)

#: (security group, direction, protocol, first port, last port, peer)
Rule = tuple[str, str, str, int, int, str]


def _rules(groups: dict[str, dict[str, Any]]) -> set[Rule]:
    """Return every rule of these groups, one for each peer."""
    return {
        (owner, direction, str(rule["IpProtocol"]), rule.get("FromPort", -1), rule.get("ToPort", -1), peer)
        for owner, group in groups.items()
        for direction, field in (("in", "IpPermissions"), ("out", "IpPermissionsEgress"))
        for rule in group.get(field, ())
        for peer in _peers(rule)
    }


def _peers(rule: dict[str, Any]) -> Iterator[str]:
    for field, name in (
        ("UserIdGroupPairs", "GroupId"),
        ("IpRanges", "CidrIp"),
        ("Ipv6Ranges", "CidrIpv6"),
        ("PrefixListIds", "PrefixListId"),
    ):
        for peer in rule.get(field, ()):
            yield str(peer[name])


def _expected(inventory: Inventory) -> set[Rule]:
    ports = inventory.config(Role.SCHEDULER).ports
    group = inventory.group_id
    prefix_list = _s3_prefix_list(inventory)
    rules: set[Rule] = set()

    def allow(source: str, target: str, port: int) -> None:
        rules.add((source, "out", "tcp", port, port, group(target)))
        rules.add((target, "in", "tcp", port, port, group(source)))

    for source, targets in DIALS.items():
        for target in targets:
            allow(source, target, ports[target])
    for role in inventory.roles:
        allow(role, ENDPOINTS, HTTPS)
        rules.add((role, "out", "tcp", HTTPS, HTTPS, prefix_list))
    for role in _CHECKPOINTING:
        allow(role, CHECKPOINTS, NFS)
    for owner in inventory.security_groups:
        # It stands in for AWS's default rule, which allows everything; no packet on a network has this address.
        rules.add((owner, "out", "tcp", 65535, 65535, "127.0.0.1/32"))
    if inventory.serves:
        port = inventory.config(Serving.PREDICTOR).port
        clients = inventory.output("Training", "PredictorClients")
        rules |= {(Serving.PREDICTOR, "in", "tcp", port, port, text) for text in clients.split(",") if text}
    return rules


def _s3_prefix_list(inventory: Inventory) -> str:
    name = f"com.amazonaws.{inventory.region}.s3"
    found = inventory.reader.every(
        "ec2:DescribeManagedPrefixLists", Filters=[{"Name": "prefix-list-name", "Values": [name]}]
    )
    if not found:
        raise Unreadable(f"there is no prefix list {name}")
    return str(found[0]["PrefixListId"])


def _said(rule: Rule, names: dict[str, str]) -> str:
    owner, direction, protocol, first, last, peer = rule
    ports = "every port" if first == -1 else f"port {first}" if first == last else f"ports {first}-{last}"
    way = "from" if direction == "in" else "to"
    protocol = "every protocol" if protocol == "-1" else protocol
    return f"{owner}: {direction}, {protocol}, {ports} {way} {names.get(peer, peer)}"


def look_at_rules(inventory: Inventory) -> Outcome:
    """Compare the rules of the cluster's security groups with those that training needs."""
    groups = inventory.security_groups
    names = {group["GroupId"]: owner for owner, group in groups.items()}
    found, expected = _rules(groups), _expected(inventory)
    problems = [f"too much: {_said(rule, names)}" for rule in sorted(found - expected)]
    problems += [f"missing: {_said(rule, names)}" for rule in sorted(expected - found)]
    return Outcome(f"{len(groups)} security groups, {len(found)} rules", tuple(problems))


def look_for_ways_out(inventory: Inventory) -> Outcome:
    """Look for gateways, and for routes that lead anywhere but into the VPC and to its S3 endpoint."""
    reader, vpc, own = inventory.reader, inventory.vpc, inventory.of("EC2::VPCEndpoint")
    problems = [
        f"{kind} {gateway[key]} is attached"
        for kind, action, key in (
            ("internet gateway", "ec2:DescribeInternetGateways", "InternetGatewayId"),
            ("egress-only internet gateway", "ec2:DescribeEgressOnlyInternetGateways", "EgressOnlyInternetGatewayId"),
        )
        for gateway in reader.every(action)
        if vpc in (place.get("VpcId") for place in gateway.get("Attachments", ()))
    ]
    problems += [
        f"NAT gateway {gateway['NatGatewayId']} is in the VPC"
        for gateway in reader.every("ec2:DescribeNatGateways")
        if gateway.get("VpcId") == vpc and gateway.get("State") not in ("deleted", "deleting", "failed")
    ]
    tables = reader.every("ec2:DescribeRouteTables", Filters=inventory.in_vpc)
    for table in tables:
        for route in table.get("Routes", ()):
            if route.get("GatewayId") not in ("local", *own):
                problems.append(f"route table {table['RouteTableId']} leads {_route(route)}")
        for gateway in table.get("PropagatingVgws", ()):
            problems.append(f"route table {table['RouteTableId']} takes routes from {gateway['GatewayId']}")
    return Outcome(
        f"no gateway but S3's endpoint, {len(tables)} route tables" if not problems else vpc, tuple(problems)
    )


def _route(route: dict[str, Any]) -> str:
    places = ("DestinationCidrBlock", "DestinationIpv6CidrBlock", "DestinationPrefixListId")
    ways = [str(value) for name, value in route.items() if name.endswith(("Id", "Arn")) and name not in places]
    where = next((route[name] for name in places if route.get(name)), "somewhere")
    return f"{where} to {', '.join(ways) or 'nowhere known'}"


def look_at_addresses(inventory: Inventory) -> Outcome:
    """Look for public addresses, and for interfaces in the VPC with a security group that is not the cluster's."""
    reader = inventory.reader
    own = {group["GroupId"] for group in inventory.security_groups.values()}
    subnets = reader.every("ec2:DescribeSubnets", Filters=inventory.in_vpc)
    interfaces = reader.every("ec2:DescribeNetworkInterfaces", Filters=inventory.in_vpc)
    problems = [
        f"subnet {subnet['SubnetId']} gives out {kind}"
        for subnet in subnets
        for kind, field in (("public addresses", "MapPublicIpOnLaunch"), ("IPv6", "AssignIpv6AddressOnCreation"))
        if subnet.get(field)
    ]
    problems += [
        f"subnet {subnet['SubnetId']} is not the cluster's"
        for subnet in subnets
        if subnet["SubnetId"] not in inventory.of("EC2::Subnet")
    ]
    for interface in interfaces:
        name = interface["NetworkInterfaceId"]
        if public := interface.get("Association", {}).get("PublicIp"):
            problems.append(f"interface {name} has the public address {public}")
        foreign = {group["GroupId"] for group in interface.get("Groups", ())} - own
        problems += [f"interface {name} carries the foreign security group {group}" for group in sorted(foreign)]
    problems += [
        f"instance {item['InstanceId']} has the public address {item['PublicIpAddress']}"
        for item in inventory.instances
        if item.get("VpcId") == inventory.vpc and item.get("PublicIpAddress")
    ]
    return Outcome(f"{len(subnets)} subnets, {len(interfaces)} network interfaces", tuple(dict.fromkeys(problems)))


def look_at_flow_log(inventory: Inventory) -> Outcome:
    """Look whether all of the VPC's traffic is logged, to the cluster's own log group."""
    wanted = f"/holdfast/{inventory.name}/flows"
    logs = inventory.reader.every("ec2:DescribeFlowLogs")
    found = [log for log in logs if log.get("ResourceId") == inventory.vpc]
    problems = [] if found else [f"VPC {inventory.vpc} has no flow log"]
    faults = [fault for log in found for fault in _flow_faults(log, wanted)]
    good = [log for log in found if not list(_flow_faults(log, wanted))]
    if found and not good:
        problems = faults
    return Outcome(f"{good[0]['FlowLogId']} to {wanted}" if good else inventory.vpc, tuple(problems))


def _flow_faults(log: dict[str, Any], wanted: str) -> Iterator[str]:
    name, place = log["FlowLogId"], str(log.get("LogGroupName") or log.get("LogDestination") or "")
    if log.get("FlowLogStatus") != "ACTIVE":
        yield f"flow log {name} is {log.get('FlowLogStatus')}"
    if log.get("DeliverLogsStatus", "SUCCESS") != "SUCCESS":
        yield f"flow log {name} cannot be delivered: {log.get('DeliverLogsErrorMessage', 'no reason given')}"
    if log.get("TrafficType") != "ALL":
        yield f"flow log {name} holds {log.get('TrafficType')} traffic only"
    if not re.fullmatch(rf"(.*:log-group:)?{re.escape(wanted)}(:\*)?", place):
        yield f"flow log {name} goes to {place or 'nowhere'}"


CHECKS = (
    Check(
        name="security-group-rules",
        row="T4",
        claim="the cluster's security groups admit role to role on pinned ports, the endpoints, the mount targets, S3",
        remedy="revoke what is too much, put back what is missing (docs/evidence/rules.md), and see in CloudTrail "
        "who changed it",
        look=look_at_rules,
    ),
    Check(
        name="no-way-out",
        row="B2",
        claim="the VPC has no internet gateway, no NAT, and no route but its own and S3's endpoint",
        remedy="detach the gateway or delete the route; nothing of the cluster needs one",
        look=look_for_ways_out,
    ),
    Check(
        name="no-public-address",
        row="B2",
        claim="nothing in the VPC has a public address or a security group that is not the cluster's",
        remedy="remove the address or interface, and end what it belongs to; this VPC is the cluster's alone",
        look=look_at_addresses,
    ),
    Check(
        name="flow-log",
        row="B2",
        claim="all of the VPC's traffic is logged to the cluster's log group",
        remedy="create the VPC's flow log again, for all traffic, to the log group /holdfast/CLUSTER/flows",
        look=look_at_flow_log,
    ),
)
