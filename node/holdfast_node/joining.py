"""Whether a generation's processes have joined each other, from this node's connections (/proc/net/tcp, proc(5)).

ps-lite's processes dial the scheduler first, when a script makes its KVStore or a server starts. It answers once all
are there, and then they dial each other: so a connection to a peer besides the scheduler says that all have joined.
Heartbeats begin then, and before it nobody else misses a process that hangs.
"""

import logging
from collections.abc import Iterable

from holdfast_node.contract.documents import Peer
from holdfast_node.contract.roles import Role
from holdfast_node.reachability import connections

_LOG = logging.getLogger("holdfast")
#: How much longer a node waits that has done its own part: the cause is to be the one that has not.
_OTHERS_SECONDS = 15


class Joining:
    """Knows how far this node's trainer has come. Feed it `look`s; it holds no clock."""

    def __init__(self, peers: Iterable[Peer], ports: dict[Role, int], limit_seconds: float) -> None:
        """Make it for a node that dials `peers` at their role's ports."""
        self._dialled = {(peer.address, ports[peer.role]): peer.role for peer in peers}
        self._limit_seconds = limit_seconds
        self._began: float | None = None
        self._asked = self._joined = False

    def look(self, table: str, now: float) -> str | None:
        """Return why the wait is over, or None; `table` is the text of /proc/net/tcp, `now` any clock's seconds."""
        if self._joined:
            return None
        self._began = now if self._began is None else self._began
        lasted = now - self._began
        dialled = {self._dialled.get(connection.remote) for connection in connections(table) if connection.up}
        self._asked |= Role.SCHEDULER in dialled
        self._joined = not dialled <= {Role.SCHEDULER, None}
        if self._joined:
            _LOG.info("all nodes have joined, after %.0f s", lasted)
        elif not self._asked and Role.SCHEDULER in self._dialled.values() and lasted >= self._limit_seconds:
            return (
                f"it has not joined within {self._limit_seconds:.0f} s: its process hangs, or the script makes its "
                "KVStore late; make it first, or raise join_seconds"
            )
        elif lasted >= self._limit_seconds + _OTHERS_SECONDS:
            return f"not all nodes have joined within {self._limit_seconds:.0f} s"
        return None
