"""What a peer may send to a node of a job: one table of commands, and the control messages of each role.

Pure decisions over messages: no socket, no memory address, no MXNet. Everything that is not listed here is refused,
with a `RefusedError` that says what was sent; who sent it is in the message. Source of what MXNet does with each:
kvstore_dist_server.h (1.9.1) and ps-lite's van.cc.
"""

import re
from dataclasses import dataclass, field
from enum import Enum

from holdfast_node.contract.roles import UNPROVEN_OVERLAY, Role, overlay_address
from holdfast_node.engines.errors import RefusedError
from holdfast_node.engines.mxnet import messages
from holdfast_node.engines.mxnet.messages import ANONYMOUS, SCHEDULER_ID, Message
from holdfast_node.engines.mxnet.values import Values


class Sender(Enum):
    """Who may send a command."""

    WORKER = "workers"
    RANK_0 = "worker 0"
    NOBODY = "nobody"


@dataclass(frozen=True)
class Command:
    """A command to a server: its name, who may send it, what its body must be, in words and as a pattern."""

    name: str
    sender: Sender
    form: str = "empty"
    body: re.Pattern[bytes] = re.compile(rb"")


#: By head (`CommandType` in kvstore_dist_server.h). Vanilla's servers follow all of them from anybody: 0 unpickles, 1
#: and 4 abort on junk, 2 stops the server, 3 changes its mode, 5 writes a file where the sender says.
COMMANDS: dict[int, Command] = {
    0: Command("controller", Sender.WORKER, "a JSON object", re.compile(rb"\{[ -~]*\}")),
    1: Command("multi-precision", Sender.WORKER),
    2: Command("stop", Sender.RANK_0),
    3: Command("sync mode", Sender.RANK_0),
    # Type 1 is 2bit, the only one there is; the threshold is a float's std::to_string (gradient_compression.cc).
    4: Command("gradient compression", Sender.RANK_0, "1 and a threshold", re.compile(rb"1,[0-9]{1,9}\.[0-9]{6}")),
    5: Command("profiler", Sender.NOBODY),
}
CONTROLLER, MULTI_PRECISION, STOP, SYNC_MODE, COMPRESSION, PROFILER = COMMANDS

#: Groups that have barriers (`kWorkerGroup` and the sum of all three in ps/base.h), with the roles in them.
_GROUPS = {4: (Role.WORKER,), 7: (Role.SCHEDULER, Role.SERVER, Role.WORKER)}


@dataclass
class Server:
    """The policy of a server: its job's size, and what it has learnt of the job so far."""

    rank: int
    servers: int
    workers: int
    formed: bool = False
    synchronous: bool = False
    compression: bytes | None = None
    optimizer: bool = False
    multi_precision: bool = False
    values: Values = field(init=False)

    def __post_init__(self) -> None:
        self.values = Values(self.rank, self.servers)

    def check(self, message: Message) -> bool:
        """Return if this server may process the message: whether all later ones like it may pass too.

        Raises:
            RefusedError: it may not; the reason says what was sent.
        """
        if message.control:
            self.formed = _check_member(message, messages.server_id(self.rank), self, self.formed)
            return False
        found = messages.seat(message.sender)
        if found is None or found[0] is not Role.WORKER or found[1] >= self.workers:
            raise RefusedError("only workers of this job may send commands and data")
        if not message.request or message.app or not 0 <= message.customer < MAX_STORES:
            raise RefusedError("a message to a server must be a request of a KVStore, got another kind")
        if message.simple:
            self._check_command(message, found[1])
            return False
        return self.values.check(message, found[1], self)

    def _check_command(self, message: Message, rank: int) -> None:
        head = message.head
        command = COMMANDS.get(head)
        if command is None:
            raise RefusedError(f"command {head} is unknown; allowed: 0 to 4")
        if message.arrays:
            raise RefusedError(f"command {head} ({command.name}) must carry no data")
        if command.sender is Sender.NOBODY or (command.sender is Sender.RANK_0 and rank):
            raise RefusedError(f"command {head} ({command.name}) is allowed to {command.sender.value}")
        if not command.body.fullmatch(message.body):
            raise RefusedError(
                f"the body of command {head} ({command.name}) must be {command.form}, "
                f"got {len(message.body)} bytes of something else"
            )
        if head == MULTI_PRECISION:
            self._set_multi_precision()
        elif head == SYNC_MODE:
            self._require_early(head, self.synchronous)
            self.synchronous = True
        elif head == COMPRESSION:
            self._require_early(head, self.compression == message.body)
            self.compression = message.body

    def _set_multi_precision(self) -> None:
        if not self.multi_precision:
            raise RefusedError("command 1 (multi-precision) needs an optimizer that was set with multi_precision=True")
        self._require_early(MULTI_PRECISION, self.values.multi_precision)
        self.values.multi_precision = True

    def _require_early(self, head: int, repeated: bool) -> None:
        """The native code aborts, or mixes modes, where this changes while gradients are under way."""
        if self.values.gradients and not repeated:
            raise RefusedError(f"command {head} ({COMMANDS[head].name}) must come before the first gradient")


@dataclass
class Scheduler:
    """The policy of the scheduler, which forms the job, holds its barriers and takes no data."""

    servers: int
    workers: int
    joined: set[str] = field(default_factory=set)
    _waiting: dict[int, set[int]] = field(default_factory=dict)

    @property
    def formed(self) -> bool:
        """Whether every node has joined."""
        return len(self.joined) == self.servers + self.workers

    def check(self, message: Message) -> bool:
        """Return False if the scheduler may process the message: it judges each anew.

        Raises:
            RefusedError: it may not; the reason says what was sent.
        """
        if message.control == messages.ADD_NODE and not self.formed:
            self._join(message)
            return False
        if not message.control:
            raise RefusedError("the scheduler takes no commands and no data")
        found = messages.seat(message.sender)
        if found is None or found[1] >= self._count(found[0]) or not self.formed:
            raise RefusedError(f"control message {message.control} must come from a node of the job that has joined")
        self._check_control(message, found)
        return False

    def _check_control(self, message: Message, sender: tuple[Role, int]) -> None:
        if message.control == messages.TERMINATE:
            _require_own(message, SCHEDULER_ID)
        elif message.control == messages.BARRIER:
            self._check_barrier(message, sender[0])
        elif message.control in (messages.ADD_NODE, messages.HEARTBEAT):
            # A node that opens a second KVStore names itself again; natively a no-op, where it names only itself.
            (node, *others) = message.nodes or (messages.Node(None, ANONYMOUS, "", 0),)
            if others or node.id != message.sender or node.host != overlay_address(*sender):
                raise RefusedError(f"control message {message.control} must name its sender and nobody else")
        else:
            raise RefusedError(f"control message {message.control} is unknown")

    def _join(self, message: Message) -> None:
        if message.sender != ANONYMOUS or len(message.nodes) != 1:
            raise RefusedError("a node must join before it has an id, and name only itself")
        (node,) = message.nodes
        if node.role not in (Role.SERVER, Role.WORKER) or node.id != ANONYMOUS:
            raise RefusedError("a node must join as a server or a worker, and without an id")
        places = {overlay_address(node.role, rank) for rank in range(self._count(node.role))}
        if node.host not in places:
            raise RefusedError(f"a {node.role} must join from its overlay address, got {node.host[:80]!r}")
        if message.origin not in (node.host, UNPROVEN_OVERLAY):
            raise RefusedError(f"a node must join from its own address, got {node.host} from {message.origin[:40]!r}")
        if node.host in self.joined:
            raise RefusedError(f"{node.host} has joined already")
        self.joined.add(node.host)

    def _check_barrier(self, message: Message, role: Role) -> None:
        if not message.request:
            _require_own(message, SCHEDULER_ID)  # the scheduler tells every member, and is one
            return
        group = message.group
        if group not in _GROUPS or role not in _GROUPS[group]:
            raise RefusedError(f"a {role} must wait at a barrier of its own group, got group {group}")
        waiting = self._waiting.setdefault(group, set())
        # By node and not by its KVStore: ps-lite counts requests, and one node's would stand for the others'. A job's
        # workers have one distributed KVStore each (compatibility.py).
        if message.sender in waiting:
            raise RefusedError(f"a node must wait at a barrier once, got a second request for group {group}")
        waiting.add(message.sender)
        if len(waiting) == sum(self._count(member) for member in _GROUPS[group]):
            waiting.clear()

    def _count(self, role: Role) -> int:
        return {Role.SCHEDULER: 1, Role.SERVER: self.servers, Role.WORKER: self.workers}[role]


@dataclass
class Worker:
    """The policy of a worker's control messages; what servers answer is checked by MXNet itself."""

    servers: int
    workers: int
    formed: bool = False

    def check(self, message: Message) -> bool:
        """Return False if this worker may follow the control message, else raise RefusedError."""
        self.formed = _check_member(message, ANONYMOUS, self, self.formed)
        return False


#: KVStores that one worker may have open: each is a customer of ps-lite with its own id.
MAX_STORES = 64


def _check_member(message: Message, own_id: int, job: Server | Worker, formed: bool) -> bool:
    """Check a control message to a server or worker; return whether the job has formed."""
    if message.control == messages.TERMINATE:
        _require_own(message, own_id)
        return formed
    if message.sender != SCHEDULER_ID:
        raise RefusedError(f"control message {message.control} must come from the scheduler")
    if message.control == messages.ADD_NODE:
        if formed:
            raise RefusedError("no node may be added to a job that has formed")
        named = {node.id: node.host for node in message.nodes}
        if named != messages.members(job.servers, job.workers) or len(named) != len(message.nodes):
            raise RefusedError("the scheduler must name every node of the job once, at its overlay address")
        return True
    if not formed or message.request or message.control not in (messages.BARRIER, messages.HEARTBEAT):
        raise RefusedError(f"control message {message.control} is not one that the scheduler sends")
    return formed


def _require_own(message: Message, own_id: int) -> None:
    """ps-lite ends its receiver by a message to itself (`Van::Stop`); from another node it would end the job."""
    if message.sender != own_id:
        raise RefusedError(f"control message {message.control} must come from the node itself")
