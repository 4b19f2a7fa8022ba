"""A throw-away certificate authority for tests of the wire."""

import datetime
import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast_node.contract.roles import Role, node_name, role_name

DAY = datetime.timedelta(days=1)


class Authority:
    """Signs node certificates like the enrolment function's; everything about them can be made wrong."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "demo CA")])
        self.certificate = self._sign(self.name, self.key.public_key(), [x509.BasicConstraints(True, 0)], DAY)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        extensions: list[x509.ExtensionType],
        lifetime: datetime.timedelta,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().issuer_name(self.name).subject_name(subject).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - DAY * 2).not_valid_after(now + lifetime)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, directory: Path, role: Role, instance_id: str, lifetime: datetime.timedelta = DAY) -> None:
        """Write key.pem, cert.pem and ca.pem of one node."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(role_name("demo", role)), x509.DNSName(node_name("demo", role, instance_id))]
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, instance_id)])
        extensions: list[x509.ExtensionType] = [
            x509.BasicConstraints(False, None),
            x509.SubjectAlternativeName([*names, x509.IPAddress(ipaddress.ip_address("10.0.0.1"))]),
        ]
        certificate = self._sign(subject, key.public_key(), extensions, lifetime)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / "ca.pem").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (directory / "key.pem").touch(mode=0o600)
        (directory / "key.pem").write_bytes(private)


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def new_authority() -> Callable[[], Authority]:
    return Authority
