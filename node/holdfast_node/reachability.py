"""Which peers still answer, from the kernel's own account of this node's connections (/proc/net/tcp, proc(5)).

The trainer's heartbeats go to the scheduler only: a cut between a worker and a server leaves them both well and
waiting for ever. The kernel knows better: a connection on which data is sent again and again, or whose keepalive
probes stay unanswered (the tunnel asks for them), has a peer that cannot be reached. A slow peer acknowledges late,
and that clears the count. So does a peer with which nothing is under way any more: it may have ended well.
"""

import logging
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from holdfast_node.contract.documents import Peer
from holdfast_node.contract.roles import Role, peer_port

_LOG = logging.getLogger("holdfast")
_ESTABLISHED, _SYN_SENT = "01", "02"  # include/net/tcp_states.h

Endpoint = tuple[str, int]


@dataclass(frozen=True)
class Connection:
    """A connection's ends, whether its peer owes an answer (to data sent again, a probe, a dial), whether it is up."""

    local: Endpoint
    remote: Endpoint
    unanswered: bool
    up: bool


def connections(table: str) -> Iterator[Connection]:
    """Yield the connections in `table` (the text of /proc/net/tcp) that are up, or still being made.

    Column 7 counts retransmissions that nothing has acknowledged, column 9 unanswered probes (get_tcp4_sock in
    net/ipv4/tcp_ipv4.c prints `icsk_retransmits` and `icsk_probes_out`).
    """
    for row in (line.split() for line in table.splitlines()[1:]):
        if len(row) > 8 and row[3] in (_ESTABLISHED, _SYN_SENT):
            unanswered = row[3] == _SYN_SENT or int(row[6], 16) > 0 or int(row[8]) > 0
            yield Connection(_endpoint(row[1]), _endpoint(row[2]), unanswered, row[3] == _ESTABLISHED)


class Reachability:
    """Knows since when each peer has left something unanswered. Feed it `look`s; it holds no clock."""

    def __init__(self, me: Peer, peers: Iterable[Peer], ports: dict[Role, int], limit_seconds: float) -> None:
        peers = tuple(peers)
        # Where the tunnel accepts: behind the firewall at a port for each peer, without one at the role's.
        self._own = {(me.address, port) for port in (ports[me.role], *(peer_port(p.role, p.rank) for p in peers))}
        self._dialled = {(peer.address, ports[peer.role]): peer for peer in peers}
        self._addresses = {peer.address: peer for peer in self._dialled.values()}
        self._limit_seconds = limit_seconds
        self._since: dict[Peer, float] = {}
        self._quiet: dict[Peer, float] = {}
        self._slow: set[Peer] = set()

    def look(self, table: str, now: float) -> str | None:
        """Return why a peer counts as cut off, or None; a slow one is logged when it is a third of the way there."""
        owing: set[Peer] = set()
        answering: set[Peer] = set()
        for connection in connections(table):
            if peer := self._peer(connection):
                (owing if connection.unanswered else answering).add(peer)
        for peer in answering - owing:
            since = self._since.pop(peer, now)
            if peer in self._slow:
                self._slow.discard(peer)
                _LOG.info("%s answers again, after %.0f s", _name(peer), now - since)
        for peer in self._since.keys() - owing:
            # A tunnel that keeps trying has moments between its attempts; a longer pause is none of them.
            if now - self._quiet.setdefault(peer, now) > self._limit_seconds / 2:
                del self._since[peer]
                self._slow.discard(peer)
        for peer in owing:
            self._quiet.pop(peer, None)
            silent = now - self._since.setdefault(peer, now)
            if silent >= self._limit_seconds:
                return (
                    f"{_name(peer)} at {peer.address} cannot be reached: it has acknowledged nothing for {silent:.0f} s"
                )
            if silent >= self._limit_seconds / 3 and peer not in self._slow:
                self._slow.add(peer)
                _LOG.warning("%s is slow: it has acknowledged nothing for %.0f s", _name(peer), silent)
        return None

    def _peer(self, connection: Connection) -> Peer | None:
        if dialled := self._dialled.get(connection.remote):
            return dialled
        return self._addresses.get(connection.remote[0]) if connection.local in self._own else None


def _name(peer: Peer) -> str:
    return f"{peer.role} {peer.rank} ({peer.instance_id})"


def _endpoint(text: str) -> Endpoint:
    """Parse an endpoint as the kernel prints it: the address in hex in host byte order, the port in hex."""
    address, _, port = text.partition(":")
    return str(IPv4Address(struct.pack("=I", int(address, 16)))), int(port, 16)
