"""What a VPC of the embedded AWS holds for its hosts: endpoints, mount targets, and who resolves which names.

Everything is read through AWS's own APIs, so it is what the deployed templates made.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from holdfast_local.emulator.names import service_names
from holdfast_local.hosts.resolver import FirewallRule

HTTPS, NFS, DNS = 443, 2049, 53
_GATEWAY = "Gateway"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One service as the hosts of a VPC reach it.

    `addresses` are its own in the VPC, or for a gateway endpoint the first of each range of the service's prefix list.
    `names` resolve to them; a name that begins with `*.` stands for every name below it. `groups` are its security
    groups; None where AWS has none: whoever may go out to a gateway endpoint reaches it.
    """

    endpoint_id: str
    service: str
    port: int
    addresses: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Network:
    """A VPC: its range, where its routes lead beside that, its DNS resolver's address, and its endpoints.

    `prefix_lists` are the ranges of each prefix list that its gateway endpoints serve; `firewall` are the rules of its
    DNS firewall, in order.
    """

    vpc_id: str
    cidr: str
    routes: tuple[str, ...]
    resolver: str
    endpoints: tuple[Endpoint, ...]
    prefix_lists: dict[str, tuple[str, ...]]
    firewall: tuple[FirewallRule, ...] = ()


def resolver_address(cidr: str) -> str:
    """Return the address of a VPC's resolver: its range's base plus two (VPC User Guide, "Amazon DNS server")."""
    return str(IPv4Network(cidr)[2])


class Networks:
    """Reads VPCs; `ec2`, `efs` and `resolver` (Route 53 Resolver) are clients of the embedded AWS."""

    def __init__(self, *, ec2: Any, efs: Any, resolver: Any, region: str) -> None:
        self._ec2, self._efs, self._resolver, self._region = ec2, efs, resolver, region

    def read(self, vpc_ids: Iterable[str]) -> list[Network]:
        """Return these VPCs as they are now, in order of their ids."""
        wanted = sorted(set(vpc_ids))
        if not wanted:
            return []
        described = self._ec2.describe_vpc_endpoints()["VpcEndpoints"]
        interfaces = {
            item["NetworkInterfaceId"]: item for item in self._ec2.describe_network_interfaces()["NetworkInterfaces"]
        }
        targets = self._mount_targets()
        vpcs = self._ec2.describe_vpcs(VpcIds=wanted)["Vpcs"]
        return [self._network(vpc, described, interfaces, targets) for vpc in sorted(vpcs, key=lambda v: v["VpcId"])]

    def _network(
        self,
        vpc: dict[str, Any],
        described: list[dict[str, Any]],
        interfaces: dict[str, dict[str, Any]],
        targets: list[tuple[str, Endpoint]],
    ) -> Network:
        mine = [item for item in described if item["VpcId"] == vpc["VpcId"] and item["State"] == "available"]
        gateways = [item for item in mine if item["VpcEndpointType"] == _GATEWAY]
        lists = {item["ServiceName"]: self._prefix_list(item["ServiceName"]) for item in gateways}
        return Network(
            vpc_id=vpc["VpcId"],
            cidr=vpc["CidrBlock"],
            routes=tuple(range_ for _, ranges in lists.values() for range_ in ranges),
            resolver=resolver_address(vpc["CidrBlock"]),
            endpoints=(
                *(self._gateway(item, lists[item["ServiceName"]][1]) for item in gateways),
                *(self._interface(item, interfaces) for item in mine if item["VpcEndpointType"] != _GATEWAY),
                *(target for vpc_id, target in targets if vpc_id == vpc["VpcId"]),
            ),
            prefix_lists=dict(lists.values()),
            firewall=tuple(self._firewall(vpc["VpcId"])),
        )

    def _firewall(self, vpc_id: str) -> Iterator[FirewallRule]:
        """Return the rules of every group that is associated with a VPC, in the order in which they are asked."""
        groups = self._resolver.list_firewall_rule_group_associations(VpcId=vpc_id)["FirewallRuleGroupAssociations"]
        for group in sorted(groups, key=lambda group: int(group["Priority"])):
            rules = self._resolver.list_firewall_rules(FirewallRuleGroupId=group["FirewallRuleGroupId"])
            for rule in sorted(rules["FirewallRules"], key=lambda rule: int(rule["Priority"])):
                listed = self._resolver.list_firewall_domains(FirewallDomainListId=rule["FirewallDomainListId"])
                domains = tuple(domain.rstrip(".").lower() for domain in listed["Domains"])
                # ALERT lets through what it tells of.
                yield FirewallRule(allow=rule["Action"] != "BLOCK", domains=domains)

    def _prefix_list(self, service_name: str) -> tuple[str, tuple[str, ...]]:
        """Return the id and the ranges of a service's prefix list."""
        filters = [{"Name": "prefix-list-name", "Values": [service_name]}]
        (found,) = self._ec2.describe_managed_prefix_lists(Filters=filters)["PrefixLists"]
        entries = self._ec2.get_managed_prefix_list_entries(PrefixListId=found["PrefixListId"])["Entries"]
        return str(found["PrefixListId"]), tuple(entry["Cidr"] for entry in entries)

    def _gateway(self, item: dict[str, Any], ranges: tuple[str, ...]) -> Endpoint:
        service = item["ServiceName"].rpartition(".")[2]
        return Endpoint(
            endpoint_id=item["VpcEndpointId"],
            service=service,
            port=HTTPS,
            addresses=tuple(str(IPv4Network(range_)[1]) for range_ in ranges),
            names=service_names(service, self._region),
            groups=None,
        )

    def _interface(self, item: dict[str, Any], interfaces: dict[str, dict[str, Any]]) -> Endpoint:
        return Endpoint(
            endpoint_id=item["VpcEndpointId"],
            service=item["ServiceName"].split(".", 3)[3],
            port=HTTPS,
            # One that was just removed is described no more.
            addresses=tuple(
                interfaces[name]["PrivateIpAddress"] for name in item["NetworkInterfaceIds"] if name in interfaces
            ),
            names=tuple(entry["DnsName"] for entry in item.get("DnsEntries", ())),
            groups=tuple(sorted(group["GroupId"] for group in item.get("Groups", ()))),
        )

    def _mount_targets(self) -> list[tuple[str, Endpoint]]:
        """Return every mount target of the account with its VPC: NFS, not AWS's API, behind a security group."""
        found = []
        for system in self._efs.describe_file_systems()["FileSystems"]:
            name = f"{system['FileSystemId']}.efs.{self._region}.amazonaws.com"
            for target in self._efs.describe_mount_targets(FileSystemId=system["FileSystemId"])["MountTargets"]:
                target_id = target["MountTargetId"]
                groups = self._efs.describe_mount_target_security_groups(MountTargetId=target_id)["SecurityGroups"]
                endpoint = Endpoint(
                    endpoint_id=target_id,
                    service="elasticfilesystem",
                    port=NFS,
                    addresses=(target["IpAddress"],),
                    names=(name,),
                    groups=tuple(sorted(groups)),
                )
                found.append((target["VpcId"], endpoint))
        return found
