"""The node's side: what it asks, what it believes, what it writes."""

import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import boto3
import certificates
import pytest
from authority import Authority
from botocore.config import Config
from botocore.exceptions import ConnectTimeoutError
from certificates import ca_certificate, node_certificate
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from identity_support import ADDRESS, CLUSTER, INSTANCE, REGION, Kms, World, client_error, node_config
from rotation import Rotation

from holdfast_node.contract.errors import VerificationError
from holdfast_node.contract.roles import Role
from holdfast_node.identity import IdentityError, enrol, prove

Answer = Callable[[dict[str, Any]], Any]


class NodeSession:
    """The instance's session, with a Lambda whose function is `answer`."""

    def __init__(self, session: boto3.Session, answer: Answer) -> None:
        self.answer = answer
        self.invocations: list[dict[str, Any]] = []
        self._session = session
        self.get_credentials = session.get_credentials

    def client(self, service: str, *, region_name: str, config: Config | None = None) -> Any:
        if service != "lambda":
            return self._session.client(service, region_name=region_name, config=config)  # type: ignore[call-overload]
        assert config
        assert (config.connect_timeout <= 5, config.read_timeout <= 60) == (True, True)
        return self

    def invoke(self, *, FunctionName: str, Payload: bytes) -> dict[str, Any]:  # noqa: N803
        assert FunctionName == "demo-enrolment"
        event = json.loads(Payload)
        self.invocations.append(event)
        answer = self.answer(event)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, bytes):
            return {"Payload": io.BytesIO(answer), "FunctionError": "Unhandled"}
        return {"Payload": io.BytesIO(json.dumps(answer).encode())}


class Node:
    """A worker that boots: its TLS directory, its session, and how long it waited."""

    def __init__(self, world: World, tls: Path) -> None:
        self.world, self.tls = world, tls
        self.session = NodeSession(world.session, lambda event: world.enrolment().respond(event))
        self.waited: list[float] = []

    def enrol(self, **changes: Any) -> Any:
        values: dict[str, Any] = {"instance_id": INSTANCE, "tls_dir": self.tls, "sleep": self.waited.append}
        return enrol(node_config(), cast(boto3.Session, self.session), **values | changes)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.tls.iterdir()}


@pytest.fixture
def node(world: World, tmp_path: Path) -> Node:
    tls = tmp_path / "tls"
    tls.mkdir()
    tls.chmod(0o2750)
    return Node(world, tls)


def test_a_node_enrols_and_keeps_key_certificate_and_ca(node: Node) -> None:
    identity = node.enrol()
    assert sorted(node.files()) == ["ca.pem", "cert.pem", "key.pem"]
    certificate = x509.load_pem_x509_certificate(node.files()["cert.pem"])
    key = load_pem_private_key(node.files()["key.pem"], None)
    assert certificate.public_key() == key.public_key()
    assert (identity.role, identity.instance_id, identity.address) == (Role.WORKER, INSTANCE, ADDRESS)
    assert identity.spiffe_id == f"spiffe://demo/worker/{INSTANCE}"
    assert identity.serial == f"{certificate.serial_number:x}"
    assert identity.not_after == certificate.not_valid_after_utc
    assert node.waited == []


def test_it_renews_at_two_thirds(node: Node) -> None:
    identity = node.enrol()
    left = identity.renew_at - identity.not_before
    assert left == (identity.not_after - identity.not_before) * 2 / 3
    assert timedelta(hours=16) <= left < timedelta(hours=16, minutes=1)


def test_its_registration_is_its_certificates(node: Node) -> None:
    identity = node.enrol()
    registration = identity.registration()
    assert registration.parse(registration.to_json()) == registration
    assert (registration.address, registration.serial) == (ADDRESS, identity.serial)
    assert identity.registration("127.78.0.2").address == "127.78.0.2"


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_files_are_for_the_owner_and_the_tunnel_whatever_the_umask(node: Node, umask: int) -> None:
    before = os.umask(umask)
    try:
        node.enrol()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in node.tls.iterdir()} == {0o640}


def test_files_take_the_directorys_group(node: Node) -> None:
    if os.geteuid():
        pytest.skip("only root may give a directory away")
    os.chown(node.tls, -1, 64102)
    node.tls.chmod(0o2750)
    node.enrol()
    assert {path.stat().st_gid for path in node.tls.iterdir()} == {64102}


def test_renewal_makes_a_new_key_and_keeps_the_ca(node: Node) -> None:
    first = node.enrol()
    before = node.files()
    second = node.enrol()
    after = node.files()
    assert before["ca.pem"] == after["ca.pem"]
    assert before["key.pem"] != after["key.pem"]
    assert first.serial != second.serial


def test_the_proof_is_bound_to_the_csr_and_the_cluster(node: Node) -> None:
    node.enrol()
    (event,) = node.session.invocations
    assert event["proof"]["headers"]["x-holdfast-cluster"] == CLUSTER
    assert event["proof"]["query"]["X-Amz-SignedHeaders"] == "host;x-holdfast-cluster;x-holdfast-csr-sha256"
    assert event["proof"]["query"]["X-Amz-Expires"] == "60"
    assert "PRIVATE" not in json.dumps(event)


def test_a_leftover_of_an_interrupted_write_is_replaced(node: Node) -> None:
    (node.tls / ".key.pem.new").write_text("old")
    node.enrol()
    assert sorted(node.files()) == ["ca.pem", "cert.pem", "key.pem"]


def test_a_link_in_the_way_is_not_followed(node: Node, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (node.tls / ".key.pem.new").symlink_to(victim)
    node.enrol()
    assert victim.read_text() == "mine"


# --- refusals and retries ---


def test_a_refusal_is_reported_in_the_functions_words_and_not_tried_again(node: Node) -> None:
    node.world.fleet.groups.clear()
    with pytest.raises(IdentityError) as error:
        node.enrol()
    assert str(error.value) == (
        f"enrolment refused (not_in_group): {INSTANCE} must be in Auto Scaling group demo-worker, it is in none"
    )
    assert error.value.reason == "not_in_group"
    assert len(node.session.invocations) == 1
    assert node.files() == {}


def after(failures: list[Any], then: Answer) -> Answer:
    pending: Iterator[Any] = iter(failures)
    return lambda event: next(pending, None) or then(event)


LATER: dict[str, Any] = {
    "throttled": client_error("TooManyRequestsException", "Invoke", 429),
    "service error": client_error("ServiceException", "Invoke", 500),
    "gateway error": client_error("502", "Invoke", 502),
    "timeout": ConnectTimeoutError(endpoint_url="https://lambda"),
    "two proofs of one second": {"refused": {"reason": "replayed", "message": "used before"}},
    "AWS throttled the function": {"refused": {"reason": "unavailable", "message": "throttled"}},
}


@pytest.mark.parametrize("case", LATER)
def test_it_waits_and_tries_again_with_a_fresh_proof(node: Node, case: str) -> None:
    node.session.answer = after([LATER[case], LATER[case]], node.session.answer)
    assert node.enrol().instance_id == INSTANCE
    assert len(node.session.invocations) == 3
    assert len({event["csr"] for event in node.session.invocations}) == 1
    assert [0.5 <= node.waited[0] <= 2, 1 <= node.waited[1] <= 4] == [True, True]


def test_it_gives_up_after_five_attempts(node: Node) -> None:
    node.session.answer = lambda _: LATER["AWS throttled the function"]
    with pytest.raises(IdentityError, match="no certificate after 5 attempts, the last: throttled") as error:
        node.enrol()
    assert error.value.reason == "unavailable"
    assert len(node.session.invocations) == 5
    assert len(node.waited) == 4


FATAL: dict[str, tuple[Any, str]] = {
    "not allowed": (
        client_error("AccessDeniedException", "Invoke", 403),
        "this node may not ask demo-enrolment for an identity (AccessDeniedException); check the node role's",
    ),
    "no such function": (client_error("ResourceNotFoundException", "Invoke", 404), "(ResourceNotFoundException)"),
    "the function failed": (
        json.dumps({"errorMessage": "HOLDFAST_ROLES must be of one account"}).encode(),
        "the enrolment function failed: HOLDFAST_ROLES must be of one account; see its log",
    ),
    "the function failed wordlessly": (b"null", "the enrolment function failed: ; see its log"),
    "nothing": (None, "answer must be a certificate and a CA, or a refusal"),
    "half an answer": ({"certificate": "x"}, "answer must be a certificate and a CA, or a refusal"),
    "certificate and refusal": (
        {"certificate": "x", "ca": "x", "refused": {}},
        "answer must be a certificate and a CA, or a refusal",
    ),
}


@pytest.mark.parametrize("case", FATAL)
def test_it_does_not_try_again_what_cannot_get_better(node: Node, case: str) -> None:
    answer, text = FATAL[case]
    node.session.answer = lambda _: answer
    with pytest.raises(IdentityError) as error:
        node.enrol()
    assert text in str(error.value)
    assert len(node.session.invocations) == 1
    assert node.files() == {}


def test_credentials_must_be_a_roles(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    user = boto3.Session("AKIA0123456789ABCDEF", "secret", region_name=REGION)
    with pytest.raises(IdentityError, match="credentials must be a role's temporary ones, got a user's long-lived key"):
        prove(user, region=REGION, cluster=CLUSTER, csr_sha256="0" * 64)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(IdentityError, match="no AWS credentials: the instance needs an instance profile"):
        prove(boto3.Session(region_name=REGION), region=REGION, cluster=CLUSTER, csr_sha256="0" * 64)


# --- what comes back is checked before it is used ---


class Forger:
    """An enrolment function that answers with whatever it likes, well signed."""

    def __init__(self, cluster: str = CLUSTER) -> None:
        self.kms, self.cluster = Kms(), cluster
        self.now = datetime.now(UTC)

    def sign(self, message: bytes) -> bytes:
        return self.kms.key.sign(message, ec.ECDSA(SHA256()))

    def __call__(self, event: dict[str, Any], **changes: Any) -> dict[str, str]:
        ca = ca_certificate(cluster=self.cluster, public_key=self.kms.key.public_key(), now=self.now, sign=self.sign)
        values: dict[str, Any] = {
            "cluster": self.cluster,
            "role": "worker",
            "instance_id": INSTANCE,
            "address": IPv4Address(ADDRESS),
            "public_key": x509.load_pem_x509_csr(event["csr"].encode()).public_key(),
            "csr": event["csr"].encode(),
        }
        node = certificates.Node(**values | changes)
        certificate = node_certificate(node=node, ca=ca, lifetime=timedelta(hours=24), now=self.now, sign=self.sign)
        pem = {"certificate": certificate, "ca": ca}
        return {name: cert.public_bytes(Encoding.PEM).decode() for name, cert in pem.items()}


def _ca_of(forger: Forger, event: dict[str, Any]) -> str:
    return forger(event)["ca"]


def _old(days: int) -> Answer:
    forger = Forger()
    forger.now = datetime.now(UTC) - timedelta(days=days)
    return forger


ANSWERS: dict[str, tuple[Answer, str]] = {
    "another key": (
        lambda e: Forger()(e, public_key=ec.generate_private_key(ec.SECP256R1()).public_key()),
        "the certificate is for another key than this node's",
    ),
    "another role": (lambda e: Forger()(e, role="scheduler"), "the certificate must name ['worker.demo.holdfast', "),
    "another instance": (lambda e: Forger()(e, instance_id="i-0fedcba9876543210"), "the certificate must name ["),
    "another cluster": (lambda e: Forger("prod")(e), "the certificate must name ["),
    "another CA": (
        lambda e: Forger()(e) | {"ca": _ca_of(Forger(), e)},
        "the certificate is not signed by the CA that came with it",
    ),
    "the leaf as CA": (
        lambda e: (lambda a: {"certificate": a["certificate"], "ca": a["certificate"]})(Forger()(e)),
        "the CA in the answer is not self-signed",
    ),
    "the CA as leaf": (
        lambda e: (lambda a: {"certificate": a["ca"], "ca": a["ca"]})(Forger()(e)),
        "the certificate is for another key than this node's",
    ),
    "expired": (_old(2), "the certificate is valid from "),
    "not yet valid": (_old(-1), "check the node's time synchronisation"),
    "not PEM": (
        lambda e: Forger()(e) | {"certificate": "junk"},
        "the certificate in the answer must be one certificate",
    ),
    "two certificates": (
        lambda e: (lambda a: a | {"certificate": a["certificate"] + a["ca"]})(Forger()(e)),
        "the certificate in the answer must be one certificate in PEM",
    ),
    "CA not PEM": (lambda e: Forger()(e) | {"ca": ""}, "the CA in the answer must be one certificate in PEM"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_not_this_nodes_identity_is_not_used(node: Node, case: str) -> None:
    answer, text = ANSWERS[case]
    node.session.answer = answer
    with pytest.raises(VerificationError) as error:
        node.enrol()
    assert text in str(error.value), str(error.value)
    assert node.files() == {}


def test_a_well_made_answer_is_used(node: Node) -> None:
    node.session.answer = Forger()
    assert node.enrol().instance_id == INSTANCE


def test_a_rotations_answer_makes_both_cas_trusted(node: Node) -> None:
    node.enrol()
    old = node.files()["ca.pem"]
    old_key = node.world.kms
    node.world.kms = Kms()
    current = Authority(
        kms=node.world.kms,
        s3=node.world.bucket,
        key_id="new",
        bucket="jobs",
        cluster=CLUSTER,
        log=node.world.logged.append,
        generation=2,
    )
    previous = Authority(
        kms=old_key, s3=node.world.bucket, key_id="old", bucket="jobs", cluster=CLUSTER, log=node.world.logged.append
    )
    enrolment = node.world.enrolment()
    object.__setattr__(enrolment, "authority", Rotation(CLUSTER, current, previous))
    node.session.answer = enrolment.respond
    node.enrol()
    assert node.files()["ca.pem"] == old + node.world.bucket.objects["pki/ca-2.pem"]
    # The overlap ends: the answer has the new one alone, which is pinned by now.
    object.__setattr__(enrolment, "authority", current)
    node.enrol()
    assert node.files()["ca.pem"] == node.world.bucket.objects["pki/ca-2.pem"]


def test_another_ca_later_is_refused_and_nothing_changes(node: Node) -> None:
    node.enrol()
    before = node.files()
    node.session.answer = Forger()
    with pytest.raises(VerificationError, match="the cluster's CA must be the one that this node has seen before") as e:
        node.enrol()
    assert "if it was replaced on purpose, replace this node" in str(e.value)
    assert node.files() == before


def test_a_spoilt_pin_is_refused(node: Node) -> None:
    (node.tls / "ca.pem").write_text("junk")
    with pytest.raises(VerificationError, match=r"ca\.pem is not a certificate; replace this node"):
        node.enrol()
