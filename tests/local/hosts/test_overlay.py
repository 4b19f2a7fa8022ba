"""Two hosts on one loopback interface, each with the same overlay addresses."""

import subprocess
import sys
from pathlib import Path

import pytest

from holdfast_local.hosts import IsolationError, overlay
from holdfast_local.hosts.overlay import host_address, overlay_library

SERVE = """
import socket, sys
server = socket.socket()
server.bind(("127.77.0.1", int(sys.argv[1])))
server.listen()
print(*server.getsockname(), flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall(f"{sys.argv[2]} {connection.getsockname()[0]}".encode())
    connection.close()
"""
DIAL = """
import socket, sys
client = socket.socket()
client.bind(("127.77.1.1", 0))
client.connect(("127.77.0.1", int(sys.argv[1])))
print(client.getpeername()[0], client.getsockname()[0], client.recv(100).decode())
"""


def start(code: str, slot: int, directory: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {"LD_PRELOAD": str(overlay_library(slot, directory))}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_hosts_bind_the_same_overlay_address_and_reach_their_own(tmp_path: Path) -> None:
    port = str(free_port())
    servers = [start(SERVE, slot, tmp_path, port, f"host-{slot}") for slot in (1, 2)]
    try:
        for server in servers:
            assert server.stdout is not None
            assert server.stdout.readline().split() == ["127.77.0.1", port]
        for slot in (1, 2):
            output, errors = start(DIAL, slot, tmp_path, port).communicate(timeout=10)
            assert output.split() == ["127.77.0.1", "127.77.1.1", f"host-{slot}", "127.77.0.1"], errors
        output, errors = start(DIAL, 3, tmp_path, port).communicate(timeout=10)
        assert (output, "ConnectionRefusedError" in errors) == ("", True)
    finally:
        for server in servers:
            server.kill()
            server.communicate()


def test_other_addresses_pass_unchanged(tmp_path: Path) -> None:
    code = "import socket; s = socket.socket(); s.bind(('127.78.0.9', 0)); print(s.getsockname()[0])"
    assert start(code, 1, tmp_path).communicate(timeout=10)[0].strip() == "127.78.0.9"


def test_the_library_is_built_once(tmp_path: Path) -> None:
    first = overlay_library(1, tmp_path)
    changed = first.stat().st_mtime_ns
    assert overlay_library(1, tmp_path).stat().st_mtime_ns == changed
    assert overlay_library(2, tmp_path) != first


def test_a_missing_compiler_is_said_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay.shutil, "which", lambda _: None)
    with pytest.raises(IsolationError, match="cc was not found; install the package gcc"):
        overlay_library(1, tmp_path)


def test_more_hosts_than_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IsolationError, match="between 1 and 150, got number 151"):
        overlay_library(151, tmp_path)


def test_hosts_have_an_address_each() -> None:
    assert [host_address(slot) for slot in (1, 2)] == ["127.78.0.1", "127.78.0.2"]
