"""One enrolment, whole: the signature is verified by a real server, the certificate is the real one."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from identity_support import ACCOUNT, ADDRESS, INSTANCE, REGION, World, client_error, make_csr
from refusal import Reason

from holdfast_node.identity import prove

OTHER = "i-0fedcba9876543210"
WORKER = f"arn:aws:sts::{ACCOUNT}:assumed-role/demo-worker"


def test_a_running_worker_gets_a_certificate_in_its_own_names(world: World) -> None:
    answer = world.enrolment().respond(world.event())
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(answer["ca"].encode()))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [
        "worker.demo.holdfast",
        f"{INSTANCE}.worker.demo.holdfast",
        f"spiffe://demo/worker/{INSTANCE}",
        ADDRESS,
    ]
    assert world.logged[-1] == {
        "event": "enrolled",
        "role": "worker",
        "instance": INSTANCE,
        "serial": f"{certificate.serial_number:x}",
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "issuer": "CN=demo cluster CA,O=demo",
    }


@pytest.mark.parametrize("lifecycle", ["Pending", "Pending:Wait", "Pending:Proceed", "InService"])
def test_a_member_that_is_coming_or_here_is_accepted(world: World, lifecycle: str) -> None:
    world.fleet.groups[INSTANCE] = ("demo-worker", lifecycle)
    assert "certificate" in world.enrolment().respond(world.event())


def _other_csr(world: World) -> Any:
    return world.event() | {"csr": world.event()["csr"]}


def _other_key_in_header(world: World) -> Any:
    """A captured proof, with the header rewritten to fit the thief's CSR."""
    mine, stolen = world.event(), world.event()
    stolen["proof"]["headers"] = mine["proof"]["headers"]
    return mine | {"proof": stolen["proof"]}


def _signed_for_another_host(world: World) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_STS", "https://sts.us-east-1.amazonaws.com")
        return world.event()


def _secret_unknown(world: World) -> Any:
    event = world.event()
    world.sts.credentials.clear()
    return event


def _another_account(world: World) -> Any:
    return world.event(
        world.credentials(WORKER.replace(ACCOUNT, "999988887777") + f"/{INSTANCE}", account="999988887777")
    )


def _another_role(world: World) -> Any:
    return world.event(world.credentials(f"arn:aws:sts::{ACCOUNT}:assumed-role/Admin/{INSTANCE}"))


def _user(world: World) -> Any:
    return world.event(world.credentials(f"arn:aws:iam::{ACCOUNT}:user/demo-worker"))


def _chosen_session_name(world: World) -> Any:
    return world.event(world.credentials(f"{WORKER}/mallory"))


def _user_id_disagrees(world: World) -> Any:
    return world.event(world.credentials(f"{WORKER}/{INSTANCE}", user_id=f"AROA{'A' * 17}:{OTHER}"))


def _federated(world: World) -> Any:
    return world.event(world.credentials(f"arn:aws:sts::{ACCOUNT}:federated-user/{INSTANCE}"))


def _in_no_group(world: World) -> Any:
    world.fleet.groups.clear()
    return world.event()


def _in_another_roles_group(world: World) -> Any:
    world.fleet.groups[INSTANCE] = ("demo-server", "InService")
    return world.event()


def _terminating(world: World) -> Any:
    world.fleet.groups[INSTANCE] = ("demo-worker", "Terminating")
    return world.event()


def _terminated(world: World) -> Any:
    world.fleet.states[INSTANCE] = "terminated"
    return world.event()


def _stopped(world: World) -> Any:
    world.fleet.states[INSTANCE] = "stopped"
    return world.event()


def _unknown_to_ec2(world: World) -> Any:
    world.fleet.states.clear()
    return world.event()


def _proof_of_another_cluster(world: World) -> Any:
    csr = make_csr()
    digest = hashlib.sha256(csr.public_bytes(Encoding.DER)).hexdigest()
    proof = prove(world.session, region=REGION, cluster="prod", csr_sha256=digest)
    return {"csr": csr.public_bytes(Encoding.PEM).decode(), "proof": proof}


def _expired(world: World) -> Any:
    event = world.event()
    world.clock = lambda: datetime.now(UTC) + timedelta(seconds=90)
    return event


def _weak_key(world: World) -> Any:
    return world.event(csr=make_csr(rsa.generate_private_key(65537, 1024)))


def _asks_for_a_name(world: World) -> Any:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "scheduler")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return world.event(csr=builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()))


def _asks_to_be_another_role(world: World) -> Any:
    names = x509.SubjectAlternativeName([x509.DNSName(f"{INSTANCE}.server.demo.holdfast")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
    return world.event(csr=builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()))


def _denials_unreadable(world: World) -> Any:
    world.bucket.unlistable = True
    return world.event()


def _throttled(world: World) -> Any:
    world.fleet.error = client_error("Throttling", "DescribeAutoScalingInstances")
    return world.event()


def _sts_down(world: World) -> Any:
    event = world.event()
    world.sts.answer = (503, b"<html>busy</html>")
    return event


def _sts_talks_nonsense(world: World) -> Any:
    event = world.event()
    world.sts.answer = (200, b"not xml")
    return event


def _sts_sends_entities(world: World) -> Any:
    event = world.event()
    world.sts.answer = (200, b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
    return event


REFUSALS: dict[str, tuple[Callable[[World], Any], str, str]] = {
    "no event": (lambda _: None, "bad_request", 'exactly the keys "csr" and "proof"'),
    "extra key": (lambda w: w.event() | {"url": "https://evil"}, "bad_request", 'exactly the keys "csr" and "proof"'),
    "csr missing": (lambda w: {"proof": w.event()["proof"]}, "bad_request", 'exactly the keys "csr" and "proof"'),
    "another csr": (_other_csr, "wrong_csr", "proof was made for another CSR; sign a new proof for each CSR"),
    "stolen proof, header rewritten": (_other_key_in_header, "sts_refused", "HTTP status 403 (SignatureDoesNotMatch)"),
    "a proof of another cluster": (_proof_of_another_cluster, "wrong_cluster", "for cluster 'prod', this is 'demo'"),
    "an old proof": (_expired, "expired", "proof must be at most 60 s from this function's clock, got 9"),
    "a weak key": (_weak_key, "bad_csr", "csr key must be EC P-256 (secp256r1), got RSAPublicKey"),
    "a csr that asks for a name": (_asks_for_a_name, "bad_csr", "must ask for nothing (names come from AWS), got subj"),
    "a csr that asks for another role": (_asks_to_be_another_role, "bad_csr", "extensions ['2.5.29.17']"),
    "denials that can't be read": (
        _denials_unreadable,
        "unavailable",
        "AWS refused ListObjectsV2 to the function: AccessDenied",
    ),
    "signed for another endpoint": (_signed_for_another_host, "sts_refused", "(SignatureDoesNotMatch)"),
    "unknown access key": (_secret_unknown, "sts_refused", "HTTP status 403 (InvalidClientTokenId)"),
    "another account": (_another_account, "wrong_account", f"must be of account {ACCOUNT}, got 999988887777"),
    "another role": (
        _another_role,
        "unknown_role",
        "must be one of ['demo-predictor', 'demo-scheduler', 'demo-server', 'demo-worker'], ",
    ),
    "a user": (_user, "not_an_instance", "must be an EC2 instance's role session, got 'arn:aws:iam::"),
    "a federated user": (_federated, "not_an_instance", "must be an EC2 instance's role session"),
    "a chosen session name": (_chosen_session_name, "not_an_instance", "demo-worker/mallory'"),
    "user id of another": (_user_id_disagrees, "not_an_instance", "account and user id must agree with"),
    "in no group": (_in_no_group, "not_in_group", "must be in Auto Scaling group demo-worker, it is in none"),
    "in another group": (_in_another_roles_group, "not_in_group", "group demo-worker, it is in demo-server"),
    "terminating": (_terminating, "not_in_group", "in demo-worker, it is Terminating"),
    "terminated": (_terminated, "not_running", "must be pending or running with a private address, it is terminated"),
    "stopped": (_stopped, "not_running", "it is stopped"),
    "unknown to EC2": (_unknown_to_ec2, "not_running", f"EC2 knows no instance {INSTANCE}"),
    "throttled": (_throttled, "unavailable", "AWS refused DescribeAutoScalingInstances to the function: Throttling"),
    "STS down": (_sts_down, "unavailable", "STS answered with HTTP status 503; try again"),
    "STS answers nonsense": (_sts_talks_nonsense, "unavailable", "HTTP status 200 and no XML"),
    "STS answers with entities": (_sts_sends_entities, "unavailable", "HTTP status 200 and no XML"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(world: World, case: str) -> None:
    make_event, reason, text = REFUSALS[case]
    event = make_event(world)
    answer = world.enrolment().respond(event)
    assert set(answer) == {"refused"}
    assert answer["refused"]["reason"] == reason
    assert text in answer["refused"]["message"]
    assert world.logged == [{"event": "enrolment_refused", **answer["refused"]}]
    assert not world.bucket.objects, "a refused node must not have the CA made"


def test_every_reason_has_a_case() -> None:
    elsewhere = {
        "bad_proof": "test_proof",
        "revoked": "test_records",
        "replayed": "test_records",
        "ca_mismatch": "test_authority",
    }
    assert {reason for _, reason, _ in REFUSALS.values()} | set(elsewhere) == {reason.value for reason in Reason}


def test_an_unreachable_sts_is_a_refusal_that_may_be_tried_again(world: World) -> None:
    event = world.event()
    world.sts_url = "https://127.0.0.1:1"
    answer = world.enrolment().respond(event)
    assert answer["refused"] == {
        "reason": "unavailable",
        "message": "the enrolment function could not reach STS (ConnectionRefusedError); try again",
    }


def test_sts_must_have_a_trusted_certificate(world: World) -> None:
    event = world.event()
    world.ca_bundle = None
    answer = world.enrolment().respond(event)
    assert "SSLCertVerificationError" in answer["refused"]["message"]
    assert not world.sts.requests


def test_a_plain_http_sts_is_not_asked(world: World) -> None:
    event = world.event()
    world.sts_url = world.sts_url.replace("https", "http")
    assert "must be https" in world.enrolment().respond(event)["refused"]["message"]


def test_a_redirect_is_not_followed(world: World) -> None:
    event = world.event()
    world.sts.answer, world.sts.location = (302, b"<a/>"), f"{world.sts.url}/elsewhere"
    assert world.enrolment().respond(event)["refused"]["reason"] == "sts_refused"
    assert len(world.sts.requests) == 1


def test_a_proof_is_refused_after_a_minute_by_sts_too(world: World) -> None:
    event = world.event()
    signed = datetime.strptime(event["proof"]["query"]["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    world.clock = lambda: signed + timedelta(seconds=61)
    assert world.enrolment().respond(event)["refused"]["reason"] == "expired"
    assert not world.sts.requests


def test_no_secret_reaches_the_log(world: World) -> None:
    events = [world.event(), _other_key_in_header(world), {"csr": world.event()["csr"], "proof": {"query": "x"}}]
    for event in events:
        world.enrolment().respond(event)
    text = json.dumps(world.logged)
    query = events[0]["proof"]["query"]
    assert query["X-Amz-Signature"] not in text
    assert query["X-Amz-Security-Token"] not in text
    assert "PRIVATE" not in text


def test_what_is_not_foreseen_raises(world: World) -> None:
    enrolment = world.enrolment()
    object.__setattr__(enrolment, "ec2", None)
    with pytest.raises(AttributeError):
        enrolment.respond(world.event(csr=make_csr()))
