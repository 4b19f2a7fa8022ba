"""The certificate signing request: a public key, and the proof that the caller holds its private half.

A node asks for no name, extension or attribute: every name comes from STS. Whatever else a CSR holds is refused, so
that nothing in it can ever reach a certificate by mistake.
"""

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from refusal import Reason, Refused

MAX_CSR_BYTES = 8192
_BEGIN, _END = "-----BEGIN CERTIFICATE REQUEST-----", "-----END CERTIFICATE REQUEST-----"


@dataclass(frozen=True)
class SigningRequest:
    """A checked CSR: its P-256 public key, its PEM, and the SHA-256 (hex) of its DER that the proof is bound to."""

    public_key: ec.EllipticCurvePublicKey
    pem: bytes
    sha256: str


def parse(pem: object) -> SigningRequest:
    """Return the request in `pem`, checked.

    Raises:
        Refused: not one PEM block of at most 8 KiB, a key that is not P-256, a signature that does not verify, or
            a subject, extension or attribute.
    """
    if not isinstance(pem, str) or len(pem) > MAX_CSR_BYTES:
        size = f"{len(pem)} characters" if isinstance(pem, str) else type(pem).__name__
        raise Refused(Reason.BAD_CSR, f"csr must be PEM text of at most {MAX_CSR_BYTES} bytes, got {size}")
    text = pem.strip()
    if not (text.startswith(_BEGIN) and text.endswith(_END) and text.count("-----BEGIN") == 1):
        raise Refused(Reason.BAD_CSR, "csr must be exactly one PEM block of type CERTIFICATE REQUEST")
    try:
        csr = x509.load_pem_x509_csr(text.encode())
        key, attributes, algorithm = csr.public_key(), len(csr.attributes), csr.signature_hash_algorithm
        subject, extensions = csr.subject, [extension.oid.dotted_string for extension in csr.extensions]
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise Refused(Reason.BAD_CSR, f"csr does not parse: {type(error).__name__}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__.strip("_")
        raise Refused(Reason.BAD_CSR, f"csr key must be EC P-256 (secp256r1), got {kind}")
    if not isinstance(algorithm, SHA256) or not csr.is_signature_valid:
        raise Refused(Reason.BAD_CSR, "csr must be signed by its own key with ECDSA and SHA-256")
    if extensions or attributes or subject.rdns:
        message = f"csr must ask for nothing (names come from AWS), got subject {subject.rfc4514_string()[:80]!r}, "
        raise Refused(Reason.BAD_CSR, message + f"{attributes} attributes, extensions {extensions[:8]}")
    digest = hashlib.sha256(csr.public_bytes(Encoding.DER)).hexdigest()
    return SigningRequest(public_key=key, pem=csr.public_bytes(Encoding.PEM), sha256=digest)
