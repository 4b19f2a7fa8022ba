"""Checks a certificate that the enrolment function issued before anything uses it. No I/O."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast_node.contract.errors import VerificationError
from holdfast_node.contract.roles import NodeRole, node_name, role_name, spiffe_id

#: How far the function's clock may be ahead of this node's; the function backdates by as much.
CLOCK_TOLERANCE = timedelta(seconds=60)

E = TypeVar("E", bound=x509.ExtensionType)


@dataclass(frozen=True)
class IssuedCertificate:
    """A node's certificate and its CA's, checked."""

    certificate: x509.Certificate
    ca: x509.Certificate
    address: str


def check_issued(
    *,
    certificate_pem: str,
    ca_pem: str,
    key: ec.EllipticCurvePublicKey,
    cluster: str,
    role: NodeRole,
    instance_id: str,
    now: datetime,
) -> IssuedCertificate:
    """Return the certificates in the enrolment function's answer.

    They must be one each, for our key, with exactly our names and uses, signed by that CA, which may sign
    certificates, and valid now.

    Raises:
        VerificationError: anything else; the message says which.
    """
    certificate, ca = load_one(certificate_pem, "certificate"), load_one(ca_pem, "CA")
    check_authority(ca, now)
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise VerificationError("the certificate is not signed by the CA that came with it") from None
    if _spki(certificate) != key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        raise VerificationError("the certificate is for another key than this node's")
    address = _check_names(certificate, cluster, role, instance_id)
    if _extension(certificate, x509.BasicConstraints).ca:
        raise VerificationError("the certificate must not be a CA's")
    usage = _extension(certificate, x509.KeyUsage)
    purposes = set(_extension(certificate, x509.ExtendedKeyUsage))
    if not usage.digital_signature or usage.key_cert_sign or purposes != _PURPOSES:
        raise VerificationError("the certificate must be for digital signatures as TLS server and client, and no more")
    _check_time(certificate, "certificate", now)
    return IssuedCertificate(certificate=certificate, ca=ca, address=address)


_PURPOSES = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def load_one(pem: str, what: str) -> x509.Certificate:
    """Return the one certificate in `pem`; raise VerificationError if there is not exactly one."""
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise VerificationError(f"the {what} in the answer must be one certificate in PEM") from None
    return certificate


def check_authority(ca: x509.Certificate, now: datetime, *, self_signed: bool = True) -> None:
    """Raise VerificationError unless `ca` may sign certificates, is valid now, and is self-signed if it must be."""
    try:
        if self_signed:
            ca.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise VerificationError("the CA in the answer is not self-signed") from None
    if not _extension(ca, x509.BasicConstraints).ca or not _extension(ca, x509.KeyUsage).key_cert_sign:
        raise VerificationError("the CA in the answer may not sign certificates")
    _check_time(ca, "CA", now)


def _check_time(certificate: x509.Certificate, what: str, now: datetime) -> None:
    if not certificate.not_valid_before_utc - CLOCK_TOLERANCE <= now < certificate.not_valid_after_utc:
        span = f"{certificate.not_valid_before_utc.isoformat()} to {certificate.not_valid_after_utc.isoformat()}"
        raise VerificationError(
            f"the {what} is valid from {span}, and this node's clock says {now.isoformat()}; "
            "check the node's time synchronisation"
        )


def _check_names(certificate: x509.Certificate, cluster: str, role: NodeRole, instance_id: str) -> str:
    names = _extension(certificate, x509.SubjectAlternativeName)
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    expected: list[x509.GeneralName] = [
        x509.DNSName(role_name(cluster, role)),
        x509.DNSName(node_name(cluster, role, instance_id)),
        x509.UniformResourceIdentifier(spiffe_id(cluster, role, instance_id)),
    ]
    others = [name for name in names if not isinstance(name, x509.IPAddress)]
    common = [str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if others != expected or len(addresses) != 1 or common != [instance_id]:
        got = [str(name.value) for name in names]
        wanted = [str(name.value) for name in expected]
        raise VerificationError(f"the certificate must name {wanted} and one address, got {got} for {common}")
    return addresses[0]


def _extension(certificate: x509.Certificate, kind: type[E]) -> E:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        raise VerificationError(f"a certificate in the answer has no valid {kind.__name__}") from None


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
