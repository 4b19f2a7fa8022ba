"""Roles, ports, names and overlay addresses of a cluster's nodes.

Ports are pinned: 9091, 9092 and 9093 are free in the IANA registry's user range for ps-lite's three roles, and a
role's security-group rule, stunnel listener and trainer port are one number. ps-lite would silently move a busy
`PORT` to a random one (see docs/adr/0002-loopback-overlay.md), so the agent checks the listener after start.
"""

import re
from enum import StrEnum
from ipaddress import IPv4Network

DOMAIN = "holdfast"
CLUSTER_PATTERN = re.compile(r"[a-z][a-z0-9-]{1,30}[a-z0-9]")
INSTANCE_ID_PATTERN = re.compile(r"i-[0-9a-f]{8,17}")


class Role(StrEnum):
    """A node's part in a job. The values are MXNet's own (`DMLC_ROLE`)."""

    SCHEDULER = "scheduler"
    SERVER = "server"
    WORKER = "worker"


class Serving(StrEnum):
    """A node's part outside jobs: it enrols like the others, and no job raises, counts or dials it."""

    PREDICTOR = "predictor"


NodeRole = Role | Serving
#: Every role that the enrolment function gives a certificate for.
NODE_ROLES: tuple[NodeRole, ...] = (*Role, *Serving)


def group_name(cluster: str, role: NodeRole) -> str:
    """Return the name of the Auto Scaling group that a role's nodes belong to."""
    return f"{cluster}-{role}"


#: Where a predictor listens; free in the IANA registry's user range, like the trainer's ports below.
PREDICTOR_PORT = 9094
DEFAULT_PORTS: dict[Role, int] = {Role.SCHEDULER: 9091, Role.SERVER: 9092, Role.WORKER: 9093}

#: Who dials whom. Measured with default-drop rules: training completes with all six pairs and with no fewer;
#: workers never dial workers and servers never dial servers.
DIALS: dict[Role, tuple[Role, ...]] = {
    Role.SCHEDULER: (Role.SERVER, Role.WORKER),
    Role.SERVER: (Role.SCHEDULER, Role.WORKER),
    Role.WORKER: (Role.SCHEDULER, Role.SERVER),
}

#: Where a cluster's addresses are, and those of who may be let in from outside it (RFC 1918, section 3).
PRIVATE_RANGES = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))

#: Overlay addresses live in this part of 127.0.0.0/8 (RFC 1122, section 3.2.1.3: never on a wire).
OVERLAY_NETWORK = "127.77.0.0/16"
_OVERLAY_THIRD_OCTET = {Role.SCHEDULER: 0, Role.SERVER: 1, Role.WORKER: 2}
MAX_NODES_PER_ROLE = 150


def overlay_address(role: Role, rank: int) -> str:
    """Return the fixed overlay address of the node with this role and 0-based rank, the same on every host.

    ps-lite ranks nodes by address string, descending (`Van::ProcessAddNodeCommandAtScheduler`), so addresses fall
    as ranks rise, always with three digits in the last octet: ps-lite's rank is then Holdfast's.

    Raises:
        ValueError: the rank does not fit (0 to 149; the scheduler is always 0).
    """
    if not 0 <= rank < MAX_NODES_PER_ROLE or (role is Role.SCHEDULER and rank):
        raise ValueError(f"rank must be between 0 and {MAX_NODES_PER_ROLE - 1} (scheduler: 0), got {rank} for {role}")
    return f"127.77.{_OVERLAY_THIRD_OCTET[role]}.{1 if role is Role.SCHEDULER else 249 - rank}"


#: From here comes, at the trainer, what a tunnel accepted at the role's own port, where no firewall tells peers apart
#: (one machine without network namespaces): who it is, is its own word. Every other peer comes from its own address.
UNPROVEN_OVERLAY = "127.77.255.1"


#: Where tunnels accept: one port for each peer, to which only the node's firewall leads, by the peer's address
#: (docs/adr/0011). Above Linux's ephemeral ports (32768-60999, net.ipv4.ip_local_port_range), so none can be taken
#: by a connection that a node opens.
FIRST_PEER_PORT, LAST_PEER_PORT = 61000, 61000 + 2 * MAX_NODES_PER_ROLE


def peer_port(role: Role, rank: int) -> int:
    """Return the port at which every node's tunnel accepts the peer with this role and rank, and nobody else."""
    offset = {Role.SCHEDULER: 0, Role.SERVER: 1, Role.WORKER: 1 + MAX_NODES_PER_ROLE}[role]
    return FIRST_PEER_PORT + offset + rank


def role_name(cluster: str, role: NodeRole) -> str:
    """Return the DNS name that every node of a role carries in its certificate."""
    return f"{role}.{cluster}.{DOMAIN}"


def node_name(cluster: str, role: NodeRole, instance_id: str) -> str:
    """Return the DNS name that only this node carries in its certificate: what its peers check."""
    return f"{instance_id}.{role}.{cluster}.{DOMAIN}"


def spiffe_id(cluster: str, role: NodeRole, instance_id: str) -> str:
    """Return the node's SPIFFE identifier (spiffe.io, SPIFFE-ID specification, section 2)."""
    return f"spiffe://{cluster}/{role}/{instance_id}"
