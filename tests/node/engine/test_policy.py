"""What a node of a job accepts from its peers, message by message, with no network."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from holdfast_node.contract.roles import UNPROVEN_OVERLAY, Role, overlay_address
from holdfast_node.engines.errors import RefusedError
from holdfast_node.engines.mxnet import messages, policy
from holdfast_node.engines.mxnet.messages import (
    ADD_NODE,
    ANONYMOUS,
    BARRIER,
    HEARTBEAT,
    SCHEDULER_ID,
    TERMINATE,
    Message,
    Node,
    server_id,
    worker_id,
)
from holdfast_node.engines.mxnet.values import COMPRESSED, DENSE, ROW_SPARSE, command_of

WORKER_0, WORKER_1 = worker_id(0), worker_id(1)
SERVER_0, SERVER_1 = server_id(0), server_id(1)
SIZES = {"servers": 2, "workers": 2}
FLOAT32, FLOAT16 = 0, 2


def command(head: int, body: bytes = b"", sender: int = WORKER_0) -> Message:
    return Message(sender, head=head, body=body, simple=True)


def data(
    *keys: int, lengths: tuple[int, ...] | None = None, size: int = 0, kind: int = DENSE, dtype: int = FLOAT32,
    sender: int = WORKER_0, push: bool = True, pull: bool = False,
) -> Message:  # fmt: skip
    """A data message; frames lie in a dictionary instead of in memory."""
    frames = {1: b"".join(key.to_bytes(8, "little") for key in keys), 2: bytes(size)}
    if lengths is not None:
        frames[3] = b"".join(length.to_bytes(4, "little", signed=True) for length in lengths)
    return Message(
        sender, head=command_of(kind, dtype), push=push, pull=pull,
        arrays=tuple((address, len(frame)) for address, frame in frames.items()),
        read=lambda address, length: frames[address][:length],
    )  # fmt: skip


def push(key: int, size: int, **settings: int) -> Message:
    return data(key, lengths=(size,), size=size, **settings)


def pull(key: int, **settings: int) -> Message:
    return data(key, push=False, pull=True, **settings)


def rows(key: int, *ids: int, unit: int = 8, **settings: int) -> Message:
    keys = (key, *(key + row for row in ids))
    return data(*keys, lengths=(0, *[unit] * len(ids)), size=unit * len(ids), kind=ROW_SPARSE, **settings)


def sparse_pull(key: int, *ids: int) -> Message:
    return data(key, *(key + row for row in ids), kind=ROW_SPARSE, push=False, pull=True)


def compressed(key: int, length: int, size: int) -> Message:
    return data(length, key, lengths=(0, size), size=size, kind=COMPRESSED)


def everybody() -> tuple[Node, ...]:
    return tuple(Node(None, node, host, 1) for node, host in messages.members(2, 2).items())


JOB_FORMED = Message(SCHEDULER_ID, control=ADD_NODE, nodes=everybody())


def server(**settings: bool) -> policy.Server:
    """A server that trains synchronously with an optimizer; key 5 has 64 bytes, key 7 has 4 rows of 8 bytes."""
    made = policy.Server(0, **SIZES, synchronous=True, optimizer=True)
    for message in (JOB_FORMED, push(5, 64), rows(7, 0, 1, 2, 3)):
        made.check(message)
    return replace_state(made, **settings)


def replace_state(made: policy.Server, **settings: bool) -> policy.Server:
    for name, value in settings.items():
        setattr(made, name, value)
    return made


ACCEPTED: dict[str, tuple[Message, ...]] = {
    "an optimizer": (command(0, b'{"op":"set_optimizer"}', WORKER_1),),
    "stop from worker 0": (command(2),),
    "sync mode from worker 0": (command(3),),
    "compression from worker 0": (command(4, b"1,0.500000"), compressed(5, 16, 4)),
    "a gradient": (push(5, 64, sender=WORKER_1), pull(5, sender=WORKER_1)),
    "a push and pull at once": (data(5, lengths=(64,), size=64, pull=True),),
    "some rows": (rows(7, 1, 3), rows(7), sparse_pull(7, 0, 3), sparse_pull(7)),
    "a barrier's end": (Message(SCHEDULER_ID, control=BARRIER, request=False),),
    "its own end": (Message(SERVER_0, control=TERMINATE),),
    "a second store's key": (replace(push(5, 64), customer=1),),
}
REFUSED: dict[str, tuple[Message, str]] = {
    "a pickle": (command(0, b"\x80\x04."), "the body of command 0 (controller) must be a JSON object, got 3 bytes"),
    "an empty controller command": (command(0), "the body of command 0 (controller) must be a JSON object, got 0"),
    "multi-precision undeclared": (command(1), "command 1 (multi-precision) needs an optimizer that was set with"),
    "stop from worker 1": (command(2, sender=WORKER_1), "command 2 (stop) is allowed to worker 0"),
    "stop with a body": (command(2, b"x"), "the body of command 2 (stop) must be empty, got 1 bytes"),
    "sync mode from worker 1": (command(3, sender=WORKER_1), "command 3 (sync mode) is allowed to worker 0"),
    "compression from worker 1": (command(4, b"1,0.500000", WORKER_1), "command 4 (gradient compression) is allowed"),
    "compression of junk": (command(4, b"junk"), "the body of command 4 (gradient compression) must be 1 and a thr"),
    "compression of type 7": (command(4, b"7,0.500000"), "must be 1 and a threshold, got 10 bytes of something else"),
    "the profiler": (command(5, b"filename:x,0"), "command 5 (profiler) is allowed to nobody"),
    "an unknown command": (command(6), "command 6 is unknown; allowed: 0 to 4"),
    "a negative command": (command(-1), "command -1 is unknown"),
    "a command with data": (replace(command(2), arrays=((1, 8),)), "command 2 (stop) must carry no data"),
    "a command of a server": (command(2, sender=SERVER_1), "only workers of this job may send commands and data"),
    "a command of the scheduler": (command(2, sender=SCHEDULER_ID), "only workers of this job may send"),
    "a command of nobody": (command(2, sender=ANONYMOUS), "only workers of this job may send"),
    "a command of a third worker": (command(0, b"{}", worker_id(2)), "only workers of this job may send"),
    "a response": (replace(push(5, 64), request=False), "a message to a server must be a request of a KVStore"),
    "another application": (replace(push(5, 64), app=1), "a message to a server must be a request of a KVStore"),
    "a far store": (replace(push(5, 64), customer=1 << 20), "a message to a server must be a request of a KVStore"),
    "another size": (push(5, 60), "key 5 must be pushed as it was initialised, in 64 bytes of type 0, got 60 bytes"),
    "another type": (push(5, 64, dtype=FLOAT16), "key 5 must be pushed as it was initialised"),
    "a false size": (data(5, lengths=(1 << 20,), size=64), "the size of key 5 must be that of the data"),
    "half a number": (push(6, 3), "the size of key 6 must be that of the data, a multiple of its type's, got 3"),
    "no data": (push(6, 0), "the size of key 6 must be that of the data"),
    "an unknown type": (replace(push(5, 64), head=command_of(DENSE, 3)), "is of no known kind and type"),
    "a negative kind": (replace(push(5, 64), head=-8), "data message -8 is of no known kind and type"),
    "two keys": (data(5, 6, lengths=(32, 32), size=64), "a dense push or pull must be of one key, got 2"),
    "no frames": (Message(WORKER_0, push=True), "a push must have 3 data frames and a pull 2, got 0"),
    "neither push nor pull": (data(5, push=False), "a push must have 3 data frames and a pull 2"),
    "part of a key": (
        replace(pull(5), arrays=((1, 7), (2, 0))),
        "keys must be whole 64-bit numbers, at most",
    ),
    "more keys than rows": (
        replace(sparse_pull(7, 0, 1, 2, 3, 3), sender=WORKER_1),
        "keys must be whole 64-bit numbers, at most 5, got 48 bytes",
    ),
    "too few lengths": (replace(push(5, 64), arrays=((1, 8), (2, 64), (3, 3))), "there must be a length for each of 1"),
    "another server's key": (push((1 << 63) + 5, 64), "a key must be one of this server's"),
    "a key of worker 1": (push(9, 64, sender=WORKER_1), "key 9 must be initialised by worker 0 before it is pushed"),
    "an uninitialised key": (pull(9), "a pull must be of a key that was initialised, in its type, got key 9"),
    "a pull in another type": (pull(5, dtype=FLOAT16), "a pull must be of a key that was initialised, in its type"),
    "a dense pull of rows": (pull(7), "a pull must be of a key that was initialised"),
    "a row beyond the last": (sparse_pull(7, 4), "the rows of key 7 must rise from 0 to at most 3"),
    "a row before the first": (sparse_pull(7, -1), "the rows of key 7 must rise from 0 to at most 3"),
    "rows twice": (rows(7, 1, 1), "the rows of key 7 must rise from 0 to at most 3"),
    "rows of another size": (rows(7, 1, unit=16), "the rows of key 7 must have 8 bytes, got 16"),
    "rows of two sizes": (
        data(7, 8, 9, lengths=(0, 8, 4), size=12, kind=ROW_SPARSE),
        "a row-sparse push of key 7 must have rows of one size",
    ),
    "rows of a dense key": (rows(5, 1), "key 5 must be used as it was initialised, got row-sparse messages"),
    "rows from the middle": (rows(20, 1, 2), "row-sparse key 20 must be initialised with all its rows"),
    "compressed without compression": (compressed(5, 16, 4), "a compressed push needs gradient compression"),
    "a new node": (JOB_FORMED, "no node may be added to a job that has formed"),
    "a new node of a worker": (replace(JOB_FORMED, sender=WORKER_1), "control message 2 must come from the scheduler"),
    "the end from the scheduler": (
        Message(SCHEDULER_ID, control=TERMINATE),
        "control message 1 must come from the node",
    ),
    "the end from a worker": (Message(WORKER_0, control=TERMINATE), "control message 1 must come from the node itself"),
    "a request for a barrier": (Message(SCHEDULER_ID, control=BARRIER), "control message 3 is not one that the sched"),
    "an unknown control message": (Message(SCHEDULER_ID, control=9, request=False), "control message 9 is not one"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_server_accepts_what_mxnets_workers_send(case: str) -> None:
    made = server()
    for message in ACCEPTED[case]:
        made.check(message)


@pytest.mark.parametrize("case", REFUSED)
def test_a_server_refuses_everything_else(case: str) -> None:
    message, reason = REFUSED[case]
    with pytest.raises(RefusedError, match=re.escape(reason)):
        server().check(message)


@pytest.mark.parametrize(
    ("settings", "message", "reason"),
    [
        ({"optimizer": False, "synchronous": False}, push(5, 64), "asynchronous training needs an optimizer"),
        ({"optimizer": False}, rows(7, 1), "row-sparse gradients need an optimizer on the servers"),
        ({"compression": b"1,0.500000"}, compressed(5, 1 << 20, 4), "a compressed push must be of a key as it was"),
        ({"compression": b"1,0.500000"}, compressed(5, 16, 8), "a compressed push must be of a key as it was"),
    ],
    ids=["async without optimizer", "rows without optimizer", "a false length", "a false size"],
)
def test_a_server_judges_data_by_what_it_was_told_before(
    settings: dict[str, bool], message: Message, reason: str
) -> None:
    with pytest.raises(RefusedError, match=reason):
        server(**settings).check(message)


@pytest.mark.parametrize(("head", "body"), [(1, b""), (3, b""), (4, b"1,0.500000")])
def test_modes_change_before_the_first_gradient_only(head: int, body: bytes) -> None:
    made = server(synchronous=False, multi_precision=True)
    made.check(push(5, 64))
    with pytest.raises(RefusedError, match="must come before the first gradient"):
        made.check(command(head, body))
    early = server(synchronous=False, multi_precision=True)
    for message in (command(head, body), push(5, 64), command(head, body)):  # and again changes nothing
        early.check(message)


def test_a_server_takes_the_list_of_nodes_from_the_scheduler_and_only_the_jobs_own() -> None:
    lies = {
        "a worker's address is another": [replace(node, host="10.0.0.9") for node in everybody()],
        "a node is missing": everybody()[1:],
        "a node is named twice": [*everybody(), everybody()[0]],
        "a node is added": [*everybody(), Node(None, worker_id(2), overlay_address(Role.WORKER, 2), 1)],
    }
    for nodes in lies.values():
        with pytest.raises(RefusedError, match="must name every node of the job once, at its overlay address"):
            policy.Server(0, **SIZES).check(Message(SCHEDULER_ID, control=ADD_NODE, nodes=tuple(nodes)))


def joining(role: Role = Role.WORKER, rank: int = 0, **changes: object) -> Message:
    entry = replace(Node(role, ANONYMOUS, overlay_address(role, rank), 1), **changes)
    return Message(ANONYMOUS, control=ADD_NODE, nodes=(entry,), origin=entry.host)


def scheduler() -> policy.Scheduler:
    made = policy.Scheduler(**SIZES)
    for role in (Role.SERVER, Role.WORKER):
        for rank in (0, 1):
            assert not made.formed
            made.check(joining(role, rank))
    assert made.formed
    return made


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (joining(role=Role.SCHEDULER), "a node must join as a server or a worker, and without an id"),
        (joining(id=9), "a node must join as a server or a worker, and without an id"),
        (joining(host="10.0.0.9"), "a worker must join from its overlay address, got '10.0.0.9'"),
        (joining(rank=5), "a worker must join from its overlay address"),
        (joining(), "127.77.2.249 has joined already"),
        (
            replace(joining(rank=1), origin=overlay_address(Role.WORKER, 0)),
            "a node must join from its own address, got 127.77.2.248 from '127.77.2.249'",
        ),
        (
            replace(joining(role=Role.SERVER), origin=overlay_address(Role.WORKER, 1)),
            "a node must join from its own address, got 127.77.1.249 from '127.77.2.248'",
        ),
        (replace(joining(rank=1), origin=""), "a node must join from its own address, got 127.77.2.248 from ''"),
        (replace(joining(rank=1), sender=WORKER_0), "a node must join before it has an id, and name only itself"),
        (replace(joining(rank=1), nodes=()), "a node must join before it has an id, and name only itself"),
        (Message(WORKER_0, control=BARRIER, group=7), "control message 3 must come from a node of the job that has"),
    ],
)
def test_a_scheduler_lets_only_the_jobs_nodes_join(message: Message, reason: str) -> None:
    made = policy.Scheduler(**SIZES)
    made.check(joining())
    with pytest.raises(RefusedError, match=re.escape(reason)):
        made.check(message)


def test_a_node_may_join_from_a_host_that_has_no_firewall_to_prove_its_address() -> None:
    policy.Scheduler(**SIZES).check(replace(joining(), origin=UNPROVEN_OVERLAY))


def named(sender: int, *nodes: tuple[int, str], control: int = HEARTBEAT) -> Message:
    return Message(sender, control=control, nodes=tuple(Node(Role.WORKER, *entry, 1) for entry in nodes))


HERE, THERE = (WORKER_0, overlay_address(Role.WORKER, 0)), (WORKER_1, overlay_address(Role.WORKER, 1))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (joining(), "control message 2 must come from a node of the job that has joined"),
        (push(5, 64), "the scheduler takes no commands and no data"),
        (command(2), "the scheduler takes no commands and no data"),
        (named(WORKER_0, THERE), "control message 5 must name its sender and nobody else"),
        (named(WORKER_0, HERE, THERE), "control message 5 must name its sender and nobody else"),
        (named(WORKER_0), "control message 5 must name its sender and nobody else"),
        (named(WORKER_0, (WORKER_0, "127.77.0.1"), control=ADD_NODE), "control message 2 must name its sender"),
        (Message(WORKER_0, control=TERMINATE), "control message 1 must come from the node itself"),
        (Message(worker_id(2), control=BARRIER, group=4), "control message 3 must come from a node of the job"),
        (Message(WORKER_0, control=BARRIER, group=9), "a worker must wait at a barrier of its own group, got group 9"),
        (Message(SERVER_0, control=BARRIER, group=4), "a server must wait at a barrier of its own group, got group 4"),
        (Message(WORKER_0, control=BARRIER, request=False), "control message 3 must come from the node itself"),
        (Message(WORKER_0, control=4), "control message 4 is unknown"),
    ],
)
def test_a_formed_scheduler_refuses_what_no_node_sends(message: Message, reason: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(reason)):
        scheduler().check(message)


def test_a_formed_scheduler_accepts_heartbeats_a_second_store_barriers_and_its_own_end() -> None:
    made = scheduler()
    for message in (
        named(WORKER_0, HERE),
        named(WORKER_1, THERE, control=ADD_NODE),
        Message(SCHEDULER_ID, control=BARRIER, request=False),
        Message(SCHEDULER_ID, control=TERMINATE),
    ):
        made.check(message)


def test_a_node_waits_at_a_barrier_once_until_all_have_come() -> None:
    made = scheduler()
    waiting: Callable[[int], Message] = lambda sender: Message(sender, control=BARRIER, group=4)  # noqa: E731
    made.check(waiting(WORKER_0))
    with pytest.raises(RefusedError, match="a node must wait at a barrier once, got a second request for group 4"):
        made.check(waiting(WORKER_0))
    with pytest.raises(RefusedError, match="a node must wait at a barrier once"):
        made.check(replace(waiting(WORKER_0), customer=1))  # it would stand for worker 1
    made.check(waiting(WORKER_1))
    made.check(waiting(WORKER_0))


def test_a_worker_takes_new_nodes_from_the_scheduler_once() -> None:
    made = policy.Worker(**SIZES)
    with pytest.raises(RefusedError, match="control message 2 must come from the scheduler"):
        made.check(replace(JOB_FORMED, sender=SERVER_0))
    made.check(JOB_FORMED)
    with pytest.raises(RefusedError, match="no node may be added to a job that has formed"):
        made.check(JOB_FORMED)
