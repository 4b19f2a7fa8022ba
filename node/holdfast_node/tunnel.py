"""The loopback overlay: a stunnel configuration that carries every inter-node byte as mutual TLS 1.3.

The trainer binds and dials only overlay addresses. stunnel accepts on the node's real address at its role's port
and forwards to the overlay; it accepts on the overlay addresses of the peers and carries what the trainer dials
there to the peers' real addresses. Both directions check the peer's exact name, so a certificate of the right
role from a node that is not in this job is refused. Inbound each peer has a service of its own, to which the firewall
leads its address and no other: name and address hold together. What that service accepted reaches the trainer from
that peer's overlay address, so the trainer knows who speaks (docs/adr/0008). With the tunnel gone nothing flows
(docs/adr/0002, 0011).

Options: https://www.stunnel.org/static/stunnel.html (5.58 on Amazon Linux 2023 and later).
"""

import os
import re
from collections import Counter
from pathlib import Path

from holdfast_node.contract.documents import Peer, Rendezvous
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.roles import UNPROVEN_OVERLAY, Role, node_name, peer_port

# What stunnel logs at level 6 (info), each line with its connection's number in brackets: which service accepted it,
# which expected name its certificate matched, and that the handshake succeeded.
_ACCEPTED = re.compile(r"LOG\d\[(\d+)\]: Service \[(?:in|from-[a-z]+-\d+)\] accepted connection")
_MATCHED = re.compile(r'LOG\d\[(\d+)\]: CERT: Host name "[^"]*" matched with "([^"]*)"')
_NEGOTIATED = re.compile(r"LOG\d\[(\d+)\]: TLS accepted: new session negotiated")

#: A peer that vanishes is noticed by the wire within 5 + 3 x 2 s; stunnel knows no TCP_USER_TIMEOUT, so data that
#: nobody acknowledges is the agent's to notice (`reachability`). Both ends of every connection ask.
_KEEPALIVE = "\n".join(
    f"socket = {end}:{option}"
    for end in "lr"
    for option in ("SO_KEEPALIVE=1", "TCP_KEEPIDLE=5", "TCP_KEEPINTVL=2", "TCP_KEEPCNT=3")
)

# TIMEOUTbusy bounds a handshake and every wait for the rest of a TLS record (slow-loris); TIMEOUTidle must outlast the
# longest step of a job that says nothing: the watchdogs, not this, notice a peer that hangs.
_GLOBAL = """\
foreground = yes
pid =
syslog = no
debug = 6
sslVersion = TLSv1.3
ciphersuites = TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384
options = NO_RENEGOTIATION
sessionResume = no
cert = {tls}/cert.pem
key = {tls}/key.pem
CAfile = {tls}/ca.pem
verifyChain = yes
requireCert = yes
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
socket = a:SO_REUSEADDR=1
{keepalive}
TIMEOUTbusy = 10
TIMEOUTconnect = 5
TIMEOUTidle = 86400
TIMEOUTclose = 0
"""


def stunnel_config(*, cluster: str, me: Peer, rendezvous: Rendezvous, ports: dict[Role, int], paths: NodePaths) -> str:
    """Return this node's stunnel configuration for a job.

    A node accepts exactly the peers that dial it and dials exactly the peers that its role dials; a peer's real
    port and overlay port are one number, its role's.
    """
    peers = rendezvous.dialled_by(me.role)  # DIALS is symmetric: who dials me is whom I dial
    lines = [
        _GLOBAL.format(tls=paths.tls, keepalive=_KEEPALIVE),
        # Nobody reaches this one through the node's firewall. It holds the role's port, and is all that hosts
        # without a firewall have (one machine without network namespaces).
        "[in]",
        f"accept = {me.address}:{ports[me.role]}",
        f"connect = {me.overlay}:{ports[me.role]}",
        f"local = {UNPROVEN_OVERLAY}",
        *(f"checkHost = {node_name(cluster, peer.role, peer.instance_id)}" for peer in peers),
    ]
    for peer in peers:
        name = node_name(cluster, peer.role, peer.instance_id)
        lines += [
            "",
            f"[from-{peer.role}-{peer.rank}]",
            f"accept = {me.address}:{peer_port(peer.role, peer.rank)}",
            f"connect = {me.overlay}:{ports[me.role]}",
            f"local = {peer.overlay}",
            f"checkHost = {name}",
            "",
            f"[to-{peer.role}-{peer.rank}]",
            "client = yes",
            f"accept = {peer.overlay}:{ports[peer.role]}",
            f"connect = {peer.address}:{ports[peer.role]}",
            f"checkHost = {name}",
            f"sni = {name}",
        ]
    # A line break in a value would be a service of its own, and stunnel's services can run programs. The documents
    # that values come from refuse such values; this is the last place that can.
    if unprintable := [line for line in "\n".join(lines).split("\n") if not line.isprintable()]:
        raise DocumentError(f"the tunnel's configuration must be printable, got {unprintable[0][:100]!r}")
    if any("\n" in line for line in lines[1:]):
        raise DocumentError("a value of the tunnel's configuration holds a line break")
    return "\n".join(lines) + "\n"


def listeners(*, me: Peer, rendezvous: Rendezvous, ports: dict[Role, int]) -> list[tuple[str, int]]:
    """Return every address and port that the configuration has the tunnel listen on: all must be free before it."""
    peers = rendezvous.dialled_by(me.role)
    return [
        (me.address, ports[me.role]),
        *((me.address, peer_port(peer.role, peer.rank)) for peer in peers),
        *((peer.overlay, ports[peer.role]) for peer in peers),
    ]


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner and group can read (the setgid directory gives the group), atomically."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def accepted_peers(log: str) -> Counter[str]:
    """Return how many inbound TLS sessions a stunnel log (level 6) shows as negotiated, by the peer's exact name."""
    inbound: set[str] = set()
    names: dict[str, str] = {}
    peers: Counter[str] = Counter()
    for line in log.splitlines():
        if match := _ACCEPTED.search(line):
            inbound.add(match[1])
        elif match := _MATCHED.search(line):
            names[match[1]] = match[2]
        elif (match := _NEGOTIATED.search(line)) and match[1] in inbound:
            peers[names.get(match[1], "unknown")] += 1
    return peers
