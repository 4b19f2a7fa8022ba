"""What a certificate holds, exactly, and that OpenSSL and stunnel's library see it the same way."""

import shutil
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from certificates import Node, ca_certificate, node_certificate
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, SignatureAlgorithmOID

NOW = datetime(2026, 11, 22, 12, 0, 0, 654321, tzinfo=UTC)
INSTANCE = "i-0123456789abcdef0"


class Ca:
    def __init__(self, cluster: str = "demo", now: datetime = NOW) -> None:
        self.cluster, self.key = cluster, ec.generate_private_key(ec.SECP256R1())
        self.certificate = ca_certificate(cluster=cluster, public_key=self.key.public_key(), now=now, sign=self.sign)

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, ec.ECDSA(SHA256()))

    def node(self, **changes: Any) -> x509.Certificate:
        values: dict[str, Any] = {
            "cluster": self.cluster,
            "role": "worker",
            "instance_id": INSTANCE,
            "address": IPv4Address("10.20.0.7"),
            "public_key": ec.generate_private_key(ec.SECP256R1()).public_key(),
            "ca": self.certificate,
            "lifetime": timedelta(hours=24),
            "csr": b"",
            "now": NOW,
            "sign": self.sign,
        } | changes
        how = {name: values.pop(name) for name in ("ca", "lifetime", "now", "sign")}
        return node_certificate(node=Node(**values), **how)


def extensions(certificate: x509.Certificate) -> dict[x509.ObjectIdentifier, tuple[bool, x509.ExtensionType]]:
    return {extension.oid: (extension.critical, extension.value) for extension in certificate.extensions}


def usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)


def test_a_node_certificate_holds_exactly_this() -> None:
    ca, key = Ca(), ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = ca.node(public_key=key)
    assert certificate.version is x509.Version.v3
    assert certificate.subject.rfc4514_string() == f"CN={INSTANCE},O=demo"
    assert certificate.issuer == ca.certificate.subject
    assert certificate.public_key() == key
    assert certificate.not_valid_before_utc == datetime(2026, 11, 22, 11, 59, 0, tzinfo=UTC)
    assert certificate.not_valid_after_utc == datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
    assert certificate.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256
    assert extensions(certificate) == {
        ExtensionOID.BASIC_CONSTRAINTS: (True, x509.BasicConstraints(ca=False, path_length=None)),
        ExtensionOID.KEY_USAGE: (True, usage(ca=False)),
        ExtensionOID.EXTENDED_KEY_USAGE: (
            False,
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        ),
        ExtensionOID.SUBJECT_KEY_IDENTIFIER: (False, x509.SubjectKeyIdentifier.from_public_key(key)),
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER: (
            False,
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()),
        ),
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME: (
            False,
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("worker.demo.holdfast"),
                    x509.DNSName(f"{INSTANCE}.worker.demo.holdfast"),
                    x509.UniformResourceIdentifier(f"spiffe://demo/worker/{INSTANCE}"),
                    x509.IPAddress(IPv4Address("10.20.0.7")),
                ]
            ),
        ),
    }


def test_a_ca_certificate_holds_exactly_this() -> None:
    ca = Ca()
    certificate = ca.certificate
    assert certificate.subject.rfc4514_string() == "CN=demo cluster CA,O=demo"
    assert certificate.issuer == certificate.subject
    assert certificate.not_valid_after_utc == NOW.replace(microsecond=0) + timedelta(days=3650)
    permitted = [x509.DNSName("demo.holdfast"), x509.UniformResourceIdentifier("demo")]
    assert extensions(certificate) == {
        ExtensionOID.BASIC_CONSTRAINTS: (True, x509.BasicConstraints(ca=True, path_length=0)),
        ExtensionOID.KEY_USAGE: (True, usage(ca=True)),
        ExtensionOID.NAME_CONSTRAINTS: (True, x509.NameConstraints(permitted, None)),
        ExtensionOID.SUBJECT_KEY_IDENTIFIER: (False, x509.SubjectKeyIdentifier.from_public_key(ca.key.public_key())),
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER: (
            False,
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()),
        ),
    }


def test_serial_numbers_are_random() -> None:
    ca = Ca()
    serials = {ca.node().serial_number for _ in range(8)}
    assert len(serials) == 8
    assert all(1 << 64 < serial < 1 << 159 for serial in serials)


def test_a_node_certificate_never_outlives_its_ca() -> None:
    ca = Ca(now=NOW - timedelta(days=3649, hours=12))
    assert ca.node().not_valid_after_utc == ca.certificate.not_valid_after_utc


def test_a_signature_by_another_key_is_never_returned() -> None:
    with pytest.raises(InvalidSignature):
        Ca().node(sign=Ca().sign)


# --- what the tunnel's library thinks ---


def openssl(*arguments: str | Path, text: str = "") -> str:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], input=text, capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout + done.stderr


def write(directory: Path, name: str, certificate: x509.Certificate) -> Path:
    path = directory / f"{name}.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


def verify(directory: Path, ca: x509.Certificate, leaf: x509.Certificate, *options: str) -> str:
    paths = write(directory, "ca", ca), write(directory, "leaf", leaf)
    return openssl("verify", "-x509_strict", "-CAfile", paths[0], *options, paths[1])


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
@pytest.mark.parametrize("name", ["worker.demo.holdfast", f"{INSTANCE}.worker.demo.holdfast"])
def test_openssl_accepts_the_chain_and_the_names(tmp_path: Path, purpose: str, name: str) -> None:
    ca = Ca(now=datetime.now(UTC))
    output = verify(
        tmp_path, ca.certificate, ca.node(now=datetime.now(UTC)), "-purpose", purpose, "-verify_hostname", name
    )
    assert output.endswith("leaf.pem: OK\n"), output


OPENSSL_REFUSALS = {
    "another role's name": ({}, ["-verify_hostname", "server.demo.holdfast"], "hostname mismatch"),
    "another node's name": ({}, ["-verify_hostname", "i-0f.worker.demo.holdfast"], "hostname mismatch"),
    "another cluster's DNS name": ({"cluster": "prod"}, [], "permitted subtree violation"),
    "expired": ({"now": datetime.now(UTC) - timedelta(hours=25)}, [], "certificate has expired"),
    "not yet valid": ({"now": datetime.now(UTC) + timedelta(hours=1)}, [], "certificate is not yet valid"),
}


@pytest.mark.parametrize("case", OPENSSL_REFUSALS)
def test_openssl_refuses(tmp_path: Path, case: str) -> None:
    changes, options, text = OPENSSL_REFUSALS[case]
    ca = Ca(now=datetime.now(UTC) - timedelta(days=2))
    output = verify(tmp_path, ca.certificate, ca.node(**{"now": datetime.now(UTC)} | changes), *options)
    assert text in output, output


def test_openssl_refuses_a_ca_of_the_same_name_with_another_key(tmp_path: Path) -> None:
    ca, forged = Ca(now=datetime.now(UTC)), Ca(now=datetime.now(UTC))
    output = verify(tmp_path, ca.certificate, forged.node(now=datetime.now(UTC)))
    assert "verification failed" in output, output


def test_openssl_refuses_a_certificate_signed_by_a_node(tmp_path: Path) -> None:
    ca = Ca(now=datetime.now(UTC))
    key = ec.generate_private_key(ec.SECP256R1())
    node = ca.node(now=datetime.now(UTC), public_key=key.public_key())
    child = ca.node(now=datetime.now(UTC), ca=node, sign=lambda message: key.sign(message, ec.ECDSA(SHA256())))
    output = openssl(
        "verify",
        "-CAfile",
        write(tmp_path, "ca", ca.certificate),
        "-untrusted",
        write(tmp_path, "node", node),
        write(tmp_path, "child", child),
    )
    assert "verification failed" in output, output


@pytest.mark.skipif(shutil.which("stunnel") is None, reason="stunnel is not installed")
@pytest.mark.parametrize(("expected", "accepted"), [("server.demo.holdfast", True), ("scheduler.demo.holdfast", False)])
def test_stunnel_accepts_the_role_it_checks_and_no_other(tmp_path: Path, expected: str, accepted: bool) -> None:
    ca = Ca(now=datetime.now(UTC))
    write(tmp_path, "ca", ca.certificate)
    for role in ("worker", "server"):
        key = ec.generate_private_key(ec.SECP256R1())
        node = ca.node(role=role, now=datetime.now(UTC), public_key=key.public_key())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + node.public_bytes(Encoding.PEM)
        (tmp_path / f"{role}.pem").write_bytes(pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tmp_path / "server.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(10)
        (tmp_path / "stunnel.conf").write_text(
            f"foreground = yes\npid =\nsyslog = no\ndebug = 5\nsslVersion = TLSv1.3\nclient = yes\n"
            f"cert = {tmp_path}/worker.pem\nCAfile = {tmp_path}/ca.pem\nverifyChain = yes\ncheckHost = {expected}\n"
            f"connect = 127.0.0.1:{listener.getsockname()[1]}\n"
        )
        peer = pool.submit(greet, listener, context)
        done = subprocess.run(  # without a service section stunnel carries its own standard input and output
            ["stunnel", tmp_path / "stunnel.conf"], input=b"", capture_output=True, timeout=20, check=False
        )
        assert (done.stdout == b"welcome") is accepted, done.stderr.decode()
        assert ("Subject checks failed" in done.stderr.decode()) is not accepted, done.stderr.decode()
        assert (peer.result(timeout=10) == [f"{INSTANCE}.worker.demo.holdfast"]) is accepted


def greet(listener: socket.socket, context: ssl.SSLContext) -> list[str]:
    """Accept one client, greet it, and return the node name in its certificate."""
    connection, _ = listener.accept()
    connection.settimeout(10)
    try:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(b"welcome")
            names = tls.getpeercert() or {}
            tls.unwrap()
            return [str(v) for k, v in names["subjectAltName"] if k == "DNS" and str(v).startswith("i-")]  # type: ignore[misc]
    except OSError:
        return []
