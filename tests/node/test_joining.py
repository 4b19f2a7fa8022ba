"""Whether all nodes have joined, from the kernel's table; that real MXNet dials so, tests/e2e/test_failure.py holds."""

import logging

import pytest
from tests.node.test_reachability import CLIENT, HEADER, OWN, SCHEDULER, SERVER, TO_SERVER, row

from holdfast_node.contract.documents import Peer
from holdfast_node.contract.roles import DEFAULT_PORTS, Role
from holdfast_node.joining import Joining

TO_SCHEDULER, FROM_SERVER = f"0300090A:{DEFAULT_PORTS[Role.SCHEDULER]:04X}", "0200090A:C001"
WORKER = Peer(role=Role.WORKER, rank=0, instance_id="i-00000003", address="10.9.0.4")
DIALLED_ONE = HEADER + row(CLIENT, TO_SCHEDULER)


def joining(*peers: Peer) -> Joining:
    return Joining(peers or (SCHEDULER, SERVER), DEFAULT_PORTS, 60.0)


ALONE = {
    "nothing": HEADER,
    "a dial that nobody answers": HEADER + row(CLIENT, TO_SCHEDULER, state="02"),
    "somebody else's connection": HEADER + row(CLIENT, "0900090A:01BB"),
    "what the peer has dialled": HEADER + row(OWN, FROM_SERVER),
}


@pytest.mark.parametrize("table", ALONE.values(), ids=ALONE)
def test_a_trainer_that_has_dialled_nobody_in_time_has_not_joined(table: str) -> None:
    watch = joining()
    assert watch.look(table, 10.0) is None
    assert watch.look(table, 69.9) is None
    assert watch.look(table, 70.0) == (
        "it has not joined within 60 s: its process hangs, or the script makes its KVStore late; "
        "make it first, or raise join_seconds"
    )


def test_who_has_dialled_the_scheduler_lets_the_others_speak_first() -> None:
    watch = joining()
    assert watch.look(DIALLED_ONE, 0.0) is None
    assert watch.look(HEADER, 60.0) is None  # the scheduler's tunnel has nobody behind it, and hangs up
    assert watch.look(DIALLED_ONE, 74.9) is None
    assert watch.look(DIALLED_ONE, 75.0) == "not all nodes have joined within 60 s"


def test_a_scheduler_dials_nobody_before_all_are_there() -> None:
    watch = joining(SERVER, WORKER)
    assert watch.look(HEADER, 0.0) is None
    assert watch.look(HEADER, 60.0) is None
    assert watch.look(HEADER, 75.0) == "not all nodes have joined within 60 s"


def test_a_connection_to_a_server_says_that_all_have_joined_and_that_stands(caplog: pytest.LogCaptureFixture) -> None:
    watch = joining()
    with caplog.at_level(logging.INFO, logger="holdfast"):
        assert watch.look(DIALLED_ONE, 0.0) is None
        assert watch.look(DIALLED_ONE + row(CLIENT, TO_SERVER), 59.0) is None
        assert [watch.look(HEADER, float(now)) for now in range(60, 600, 60)] == [None] * 9
    assert caplog.messages == ["all nodes have joined, after 59 s"]
