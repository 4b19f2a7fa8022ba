"""An existing AWS Private CA in the place of a key of the cluster's own.

The node's names come from here and not from its CSR: the template takes the subject and the extensions from the API
call and ignores the CSR's (AWS Private CA user guide, "BlankEndEntityCertificate_APIPassthrough/V1 definition"). What
comes back is checked like something that a stranger sent.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError
from certificates import BACKDATE, PURPOSES, Issued, Node
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID
from refusal import Reason, Refused

TEMPLATE = "template/BlankEndEntityCertificate_APIPassthrough/V1"
#: GetCertificate answers RequestInProgressException until the certificate is there, usually for less than a second.
ATTEMPTS, WAIT_SECONDS = 12, 0.5
#: What a certificate may hold: the profile's extensions, and where AWS tells about revocation.
_EXTENSIONS = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    ExtensionOID.AUTHORITY_INFORMATION_ACCESS,
}


class PrivateAuthority:
    """Has an AWS Private CA sign; it keeps the CA's certificate, once checked, in memory."""

    def __init__(self, *, pca: Any, arn: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._pca, self._arn, self._sleep = pca, arn, sleep
        self._certificate: x509.Certificate | None = None

    def issue(self, node: Node, lifetime: timedelta, now: datetime) -> Issued:
        """Return a node's certificate, signed by the private CA.

        Raises:
            Refused: the CA is not a root (`ca_mismatch`), what it issued is not what was asked for (`ca_mismatch`), or
                it did not answer in time (`unavailable`).
        """
        ca = self._authority()
        not_after = min(now + lifetime, ca.not_valid_after_utc)
        issued = self._pca.issue_certificate(
            CertificateAuthorityArn=self._arn,
            Csr=node.csr,
            SigningAlgorithm=_algorithm(ca),
            TemplateArn=f"arn:{self._arn.split(':')[1]}:acm-pca:::{TEMPLATE}",
            Validity={"Type": "ABSOLUTE", "Value": int(not_after.timestamp())},
            ValidityNotBefore={"Type": "ABSOLUTE", "Value": int((now - BACKDATE).timestamp())},
            ApiPassthrough=_profile(node),
        )
        certificate = self._fetch(issued["CertificateArn"])
        _require_profile(certificate, node, ca, not_after)
        return Issued(certificate=certificate, ca=ca)

    def _authority(self) -> x509.Certificate:
        if self._certificate is None:
            answer = self._pca.get_certificate_authority_certificate(CertificateAuthorityArn=self._arn)
            certificate = _load(answer["Certificate"], "the private CA's certificate")
            try:
                certificate.verify_directly_issued_by(certificate)
                constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
                constraints = None
            if constraints is None or not constraints.ca:
                raise Refused(
                    Reason.CA_MISMATCH,
                    f"private_ca_arn must be a root CA, got {_printable(certificate)}, which another CA has signed: "
                    "nodes would have to trust that one too, for all that it signs",
                )
            self._certificate = certificate
        return self._certificate

    def _fetch(self, certificate_arn: str) -> x509.Certificate:
        for _ in range(ATTEMPTS):
            try:
                answer = self._pca.get_certificate(CertificateAuthorityArn=self._arn, CertificateArn=certificate_arn)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != "RequestInProgressException":
                    raise
                self._sleep(WAIT_SECONDS)
                continue
            return _load(answer["Certificate"], "what the private CA issued")
        seconds = ATTEMPTS * WAIT_SECONDS
        raise Refused(Reason.UNAVAILABLE, f"the private CA did not issue within {seconds:.0f} s; try again")


def _profile(node: Node) -> dict[str, Any]:
    role, own, uri, address = (str(name.value) for name in node.names)
    return {
        "Subject": {"Organization": node.cluster, "CommonName": node.instance_id},
        "Extensions": {
            "KeyUsage": {"DigitalSignature": True},
            "ExtendedKeyUsage": [
                {"ExtendedKeyUsageType": "SERVER_AUTH"},
                {"ExtendedKeyUsageType": "CLIENT_AUTH"},
            ],
            "SubjectAlternativeNames": [
                {"DnsName": role},
                {"DnsName": own},
                {"UniformResourceIdentifier": uri},
                {"IpAddress": address},
            ],
        },
    }


def _require_profile(certificate: x509.Certificate, node: Node, ca: x509.Certificate, not_after: datetime) -> None:
    """Refuse a certificate that says anything but what was asked for."""
    try:
        certificate.verify_directly_issued_by(ca)
        extensions = certificate.extensions
        found = {extension.oid for extension in extensions}
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise _mismatch(f"{type(error).__name__}") from None
    only_digital_signature = usage.digital_signature and not (
        usage.content_commitment
        or usage.key_encipherment
        or usage.data_encipherment
        or usage.key_agreement
        or usage.key_cert_sign
        or usage.crl_sign
    )
    checks = {
        "key": _spki(certificate) == _bytes(node.public_key),
        "names": names == node.names,
        "subject": [str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        == [node.instance_id],
        "basic constraints": not constraints.ca,
        "key usage": only_digital_signature,
        "purposes": set(purposes) == set(PURPOSES),
        "extensions": found <= _EXTENSIONS,
        "life": certificate.not_valid_after_utc <= not_after,
    }
    if wrong := [what for what, right in checks.items() if not right]:
        raise _mismatch(", ".join(wrong))


def _mismatch(what: str) -> Refused:
    return Refused(
        Reason.CA_MISMATCH, f"the private CA issued something else than it was asked for ({what}); it is not used"
    )


def _algorithm(ca: x509.Certificate) -> str:
    """Return the signing algorithm of the CA's key's family, which is the only one that IssueCertificate takes."""
    key = ca.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return "SHA256WITHRSA"
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _ECDSA:
        return _ECDSA[key.curve.name]
    raise Refused(
        Reason.CA_MISMATCH, f"the private CA's key must be RSA or ECDSA ({', '.join(_ECDSA)}), got {type(key).__name__}"
    )


_ECDSA = {"secp256r1": "SHA256WITHECDSA", "secp384r1": "SHA384WITHECDSA", "secp521r1": "SHA512WITHECDSA"}


def _load(pem: str, what: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        raise Refused(Reason.CA_MISMATCH, f"{what} is not a certificate in PEM") from None


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _printable(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:120]
