"""The overlay with real stunnel processes on loopback: who gets through, who does not."""

import contextlib
import datetime
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast_node.contract.documents import Peer, Rendezvous
from holdfast_node.contract.errors import DocumentError, HoldfastError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.roles import UNPROVEN_OVERLAY, Role, node_name, peer_port
from holdfast_node.listeners import await_listener, require_free
from holdfast_node.tunnel import accepted_peers, listeners, stunnel_config, write_private

# Loopback addresses and ports of this test only.
SERVER = Peer(role=Role.SERVER, rank=0, instance_id="i-00000002", address="127.79.0.2")
WORKER = Peer(role=Role.WORKER, rank=0, instance_id="i-00000003", address="127.79.0.3")
SCHEDULER = Peer(role=Role.SCHEDULER, rank=0, instance_id="i-00000001", address="127.79.0.1")
RENDEZVOUS = Rendezvous(job_id="digits-1", generation=1, peers=(SCHEDULER, SERVER, WORKER))
PORTS = {Role.SCHEDULER: 19191, Role.SERVER: 19192, Role.WORKER: 19193}
WORKER_PORT = peer_port(Role.WORKER, 0)
SERVER_NAME = node_name("demo", Role.SERVER, SERVER.instance_id)


def write_config(paths: NodePaths, me: Peer, rendezvous: Rendezvous) -> None:
    config = stunnel_config(cluster="demo", me=me, rendezvous=rendezvous, ports=PORTS, paths=paths)
    write_private(paths.stunnel_config, config)


@contextlib.contextmanager
def started(paths: NodePaths, me: Peer, rendezvous: Rendezvous) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    """A node's tunnel; yields its log and its process."""
    write_config(paths, me, rendezvous)
    log = paths.root / "tunnel.log"
    with log.open("wb") as output:
        process = subprocess.Popen(["stunnel", str(paths.stunnel_config)], stdout=output, stderr=output)
    try:
        await_listener(me.address, PORTS[me.role], "the tunnel", 20)
        yield log, process
    finally:
        process.terminate()
        process.wait(timeout=5)


@contextlib.contextmanager
def tunnel(paths: NodePaths, me: Peer) -> Iterator[Path]:
    with started(paths, me, RENDEZVOUS) as (log, _):
        yield log


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
                threading.Thread(target=answer, args=(connection,)).start()

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                while heard := connection.recv(100):
                    said = connection.getpeername()[0].encode() if heard == b"who" else heard
                    connection.sendall(b"echo:" + said)

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


@contextlib.contextmanager
def connected(
    directory: Path, port: int, *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, certificate: bool = True
) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to one of the server's ports, with the certificate in `directory`."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.minimum_version = context.maximum_version = version
    if certificate:
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    with (
        socket.create_connection((SERVER.address, port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=SERVER_NAME) as connection,
    ):
        yield connection


def dial(
    directory: Path,
    *,
    port: int = WORKER_PORT,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    certificate: bool = True,
    what: bytes = b"hello",
) -> bytes:
    """Dial the server, by default where it accepts the worker; return what its trainer answers ("who": to whom)."""
    with (
        contextlib.suppress(OSError),
        connected(directory, port, version=version, certificate=certificate) as connection,
    ):
        connection.sendall(what)
        return connection.recv(100)
    return b""


def await_line(log: Path, pattern: str, count: int = 1) -> None:
    """Return once a log has this many lines with the pattern."""
    deadline = time.monotonic() + 20
    while len(re.findall(pattern, log.read_text())) < count:
        assert time.monotonic() < deadline, f"{pattern} is not {count} times in:\n{log.read_text()}"
        time.sleep(0.02)


SERVER_SEEN_BY_WORKER = SERVER.overlay.replace("127.77.", "127.80.")


def test_listed_worker_reaches_the_server_s_trainer(server: Path, authority: Any, tmp_path: Path) -> None:
    authority.issue(tmp_path / "w", Role.WORKER, WORKER.instance_id)
    assert dial(tmp_path / "w") == b"echo:hello"
    assert accepted_peers(server.read_text()) == {"i-00000003.worker.demo.holdfast": 1}


def test_a_host_without_a_firewall_accepts_listed_peers_at_the_role_s_port(
    server: Path, authority: Any, tmp_path: Path
) -> None:
    authority.issue(tmp_path / "w", Role.WORKER, WORKER.instance_id)
    assert dial(tmp_path / "w", port=PORTS[Role.SERVER]) == b"echo:hello"
    assert accepted_peers(server.read_text()) == {"i-00000003.worker.demo.holdfast": 1}


def test_the_trainer_learns_who_speaks_only_from_the_service_that_accepts_nobody_else(
    server: Path, authority: Any, tmp_path: Path
) -> None:
    authority.issue(tmp_path / "w", Role.WORKER, WORKER.instance_id)
    assert dial(tmp_path / "w", what=b"who") == b"echo:" + WORKER.overlay.encode()
    assert dial(tmp_path / "w", port=PORTS[Role.SERVER], what=b"who") == b"echo:" + UNPROVEN_OVERLAY.encode()


UNKNOWN = "CERT: Subject checks failed"
REFUSED = {
    "a worker that is not in this job": (Role.WORKER, "i-0badbad0", datetime.timedelta(days=1), UNKNOWN),
    "another server": (Role.SERVER, "i-00000009", datetime.timedelta(days=1), UNKNOWN),
    "the worker's id with another role": (Role.SERVER, WORKER.instance_id, datetime.timedelta(days=1), UNKNOWN),
    "a peer of this job at another peer's port": (
        Role.SCHEDULER,
        SCHEDULER.instance_id,
        datetime.timedelta(days=1),
        UNKNOWN,
    ),
    "an expired certificate": (
        Role.WORKER,
        WORKER.instance_id,
        datetime.timedelta(days=-1),
        r"CERT: Pre-verification error: certificate has expired",
    ),
}


@pytest.mark.parametrize(("role", "instance_id", "lifetime", "message"), REFUSED.values(), ids=REFUSED)
def test_server_refuses(
    server: Path,
    authority: Any,
    tmp_path: Path,
    role: Role,
    instance_id: str,
    lifetime: datetime.timedelta,
    message: str,
) -> None:
    authority.issue(tmp_path / "x", role, instance_id, lifetime)
    assert dial(tmp_path / "x") == b""
    await_line(server, message)
    assert not accepted_peers(server.read_text())


def test_server_refuses_a_foreign_authority_with_the_same_name(
    server: Path, authority: Any, new_authority: Any, tmp_path: Path
) -> None:
    new_authority().issue(tmp_path / "x", Role.WORKER, WORKER.instance_id)
    (tmp_path / "x/ca.pem").write_bytes((server.parent / "var/lib/holdfast/tls/ca.pem").read_bytes())
    assert dial(tmp_path / "x") == b""
    await_line(server, r"CERT: Pre-verification error: (certificate signature failure|unable to get local issuer)")
    assert not accepted_peers(server.read_text())


def test_server_refuses_tls_1_2(server: Path, authority: Any, tmp_path: Path) -> None:
    authority.issue(tmp_path / "w", Role.WORKER, WORKER.instance_id)
    assert dial(tmp_path / "w", version=ssl.TLSVersion.TLSv1_2) == b""
    await_line(server, "SSL_accept: .*unsupported protocol")


def test_server_refuses_a_peer_without_a_certificate(server: Path, authority: Any, tmp_path: Path) -> None:
    authority.issue(tmp_path / "w", Role.WORKER, WORKER.instance_id)
    assert dial(tmp_path / "w", certificate=False) == b""
    await_line(server, "SSL_accept: .*peer did not return a certificate")


def test_server_refuses_plaintext(server: Path) -> None:
    for port in (PORTS[Role.SERVER], WORKER_PORT):
        assert ask(SERVER.address, port) == b""
    await_line(server, "SSL_accept: .*(wrong version number|http request|unexpected eof|packet length)")
    assert not accepted_peers(server.read_text())


def test_worker_s_trainer_reaches_the_server_through_both_tunnels(server: Path, authority: Any, tmp_path: Path) -> None:
    # On one loopback the worker's overlay listeners would collide with the server's, so the worker's are moved.
    paths = NodePaths(tmp_path / "worker")
    authority.issue(paths.tls, Role.WORKER, WORKER.instance_id)
    with worker_tunnel(paths, SERVER_NAME):
        assert ask(SERVER_SEEN_BY_WORKER, PORTS[Role.SERVER]) == b"echo:hello"


IMPOSTORS = {
    "a worker of another job": (Role.WORKER, "i-0badbad0"),
    "this worker itself": (Role.WORKER, WORKER.instance_id),
    "the job's scheduler": (Role.SCHEDULER, SCHEDULER.instance_id),
    "another server": (Role.SERVER, "i-00000009"),
}


@pytest.mark.parametrize(("role", "instance_id"), IMPOSTORS.values(), ids=IMPOSTORS)
def test_worker_refuses_an_impostor_at_its_server_s_address(
    authority: Any, tmp_path: Path, role: Role, instance_id: str
) -> None:
    impostor, paths = NodePaths(tmp_path / "impostor"), NodePaths(tmp_path / "worker")
    authority.issue(impostor.tls, role, instance_id)
    authority.issue(paths.tls, Role.WORKER, WORKER.instance_id)
    with (
        echo(SERVER.overlay, PORTS[Role.SERVER]),
        tunnel(impostor, SERVER),
        worker_tunnel(paths, SERVER_NAME) as log,
    ):
        assert ask(SERVER_SEEN_BY_WORKER, PORTS[Role.SERVER]) == b""
        await_line(log, UNKNOWN)


DIALS_REFUSED = {"server to server": Role.SERVER, "worker to worker": Role.WORKER}


@pytest.mark.parametrize("role", DIALS_REFUSED.values(), ids=DIALS_REFUSED)
def test_nodes_of_one_role_have_no_way_to_each_other(role: Role, tmp_path: Path) -> None:
    peers = tuple(
        Peer(role=role, rank=rank, instance_id=f"i-1000000{rank}", address=f"10.0.0.{rank}") for rank in (0, 1)
    )
    rendezvous = replace(RENDEZVOUS, peers=(SCHEDULER, *peers))
    config = stunnel_config(cluster="demo", me=peers[0], rendezvous=rendezvous, ports=PORTS, paths=NodePaths(tmp_path))
    assert peers[1].instance_id not in config and peers[1].address not in config


def test_reload_with_another_peer_list_keeps_the_connections_of_those_who_stay(authority: Any, tmp_path: Path) -> None:
    paths = NodePaths(tmp_path / "server")
    authority.issue(paths.tls, Role.SERVER, SERVER.instance_id)
    for name in (WORKER.instance_id, "i-00000004", "i-00000005"):
        authority.issue(tmp_path / name, Role.WORKER, name)
    leaving = Peer(role=Role.WORKER, rank=1, instance_id="i-00000004", address="127.79.0.4")
    joining = replace(leaving, instance_id="i-00000005")
    before, after = (replace(RENDEZVOUS, peers=(*RENDEZVOUS.peers, peer)) for peer in (leaving, joining))
    with (
        echo(SERVER.overlay, PORTS[Role.SERVER]),
        started(paths, SERVER, before) as (log, process),
        connected(tmp_path / WORKER.instance_id, WORKER_PORT) as standing,
    ):
        assert dial(tmp_path / leaving.instance_id, port=peer_port(Role.WORKER, 1)) == b"echo:hello"
        write_config(paths, SERVER, after)
        process.send_signal(signal.SIGHUP)
        await_line(log, r"Service \[to-worker-1\] .* bound to", 2)  # the last service, for the second time
        assert dial(tmp_path / leaving.instance_id, port=peer_port(Role.WORKER, 1)) == b""
        assert dial(tmp_path / joining.instance_id, port=peer_port(Role.WORKER, 1)) == b"echo:hello"
        standing.sendall(b"still here")
        assert standing.recv(100) == b"echo:still here"


def test_a_peer_that_vanishes_is_noticed_by_the_wire_within_15_seconds(tmp_path: Path) -> None:
    config = stunnel_config(cluster="demo", me=SERVER, rendezvous=RENDEZVOUS, ports=PORTS, paths=NodePaths(tmp_path))
    options = dict(line.rpartition("=")[::2] for line in config.splitlines() if line.startswith("socket = "))
    for end in "lr":
        idle, interval, probes = (int(options[f"socket = {end}:TCP_KEEP{name}"]) for name in ("IDLE", "INTVL", "CNT"))
        assert options[f"socket = {end}:SO_KEEPALIVE"] == "1" and idle + interval * probes < 15


@contextlib.contextmanager
def worker_tunnel(paths: NodePaths, expected: str) -> Iterator[Path]:
    config = stunnel_config(cluster="demo", me=WORKER, rendezvous=RENDEZVOUS, ports=PORTS, paths=paths)
    assert f"checkHost = {expected}\n" in config
    config = config.replace("accept = 127.77.", "accept = 127.80.")
    write_private(paths.stunnel_config, config)
    log = paths.root / "tunnel.log"
    with log.open("wb") as output:
        process = subprocess.Popen(["stunnel", str(paths.stunnel_config)], stdout=output, stderr=output)
    try:
        await_listener(SERVER_SEEN_BY_WORKER, PORTS[Role.SERVER], "the tunnel", 20)
        yield log
    finally:
        process.terminate()
        process.wait(timeout=5)


@pytest.mark.parametrize("me", RENDEZVOUS.peers, ids=lambda peer: peer.role)
def test_every_port_that_a_role_s_tunnel_takes_is_known_before_it_starts(me: Peer, tmp_path: Path) -> None:
    config = stunnel_config(cluster="demo", me=me, rendezvous=RENDEZVOUS, ports=PORTS, paths=NodePaths(tmp_path))
    accepts = {line.removeprefix("accept = ") for line in config.splitlines() if line.startswith("accept = ")}
    assert {f"{address}:{port}" for address, port in listeners(me=me, rendezvous=RENDEZVOUS, ports=PORTS)} == accepts


@pytest.mark.parametrize("taken", listeners(me=SERVER, rendezvous=RENDEZVOUS, ports=PORTS), ids=str)
def test_a_taken_port_is_named_and_the_tunnel_does_not_run(
    taken: tuple[str, int], authority: Any, tmp_path: Path
) -> None:
    paths = NodePaths(tmp_path)
    authority.issue(paths.tls, Role.SERVER, SERVER.instance_id)
    write_config(paths, SERVER, RENDEZVOUS)
    with socket.create_server(taken):
        with pytest.raises(HoldfastError, match=f"the tunnel must listen on {taken[0]}:{taken[1]}, and the port is"):
            require_free(*taken, "the tunnel")
        argv = ["stunnel", str(paths.stunnel_config)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert f"to {taken[0]}:{taken[1]}: Address already in use" in done.stderr


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
