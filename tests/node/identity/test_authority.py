"""The CA's certificate is made once, whoever comes first, and never over another."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from authority import Authority
from botocore.exceptions import ClientError
from certificates import ca_certificate, ca_subject
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from identity_support import CLUSTER, Bucket, Kms, World, client_error, make_csr
from refusal import Refused

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
FOREVER = NOW + timedelta(days=3650)
KEY = "pki/ca.pem"


def authority(kms: Kms, bucket: Any, cluster: str = CLUSTER) -> Authority:
    return Authority(kms=kms, s3=bucket, key_id="k", bucket="jobs", cluster=cluster, log=lambda _: None)


def ca_of(kms: Kms, cluster: str = CLUSTER, now: datetime = NOW) -> bytes:
    maker = authority(kms, Bucket(), cluster)
    made = ca_certificate(cluster=cluster, public_key=kms.key.public_key(), now=now, sign=maker.sign)
    return made.public_bytes(Encoding.PEM)


def test_the_first_use_makes_the_certificate_and_later_ones_read_it() -> None:
    kms, bucket = Kms(), Bucket()
    first = authority(kms, bucket).certificate(NOW)
    assert bucket.objects[KEY] == first.public_bytes(Encoding.PEM)
    assert authority(kms, bucket).certificate(NOW) == first
    assert bucket.puts == 1


def test_an_upgraded_function_signs_with_the_same_ca(world: World) -> None:
    before = world.enrolment().respond(world.event())
    # Other code, another role session, a cold start: what it has is the key in KMS and the object in the bucket.
    after = world.enrolment().respond(world.event())
    assert before["ca"] == after["ca"]
    assert world.bucket.objects[KEY].decode() == after["ca"]
    assert [line["event"] for line in world.logged] == ["ca_created", "enrolled", "enrolled"]


def test_a_lost_certificate_is_made_again_for_the_same_key_which_is_the_same_ca(world: World) -> None:
    before = x509.load_pem_x509_certificate(world.enrolment().respond(world.event())["ca"].encode())
    del world.bucket.objects[KEY]
    answer = world.enrolment().respond(world.event())
    after = x509.load_pem_x509_certificate(answer["ca"].encode())
    assert (after.subject, after.public_key()) == (before.subject, before.public_key())
    x509.load_pem_x509_certificate(answer["certificate"].encode()).verify_directly_issued_by(before)


def test_a_new_key_beside_the_old_certificate_signs_nothing(world: World) -> None:
    world.enrolment().respond(world.event())
    kept = world.bucket.objects[KEY]
    world.kms = Kms()
    refused = world.enrolment().respond(world.event())["refused"]
    assert refused["reason"] == "ca_mismatch"
    assert world.bucket.objects[KEY] == kept


def test_a_warm_function_asks_neither_kms_nor_s3_again() -> None:
    kms, bucket = Kms(), Bucket()
    warm = authority(kms, bucket)
    certificate = warm.certificate(NOW)
    bucket.objects.clear()
    calls = kms.calls
    assert warm.certificate(NOW) == certificate
    assert kms.calls == calls


def test_of_many_first_uses_one_wins_and_all_use_its_certificate() -> None:
    kms, bucket, together = Kms(), Bucket(), threading.Barrier(8)

    class Together:
        """All read before any writes: the worst case."""

        def get_object(self, **arguments: str) -> dict[str, Any]:
            try:
                return bucket.get_object(**arguments)
            except ClientError:
                together.wait(5)
                raise

        put_object = staticmethod(bucket.put_object)

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: authority(kms, Together()).certificate(NOW), range(8)))
    assert bucket.puts == 1
    assert {certificate.public_bytes(Encoding.PEM) for certificate in made} == {bucket.objects[KEY]}


def test_a_lost_race_that_cannot_be_read_yet_decides_nothing() -> None:
    class Conflicting(Bucket):
        def put_object(self, **_: Any) -> None:
            raise client_error("ConditionalRequestConflict", "PutObject", 409)

    with pytest.raises(Refused, match="the CA's certificate is being made; try again") as refusal:
        authority(Kms(), Conflicting()).certificate(NOW)
    assert refusal.value.reason == "unavailable"


def not_a_ca(kms: Kms) -> bytes:
    """The CA's own name and key, in a certificate that may not sign others."""
    builder = x509.CertificateBuilder(ca_subject(CLUSTER), ca_subject(CLUSTER), kms.key.public_key(), 1, NOW, FOREVER)
    leaf = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return leaf.sign(kms.key, SHA256()).public_bytes(Encoding.PEM)


def by_another(kms: Kms) -> bytes:
    """The CA's name and key, signed by somebody else."""
    builder = x509.CertificateBuilder(ca_subject(CLUSTER), ca_subject(CLUSTER), kms.key.public_key(), 1, NOW, FOREVER)
    constrained = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return constrained.sign(Kms().key, SHA256()).public_bytes(Encoding.PEM)


STORED: dict[str, tuple[Any, str]] = {
    "another key": (lambda _: ca_of(Kms()), "holds a certificate of another key (SHA-256 "),
    "another cluster": (lambda kms: ca_of(kms, "prod"), "is not the CA of cluster demo: CN=prod cluster CA,O=prod"),
    "not a CA": (not_a_ca, "is not the CA of cluster demo: CN=demo cluster CA,O=demo"),
    "signed by another": (by_another, "s3://jobs/pki/ca.pem is not a CA certificate: InvalidSignature"),
    "expired": (lambda kms: ca_of(kms, now=NOW - timedelta(days=3651)), "the cluster's CA certificate is valid until "),
    "not a certificate": (lambda _: b"junk", "s3://jobs/pki/ca.pem is not a CA certificate: ValueError"),
    "empty": (lambda _: b"", "s3://jobs/pki/ca.pem is not a CA certificate: ValueError"),
    "a request": (lambda _: make_csr().public_bytes(Encoding.PEM), "is not a CA certificate: ValueError"),
}


@pytest.mark.parametrize("case", STORED)
def test_a_stored_certificate_that_is_not_this_ca_is_refused_and_kept(case: str) -> None:
    make, text = STORED[case]
    kms, bucket = Kms(), Bucket()
    bucket.objects[KEY] = before = make(kms)
    with pytest.raises(Refused) as refusal:
        authority(kms, bucket).certificate(NOW)
    assert (refusal.value.reason, text in str(refusal.value)) == ("ca_mismatch", True), str(refusal.value)
    assert bucket.objects == {KEY: before}
    assert bucket.puts == 0


def test_a_node_is_told_when_the_ca_was_replaced(world: World) -> None:
    world.bucket.objects[KEY] = ca_of(Kms())
    refused = world.enrolment().respond(world.event())["refused"]
    assert refused["reason"] == "ca_mismatch"
    assert "nothing is signed until an operator finds out who replaced which" in refused["message"]


@pytest.mark.parametrize(
    ("spec", "usage"),
    [("ECC_NIST_P384", "SIGN_VERIFY"), ("ECC_NIST_P256", "KEY_AGREEMENT"), ("RSA_2048", "SIGN_VERIFY")],
)
def test_a_key_of_another_kind_makes_no_ca(spec: str, usage: str) -> None:
    bucket = Bucket()
    with pytest.raises(Refused, match=f"must be ECC_NIST_P256 for SIGN_VERIFY, got {spec} for {usage}"):
        authority(Kms(spec, usage), bucket).certificate(NOW)
    assert not bucket.objects


def test_s3_that_fails_is_not_taken_for_a_missing_certificate() -> None:
    class Broken(Bucket):
        def get_object(self, **_: str) -> dict[str, Any]:
            raise client_error("InternalError", "GetObject", 500)

    bucket = Broken()
    with pytest.raises(ClientError, match="InternalError"):
        authority(Kms(), bucket).certificate(NOW)
    assert bucket.puts == 0


def test_the_first_enrolment_logs_that_the_ca_was_made(world: World) -> None:
    answer = world.enrolment().respond(world.event())
    assert [line["event"] for line in world.logged] == ["ca_created", "enrolled"]
    assert x509.load_pem_x509_certificate(answer["ca"].encode()).public_key() == world.kms.key.public_key()
