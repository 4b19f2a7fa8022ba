"""Who answers whom at which port: what should be, and what a scan of every port finds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.boundary.cluster import OUTSIDER, STAY, Cluster

from holdfast_local.hosts.endpoints import DNS, NFS
from holdfast_node.contract.roles import DEFAULT_PORTS, DIALS, Role

WORKERS = SERVERS = 2
EVERY_PORT = "1-65535"
#: Well-known UDP services: DNS, DHCP, TFTP, RPC, NTP, NetBIOS, SNMP, LDAP, IKE, syslog, NFS, VXLAN, mDNS and more.
UDP_PORTS = (
    "7,19,53,67-69,111,123,137,138,161,162,389,443,500,514,520,623,1194,1434,1701,1812,1900,2049,3478,4500,4789,5353,"
    "5355,8472,9091-9094,11211"
)
MOUNTING = (Role.SERVER, Role.WORKER)

Answers = dict[str, dict[int, str]]
NOTHING: Answers = {"tcp": {}, "udp": {}}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one host found at one address: `answers` by protocol and port, beside what should have answered."""

    source: str
    target: str
    address: str
    answers: Answers
    expected: Answers

    @property
    def as_expected(self) -> bool:
        """Whether exactly what should answer did."""
        return self.answers == self.expected


def expected(source: Role | None, kind: str) -> Answers:
    """Return what should answer a host of a role (None: of none) at a target: a role, or a service of the network.

    An outsider's own group lets everything out: it reaches what no group guards, S3's gateway and the resolver.
    """

    def tcp(port: int) -> Answers:
        return {"tcp": {port: "open"}, "udp": {}}

    if kind == "resolver":
        return {"tcp": {DNS: "open"}, "udp": {DNS: "open"}}
    if kind == "s3":
        return tcp(443)
    if source is None:
        return NOTHING
    if kind == "checkpoints":
        return tcp(NFS) if source in MOUNTING else NOTHING
    if kind in set(Role):
        return tcp(DEFAULT_PORTS[Role(kind)]) if Role(kind) in DIALS[source] else NOTHING
    return tcp(443)


def scan(cluster: Cluster, *, service_ports: str = EVERY_PORT) -> Iterator[Seen]:
    """Scan from a host of every role, and from one of none, while a job runs: nodes whole, services as asked."""
    network = cluster.network()
    services = {network.resolver: "resolver"} | {
        address: "checkpoints" if endpoint.port == NFS else endpoint.service
        for endpoint in network.endpoints
        for address in endpoint.addresses
    }
    with cluster.job(STAY, workers=WORKERS, servers=SERVERS), cluster.outsider() as outsider:
        cluster.await_training(1 + WORKERS + SERVERS)
        nodes = {host["address"]: host for host in cluster.hosts() if host["instance_id"] != outsider["instance_id"]}
        first = {role: next(host for host in nodes.values() if host["role"] == role) for role in Role}
        everyone = {address: str(host["role"]) for address, host in nodes.items()}
        for role, host in [*first.items(), (None, outsider)]:
            others = {
                a: kind for a, kind in {**everyone, outsider["address"]: OUTSIDER}.items() if a != host["address"]
            }
            found = cluster.scan(host, list(others), tcp=EVERY_PORT, udp=UDP_PORTS)
            found |= cluster.scan(host, list(services), tcp=service_ports, udp=UDP_PORTS)
            for address, kind in {**others, **services}.items():
                should = NOTHING if kind == OUTSIDER else expected(role, kind)
                yield Seen(
                    source=role or OUTSIDER,
                    target=kind,
                    address=address,
                    answers=_numbered(found[address]),
                    expected=should,
                )


def _numbered(found: Mapping[str, Mapping[str, Any]]) -> Answers:
    return {protocol: {int(port): str(how) for port, how in ports.items()} for protocol, ports in found.items()}
