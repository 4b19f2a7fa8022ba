"""What a peer has under way: what the kernel has received of it without what was judged."""

import socket

import pytest

from holdfast_node.contract.roles import Role, overlay_address
from holdfast_node.engines.mxnet import backlog
from holdfast_node.engines.mxnet.backlog import Backlog
from holdfast_node.engines.mxnet.messages import ANONYMOUS, Message, server_id, worker_id
from holdfast_node.engines.mxnet.peers import Peers

WORKER_0, WORKER_1 = worker_id(0), worker_id(1)
FROM_0, FROM_1 = overlay_address(Role.WORKER, 0), overlay_address(Role.WORKER, 1)


def watched() -> Backlog:
    return Backlog(Peers(server_id(0), servers=1, workers=2).at)


def test_what_is_under_way_is_what_came_without_what_was_judged() -> None:
    made = watched()
    assert made.look({}, {(FROM_0, 1): 100, (FROM_1, 1): 500}) == {WORKER_0: 100, WORKER_1: 500}
    assert made.look({WORKER_0: 90}, {(FROM_0, 1): 300, (FROM_1, 1): 900}) == {WORKER_0: 210, WORKER_1: 900}
    assert made.look({WORKER_0: 300}, {(FROM_0, 1): 300, (FROM_1, 1): 900}) == {WORKER_0: 0, WORKER_1: 900}


def test_a_node_s_connections_count_together_and_none_forgets() -> None:
    made = watched()
    made.look({}, {(FROM_1, 1): 500})
    assert made.look({}, {(FROM_1, 1): 500, (FROM_1, 2): 200}) == {WORKER_1: 700}
    assert made.look({}, {(FROM_1, 2): 300}) == {WORKER_1: 800}  # the first has ended: not quietly forgiven
    assert made.look({}, {}) == {}
    assert made.look({}, {(FROM_1, 3): 10}) == {WORKER_1: 10}


def test_a_port_that_is_used_again_is_another_connection() -> None:
    made = watched()
    made.look({WORKER_1: 500}, {(FROM_1, 1): 500})
    assert made.look({WORKER_1: 500}, {(FROM_1, 1): 80}) == {WORKER_1: 80}


def test_what_was_judged_on_a_connection_that_has_ended_earns_nothing() -> None:
    made = watched()
    made.look({}, {(FROM_1, 1): 100})
    assert made.look({WORKER_1: 900}, {(FROM_1, 2): 10}) == {WORKER_1: 0}
    assert made.look({WORKER_1: 900}, {(FROM_1, 2): 710}) == {WORKER_1: 700}


@pytest.mark.parametrize("judged", [0, 900])
def test_peers_that_nothing_proves_are_nobody(judged: int) -> None:
    assert watched().look({WORKER_1: judged}, {("127.77.255.1", 1): 500}) == {ANONYMOUS: 500}


#: A message, what `RecvMsg` returns for it, and its bytes on the wire (measured at a server of MXNet 1.9.1).
MEASURED = {
    "a push": (Message(WORKER_0, arrays=((1, 8), (2, 16), (3, 4))), 54, 59),
    "a pull": (Message(WORKER_0, arrays=((1, 8), (2, 0))), 33, 36),
    "a command with a body": (Message(WORKER_0), 318, 324),
    "a control message of the scheduler": (Message(1), 114, 113),
    "a joining node": (Message(ANONYMOUS), 65, 62),
    "a message of 2 GiB": (Message(WORKER_0, arrays=((1, 8), (2, 1 << 31), (3, 4))), -(1 << 31) + 38, (1 << 31) + 50),
}


@pytest.mark.parametrize("case", MEASURED)
def test_a_message_s_bytes_on_the_wire_are_known(case: str) -> None:
    message, size, wire = MEASURED[case]
    assert (size & 0xFFFFFFFF) + message.framing(size) == wire


def test_the_kernel_counts_what_comes_in_on_each_accepted_connection() -> None:
    with socket.create_server(("127.77.1.249", 0)) as listener:
        own = listener.getsockname()
        with socket.create_connection(own, source_address=(FROM_1, 0)) as peer, listener.accept()[0] as accepted:
            assert backlog.received(own) == {peer.getsockname(): 0}
            peer.sendall(bytes(1000))
            assert accepted.recv(1000, socket.MSG_WAITALL) == bytes(1000)
            assert backlog.received(own) == {peer.getsockname(): 1000}
