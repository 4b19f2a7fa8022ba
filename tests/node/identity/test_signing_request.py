"""A CSR is a P-256 key and its proof of possession, and nothing else."""

import base64
import hashlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID, NameOID
from identity_support import make_csr
from refusal import Refused
from signing_request import MAX_CSR_BYTES, parse

EMPTY = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem(csr: x509.CertificateSigningRequest) -> str:
    return csr.public_bytes(Encoding.PEM).decode()


def signed(builder: x509.CertificateSigningRequestBuilder) -> str:
    return pem(builder.sign(p256(), SHA256()))


def armour(der: bytes, kind: str = "CERTIFICATE REQUEST") -> str:
    return f"-----BEGIN {kind}-----\n{base64.encodebytes(der).decode()}-----END {kind}-----\n"


def flipped() -> str:
    der = bytearray(make_csr().public_bytes(Encoding.DER))
    der[-1] ^= 1
    return armour(bytes(der))


def key_swapped() -> str:
    """Somebody else's key in a CSR that they did not sign."""
    mine, theirs = p256(), p256()
    points = [key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for key in (mine, theirs)]
    return armour(make_csr(mine).public_bytes(Encoding.DER).replace(*points))


def test_an_empty_p256_request_is_accepted() -> None:
    key = p256()
    csr = make_csr(key)
    request = parse(pem(csr))
    assert request.public_key == key.public_key()
    assert request.sha256 == hashlib.sha256(csr.public_bytes(Encoding.DER)).hexdigest()


NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "scheduler.demo.holdfast")])
NAMED = x509.CertificateSigningRequestBuilder().subject_name(NAME)
SAN = x509.SubjectAlternativeName([x509.DNSName("scheduler.demo.holdfast")])
CA = x509.BasicConstraints(ca=True, path_length=None)
CHALLENGE = AttributeOID.CHALLENGE_PASSWORD
REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "RSA 1024": (lambda: pem(make_csr(rsa.generate_private_key(65537, 1024))), "must be EC P-256 (secp256r1), got RSA"),
    "RSA 2048": (lambda: pem(make_csr(rsa.generate_private_key(65537, 2048))), "must be EC P-256 (secp256r1), got RSA"),
    "DSA": (lambda: pem(make_csr(dsa.generate_private_key(2048))), "must be EC P-256 (secp256r1), got DSA"),
    "Ed25519": (lambda: pem(EMPTY.sign(ed25519.Ed25519PrivateKey.generate(), None)), "(secp256r1), got Ed25519"),
    "P-192": (lambda: pem(make_csr(ec.generate_private_key(ec.SECP192R1()))), "(secp256r1), got secp192r1"),
    "P-224": (lambda: pem(make_csr(ec.generate_private_key(ec.SECP224R1()))), "(secp256r1), got secp224r1"),
    "P-384": (lambda: pem(make_csr(ec.generate_private_key(ec.SECP384R1()))), "(secp256r1), got secp384r1"),
    "secp256k1": (lambda: pem(make_csr(ec.generate_private_key(ec.SECP256K1()))), "(secp256r1), got secp256k1"),
    "signed with SHA-384": (lambda: pem(EMPTY.sign(p256(), SHA384())), "signed by its own key with ECDSA and SHA-256"),
    "signature flipped": (flipped, "csr must be signed by its own key"),
    "another's key": (key_swapped, "csr must be signed by its own key"),
    "subject": (lambda: signed(NAMED), "got subject 'CN=scheduler.demo.holdfast'"),
    "SAN": (lambda: signed(EMPTY.add_extension(SAN, critical=False)), "extensions ['2.5.29.17']"),
    "CA": (lambda: signed(EMPTY.add_extension(CA, critical=True)), "extensions ['2.5.29.19']"),
    "attribute": (lambda: signed(EMPTY.add_attribute(CHALLENGE, b"x")), "1 attributes, extensions []"),
    "too long": (lambda: pem(make_csr()) + " " * MAX_CSR_BYTES, "at most 8192 bytes, got "),
    "not text": (lambda: None, "csr must be PEM text of at most 8192 bytes, got NoneType"),
    "bytes": (lambda: b"x", "got bytes"),
    "empty": (lambda: "", "exactly one PEM block of type CERTIFICATE REQUEST"),
    "two": (lambda: pem(make_csr()) + pem(make_csr()), "exactly one PEM block"),
    "old label": (lambda: armour(make_csr().public_bytes(Encoding.DER), "NEW CERTIFICATE REQUEST"), "exactly one PEM"),
    "text around it": (lambda: "hello\n" + pem(make_csr()), "exactly one PEM block"),
    "junk": (lambda: armour(b"\x30\x03junk"), "csr does not parse: ValueError"),
    "trailing bytes": (lambda: armour(make_csr().public_bytes(Encoding.DER) + b"\0"), "csr does not parse: ValueError"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(case: str) -> None:
    make, text = REFUSALS[case]
    with pytest.raises(Refused) as refusal:
        parse(make())
    assert (refusal.value.reason, text in str(refusal.value)) == ("bad_csr", True), str(refusal.value)
