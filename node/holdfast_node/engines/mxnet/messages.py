"""ps-lite's messages as they lie in the memory of MXNet 1.9.1's Linux wheel, and the identities of their senders.

Layouts: ps-lite at 34fd45c (the commit that MXNet 1.9.1 pins), include/ps/internal/message.h and sarray.h, compiled
for x86-64 with libstdc++'s old ABI: a string is one pointer, with its length 24 bytes before what it points to.
"""

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass

from holdfast_node.contract.roles import Role, overlay_address

#: `Control::Command` in message.h.
EMPTY, TERMINATE, ADD_NODE, BARRIER, ACK, HEARTBEAT = range(6)
#: `Meta::kEmpty` and `Node::kEmpty`: no identity, or none that ps-lite could read.
ANONYMOUS = (1 << 31) - 1
SCHEDULER_ID = 1
#: `Node::Role` in message.h.
ROLES = (Role.SERVER, Role.WORKER, Role.SCHEDULER)

_META = struct.Struct("=3i4xi4x4?4xQ24xi4xQQ8xi20xQQ")  # Meta (120 bytes), then the vector of data
_PRIORITY_AT = 116
#: A priority is a C int.
LEAST_PRIORITY, PRIORITIES = -(1 << 31), 1 << 32
_NODE = struct.Struct("=iii4xQi?3x")
_ARRAY = struct.Struct("=Q8xQ8x")
#: The same for messages of the common shape: head, application and customer; sender; flags; control; data.
_FAST = struct.Struct("=12s4xi4x4s36xi52xQQ")
_TWO, _THREE = struct.Struct("=" + 2 * "Q8xQ8x"), struct.Struct("=" + 3 * "Q8xQ8x")
_string_at = ctypes.string_at
_LENGTH_BYTES = 24
MAX_BODY_BYTES = 4 << 20
_MAX_NODES = 1024
_MAX_FRAMES = 8
_FEW_KEYS_BYTES = 64
#: Makes a C int the sum of sizes that it is the rest of.
UNSIGNED = (1 << 32) - 1
#: ZMTP 3.0: flags and length of a frame; ZeroMQ's own identity for a peer without one.
_SHORT, _SHORT_HEADER, _LONG_HEADER, _GENERATED_BYTES = 255, 2, 9, 5

#: Head, application and customer; sender; flags; keys; size of the data; lengths.
Fingerprint = tuple[bytes, int, bytes, bytes, int, bytes | None]


@dataclass(frozen=True, slots=True)
class Node:
    """An entry of an ADD_NODE or HEARTBEAT message."""

    role: Role | None
    id: int
    host: str
    port: int


@dataclass(slots=True)
class Message:
    """One message, as `Van::RecvMsg` returns it; `arrays` has address and size in bytes of every data frame.

    `read` returns the bytes of a frame: copying gradients only to look at their sizes would cost too much. `origin` is
    the address from which it came, where the guard asks for it (the scheduler).
    """

    sender: int
    head: int = 0
    app: int = 0
    customer: int = 0
    request: bool = True
    push: bool = False
    pull: bool = False
    simple: bool = False
    body: bytes = b""
    control: int = EMPTY
    nodes: tuple[Node, ...] = ()
    group: int = 0
    arrays: tuple[tuple[int, int], ...] = ()
    read: Callable[[int, int], bytes] = ctypes.string_at
    origin: str = ""

    def framing(self, size: int) -> int:
        """Return how many bytes more than `size` the message had on the wire.

        `size` is what `ps::ZMQVan::RecvMsg` returned, a C int: the sum of the frames and of the sender's identity. On
        the wire each frame has a header (rfc.zeromq.org/spec/23), and the identity is not there.
        """
        frames = [length for _, length in self.arrays]
        identity = _GENERATED_BYTES if self.sender == ANONYMOUS else len(identity_of(self.sender))
        frames.append((size & UNSIGNED) - sum(frames) - identity)
        return sum(_SHORT_HEADER if length <= _SHORT else _LONG_HEADER for length in frames) - identity


class MalformedError(Exception):
    """A message that no node of the job would send: too many parts, or too large."""


def server_id(rank: int) -> int:
    """Return ps-lite's id of the server with this rank (`Postoffice::ServerRankToID`)."""
    return 8 + 2 * rank


def worker_id(rank: int) -> int:
    """Return ps-lite's id of the worker with this rank (`Postoffice::WorkerRankToID`)."""
    return 9 + 2 * rank


def identity_of(node_id: int) -> bytes:
    """Return the ZeroMQ identity with which a node dials others (`ZMQVan::Connect`)."""
    return b"ps%d" % node_id


def seat(node_id: int) -> tuple[Role, int] | None:
    """Return role and rank of a ps-lite id, or None where it is no node's."""
    if node_id == SCHEDULER_ID:
        return Role.SCHEDULER, 0
    if 8 <= node_id < ANONYMOUS:
        return (Role.WORKER if node_id % 2 else Role.SERVER), (node_id - 8) // 2
    return None


def role_of(node_id: int) -> Role | None:
    """Return the role of a ps-lite id, or None where it is no node's."""
    found = seat(node_id)
    return found[0] if found else None


def describe(node_id: int) -> str:
    """Return who this is, for a log: "worker 1", "the scheduler", "a peer without an identity"."""
    found = seat(node_id)
    if found is None:
        return "a peer without an identity" if node_id == ANONYMOUS else f"an unknown peer (id {node_id})"
    role, rank = found
    return "the scheduler" if role is Role.SCHEDULER else f"{role} {rank}"


def members(servers: int, workers: int) -> dict[int, str]:
    """Return the ps-lite ids of a job's nodes with their overlay addresses."""
    return (
        {SCHEDULER_ID: overlay_address(Role.SCHEDULER, 0)}
        | {server_id(rank): overlay_address(Role.SERVER, rank) for rank in range(servers)}
        | {worker_id(rank): overlay_address(Role.WORKER, rank) for rank in range(workers)}
    )


def read_message(address: int) -> Message:
    """Return the message at this address in this process's memory.

    Raises:
        MalformedError: more nodes, frames or bytes than any node of a job would send.
    """
    head, app, customer, sender, request, push, pull, simple, body, control, first_node, end_node, group, first, end = (
        _META.unpack(ctypes.string_at(address, _META.size))
    )
    message = Message(sender, head, app, customer, request, push, pull, simple, control=control, group=group)
    length = int.from_bytes(ctypes.string_at(body - _LENGTH_BYTES, 8), "little")
    if length:
        if length > MAX_BODY_BYTES:
            raise MalformedError(f"a body must be at most {MAX_BODY_BYTES} bytes, got {length}")
        message.body = ctypes.string_at(body, length)
    if end_node != first_node:
        message.nodes = _nodes(first_node, end_node)
    if end != first:
        if end - first > _MAX_FRAMES * _ARRAY.size:
            raise MalformedError(f"a message must have at most {_MAX_FRAMES} data frames")
        data = ctypes.string_at(first, end - first)
        message.arrays = tuple((pointer, size) for size, pointer in _ARRAY.iter_unpack(data))
    return message


def fingerprint(address: int) -> Fingerprint | None:
    """Return all that decides whether a push or pull of few keys may pass, or None for other messages.

    Training sends the same pushes and pulls in every step: comparing them costs a third of judging them.
    """
    kind, sender, flags, control, first, end = _FAST.unpack(_string_at(address, _FAST.size))
    if control or flags[3]:  # the fourth flag is a command's
        return None
    lengths: bytes | None = None
    if end - first == _THREE.size:
        key_size, keys, size, _, length_size, length = _THREE.unpack(_string_at(first, _THREE.size))
        if length_size > _FEW_KEYS_BYTES:
            return None
        lengths = _string_at(length, length_size)
    elif end - first == _TWO.size:
        key_size, keys, size, _ = _TWO.unpack(_string_at(first, _TWO.size))
    else:
        return None
    return None if key_size > _FEW_KEYS_BYTES else (kind, sender, flags, _string_at(keys, key_size), size, lengths)


def set_priority(address: int, priority: int) -> None:
    """Give the message at this address another priority than its sender did."""
    ctypes.c_int32.from_address(address + _PRIORITY_AT).value = priority


def sender_of(address: int) -> int:
    """Return the sender of a message that ps-lite has not read to its end."""
    return int.from_bytes(ctypes.string_at(address + 16, 4), "little", signed=True)


def text(pointer: int, limit: int = 256) -> bytes:
    """Return the old-ABI string that starts at `pointer`, at most `limit` bytes of it."""
    length = int.from_bytes(ctypes.string_at(pointer - _LENGTH_BYTES, 8), "little")
    return ctypes.string_at(pointer, min(length, limit))


def _nodes(first: int, end: int) -> tuple[Node, ...]:
    if end - first > _MAX_NODES * _NODE.size:
        raise MalformedError(f"a message must name at most {_MAX_NODES} nodes")
    nodes = []
    for role, node_id, _, host, port, _ in _NODE.iter_unpack(ctypes.string_at(first, end - first)):
        name = text(host).decode("ascii", "replace")
        nodes.append(Node(ROLES[role] if 0 <= role < len(ROLES) else None, node_id, name, port))
    return tuple(nodes)
