"""Which CAs a node trusts: the first that it saw, and those that a trusted one vouches for. No I/O.

A CA is its name and its key. During a rotation the enrolment function's answer has two CAs and a voucher: a
certificate of the new CA's name and key that the old CA's key has signed (docs/ca-rotation.md). A node adds a CA on a
voucher by one that it trusts already, and on nothing else; it drops one that is no longer in the answer.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from holdfast_node.contract.errors import VerificationError
from holdfast_node.issued import check_authority


def trusted_authorities(
    pinned: Sequence[x509.Certificate],
    *,
    ca: x509.Certificate,
    other: x509.Certificate | None = None,
    voucher: x509.Certificate | None = None,
    now: datetime,
) -> list[x509.Certificate]:
    """Return what to trust from now on: the CA that signed this node's certificate, then the other one, if any.

    Args:
        pinned: what this node trusts so far; none if it has never enrolled.
        ca: the CA that signed.
        other: the second CA of a rotation.
        voucher: the old CA's word for the new one.
        now: the node's clock.

    Raises:
        VerificationError: a CA that is neither pinned nor vouched for by a pinned one, or that can't be a CA now.
    """
    wanted = [ca] if other is None else [ca, other]
    for authority in wanted:
        check_authority(authority, now)
        if pinned and not any(_same(authority, known) for known in pinned):
            _require_voucher(authority, pinned, voucher, now)
    return wanted


def load_authorities(pem: bytes) -> list[x509.Certificate]:
    """Return the CAs in a file that this node wrote; raise ValueError if there is none."""
    return x509.load_pem_x509_certificates(pem)


def bundle(authorities: Sequence[x509.Certificate]) -> bytes:
    """Return the CAs as one PEM file, as the tunnel reads it."""
    return b"".join(authority.public_bytes(Encoding.PEM) for authority in authorities)


def _require_voucher(
    authority: x509.Certificate,
    pinned: Sequence[x509.Certificate],
    voucher: x509.Certificate | None,
    now: datetime,
) -> None:
    seen = ", ".join(f"{known.fingerprint(SHA256()).hex()[:16]}…" for known in pinned)
    got = f"{authority.fingerprint(SHA256()).hex()[:16]}…"
    refusal = f"the cluster's CA must be the one that this node has seen before, SHA-256 {seen}, got {got}; "
    if voucher is None:
        raise VerificationError(
            f"{refusal}no CA that this node trusts vouches for it; if it was replaced on purpose, replace this node"
        )
    if not _same(voucher, authority):
        raise VerificationError(f"{refusal}the voucher in the answer is for another CA")
    if not any(_signed(voucher, known) for known in pinned):
        raise VerificationError(f"{refusal}the voucher in the answer is not by a CA that this node trusts")
    check_authority(voucher, now, self_signed=False)


def _same(one: x509.Certificate, other: x509.Certificate) -> bool:
    return one.subject == other.subject and _spki(one) == _spki(other)


def _signed(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
