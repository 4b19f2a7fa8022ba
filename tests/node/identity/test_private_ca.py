"""An AWS Private CA in the place of the cluster's own: what is asked for, and what is believed.

The machine has no AWS Private CA. `Pca` stands in for its client: it checks requests with botocore's own model of the
service and really signs, from the API's passthrough as the template documents; the names and times are its words.
"""

import hashlib
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import boto3
import pytest
from botocore.validate import ParamValidator
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from identity_support import ADDRESS, CLUSTER, INSTANCE, REGION, World, client_error
from private_ca import PrivateAuthority

from holdfast_node.contract.roles import Role
from holdfast_node.issued import check_issued

ARN = "arn:aws:acm-pca:eu-central-1:111122223333:certificate-authority/12345678-1234-1234-1234-123456789012"
DAY = timedelta(days=1)
MODEL = boto3.Session("a", "b", region_name=REGION).client("acm-pca").meta.service_model
_PURPOSES = {"SERVER_AUTH": ExtendedKeyUsageOID.SERVER_AUTH, "CLIENT_AUTH": ExtendedKeyUsageOID.CLIENT_AUTH}


def organisation(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


class Pca:
    """A root CA in AWS Private CA; every part of what it issues can be made wrong."""

    def __init__(self, key: Any = None, parent: "Pca | None" = None) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = organisation("An organisation's root" if parent is None else "A subordinate")
        issuer = parent or self
        self.root = self._sign(
            issuer.name,
            issuer.key,
            x509.CertificateBuilder().subject_name(self.name).public_key(self.key.public_key()),
            [
                x509.BasicConstraints(True, 0),
                x509.KeyUsage(False, False, False, False, False, True, True, False, False),
            ],
            datetime.now(UTC) - DAY,
            datetime.now(UTC) + 365 * DAY,
        )
        self.requests: list[dict[str, Any]] = []
        self.issued: dict[str, x509.Certificate] = {}
        self.pending = 0
        self.wrong: dict[str, Any] = {}

    def _sign(
        self,
        issuer: x509.Name,
        key: Any,
        builder: x509.CertificateBuilder,
        extensions: list[x509.ExtensionType],
        start: datetime,
        end: datetime,
    ) -> x509.Certificate:
        builder = builder.issuer_name(issuer).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(start).not_valid_after(end)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(key, SHA384() if getattr(key, "key_size", 0) == 384 else SHA256())

    def _check(self, operation: str, request: dict[str, Any]) -> None:
        shape = MODEL.operation_model(operation).input_shape
        assert shape
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), report.generate_report()

    def get_certificate_authority_certificate(self, **request: Any) -> dict[str, str]:
        self._check("GetCertificateAuthorityCertificate", request)
        return {"Certificate": self.root.public_bytes(Encoding.PEM).decode()}

    def issue_certificate(self, **request: Any) -> dict[str, str]:
        self._check("IssueCertificate", request)
        assert request["TemplateArn"] == "arn:aws:acm-pca:::template/BlankEndEntityCertificate_APIPassthrough/V1"
        self.requests.append(request)
        csr = x509.load_pem_x509_csr(request["Csr"])
        assert csr.is_signature_valid
        given = request["ApiPassthrough"] | self.wrong
        extensions: dict[str, Any] = given["Extensions"]
        kinds: dict[str, Any] = {
            "DnsName": x509.DNSName,
            "UniformResourceIdentifier": x509.UniformResourceIdentifier,
            "IpAddress": lambda text: x509.IPAddress(ip_address(text)),
        }
        names = [kinds[kind](text) for name in extensions["SubjectAlternativeNames"] for kind, text in name.items()]
        usage = extensions["KeyUsage"]
        flags = ("DigitalSignature", "NonRepudiation", "KeyEncipherment", "DataEncipherment", "KeyAgreement")
        flags += ("KeyCertSign", "CRLSign", "EncipherOnly", "DecipherOnly")
        purposes = [_PURPOSES[item["ExtendedKeyUsageType"]] for item in extensions["ExtendedKeyUsage"]]
        key = self.wrong.get("key", csr.public_key())
        certificate = self._sign(
            self.name,
            self.wrong.get("signer", self.key),
            x509.CertificateBuilder().subject_name(organisation(given["Subject"]["CommonName"])).public_key(key),
            [
                x509.BasicConstraints(self.wrong.get("ca", False), None),
                x509.KeyUsage(*(usage.get(flag, False) for flag in flags)),
                x509.ExtendedKeyUsage(purposes),
                x509.SubjectAlternativeName(names),
                *self.wrong.get("more", []),
            ],
            datetime.fromtimestamp(request["ValidityNotBefore"]["Value"], UTC),
            self.wrong.get("until", datetime.fromtimestamp(request["Validity"]["Value"], UTC)),
        )
        arn = f"{ARN}/certificate/{len(self.issued):032x}"
        self.issued[arn] = certificate
        return {"CertificateArn": arn}

    def get_certificate(self, **request: Any) -> dict[str, str]:
        self._check("GetCertificate", request)
        if self.pending:
            self.pending -= 1
            raise client_error("RequestInProgressException", "GetCertificate")
        return {"Certificate": self.issued[request["CertificateArn"]].public_bytes(Encoding.PEM).decode()}


@pytest.fixture
def pca() -> Pca:
    return Pca()


def enrol(world: World, pca: Pca, waited: list[float] | None = None) -> Any:
    enrolment = world.enrolment()
    sleep = (waited if waited is not None else []).append
    object.__setattr__(enrolment, "authority", PrivateAuthority(pca=pca, arn=ARN, sleep=sleep))
    return enrolment.respond(world.event())


def refused(world: World, pca: Pca) -> dict[str, str]:
    answer = enrol(world, pca)
    assert set(answer) == {"refused"}
    return dict(answer["refused"])


KEYS: dict[str, tuple[Any, str]] = {
    "P-256": (ec.generate_private_key(ec.SECP256R1()), "SHA256WITHECDSA"),
    "P-384": (ec.generate_private_key(ec.SECP384R1()), "SHA384WITHECDSA"),
    "RSA": (rsa.generate_private_key(65537, 2048), "SHA256WITHRSA"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_node_accepts_what_a_private_ca_of_each_kind_issues(world: World, kind: str) -> None:
    key, algorithm = KEYS[kind]
    pca = Pca(key)
    answer = enrol(world, pca)
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    issued = check_issued(
        certificate_pem=answer["certificate"],
        ca_pem=answer["ca"],
        key=certificate.public_key(),  # type: ignore[arg-type]
        cluster=CLUSTER,
        role=Role.WORKER,
        instance_id=INSTANCE,
        now=datetime.now(UTC),
    )
    assert (issued.ca, issued.address) == (pca.root, ADDRESS)
    assert pca.requests[0]["SigningAlgorithm"] == algorithm
    assert "pki/ca.pem" not in world.bucket.objects, "there is no CA of the cluster's own"


def test_it_asks_for_exactly_the_profile(world: World, pca: Pca) -> None:
    enrol(world, pca)
    (request,) = pca.requests
    assert request["CertificateAuthorityArn"] == ARN
    assert request["ApiPassthrough"] == {
        "Subject": {"Organization": CLUSTER, "CommonName": INSTANCE},
        "Extensions": {
            "KeyUsage": {"DigitalSignature": True},
            "ExtendedKeyUsage": [
                {"ExtendedKeyUsageType": "SERVER_AUTH"},
                {"ExtendedKeyUsageType": "CLIENT_AUTH"},
            ],
            "SubjectAlternativeNames": [
                {"DnsName": "worker.demo.holdfast"},
                {"DnsName": f"{INSTANCE}.worker.demo.holdfast"},
                {"UniformResourceIdentifier": f"spiffe://demo/worker/{INSTANCE}"},
                {"IpAddress": ADDRESS},
            ],
        },
    }
    life = request["Validity"]["Value"] - time.time()
    assert (request["Validity"]["Type"], request["ValidityNotBefore"]["Type"]) == ("ABSOLUTE", "ABSOLUTE")
    assert 86400 - 60 < life <= 86400


def test_it_waits_while_the_certificate_is_being_made(world: World, pca: Pca) -> None:
    pca.pending, waited = 3, []
    assert "certificate" in enrol(world, pca, waited)
    assert waited == [0.5] * 3


def test_a_private_ca_that_takes_too_long_decides_nothing(world: World, pca: Pca) -> None:
    pca.pending = 1000
    assert refused(world, pca) == {
        "reason": "unavailable",
        "message": "the private CA did not issue within 6 s; try again",
    }


def test_a_private_ca_that_may_not_be_used_decides_nothing(world: World, pca: Pca) -> None:
    def denied(**_: Any) -> Any:
        raise client_error("AccessDeniedException", "IssueCertificate", 403)

    pca.issue_certificate = denied  # type: ignore[method-assign]
    assert refused(world, pca)["message"] == "AWS refused IssueCertificate to the function: AccessDeniedException"


def test_a_subordinate_ca_is_refused(world: World, pca: Pca) -> None:
    answer = refused(world, Pca(parent=pca))
    assert answer["reason"] == "ca_mismatch"
    assert answer["message"] == (
        "private_ca_arn must be a root CA, got CN=A subordinate, which another CA has signed: nodes would have to "
        "trust that one too, for all that it signs"
    )


def names(**changes: str) -> list[dict[str, str]]:
    given = {
        "DnsName": "worker.demo.holdfast",
        "own": f"{INSTANCE}.worker.demo.holdfast",
        "UniformResourceIdentifier": f"spiffe://demo/worker/{INSTANCE}",
        "IpAddress": ADDRESS,
    } | changes
    return [{"DnsName" if kind == "own" else kind: text} for kind, text in given.items()]


def extensions(**changes: Any) -> dict[str, Any]:
    honest = {
        "KeyUsage": {"DigitalSignature": True},
        "ExtendedKeyUsage": [{"ExtendedKeyUsageType": "SERVER_AUTH"}, {"ExtendedKeyUsageType": "CLIENT_AUTH"}],
        "SubjectAlternativeNames": names(),
    }
    return {"Extensions": honest | changes}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another key": ({"key": ec.generate_private_key(ec.SECP256R1()).public_key()}, "(key)"),
    "another role": (extensions(SubjectAlternativeNames=names(DnsName="server.demo.holdfast")), "(names)"),
    "one name more": (extensions(SubjectAlternativeNames=[*names(), {"DnsName": "evil"}]), "(names)"),
    "another subject": ({"Subject": {"CommonName": "i-0fedcba9876543210"}}, "(subject)"),
    "a CA": ({"ca": True}, "(basic constraints)"),
    "signs certificates": (extensions(KeyUsage={"DigitalSignature": True, "KeyCertSign": True}), "(key usage)"),
    "server only": (extensions(ExtendedKeyUsage=[{"ExtendedKeyUsageType": "SERVER_AUTH"}]), "(purposes)"),
    "a longer life": ({"until": datetime.now(UTC) + 300 * DAY}, "(life)"),
    "one extension more": ({"more": [x509.OCSPNoCheck()]}, "(extensions)"),
    "another signer": ({"signer": ec.generate_private_key(ec.SECP256R1())}, "(InvalidSignature)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_was_not_asked_for_is_not_used(world: World, pca: Pca, case: str) -> None:
    pca.wrong, text = WRONG[case]
    assert refused(world, pca) == {
        "reason": "ca_mismatch",
        "message": f"the private CA issued something else than it was asked for {text}; it is not used",
    }


def test_the_csr_is_passed_on_and_its_hash_is_the_proofs(world: World, pca: Pca) -> None:
    event = world.event()
    enrolment = world.enrolment()
    object.__setattr__(enrolment, "authority", PrivateAuthority(pca=pca, arn=ARN))
    assert "certificate" in enrolment.respond(event)
    csr = x509.load_pem_x509_csr(pca.requests[0]["Csr"])
    digest = hashlib.sha256(csr.public_bytes(Encoding.DER)).hexdigest()
    assert digest == event["proof"]["headers"]["x-holdfast-csr-sha256"]
