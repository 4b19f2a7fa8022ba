"""Peers that cannot be reached, from the kernel's table; and on a real connection that is cut with nftables."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.support import skip

from holdfast_node.contract.documents import Peer
from holdfast_node.contract.roles import DEFAULT_PORTS, Role, peer_port
from holdfast_node.reachability import Reachability, connections

ME = Peer(role=Role.WORKER, rank=0, instance_id="i-00000003", address="10.9.0.1")
SERVER = Peer(role=Role.SERVER, rank=0, instance_id="i-00000002", address="10.9.0.2")
SCHEDULER = Peer(role=Role.SCHEDULER, rank=0, instance_id="i-00000001", address="10.9.0.3")
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
# Addresses in the byte order of this machine (x86_64), ports of the contract.
OWN, TO_SERVER, FROM_SERVER = "0100090A:2385", "0200090A:2384", "0200090A:C001"
PEERS_OWN = f"0100090A:{peer_port(Role.SERVER, 0):04X}"
CLIENT = "0100090A:C000"


def row(local: str, remote: str, *, state: str = "01", retransmits: int = 0, probes: int = 0) -> str:
    timer = "01:00000014" if retransmits else "00:00000000"
    return f"   0: {local} {remote} {state} 00000000:00000000 {timer} {retransmits:08X} 64102        {probes} 9 1 0\n"


def reachability() -> Reachability:
    return Reachability(ME, (SERVER, SCHEDULER), DEFAULT_PORTS, 9.0)


UNANSWERED = {
    "data is sent again": row(CLIENT, TO_SERVER, retransmits=3),
    "a probe stays unanswered": row(CLIENT, TO_SERVER, probes=2),
    "a connection is not made": row(CLIENT, TO_SERVER, state="02"),
    "on the connection that the peer made": row(PEERS_OWN, FROM_SERVER, retransmits=1),
    "on one that the peer made where there is no firewall": row(OWN, FROM_SERVER, retransmits=1),
    "while another one is well": row(CLIENT, TO_SERVER) + row(OWN, FROM_SERVER, retransmits=1),
}


@pytest.mark.parametrize("rows", UNANSWERED.values(), ids=UNANSWERED)
def test_peer_that_answers_nothing_for_long_is_cut_off(rows: str) -> None:
    watch = reachability()
    assert watch.look(HEADER + rows, 100.0) is None
    assert watch.look(HEADER + rows, 108.9) is None
    assert watch.look(HEADER + rows, 109.0) == (
        "server 0 (i-00000002) at 10.9.0.2 cannot be reached: it has acknowledged nothing for 9 s"
    )


WELL = {
    "everything is acknowledged": row(CLIENT, TO_SERVER),
    "the connection is closing": row(CLIENT, TO_SERVER, state="04", retransmits=5),
    "it is a stranger's": row("0100090A:C000", "0900090A:01BB", retransmits=5),
    "it is the peer's, at another port": row("0100090A:C000", "0200090A:01BB", retransmits=5),
}


@pytest.mark.parametrize("rows", WELL.values(), ids=WELL)
def test_nobody_is_cut_off_where(rows: str) -> None:
    watch = reachability()
    assert [watch.look(HEADER + rows, float(now)) for now in range(0, 60, 5)] == [None] * 12


def test_slow_peer_is_logged_and_never_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    watch, late = reachability(), row(CLIENT, TO_SERVER, retransmits=4)
    with caplog.at_level(logging.INFO, logger="holdfast"):
        for now in range(0, 100, 10):
            assert watch.look(HEADER + late, now) is None
            assert watch.look(HEADER + late, now + 8) is None
            assert watch.look(HEADER + row(CLIENT, TO_SERVER), now + 9) is None
    assert caplog.messages[:2] == [
        "server 0 (i-00000002) is slow: it has acknowledged nothing for 8 s",
        "server 0 (i-00000002) answers again, after 9 s",
    ]


def test_a_tunnel_that_keeps_trying_does_not_look_well_between_its_attempts() -> None:
    watch, attempt = reachability(), row(CLIENT, TO_SERVER, state="02")
    assert watch.look(HEADER + attempt, 0.0) is None
    assert watch.look(HEADER, 5.0) is None
    assert watch.look(HEADER + attempt, 9.5) is not None


def test_a_peer_with_which_nothing_is_under_way_any_more_is_not_cut_off() -> None:
    watch, attempt = reachability(), row(CLIENT, TO_SERVER, state="02")
    assert watch.look(HEADER + attempt, 0.0) is None
    assert [watch.look(HEADER, float(now)) for now in range(1, 60)] == [None] * 59  # its trainer ended, for example
    assert watch.look(HEADER + attempt, 60.0) is None  # and what comes later counts from then
    assert watch.look(HEADER + attempt, 64.0) is None


def test_the_machine_s_own_table_can_be_read() -> None:
    assert all(found.local for found in connections(Path("/proc/net/tcp").read_text()))


#: Two connections, one idle and one with data in flight; then everything that leaves is dropped.
CUT = """
import socket, subprocess, sys, time
from pathlib import Path
from holdfast_node.contract.documents import Peer
from holdfast_node.contract.roles import DEFAULT_PORTS, Role
from holdfast_node.reachability import Reachability

def run(*command): subprocess.run(command, check=True, timeout=10)

run("ip", "link", "set", "lo", "up")
peers = [Peer(role=Role.SERVER, rank=n, instance_id=f"i-0000000{n}", address=f"127.81.0.{n + 2}") for n in range(2)]
me = Peer(role=Role.WORKER, rank=0, instance_id="i-00000009", address="127.81.0.1")
port = DEFAULT_PORTS[Role.SERVER]
servers = [socket.create_server((peer.address, port)) for peer in peers]
clients = [socket.create_connection((peer.address, port), timeout=5, source_address=(me.address, 0)) for peer in peers]
accepted = [server.accept()[0] for server in servers]
for option, value in ((socket.TCP_KEEPIDLE, 3), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 7)):
    clients[0].setsockopt(socket.IPPROTO_TCP, option, value)
clients[0].setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
watches = {peer: Reachability(me, [peer], DEFAULT_PORTS, 4.0) for peer in peers}
table = Path("/proc/net/tcp")
time.sleep(4)  # a whole keepalive interval, in which nobody may look cut off
assert not any(watch.look(table.read_text(), time.monotonic()) for watch in watches.values())
run("nft", "add table inet cut; add chain inet cut o { type filter hook output priority 0; policy drop; }")
began = time.monotonic()
clients[1].sendall(b"x" * 1000)
found = {}
while len(found) < 2 and time.monotonic() < began + 20:
    for peer, watch in watches.items():
        if peer not in found and watch.look(table.read_text(), time.monotonic()):
            found[peer] = round(time.monotonic() - began, 1)
    time.sleep(0.1)
print([found.get(peer) for peer in peers])
"""


def test_a_real_cut_is_noticed_with_data_in_flight_and_without(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(Path(__file__).parents[2] / "node")}
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    probe = [*unshare, "nft", "list", "ruleset"]
    if subprocess.run(probe, env=environment, capture_output=True, timeout=20, check=False).returncode:
        skip("this machine gives no network namespace with nftables")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", CUT], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    idle, busy = json.loads(done.stdout)
    assert 4 < busy < 6
    assert 4 < idle < 10  # up to 5 s until the next probe is due and missed
