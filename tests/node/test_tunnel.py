"""The overlay with real stunnel processes on loopback: who gets through, who does not."""

import contextlib
import datetime
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast_node.contract.documents import Peer, Rendezvous
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.roles import Role, node_name
from holdfast_node.listeners import await_listener
from holdfast_node.tunnel import accepted_peers, stunnel_config, write_private

# Loopback addresses and ports of this test only.
SERVER = Peer(role=Role.SERVER, rank=0, instance_id="i-00000002", address="127.79.0.2")
WORKER = Peer(role=Role.WORKER, rank=0, instance_id="i-00000003", address="127.79.0.3")
SCHEDULER = Peer(role=Role.SCHEDULER, rank=0, instance_id="i-00000001", address="127.79.0.1")
RENDEZVOUS = Rendezvous(job_id="digits-1", generation=1, peers=(SCHEDULER, SERVER, WORKER))
PORTS = {Role.SCHEDULER: 19191, Role.SERVER: 19192, Role.WORKER: 19193}


@contextlib.contextmanager
def tunnel(paths: NodePaths, me: Peer) -> Iterator[Path]:
    config = stunnel_config(cluster="demo", me=me, rendezvous=RENDEZVOUS, ports=PORTS, paths=paths)
    write_private(paths.stunnel_config, config)
    log = paths.root / "tunnel.log"
    with log.open("wb") as output:
        process = subprocess.Popen(["stunnel", str(paths.stunnel_config)], stdout=output, stderr=output)
    try:
        await_listener(me.address, PORTS[me.role], "the tunnel", 5)
        yield log
    finally:
        process.terminate()
        process.wait(timeout=5)


@contextlib.contextmanager
def echo(address: str, port: int) -> Iterator[None]:
    """A trainer stand-in that answers what it is told."""
    with socket.create_server((address, port)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.sendall(b"echo:" + connection.recv(100))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)


def ask(address: str, port: int) -> bytes:
    """What comes back through a plain connection; nothing if it is cut."""
    with socket.create_connection((address, port), timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(b"hello")
        return connection.recv(100)
    return b""


@pytest.fixture
def server(authority: Any, tmp_path: Path) -> Iterator[Path]:
    """A server node with its tunnel and a trainer stand-in; yields the tunnel's log."""
    paths = NodePaths(tmp_path / "server")
    authority.issue(paths.tls, Role.SERVER, SERVER.instance_id)
    with echo(SERVER.overlay, PORTS[Role.SERVER]), tunnel(paths, SERVER) as log:
        yield log


def dial(directory: Path, *, name: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """Dial the server's real address with a certificate; return what its trainer answers."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    with contextlib.suppress(OSError):
        raw = socket.create_connection((SERVER.address, PORTS[Role.SERVER]), timeout=5)
        with raw, context.wrap_socket(raw, server_hostname=name) as connection:
            connection.sendall(b"hello")
            return connection.recv(100)
    return b""


SERVER_SEEN_BY_WORKER = SERVER.overlay.replace("127.77.", "127.80.")
SERVER_NAME = node_name("demo", Role.SERVER, SERVER.instance_id)


def test_listed_worker_reaches_the_server_s_trainer(server: Path, authority: Any, tmp_path: Path) -> None:
    authority.issue(tmp_path / "w", Role.WORKER, WORKER.instance_id)
    assert dial(tmp_path / "w", name=SERVER_NAME) == b"echo:hello"
    assert accepted_peers(server.read_text()) == {"i-00000003.worker.demo.holdfast": 1}


REFUSED = {
    "a worker that is not in this job": (Role.WORKER, "i-0badbad0", datetime.timedelta(days=1)),
    "another server": (Role.SERVER, "i-00000009", datetime.timedelta(days=1)),
    "the worker's id with another role": (Role.SERVER, WORKER.instance_id, datetime.timedelta(days=1)),
    "an expired certificate": (Role.WORKER, WORKER.instance_id, datetime.timedelta(days=-1)),
}


@pytest.mark.parametrize(("role", "instance_id", "lifetime"), REFUSED.values(), ids=REFUSED)
def test_server_refuses(
    server: Path, authority: Any, tmp_path: Path, role: Role, instance_id: str, lifetime: datetime.timedelta
) -> None:
    authority.issue(tmp_path / "x", role, instance_id, lifetime)
    assert dial(tmp_path / "x", name=SERVER_NAME) == b""
    assert not accepted_peers(server.read_text())


def test_server_refuses_a_foreign_authority_with_the_same_name(
    server: Path, authority: Any, new_authority: Any, tmp_path: Path
) -> None:
    new_authority().issue(tmp_path / "x", Role.WORKER, WORKER.instance_id)
    (tmp_path / "x/ca.pem").write_bytes((server.parent / "var/lib/holdfast/tls/ca.pem").read_bytes())
    assert dial(tmp_path / "x", name=SERVER_NAME) == b""
    assert not accepted_peers(server.read_text())


def test_server_refuses_tls_1_2(server: Path, authority: Any, tmp_path: Path) -> None:
    authority.issue(tmp_path / "w", Role.WORKER, WORKER.instance_id)
    assert dial(tmp_path / "w", name=SERVER_NAME, version=ssl.TLSVersion.TLSv1_2) == b""


def test_server_refuses_plaintext(server: Path) -> None:
    assert ask(SERVER.address, PORTS[Role.SERVER]) == b""
    assert not accepted_peers(server.read_text())


def test_worker_s_trainer_reaches_the_server_through_both_tunnels(server: Path, authority: Any, tmp_path: Path) -> None:
    # On one loopback the worker's overlay listeners would collide with the server's, so the worker's are moved.
    paths = NodePaths(tmp_path / "worker")
    authority.issue(paths.tls, Role.WORKER, WORKER.instance_id)
    with worker_tunnel(paths, SERVER_NAME):
        assert ask(SERVER_SEEN_BY_WORKER, PORTS[Role.SERVER]) == b"echo:hello"


def test_worker_refuses_an_impostor_that_serves_with_a_worker_s_certificate(authority: Any, tmp_path: Path) -> None:
    impostor, paths = NodePaths(tmp_path / "impostor"), NodePaths(tmp_path / "worker")
    authority.issue(impostor.tls, Role.WORKER, "i-0badbad0")
    authority.issue(paths.tls, Role.WORKER, WORKER.instance_id)
    with echo(SERVER.overlay, PORTS[Role.SERVER]), tunnel(impostor, SERVER), worker_tunnel(paths, SERVER_NAME):
        assert ask(SERVER_SEEN_BY_WORKER, PORTS[Role.SERVER]) == b""


@contextlib.contextmanager
def worker_tunnel(paths: NodePaths, expected: str) -> Iterator[None]:
    config = stunnel_config(cluster="demo", me=WORKER, rendezvous=RENDEZVOUS, ports=PORTS, paths=paths)
    assert f"checkHost = {expected}\n" in config
    config = config.replace("accept = 127.77.", "accept = 127.80.")
    write_private(paths.stunnel_config, config)
    process = subprocess.Popen(["stunnel", str(paths.stunnel_config)], stderr=subprocess.DEVNULL)
    try:
        await_listener(SERVER_SEEN_BY_WORKER, PORTS[Role.SERVER], "the tunnel", 5)
        yield
    finally:
        process.terminate()
        process.wait(timeout=5)


def test_every_peer_is_named_exactly_and_none_by_role_alone(tmp_path: Path) -> None:
    config = stunnel_config(cluster="demo", me=SERVER, rendezvous=RENDEZVOUS, ports=PORTS, paths=NodePaths(tmp_path))
    names = {line.split(" = ")[1] for line in config.splitlines() if line.startswith("checkHost")}
    assert names == {"i-00000001.scheduler.demo.holdfast", "i-00000003.worker.demo.holdfast"}


def test_private_files_are_not_readable_by_others(tmp_path: Path) -> None:
    write_private(tmp_path / "stunnel.conf", "secret")
    assert (tmp_path / "stunnel.conf").stat().st_mode & 0o007 == 0


def test_a_value_with_a_line_break_never_becomes_a_service(tmp_path: Path) -> None:
    # The documents refuse such an address too; a service of stunnel's can run a program.
    evil = replace(SERVER, address="10.0.0.9:1\n[x]\nexec = /bin/sh")
    with pytest.raises(DocumentError, match="holds a line break"):
        stunnel_config(
            cluster="demo",
            me=WORKER,
            rendezvous=replace(RENDEZVOUS, peers=(SCHEDULER, evil, WORKER)),
            ports=PORTS,
            paths=NodePaths(tmp_path),
        )
