"""The CA is rotated: both trusted for a while, the new one signs in time, and a node believes a voucher only."""

import hashlib
import socket
import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from certificates import Issued, Node, ca_certificate, node_certificate, voucher
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from identity_support import CLUSTER, Bucket, Kms
from refusal import Refused
from rotation import Rotation

from holdfast_node.contract.errors import VerificationError
from holdfast_node.trust import bundle, load_authorities, trusted_authorities

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
LIFE = 24 * HOUR


class World:
    """A jobs bucket and two CA keys: the cluster's first, and the one that a rotation brings."""

    def __init__(self) -> None:
        self.bucket, self.keys, self.logged = Bucket(), {1: Kms(), 2: Kms()}, []

    def authority(self, generation: int) -> Authority:
        return Authority(
            kms=self.keys[generation],
            s3=self.bucket,
            key_id="k",
            bucket="jobs",
            cluster=CLUSTER,
            log=self.logged.append,  # type: ignore[attr-defined]
            generation=generation,
        )

    def before(self) -> Authority:
        return self.authority(1)

    def overlap(self) -> Rotation:
        return Rotation(CLUSTER, self.authority(2), self.authority(1))

    def afterwards(self) -> Authority:
        return self.authority(2)


@dataclass
class Member:
    """A node: its key, its certificate, and what it trusts, which is its pin."""

    name: str
    trusted: list[x509.Certificate]

    def __init__(self, name: str) -> None:
        self.name, self.trusted = name, []

    def enrol(self, issuer: Any, now: datetime) -> "Member":
        self.key = ec.generate_private_key(ec.SECP256R1())
        node = Node(CLUSTER, "worker", self.name, IPv4Address("127.0.0.1"), self.key.public_key(), b"")
        issued: Issued = issuer.issue(node, LIFE, now)
        self.trusted = trusted_authorities(
            self.trusted, ca=issued.ca, other=issued.trusted, voucher=issued.voucher, now=now
        )
        self.certificate = issued.certificate
        return self

    @property
    def issuer(self) -> str:
        return self.certificate.issuer.rfc4514_string()

    def context(self, directory: Path, *, server: bool) -> ssl.SSLContext:
        directory.mkdir(exist_ok=True)
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (directory / "ca.pem").write_bytes(bundle(self.trusted))
        (directory / "node.pem").write_bytes(pem + self.certificate.public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(directory / "ca.pem")
        context.load_cert_chain(directory / "node.pem")
        return context


def talk(server: Member, client: Member, directory: Path) -> bool:
    """Whether the two do mutual TLS 1.3, the server's bytes reaching the client."""
    accepted = server.context(directory / "server", server=True)
    dialled = client.context(directory / "client", server=False)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with ours, accepted.wrap_socket(ours, server_side=True) as connection:
                connection.sendall(b"hello")
        except OSError:
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        theirs.settimeout(5)
        name = f"{server.name}.worker.{CLUSTER}.holdfast"
        with theirs, dialled.wrap_socket(theirs, server_hostname=name) as connection:
            return connection.recv(10) == b"hello"
    except OSError:
        return False
    finally:
        thread.join(timeout=5)


def both_ways(one: Member, other: Member, directory: Path) -> list[bool]:
    return [talk(one, other, directory), talk(other, one, directory)]


@pytest.fixture
def world() -> World:
    return World()


OLD, NEW = "CN=demo cluster CA,O=demo", "CN=demo cluster CA 2,O=demo"


def test_a_rotation_drops_nobody_from_its_start_to_its_end(world: World, tmp_path: Path) -> None:
    running = Member("i-00000001").enrol(world.before(), NOW - 40 * HOUR)
    assert len(running.trusted) == 1
    # Deployed with an overlap. Whoever renews learns to trust the new CA; the old one still signs.
    running.enrol(world.overlap(), NOW - 25 * HOUR)
    assert ([ca.subject.rfc4514_string() for ca in running.trusted], running.issuer) == ([OLD, NEW], OLD)
    running.enrol(world.overlap(), NOW - 2 * HOUR)
    assert running.issuer == OLD
    # One certificate's life after the new CA was made, every node knows it: it signs.
    fresh = Member("i-00000002").enrol(world.overlap(), NOW)
    assert fresh.issuer == NEW
    assert both_ways(running, fresh, tmp_path) == [True, True]
    # The overlap ends: the old CA's certificates are refused, and whoever has renewed goes on.
    last = Member("i-00000003").enrol(world.afterwards(), NOW)
    assert both_ways(last, fresh, tmp_path) == [True, True]
    assert both_ways(last, running, tmp_path) == [False, False]
    running.enrol(world.afterwards(), NOW)
    assert both_ways(last, running, tmp_path) == [True, True]
    assert [ca.subject.rfc4514_string() for ca in running.trusted] == [NEW]


def test_the_old_ca_signs_until_the_last_second_of_the_first_life(world: World) -> None:
    Member("i-00000001").enrol(world.before(), NOW - 2 * LIFE)
    rotation = world.overlap()
    assert Member("i-00000002").enrol(rotation, NOW).issuer == OLD
    assert Member("i-00000003").enrol(rotation, NOW + LIFE - timedelta(seconds=1)).issuer == OLD
    assert Member("i-00000004").enrol(rotation, NOW + LIFE).issuer == NEW


def test_every_copy_of_the_function_has_the_same_two_cas(world: World) -> None:
    Member("i-00000001").enrol(world.before(), NOW)
    first, second = (Member("i-00000002").enrol(world.overlap(), NOW) for _ in range(2))
    assert first.trusted == second.trusted
    assert set(world.bucket.objects) == {"pki/ca.pem", "pki/ca-2.pem"}


def test_a_rotation_without_the_old_certificate_makes_nothing(world: World) -> None:
    with pytest.raises(Refused, match=r"s3://jobs/pki/ca\.pem is missing: it is the old CA's, which") as refusal:
        Member("i-00000001").enrol(world.overlap(), NOW)
    assert refusal.value.reason == "ca_mismatch"
    assert not world.bucket.objects


def test_a_cut_without_an_overlap_is_refused_by_running_nodes(world: World) -> None:
    running = Member("i-00000001").enrol(world.before(), NOW)
    with pytest.raises(VerificationError, match="no CA that this node trusts vouches for it; if it was replaced on"):
        running.enrol(world.afterwards(), NOW)
    assert [ca.subject.rfc4514_string() for ca in running.trusted] == [OLD]


# --- what a node believes ---


class Ca:
    """A CA that can vouch for others, well or badly."""

    def __init__(self, generation: int = 1, cluster: str = CLUSTER, now: datetime = NOW) -> None:
        self.kms, self.cluster, self.generation = Kms(), cluster, generation
        self.certificate = self.made(now)

    def made(self, now: datetime) -> x509.Certificate:
        key = self.kms.key.public_key()
        return ca_certificate(cluster=self.cluster, public_key=key, now=now, sign=self.sign, generation=self.generation)

    def sign(self, message: bytes) -> bytes:
        digest = hashlib.sha256(message).digest()
        arguments = {"KeyId": "k", "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"}
        return bytes(self.kms.sign(Message=digest, **arguments)["Signature"])

    def vouches_for(self, other: "Ca", now: datetime = NOW) -> x509.Certificate:
        return voucher(cluster=CLUSTER, new=other.certificate, old=self.certificate, now=now, sign=self.sign)

    def leaf_for(self, key: ec.EllipticCurvePublicKey, name: str = "i-00000009") -> x509.Certificate:
        node = Node(CLUSTER, "worker", name, IPv4Address("127.0.0.1"), key, b"")
        return node_certificate(node=node, ca=self.certificate, lifetime=LIFE, now=NOW, sign=self.sign)


FIRST, SECOND, STRANGER = Ca(), Ca(2), Ca(2)
EXPIRED = Ca(2, now=NOW - timedelta(days=3651))


def test_a_vouched_ca_is_trusted() -> None:
    given = {"ca": SECOND.certificate, "voucher": FIRST.vouches_for(SECOND), "now": NOW}
    assert trusted_authorities([FIRST.certificate], **given) == [SECOND.certificate]


def test_the_first_answer_is_the_pin() -> None:
    assert trusted_authorities([], ca=FIRST.certificate, now=NOW) == [FIRST.certificate]


def test_the_same_key_with_a_new_certificate_is_the_same_ca() -> None:
    # pki/ca.pem was lost and made again: the key in KMS is the CA, and no voucher is needed.
    again = FIRST.made(NOW + HOUR)
    assert again != FIRST.certificate
    assert trusted_authorities([FIRST.certificate], ca=again, now=NOW + HOUR) == [again]


BELIEFS: dict[str, tuple[dict[str, Any], str]] = {
    "a stranger without a voucher": ({"ca": STRANGER.certificate}, "no CA that this node trusts vouches for it"),
    "a stranger with its own voucher": (
        {"ca": STRANGER.certificate, "voucher": STRANGER.certificate},
        "the voucher in the answer is not by a CA that this node trusts",
    ),
    "a stranger vouched for by a stranger": (
        {"ca": STRANGER.certificate, "voucher": Ca().vouches_for(STRANGER)},
        "the voucher in the answer is not by a CA that this node trusts",
    ),
    "a stranger with another's voucher": (
        {"ca": STRANGER.certificate, "voucher": FIRST.vouches_for(SECOND)},
        "the voucher in the answer is for another CA",
    ),
    "a stranger beside the pinned one": (
        {"ca": FIRST.certificate, "other": STRANGER.certificate},
        "no CA that this node trusts vouches for it",
    ),
    "a stranger beside a vouched one": (
        {"ca": SECOND.certificate, "other": STRANGER.certificate, "voucher": FIRST.vouches_for(SECOND)},
        "the voucher in the answer is for another CA",
    ),
    "a node that vouches": (
        {"ca": STRANGER.certificate, "voucher": FIRST.leaf_for(STRANGER.kms.key.public_key())},
        "the voucher in the answer is for another CA",
    ),
    "a voucher that has ended": (
        {"ca": EXPIRED.certificate, "voucher": FIRST.vouches_for(EXPIRED, NOW - timedelta(days=3651))},
        "the CA is valid from ",
    ),
    "the pinned name with another key": ({"ca": Ca().certificate}, "no CA that this node trusts vouches for it"),
    "the voucher as the CA": (
        {"ca": FIRST.vouches_for(SECOND), "voucher": FIRST.vouches_for(SECOND)},
        "the CA in the answer is not self-signed",
    ),
}


@pytest.mark.parametrize("case", BELIEFS)
def test_a_node_does_not_believe(case: str) -> None:
    given, text = BELIEFS[case]
    with pytest.raises(VerificationError) as refusal:
        trusted_authorities([FIRST.certificate], **given, now=NOW)
    assert text in str(refusal.value), str(refusal.value)


def test_a_voucher_is_no_intermediate_to_a_tls_library(tmp_path: Path) -> None:
    """Whoever sends it in a chain gains nothing: the old CA's path length is 0."""
    old, new = Member("i-00000001"), Member("i-00000002")
    for member, authority in ((old, FIRST), (new, SECOND)):
        member.key = ec.generate_private_key(ec.SECP256R1())
        member.certificate = authority.leaf_for(member.key.public_key(), member.name)
    new.trusted = [FIRST.certificate, SECOND.certificate]
    old.trusted = new.trusted
    assert talk(new, old, tmp_path), "the control: whoever trusts both gets through"
    old.trusted = [FIRST.certificate]
    assert not talk(new, old, tmp_path)
    context = new.context(tmp_path / "chain", server=True)
    chain = tmp_path / "chain/node.pem"
    chain.write_bytes(chain.read_bytes() + FIRST.vouches_for(SECOND).public_bytes(Encoding.PEM))
    context.load_cert_chain(chain)
    new.context = lambda directory, *, server: context  # type: ignore[method-assign]
    assert not talk(new, old, tmp_path)


def test_the_trusted_cas_are_one_file_for_the_tunnel() -> None:
    both = [FIRST.certificate, SECOND.certificate]
    assert load_authorities(bundle(both)) == both
