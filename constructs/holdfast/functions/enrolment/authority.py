"""A generation of the cluster's certificate authority: a private key in KMS, its certificate in the jobs bucket.

The certificate is made on first use and never again: it is written with `If-None-Match: *`, so of two functions
that start together one wins and the other reads the winner's. A stored certificate that is not this key's is a
refusal, never a reason to make a new one.
"""

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError
from certificates import Issued, Node, ca_certificate, ca_subject, node_certificate
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from names import ca_certificate_key
from refusal import Reason, Refused

_MAX_CA_BYTES = 16384
#: S3 answers 404 for a missing key, or 403 to a caller without s3:ListBucket, which this function has for denials only.
_MAYBE_MISSING = frozenset({"NoSuchKey", "404", "AccessDenied", "403"})
#: S3's answers to a conditional write that lost: the object is there, or another write of it is under way.
_LOST_RACE = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})


class Authority:
    """Signs for one cluster. It keeps the public key and the certificate, once checked, in memory."""

    def __init__(
        self,
        *,
        kms: Any,
        s3: Any,
        key_id: str,
        bucket: str,
        cluster: str,
        log: Callable[[dict[str, Any]], None],
        generation: int = 1,
    ) -> None:
        self._kms, self._s3 = kms, s3
        self._key_id, self._bucket, self._cluster, self._generation = key_id, bucket, cluster, generation
        self._log = log
        self._public_key: ec.EllipticCurvePublicKey | None = None
        self._certificate: x509.Certificate | None = None

    def sign(self, message: bytes) -> bytes:
        """Return KMS's ECDSA-SHA256 signature of `message`, in DER."""
        signature: bytes = self._kms.sign(
            KeyId=self._key_id,
            Message=hashlib.sha256(message).digest(),
            MessageType="DIGEST",
            SigningAlgorithm="ECDSA_SHA_256",
        )["Signature"]
        return signature

    def issue(self, node: Node, lifetime: timedelta, now: datetime) -> Issued:
        """Return a node's certificate, signed by this CA.

        Raises:
            Refused: see `certificate`.
        """
        ca = self.certificate(now)
        certificate = node_certificate(node=node, ca=ca, lifetime=lifetime, now=now, sign=self.sign)
        return Issued(certificate=certificate, ca=ca)

    def certificate(self, now: datetime, *, may_make: bool = True) -> x509.Certificate:
        """Return the CA's certificate, making it if there is none yet and it `may_make` one.

        Raises:
            Refused: the stored certificate is not this cluster's CA (`ca_mismatch`), or has expired, or is missing.
        """
        if self._certificate is None:
            stored = self._read() or (self._mint(now) if may_make else None)
            if stored is None:
                raise Refused(
                    Reason.CA_MISMATCH, f"{self._where} is missing: it is the old CA's, which a rotation starts from"
                )
            self._certificate = self._checked(stored)
        if not self._certificate.not_valid_before_utc <= now < self._certificate.not_valid_after_utc:
            until = self._certificate.not_valid_after_utc.isoformat()
            raise Refused(Reason.CA_MISMATCH, f"the cluster's CA certificate is valid until {until} and not now")
        return self._certificate

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half of the key in KMS.

        Raises:
            Refused: the key is not an EC P-256 signing key.
        """
        if self._public_key is None:
            answer = self._kms.get_public_key(KeyId=self._key_id)
            kind = (answer.get("KeySpec"), answer.get("KeyUsage"))
            key = load_der_public_key(answer["PublicKey"])
            if kind != ("ECC_NIST_P256", "SIGN_VERIFY") or not isinstance(key, ec.EllipticCurvePublicKey):
                raise Refused(
                    Reason.CA_MISMATCH, f"the CA key must be ECC_NIST_P256 for SIGN_VERIFY, got {kind[0]} for {kind[1]}"
                )
            self._public_key = key
        return self._public_key

    @property
    def _object(self) -> str:
        return ca_certificate_key(self._generation)

    @property
    def _where(self) -> str:
        return f"s3://{self._bucket}/{self._object}"

    def _read(self) -> bytes | None:
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=self._object)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _MAYBE_MISSING:
                return None
            raise
        data: bytes = answer["Body"].read(_MAX_CA_BYTES + 1)
        return data

    def _mint(self, now: datetime) -> bytes:
        certificate = ca_certificate(
            cluster=self._cluster,
            public_key=self.public_key(),
            now=now,
            sign=self.sign,
            generation=self._generation,
        ).public_bytes(Encoding.PEM)
        try:
            self._s3.put_object(
                Bucket=self._bucket,
                Key=self._object,
                Body=certificate,
                ContentType="application/x-pem-file",
                IfNoneMatch="*",
            )
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _LOST_RACE:
                raise
            winner = self._read()
            if winner is None:  # still being written (409), or not readable: nothing is decided
                raise Refused(Reason.UNAVAILABLE, "the CA's certificate is being made; try again") from None
            return winner
        digest = hashlib.sha256(certificate).hexdigest()
        self._log({"event": "ca_created", "generation": self._generation, "sha256": digest})
        return certificate

    def _checked(self, pem: bytes) -> x509.Certificate:
        where = self._where
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            certificate.verify_directly_issued_by(certificate)
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
            raise Refused(Reason.CA_MISMATCH, f"{where} is not a CA certificate: {type(error).__name__}") from None
        theirs, ours = (
            hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
            for key in (certificate.public_key(), self.public_key())
        )
        if theirs != ours:
            raise Refused(
                Reason.CA_MISMATCH,
                f"{where} holds a certificate of another key (SHA-256 {theirs[:16]}…) than the cluster's CA key "
                f"({ours[:16]}…); nothing is signed until an operator finds out who replaced which",
            )
        if not constraints.ca or certificate.subject != ca_subject(self._cluster, self._generation):
            raise Refused(
                Reason.CA_MISMATCH, f"{where} is not the CA of cluster {self._cluster}: {_printable(certificate)}"
            )
        return certificate


def _printable(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:120]
