"""Security groups as nftables rules: takes descriptions, returns a ruleset's text.

The rules live in the switch's network namespace, between the hosts, where no host can reach them. They keep
what AWS promises of security groups: allow rules only, stateful, evaluated on the way out of one instance and on
the way into the other (https://docs.aws.amazon.com/vpc/latest/userguide/vpc-security-groups.html), and a
source check on every interface. IPv6 matches nothing: no host has a route to it. The VPC's own DNS resolver is
reached past all groups, as on AWS ("Control traffic to your AWS resources using security groups", same guide).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses
from types import MappingProxyType
from typing import Any

TABLE = "inet holdfast_fabric"
HTTPS = 443
REFUSED = "refused"
SPOOFED = "spoofed"
_PROTOCOLS = {"tcp": "tcp", "udp": "udp", "icmp": "icmp", "6": "tcp", "17": "udp", "1": "icmp"}


@dataclass(frozen=True, kw_only=True)
class Permission:
    """One allow rule: a protocol (`-1` is all), a port range, and peers as group ids, IPv4 ranges and prefix lists."""

    protocol: str
    ports: tuple[int, int] | None
    groups: frozenset[str]
    ranges: tuple[str, ...]
    prefix_lists: tuple[str, ...] = ()

    @classmethod
    def parse(cls, description: Mapping[str, Any]) -> "Permission":
        """Return the permission that an `IpPermission` of the EC2 API describes."""
        first, last = description.get("FromPort"), description.get("ToPort")
        protocol = str(description.get("IpProtocol", "-1"))
        every_port = first is None or last is None or first < 0 or protocol == "-1"
        return cls(
            protocol=protocol,
            ports=None if every_port else (int(str(first)), int(str(last))),
            groups=frozenset(pair["GroupId"] for pair in description.get("UserIdGroupPairs", ()) if "GroupId" in pair),
            ranges=tuple(item["CidrIp"] for item in description.get("IpRanges", ())),
            prefix_lists=tuple(item["PrefixListId"] for item in description.get("PrefixListIds", ())),
        )


@dataclass(frozen=True, kw_only=True)
class SecurityGroup:
    """A security group's allow rules for both directions."""

    group_id: str
    ingress: tuple[Permission, ...]
    egress: tuple[Permission, ...]

    @classmethod
    def parse(cls, description: Mapping[str, Any]) -> "SecurityGroup":
        """Return the group that `DescribeSecurityGroups` describes."""
        return cls(
            group_id=description["GroupId"],
            ingress=tuple(map(Permission.parse, description.get("IpPermissions", ()))),
            egress=tuple(map(Permission.parse, description.get("IpPermissionsEgress", ()))),
        )


@dataclass(frozen=True, kw_only=True)
class Member:
    """Somebody on the switch: its port there, its address, and its security groups.

    Without groups (None) it is no network interface of a VPC but a gateway endpoint: it admits whoever may go out to
    it, where an AWS service listens. Several members can share a port; each of them sends from its own address only.
    """

    port: str
    address: str
    groups: tuple[str, ...] | None


def ruleset(
    members: Sequence[Member],
    groups: Mapping[str, SecurityGroup],
    *,
    prefix_lists: Mapping[str, Sequence[str]] = MappingProxyType({}),
    resolvers: Sequence[Member] = (),
) -> str:
    """Return nft commands that replace the fabric's rules in one transaction and keep its counters.

    A group id without a description in `groups`, or a prefix list without ranges in `prefix_lists`, allows nothing.
    Every member reaches the `resolvers` for DNS.
    """
    lines = [
        f"add table {TABLE}",
        f"add counter {TABLE} {REFUSED}",
        f"add counter {TABLE} {SPOOFED}",
        f"add chain {TABLE} input {{ type filter hook input priority filter; policy drop; }}",
        f"add chain {TABLE} forward {{ type filter hook forward priority filter; policy drop; }}",
        f"add chain {TABLE} deliver",
        *(f"add chain {TABLE} {way}_{_chain(member)}" for member in members for way in ("from", "to")),
        f"flush table {TABLE}",
    ]

    def rule(chain: str, text: str) -> None:
        lines.append(f"add rule {TABLE} {chain} {text}")

    everyone = (*members, *resolvers)
    for port in dict.fromkeys(member.port for member in everyone):
        own = ", ".join(member.address for member in everyone if member.port == port)
        rule("forward", f'iifname "{port}" ip saddr != {{ {own} }} counter name {SPOOFED} drop')
    rule("forward", "ct state established,related accept")
    rule("forward", f"ct state invalid counter name {REFUSED} drop")
    if members and resolvers:
        askers = ", ".join(member.address for member in members)
        asked = ", ".join(member.address for member in resolvers)
        rule(
            "forward", f"ip saddr {{ {askers} }} ip daddr {{ {asked} }} meta l4proto {{ tcp, udp }} th dport 53 accept"
        )
    if members:
        rule("forward", f"ip saddr vmap {{ {', '.join(f'{m.address} : jump from_{_chain(m)}' for m in members)} }}")
        rule("deliver", f"ip daddr vmap {{ {', '.join(f'{m.address} : goto to_{_chain(m)}' for m in members)} }}")
    rule("forward", f"counter name {REFUSED} drop")
    rule("deliver", f"counter name {REFUSED} drop")
    for member in members:
        mine = [groups[group] for group in member.groups or () if group in groups]
        for permission in dict.fromkeys(p for group in mine for p in group.egress):
            for match in _matches(permission, "daddr", members, prefix_lists):
                rule(f"from_{_chain(member)}", f"{match} goto deliver")
        for permission in dict.fromkeys(p for group in mine for p in group.ingress):
            for match in _matches(permission, "saddr", members, prefix_lists):
                rule(f"to_{_chain(member)}", f"{match} accept")
        if member.groups is None:
            rule(f"to_{_chain(member)}", f"tcp dport {HTTPS} accept")
        rule(f"to_{_chain(member)}", f"counter name {REFUSED} drop")
    return "\n".join(lines) + "\n"


def _chain(member: Member) -> str:
    return member.address.replace(".", "_")


def _matches(
    permission: Permission, side: str, members: Iterable[Member], prefix_lists: Mapping[str, Sequence[str]]
) -> list[str]:
    peers = [member.address for member in members if permission.groups.intersection(member.groups or ())]
    listed = [range_ for name in permission.prefix_lists for range_ in prefix_lists.get(name, ())]
    networks = collapse_addresses(IPv4Network(item, strict=False) for item in (*peers, *permission.ranges, *listed))
    wanted = ", ".join(str(network) for network in networks)
    if not wanted:
        return []
    if permission.protocol == "-1":
        return [f"ip {side} {{ {wanted} }}"]
    protocol = _PROTOCOLS.get(permission.protocol)
    if protocol is None:
        return []
    if permission.ports is None or protocol == "icmp":
        return [f"ip {side} {{ {wanted} }} meta l4proto {protocol}"]
    return [f"ip {side} {{ {wanted} }} {protocol} dport {permission.ports[0]}-{permission.ports[1]}"]
