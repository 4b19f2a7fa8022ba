"""An authority, certificates, and a running endpoint for tests: real TLS on loopback."""

import asyncio
import datetime
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast_node.contract.roles import NodeRole, Role, Serving, node_name, role_name, spiffe_id
from holdfast_node.predict.limits import RateLimiter
from holdfast_node.predict.service import Bounds, PredictionService, Served, bind
from holdfast_node.predict.tls import ServerTls

DAY = datetime.timedelta(days=1)
HOST = "127.0.0.1"


class Authority:
    """Gives certificates like the enrolment function's (certificates.py)."""

    def __init__(self, name: str = "demo CA") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        ca: list[tuple[x509.ExtensionType, bool]] = [(x509.BasicConstraints(True, 0), True), (_usage(ca=True), True)]
        self.certificate = self._sign(self.name, self.key.public_key(), ca, DAY)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        extensions: list[tuple[x509.ExtensionType, bool]],
        lifetime: datetime.timedelta,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)
            .not_valid_after(now + lifetime)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())

    def issue(
        self,
        directory: Path,
        role: NodeRole = Role.WORKER,
        instance_id: str = "i-0000000001",
        lifetime: datetime.timedelta = DAY,
    ) -> Path:
        """Write key.pem, cert.pem and ca.pem of one node to a directory and return it."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.DNSName(role_name("demo", role)),
            x509.DNSName(node_name("demo", role, instance_id)),
            x509.UniformResourceIdentifier(spiffe_id("demo", role, instance_id)),
        ]
        purposes = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(False, None), True),
            (_usage(ca=False), True),
            (x509.ExtendedKeyUsage(purposes), False),
            (x509.SubjectAlternativeName(names), False),
        ]
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, instance_id)])
        certificate = self._sign(subject, key.public_key(), extensions, lifetime)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "ca.pem").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (directory / "key.pem").write_bytes(private)
        (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return directory


def _usage(*, ca: bool) -> x509.KeyUsage:
    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only")
    off = dict.fromkeys((*names, "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **off)


def client_context(identity: Path | None, server_ca: Path, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Return a client's context: checks the server against the authority, by its role's name."""
    context = ssl.create_default_context(cafile=str(server_ca))
    if identity is not None:
        context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


@dataclass
class Client:
    """Speaks to the endpoint with one certificate."""

    port: int
    context: ssl.SSLContext
    name: str = role_name("demo", Serving.PREDICTOR)

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((HOST, self.port), timeout=10)
        try:
            return self.context.wrap_socket(plain, server_hostname=self.name)
        except BaseException:
            plain.close()
            raise

    def request(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        connection.sock = self.connect()
        try:
            connection.request(method, target, body, headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), dict(answer.getheaders())
        finally:
            connection.close()

    def predict(self, rows: Any) -> tuple[int, Any, dict[str, str]]:
        body = json.dumps({"data": rows}).encode()
        return self.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})

    def send(self, data: bytes) -> bytes:
        """Send raw bytes over TLS and return all that comes back until the end."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except (ConnectionError, ssl.SSLError):
        pass
    return received


@dataclass
class Endpoint:
    """A running endpoint with its authority and directory."""

    authority: Authority
    directory: Path
    port: int
    service: PredictionService
    lines: list[dict[str, Any]] = field(default_factory=list)

    def client(self, number: int = 1, **names: Any) -> Client:
        identity = self.directory / f"client-{number}"
        if not identity.exists():
            self.authority.issue(identity, instance_id=f"i-{number:010x}")
        return Client(self.port, client_context(identity, self.directory / "tls/ca.pem"), **names)


@contextmanager
def endpoint(
    directory: Path,
    served: Served,
    *,
    authority: Authority | None = None,
    bounds: Bounds | None = None,
    denied: Any = frozenset(),
    batch_rows: int = 4,
    rows_per_minute: int = 1_000_000,
    rows_per_day: int = 1_000_000,
) -> Iterator[Endpoint]:
    """Serve in a thread of this process; ended, with every connection, when the block ends."""
    authority = authority or Authority()
    tls = authority.issue(directory / "tls", Serving.PREDICTOR, "i-00000000ff")
    listener = bind(HOST, 0)
    service = PredictionService(
        served,
        ServerTls(tls, tls / "ca.pem"),
        RateLimiter(rows_per_minute=rows_per_minute, rows_per_day=rows_per_day),
        batch_rows=batch_rows,
        denied=denied,
        bounds=bounds,
    )
    loop = asyncio.new_event_loop()
    task = loop.create_task(service.serve(listener))

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield Endpoint(authority, directory, listener.getsockname()[1], service)
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(timeout=30)
        listener.close()
        assert not thread.is_alive()
