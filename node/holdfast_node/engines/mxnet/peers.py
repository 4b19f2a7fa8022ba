"""Who may connect to a node's trainer, from where, and as whom.

A tunnel gives each peer that it has authenticated the peer's own overlay address as source, and a trainer dials from
its own. So the address of a connection says whose certificate is behind it, and ZeroMQ's identity, from which ps-lite
takes the sender of every message, has to be that peer's.
"""

from holdfast_node.contract.roles import UNPROVEN_OVERLAY, Role
from holdfast_node.engines.errors import RefusedError
from holdfast_node.engines.mxnet import messages


class Peers:
    """The nodes that connect to one node of a job: those that dial it, and itself."""

    def __init__(self, own: int, servers: int, workers: int) -> None:
        """Take the node's ps-lite id and the size of its job."""
        members, role = messages.members(servers, workers), messages.role_of(own)
        self.own = members[own]
        self._anonymous = role is Role.SCHEDULER  # nodes join there, and have no identity before
        self._ids = {
            address: node for node, address in members.items() if messages.role_of(node) is not role or node == own
        }

    def at(self, address: str) -> int:
        """Return the ps-lite id of the node with this address, `messages.ANONYMOUS` where it proves none."""
        return self._ids.get(address, messages.ANONYMOUS)

    def check(self, identity: bytes, address: str) -> None:
        """Return if a connection from this address may have this ZeroMQ identity.

        Raises:
            RefusedError: nobody's address, another node's identity, or another way to write it: ps-lite reads "ps09"
                and "ps4294967305" as 9 too (`ZMQVan::GetNodeID`), and ZeroMQ refuses only a second connection with
                the very same identity.
        """
        if address == UNPROVEN_OVERLAY:
            allowed = {messages.identity_of(node): node for node in self._ids.values()}
            wanted = "the identity of a node that dials this one"
        elif (node := self.at(address)) != messages.ANONYMOUS:
            allowed = {messages.identity_of(node): node}
            wanted = f"the identity of {messages.describe(node)}, whose address it comes from"
        else:
            raise RefusedError(f"a connection must come from a node that dials this one, got {address[:40]!r}")
        if identity not in allowed and (identity or not self._anonymous):
            raise RefusedError(f"a connection must carry {wanted}, got {self._name(identity)}")

    def _name(self, identity: bytes) -> str:
        claimed = next((node for node in self._ids.values() if messages.identity_of(node) == identity), None)
        return repr(identity[:40]) + (f" ({messages.describe(claimed)})" if claimed is not None else "")
