"""The node's rules in a network namespace of the test's own: which uid reaches what."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_node import firewall
from holdfast_node.contract.documents import Peer, Rendezvous
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import UIDS, User
from holdfast_node.contract.roles import (
    DEFAULT_PORTS,
    FIRST_PEER_PORT,
    LAST_PEER_PORT,
    MAX_NODES_PER_ROLE,
    Role,
    Serving,
    peer_port,
)
from holdfast_node.firewall import admission, apply, read_peers, ruleset

RENDEZVOUS = Rendezvous(
    job_id="digits-1",
    generation=1,
    peers=tuple(
        Peer(role=role, rank=0, instance_id=f"i-0000000{number}", address=f"10.0.0.{number}")
        for number, role in enumerate(Role, start=1)
    ),
)

# Connects as a uid and prints "open", "refused" or "dropped".
PROBE = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
try:
    socket.create_connection((sys.argv[2], int(sys.argv[3])), timeout=1).close(); print("open")
except TimeoutError: print("dropped")
except OSError: print("refused")
"""
SCRIPT = """
set -e
ip link set lo up
ip addr add 169.254.169.254/32 dev lo
nft -f rules.nft
nft -f rules.nft
%(python)s -c '
import socket, threading
services = ("169.254.169.254", 80), ("127.77.0.1", 9091), ("127.0.0.1", 4566)
listeners = [socket.create_server(service) for service in services]
open("ready", "w").close()
threading.Event().wait(30)
' & server=$!
while [ ! -e ready ]; do read -t 0.05 <> <(:) || true; done
while read uid address port; do %(python)s probe.py "$uid" "$address" "$port"; done < cases
kill $server
"""
AGENT, TUNNEL, TRAINER = UIDS[User.AGENT], UIDS[User.TUNNEL], UIDS[User.TRAINER]
METADATA, OVERLAY, AWS = ("169.254.169.254", 80), ("127.77.0.1", 9091), ("127.0.0.1", 4566)
CASES = {
    "the agent reaches metadata": (AGENT, METADATA, "open"),
    "the trainer does not reach metadata": (TRAINER, METADATA, "refused"),
    "the tunnel does not reach metadata": (TUNNEL, METADATA, "refused"),
    "another user does not reach metadata": (1234, METADATA, "refused"),
    "the trainer reaches the overlay": (TRAINER, OVERLAY, "open"),
    "the tunnel reaches the overlay": (TUNNEL, OVERLAY, "open"),
    "the agent does not reach the overlay": (AGENT, OVERLAY, "refused"),
    "another user does not reach the overlay": (1234, OVERLAY, "refused"),
    "the agent reaches AWS": (AGENT, AWS, "open"),
    "the trainer does not reach AWS": (TRAINER, AWS, "refused"),
    "the tunnel does not reach AWS": (TUNNEL, AWS, "refused"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("firewall")
    directory.chmod(0o755)
    (directory / "rules.nft").write_text(ruleset(role=Role.WORKER, ports=DEFAULT_PORTS, uids=UIDS))
    (directory / "probe.py").write_text(PROBE)
    (directory / "cases").write_text("".join(f"{uid} {host} {port}\n" for uid, (host, port), _ in CASES.values()))
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    result = subprocess.run(
        ["unshare", "--net", "bash", "-c", SCRIPT % {"python": python}],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(CASES, result.stdout.split(), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_uid_rule(case: str, outcomes: dict[str, str]) -> None:
    assert outcomes[case] == CASES[case][2]


def test_only_connections_to_the_own_role_s_port_come_in_and_only_at_their_peer_s() -> None:
    rules = ruleset(role=Role.WORKER, ports=DEFAULT_PORTS, uids=UIDS)
    inbound = [line.strip() for line in rules.splitlines() if "jump peer" in line]
    assert inbound == ["tcp dport 61000-61300 ct original proto-dst 9093 ct state new jump peer"]
    assert "iif != lo tcp dport 9093 redirect to : ip saddr map @admitted" in rules
    assert "policy drop" in rules


def test_the_job_s_peers_that_dial_this_role_are_admitted_each_at_its_own_port() -> None:
    commands = admission(role=Role.SERVER, rendezvous=RENDEZVOUS)
    assert commands.splitlines() == [
        "flush map inet holdfast admitted",
        "add element inet holdfast admitted { 10.0.0.1 : 61000, 10.0.0.3 : 61151 }",
    ]


def test_peer_ports_are_distinct_and_above_what_the_kernel_gives_to_connections() -> None:
    ranks = {Role.SCHEDULER: range(1), Role.SERVER: range(MAX_NODES_PER_ROLE), Role.WORKER: range(MAX_NODES_PER_ROLE)}
    ports = [peer_port(role, rank) for role in Role for rank in ranks[role]]
    assert len(set(ports)) == len(ports)
    assert min(ports) == FIRST_PEER_PORT > 60999
    assert max(ports) == LAST_PEER_PORT < 65536


def _link(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(RENDEZVOUS.to_json())
    path.symlink_to("elsewhere")


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "cannot read peers.json: No such file or directory; the agent writes it for a job"),
    "a link": (_link, "cannot read peers.json: Too many levels of symbolic links"),
    "a directory": (Path.mkdir, "peers.json must be a plain file"),
    "a pipe": (os.mkfifo, "peers.json must be a plain file"),
    "too much": (lambda path: path.write_bytes(b" " * ((1 << 20) + 1)), "must have at most 1048576 bytes"),
    "no JSON": (lambda path: path.write_bytes(b"root:*:1"), "Rendezvous is not valid JSON"),
    "an element of nft's": (
        lambda path: path.write_bytes(RENDEZVOUS.to_json().replace(b"10.0.0.3", b"10.0.0.3 : 22, 0.0.0.0/0")),
        "address must be a host's IPv4 address",
    ),
}


@pytest.mark.parametrize(("make", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_root_refuses_what_is_no_rendezvous(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "peers.json")
    with pytest.raises(HoldfastError, match=re.escape(message)):
        read_peers(tmp_path / "peers.json")


def test_bad_rules_are_refused_with_nft_s_own_words() -> None:
    with pytest.raises(HoldfastError, match=r"nft refused the node's rules: .*syntax error"):
        apply("table inet holdfast { nonsense }")


def test_an_nft_that_hangs_is_a_clear_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(firewall, "NFT_SECONDS", 0.2)
    with pytest.raises(HoldfastError, match=r"nft did not end within 0\.2 s"):
        apply("")


def test_a_predictor_s_own_port_is_open_to_clients_and_no_role_s() -> None:
    rules = ruleset(role=Serving.PREDICTOR, ports=DEFAULT_PORTS, uids=UIDS, port=9094)
    inbound = [line.strip() for line in rules.splitlines() if "jump peer" in line]
    assert inbound == ["tcp dport 9094 ct state new jump peer"]
