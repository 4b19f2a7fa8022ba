"""How much a peer has sent that is no judged message yet: it lies in this process's memory, and has a limit.

A message reaches the guard when its last frame is there. Until then ZeroMQ keeps what has come, and has no limit for
it: a message may have any number of frames. The kernel counts what comes in by connection, so what is under way is the
difference to what the guard has judged, to the byte, and costs nothing per message.
"""

import socket
import struct
from collections.abc import Callable, Mapping

from holdfast_node.engines.mxnet import ports
from holdfast_node.engines.mxnet.ports import Address

#: How often the guard looks: in between a peer can send what its wire carries (at 10 Gbit/s some 300 MB).
LOOK_SECONDS = 0.25
#: What may always be under way: at least a few of a small model's messages, whatever the receiver is doing.
SERVER_BYTES = 256 << 20
#: The scheduler gets control messages only; the longest, a joining node's, has some 100 bytes.
SCHEDULER_BYTES = 16 << 20
#: A worker sends a key again when it was answered, as training does; scripts that push a few times without a pull
#: between do not wait for it.
MODELS = 4

#: `tcpi_bytes_received` of struct tcp_info (linux/tcp.h, since Linux 4.1): an unsigned 64-bit number.
_RECEIVED = struct.Struct("=128xQ")


class Backlog:
    """What is under way from each node that has a connection, kept from look to look."""

    def __init__(self, at: Callable[[str], int]) -> None:
        """Know nothing yet; `at` returns the ps-lite id of the node with an overlay address."""
        self._at = at
        self._judged: dict[int, int] = {}
        self._received: dict[Address, int] = {}
        self._under_way: dict[int, int] = {}

    def look(self, judged: Mapping[int, int], received: Mapping[Address, int]) -> dict[int, int]:
        """Return the bytes under way, by the ps-lite id of their sender.

        Args:
            judged: what messages that were judged had on the wire, by sender, since the start. It must be older than
                `received`, or a message that came between would count as under way for ever.
            received: what has come in on each open connection, by the address and port of its peer.
        """
        came: dict[int, int] = {}
        for (host, port), total in received.items():
            before = self._received.get((host, port), 0)
            node = self._at(host)
            came[node] = came.get(node, 0) + (total - before if total >= before else total)
        # What a connection has left incomplete ends with it: whoever has none has nothing under way.
        self._under_way = {
            node: max(0, self._under_way.get(node, 0) + more - judged.get(node, 0) + self._judged.get(node, 0))
            for node, more in came.items()
        }
        self._judged, self._received = dict(judged), dict(received)
        return self._under_way


def received(own: Address) -> dict[Address, int]:
    """Return how many bytes have come in on each connection that this process has accepted at its own port."""

    def look(opened: socket.socket) -> tuple[Address, int] | None:
        if opened.getsockname() != own or opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return None
        (count,) = _RECEIVED.unpack(opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size))
        return opened.getpeername(), count

    return dict(ports.each_socket(look))
