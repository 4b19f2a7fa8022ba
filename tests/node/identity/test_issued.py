"""A well-signed certificate that says anything else than it should is not used."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast_node.contract.errors import VerificationError
from holdfast_node.contract.roles import Role
from holdfast_node.issued import IssuedCertificate, check_issued

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
INSTANCE = "i-0123456789abcdef0"
CA_KEY, NODE_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
NAMES: list[x509.GeneralName] = [
    x509.DNSName("worker.demo.holdfast"),
    x509.DNSName(f"{INSTANCE}.worker.demo.holdfast"),
    x509.UniformResourceIdentifier(f"spiffe://demo/worker/{INSTANCE}"),
    x509.IPAddress(IPv4Address("10.20.0.7")),
]
TLS = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


def usage(*, signature: bool = True, cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(signature, False, False, False, False, cert_sign, False, False, False)


def build(*, subject: str, key: ec.EllipticCurvePrivateKey, extensions: dict[str, Any], life: int = 24) -> str:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(minutes=1))
        .not_valid_after(NOW + timedelta(hours=life))
    )
    for extension in extensions.values():
        if extension is not None:
            builder = builder.add_extension(extension, critical=False)
    return builder.sign(CA_KEY, SHA256()).public_bytes(Encoding.PEM).decode()


def node(subject: str = INSTANCE, **changes: Any) -> str:
    extensions = {
        "basic": x509.BasicConstraints(ca=False, path_length=None),
        "usage": usage(),
        "purposes": x509.ExtendedKeyUsage(TLS),
        "names": x509.SubjectAlternativeName(NAMES),
    }
    return build(subject=subject, key=NODE_KEY, extensions=extensions | changes)


def ca(*, life: int = 48, **changes: Any) -> str:
    extensions = {"basic": x509.BasicConstraints(ca=True, path_length=0), "usage": usage(cert_sign=True)}
    return build(subject="ca", key=CA_KEY, extensions=extensions | changes, life=life)


def check(certificate_pem: str, ca_pem: str, now: datetime = NOW) -> IssuedCertificate:
    return check_issued(
        certificate_pem=certificate_pem,
        ca_pem=ca_pem,
        key=NODE_KEY.public_key(),
        cluster="demo",
        role=Role.WORKER,
        instance_id=INSTANCE,
        now=now,
    )


def test_what_it_should_be_is_accepted() -> None:
    assert check(node(), ca()).address == "10.20.0.7"
    assert check(node(), ca(), NOW - timedelta(seconds=120)), "a function's clock may be a minute ahead"


def names(*entries: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(entries)


MUST_NAME = "the certificate must name ['worker.demo.holdfast', "
ONLY_TLS = "the certificate must be for digital signatures as TLS server and client, and no more"
NOT_A_CA = "the CA in the answer may not sign certificates"
REFUSALS: dict[str, tuple[str, str, str]] = {
    "leaf is a CA": (node(basic=x509.BasicConstraints(ca=True, path_length=None)), ca(), "must not be a CA's"),
    "leaf may sign certificates": (node(usage=usage(cert_sign=True)), ca(), ONLY_TLS),
    "leaf may not sign": (node(usage=usage(signature=False)), ca(), ONLY_TLS),
    "leaf is no client": (node(purposes=x509.ExtendedKeyUsage(TLS[:1])), ca(), ONLY_TLS),
    "leaf signs code": (node(purposes=x509.ExtendedKeyUsage([*TLS, ExtendedKeyUsageOID.CODE_SIGNING])), ca(), ONLY_TLS),
    "leaf has no purposes": (node(purposes=None), ca(), "has no valid ExtendedKeyUsage"),
    "leaf has no usage": (node(usage=None), ca(), "has no valid KeyUsage"),
    "leaf has no constraints": (node(basic=None), ca(), "has no valid BasicConstraints"),
    "leaf has no names": (node(names=None), ca(), "has no valid SubjectAlternativeName"),
    "one name too many": (node(names=names(*NAMES, x509.DNSName("server.demo.holdfast"))), ca(), MUST_NAME),
    "one name too few": (node(names=names(*NAMES[1:])), ca(), MUST_NAME),
    "a wildcard": (node(names=names(x509.DNSName("*.demo.holdfast"), *NAMES[1:])), ca(), MUST_NAME),
    "no address": (node(names=names(*NAMES[:3])), ca(), "and one address, got ["),
    "two addresses": (node(names=names(*NAMES, x509.IPAddress(IPv4Address("10.0.0.1")))), ca(), "and one address, got"),
    "another subject": (node("scheduler.demo.holdfast"), ca(), "for ['scheduler.demo.holdfast']"),
    "CA is none": (node(), ca(basic=x509.BasicConstraints(ca=False, path_length=None)), NOT_A_CA),
    "CA may not sign certificates": (node(), ca(usage=usage()), NOT_A_CA),
    "CA expired": (node(), ca(life=0), "the CA is valid from "),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(case: str) -> None:
    certificate, authority, text = REFUSALS[case]
    with pytest.raises(VerificationError) as error:
        check(certificate, authority)
    assert text in str(error.value), str(error.value)
