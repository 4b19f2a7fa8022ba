"""The contents of the two kinds of certificate, and how they are signed by a key that is not here.

Profile: RFC 5280 section 4.2, and the SPIFFE X.509-SVID specification (one URI SAN, leaf with digitalSignature
only). Nothing here does I/O: `sign` is the edge that asks KMS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from names import DOMAIN, node_name, role_name, spiffe_id

#: Maps a message to its DER-encoded ECDSA-SHA256 signature by the CA's key.
Sign = Callable[[bytes], bytes]

CA_LIFETIME = timedelta(days=3650)
BACKDATE = timedelta(seconds=60)  # peers' clocks may be behind the function's
PURPOSES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")  # AlgorithmIdentifier, RFC 5758 section 3.2


@dataclass(frozen=True)
class Node:
    """Who asks for a certificate, in AWS's words, and the key that it is for."""

    cluster: str
    role: str
    instance_id: str
    address: IPv4Address
    public_key: ec.EllipticCurvePublicKey
    csr: bytes

    @property
    def names(self) -> list[x509.GeneralName]:
        """The subject's alternative names, in the order that they have in a certificate."""
        return [
            x509.DNSName(role_name(self.cluster, self.role)),
            x509.DNSName(node_name(self.cluster, self.role, self.instance_id)),
            x509.UniformResourceIdentifier(spiffe_id(self.cluster, self.role, self.instance_id)),
            x509.IPAddress(self.address),
        ]


@dataclass(frozen=True)
class Issued:
    """A node's certificate, the CA that signed it, and during a rotation the other trusted CA and the voucher."""

    certificate: x509.Certificate
    ca: x509.Certificate
    trusted: x509.Certificate | None = None
    voucher: x509.Certificate | None = None


def ca_subject(cluster: str, generation: int = 1) -> x509.Name:
    """Return the subject of a generation of a cluster's CA."""
    return _name(f"{cluster} cluster CA" + (f" {generation}" if generation > 1 else ""), cluster)


def ca_certificate(
    *, cluster: str, public_key: ec.EllipticCurvePublicKey, now: datetime, sign: Sign, generation: int = 1
) -> x509.Certificate:
    """Return a self-signed CA certificate that can only sign leaves, and only in this cluster's names.

    The permitted names (RFC 5280 section 4.2.1.10) are DNS names below `<cluster>.holdfast` and URIs of the host
    `<cluster>`, the SPIFFE trust domain: should a peer's store ever hold the CA for something else, it proves nothing.
    """
    subject = ca_subject(cluster, generation)
    builder = _builder(subject, subject, public_key, now - BACKDATE, now + CA_LIFETIME, public_key)
    return _issue(_as_authority(builder, cluster), public_key, sign)


def voucher(
    *, cluster: str, new: x509.Certificate, old: x509.Certificate, now: datetime, sign: Sign
) -> x509.Certificate:
    """Return the old CA's word for the new one: a CA certificate with the new one's subject and key, signed by the old.

    Nodes that have pinned the old CA accept the new one on it (docs/ca-rotation.md). No chain is ever built with it:
    the old CA's path length is 0.
    """
    new_key, old_key = _ec_key(new), _ec_key(old)
    not_after = min(new.not_valid_after_utc, old.not_valid_after_utc)
    builder = _builder(new.subject, old.subject, new_key, now - BACKDATE, not_after, old_key)
    return _issue(_as_authority(builder, cluster), old_key, sign)


def _as_authority(builder: x509.CertificateBuilder, cluster: str) -> x509.CertificateBuilder:
    permitted = [x509.DNSName(f"{cluster}.{DOMAIN}"), x509.UniformResourceIdentifier(cluster)]
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None), critical=True)
    )


def node_certificate(
    *, node: Node, ca: x509.Certificate, lifetime: timedelta, now: datetime, sign: Sign
) -> x509.Certificate:
    """Return the certificate of one node, valid from a minute ago for `lifetime`, never beyond its CA's."""
    ca_key = _ec_key(ca)
    not_after = min(now + lifetime, ca.not_valid_after_utc)
    subject = _name(node.instance_id, node.cluster)
    builder = (
        _builder(subject, ca.subject, node.public_key, now - BACKDATE, not_after, ca_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(PURPOSES), critical=False)
        .add_extension(x509.SubjectAlternativeName(node.names), critical=False)
    )
    return _issue(builder, ca_key, sign)


def _ec_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError(f"the CA's key must be an EC key, got {type(key).__name__}")
    return key


def _name(common_name: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before.replace(microsecond=0))
        .not_valid_after(not_after.replace(microsecond=0))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _issue(builder: x509.CertificateBuilder, ca_key: ec.EllipticCurvePublicKey, sign: Sign) -> x509.Certificate:
    """Sign what `builder` describes with a key that only `sign` can use, and verify the result with `ca_key`.

    The library can only sign with a key that it holds. So a throw-away key of the same algorithm signs first; the
    part that is signed (TBSCertificate, RFC 5280 section 4.1) is kept and the signature replaced.
    """
    draft = builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    signed_part = draft.tbs_certificate_bytes
    signature = _der(0x03, b"\x00" + sign(signed_part))  # BIT STRING with no unused bits
    certificate = x509.load_der_x509_certificate(_der(0x30, signed_part + _ECDSA_WITH_SHA256 + signature))
    ca_key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(SHA256()))
    return certificate


def _der(tag: int, content: bytes) -> bytes:
    """Return a DER element (X.690 sections 8.1.2 and 10.1): tag, definite length in its shortest form, content."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
