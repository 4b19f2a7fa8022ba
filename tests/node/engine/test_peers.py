"""Who may connect to a trainer, from which address, and under which identity."""

import re

import pytest

from holdfast_node.contract.roles import UNPROVEN_OVERLAY, Role, overlay_address
from holdfast_node.engines.errors import RefusedError
from holdfast_node.engines.mxnet.messages import ANONYMOUS, SCHEDULER_ID, server_id, worker_id
from holdfast_node.engines.mxnet.peers import Peers

SIZES = {"servers": 2, "workers": 2}
SCHEDULER, SERVER_0, SERVER_1, WORKER_0, WORKER_1 = (
    overlay_address(role, rank)
    for role, rank in (
        (Role.SCHEDULER, 0), (Role.SERVER, 0), (Role.SERVER, 1), (Role.WORKER, 0), (Role.WORKER, 1),
    )
)  # fmt: skip
#: The node that is dialled, the identity, the address that it comes from.
ACCEPTED = {
    "a worker at a server": (server_id(0), b"ps9", WORKER_0),
    "another worker at a server": (server_id(0), b"ps11", WORKER_1),
    "the scheduler at a server": (server_id(0), b"ps1", SCHEDULER),
    "a server at itself": (server_id(0), b"ps8", SERVER_0),
    "a server at a worker": (worker_id(1), b"ps10", SERVER_1),
    "a worker at the scheduler": (SCHEDULER_ID, b"ps9", WORKER_0),
    "a worker at the scheduler, before it has an identity": (SCHEDULER_ID, b"", WORKER_0),
    "a worker, unproven": (server_id(0), b"ps9", UNPROVEN_OVERLAY),
    "a worker at the scheduler, unproven, before it has an identity": (SCHEDULER_ID, b"", UNPROVEN_OVERLAY),
}
FROM_WORKER_1 = "a connection must carry the identity of worker 1, whose address it comes from, got "
STRANGE = "a connection must come from a node that dials this one, got "
UNPROVEN = "a connection must carry the identity of a node that dials this one, got "
REFUSED = {
    "worker 1 as worker 0": (server_id(0), b"ps9", WORKER_1, FROM_WORKER_1 + "b'ps9' (worker 0)"),
    "worker 1 as the server itself": (server_id(0), b"ps8", WORKER_1, FROM_WORKER_1 + "b'ps8' (server 0)"),
    "worker 1 as the scheduler": (server_id(0), b"ps1", WORKER_1, FROM_WORKER_1 + "b'ps1' (the scheduler)"),
    "worker 1 as a server, at the scheduler": (SCHEDULER_ID, b"ps8", WORKER_1, FROM_WORKER_1 + "b'ps8' (server 0)"),
    "worker 1 as nobody": (server_id(0), b"", WORKER_1, FROM_WORKER_1 + "b''"),
    "worker 1 as ZeroMQ names nobody": (SCHEDULER_ID, b"\0\0\0\0\5", WORKER_1, FROM_WORKER_1),
    "a server at another": (server_id(0), b"ps10", SERVER_1, STRANGE + f"'{SERVER_1}'"),
    "a worker at another": (worker_id(0), b"ps11", WORKER_1, STRANGE + f"'{WORKER_1}'"),
    "the loopback address": (server_id(0), b"ps9", "127.0.0.1", STRANGE + "'127.0.0.1'"),
    "no address": (SCHEDULER_ID, b"", "", STRANGE + "''"),
    "a third worker": (server_id(0), b"ps13", overlay_address(Role.WORKER, 2), STRANGE),
    "a third worker, unproven": (server_id(0), b"ps13", UNPROVEN_OVERLAY, UNPROVEN + "b'ps13'"),
    "another server, unproven": (server_id(0), b"ps10", UNPROVEN_OVERLAY, UNPROVEN + "b'ps10'"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_connection_is_whom_its_address_proves(case: str) -> None:
    own, identity, address = ACCEPTED[case]
    Peers(own, **SIZES).check(identity, address)


@pytest.mark.parametrize("case", REFUSED)
def test_a_connection_that_claims_anything_else_is_refused(case: str) -> None:
    own, identity, address, reason = REFUSED[case]
    with pytest.raises(RefusedError, match=re.escape(reason)):
        Peers(own, **SIZES).check(identity, address)


@pytest.mark.parametrize("address", [WORKER_0, UNPROVEN_OVERLAY])
@pytest.mark.parametrize("identity", [b"ps09", b"ps4294967305", b"ps9 ", b"\0abcd", b"ps", b"worker"])
def test_there_is_one_way_to_write_an_identity(identity: bytes, address: str) -> None:
    with pytest.raises(RefusedError, match=r"a connection must carry the identity of .*, got b'"):
        Peers(SCHEDULER_ID, **SIZES).check(identity, address)


def test_an_address_names_the_node_behind_it() -> None:
    peers = Peers(server_id(1), **SIZES)
    assert (peers.own, peers.at(WORKER_1), peers.at(SCHEDULER)) == (SERVER_1, worker_id(1), SCHEDULER_ID)
    assert {peers.at(address) for address in (UNPROVEN_OVERLAY, "127.0.0.1", SERVER_0)} == {ANONYMOUS}
