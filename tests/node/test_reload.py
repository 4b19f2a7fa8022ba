"""A renewed certificate reaches a running tunnel: a real stunnel pair, certificates that live for seconds, SIGHUP."""

import contextlib
import datetime
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from holdfast_node.contract.documents import Peer, Rendezvous
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.roles import Role, node_name
from holdfast_node.listeners import await_listener
from holdfast_node.tunnel import stunnel_config, write_private

SERVER = Peer(role=Role.SERVER, rank=0, instance_id="i-00000002", address="127.79.1.2")
WORKER = Peer(role=Role.WORKER, rank=0, instance_id="i-00000003", address="127.79.1.3")
SCHEDULER = Peer(role=Role.SCHEDULER, rank=0, instance_id="i-00000001", address="127.79.1.1")
RENDEZVOUS = Rendezvous(job_id="digits-1", generation=1, peers=(SCHEDULER, SERVER, WORKER))
PORTS = {Role.SCHEDULER: 19291, Role.SERVER: 19292, Role.WORKER: 19293}
SEEN_BY_WORKER = SERVER.overlay.replace("127.77.", "127.81.")  # its own, on one loopback
LIFE = datetime.timedelta(seconds=4)
DAY = datetime.timedelta(days=1)


@contextlib.contextmanager
def echo() -> Iterator[None]:
    """A trainer stand-in that answers every message of every connection."""
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(100):
                connection.sendall(b"echo:" + data)

    with socket.create_server((SERVER.overlay, PORTS[Role.SERVER])) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connections.append(connection)
                    threads.append(threading.Thread(target=serve, args=(connection,)))
                    threads[-1].start()

        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join(timeout=5)
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads[1:]:
                thread.join(timeout=5)


class Tunnel:
    """One node's stunnel."""

    def __init__(self, root: Path, me: Peer, authority: Any, listener: tuple[str, int]) -> None:
        self.paths, self._me, self._authority = NodePaths(root), me, authority
        self.ended = self.issue(LIFE)
        config = stunnel_config(cluster="demo", me=me, rendezvous=RENDEZVOUS, ports=PORTS, paths=self.paths)
        if me is WORKER:
            config = config.replace("accept = 127.77.", "accept = 127.81.")
        write_private(self.paths.stunnel_config, config)
        with (root / "log").open("wb") as log:
            self.process = subprocess.Popen(["stunnel", str(self.paths.stunnel_config)], stderr=log)
        await_listener(*listener, "the tunnel", 5)

    def issue(self, life: datetime.timedelta) -> x509.Certificate:
        """Put another key and certificate in the place of the old ones."""
        fresh = self.paths.root / "fresh"
        self._authority.issue(fresh, self._me.role, self._me.instance_id, life)
        self.paths.tls.mkdir(parents=True, exist_ok=True)
        for path in fresh.iterdir():
            path.replace(self.paths.tls / path.name)
        return x509.load_pem_x509_certificate((self.paths.tls / "cert.pem").read_bytes())

    def renew(self) -> x509.Certificate:
        certificate = self.issue(DAY)
        self.process.send_signal(signal.SIGHUP)
        return certificate

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=5)


@pytest.fixture
def tunnels(authority: Any, tmp_path: Path) -> Iterator[tuple[Tunnel, Tunnel]]:
    """The server's and the worker's tunnels, with certificates that end in seconds."""
    if shutil.which("stunnel") is None:
        pytest.skip("stunnel is not installed: make tools")
    running: list[Tunnel] = []
    with echo():
        try:
            running.append(Tunnel(tmp_path / "s", SERVER, authority, (SERVER.address, PORTS[Role.SERVER])))
            running.append(Tunnel(tmp_path / "w", WORKER, authority, (SEEN_BY_WORKER, PORTS[Role.SERVER])))
            yield running[0], running[1]
        finally:
            for tunnel in running:
                tunnel.stop()


def connect() -> socket.socket:
    """Dial the server's trainer as the worker's trainer does, through both tunnels."""
    return socket.create_connection((SEEN_BY_WORKER, PORTS[Role.SERVER]), timeout=5)


def answers(connection: socket.socket, text: bytes) -> bool:
    try:
        connection.sendall(text)
        return connection.recv(100) == b"echo:" + text
    except OSError:
        return False


def new_connection_answers() -> bool:
    with contextlib.suppress(OSError), connect() as connection:
        return answers(connection, b"new")
    return False


def served_certificate(directory: Path) -> int | None:
    """Return the serial of the certificate that the server shows to a new connection; None if none comes about."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    name = node_name("demo", Role.SERVER, SERVER.instance_id)
    with contextlib.suppress(OSError):
        raw = socket.create_connection((SERVER.address, PORTS[Role.SERVER]), timeout=5)
        with raw, context.wrap_socket(raw, server_hostname=name) as connection:
            der = connection.getpeercert(binary_form=True)
            assert der
            return x509.load_der_x509_certificate(der).serial_number
    return None


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_renewal_keeps_the_connection_and_new_handshakes_use_the_new_certificate(
    tunnels: tuple[Tunnel, Tunnel], authority: Any, tmp_path: Path
) -> None:
    server, worker = tunnels
    authority.issue(tmp_path / "probe", Role.WORKER, WORKER.instance_id, DAY)
    with connect() as established:
        assert answers(established, b"before")
        assert served_certificate(tmp_path / "probe") == server.ended.serial_number
        # The certificates end. What is established goes on; nobody new gets in.
        until(lambda: datetime.datetime.now(datetime.UTC) > server.ended.not_valid_after_utc)
        until(lambda: not new_connection_answers())
        assert answers(established, b"after the end")
        renewed = server.renew()
        until(lambda: served_certificate(tmp_path / "probe") == renewed.serial_number)
        assert answers(established, b"after the server's reload")
        assert not new_connection_answers(), "the worker's own certificate has ended"
        worker.renew()
        until(new_connection_answers)
        assert answers(established, b"after both reloads")


def test_a_tunnel_whose_new_files_do_not_fit_goes_on_with_the_old_ones(
    tunnels: tuple[Tunnel, Tunnel], authority: Any, tmp_path: Path
) -> None:
    server, _ = tunnels
    server.issue(DAY)
    server.process.send_signal(signal.SIGHUP)
    authority.issue(tmp_path / "probe", Role.WORKER, WORKER.instance_id, DAY)
    current = x509.load_pem_x509_certificate((server.paths.tls / "cert.pem").read_bytes()).serial_number
    until(lambda: served_certificate(tmp_path / "probe") == current)
    authority.issue(tmp_path / "other", Role.SERVER, SERVER.instance_id, DAY)
    (tmp_path / "other/key.pem").replace(server.paths.tls / "key.pem")  # a key without its certificate
    before = (server.paths.root / "log").read_text()
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "Failed to reload" in (server.paths.root / "log").read_text()[len(before) :])
    assert served_certificate(tmp_path / "probe") == current
