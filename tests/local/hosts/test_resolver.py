"""The VPC's resolver: bytes in, bytes out."""

import socket
import struct

import pytest

from holdfast_local.hosts.resolver import FirewallRule, Zone, answer, matches

KMS = ("10.0.0.4", "10.0.1.4")
NAMES = {"kms.us-east-1.amazonaws.com": KMS, "*.s3.us-east-1.amazonaws.com": ("198.51.100.1",)}
ZONE = Zone(names=NAMES)
NO_ERROR, FORMAT_ERROR, NAME_ERROR, NOT_IMPLEMENTED = 0, 1, 3, 4


def query(name: str, kind: int = 1, *, flags: int = 0x0100, count: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, flags, count, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def read(message: bytes) -> tuple[int, list[str]]:
    """Return an answer's code and addresses."""
    identity, flags, questions, answers, _, _ = struct.unpack_from("!6H", message)
    assert identity == 7
    assert flags & 0x8000
    records = message[-16 * answers :] if answers else b""
    assert questions == 1 or not answers
    return flags & 15, [socket.inet_ntoa(records[n + 12 : n + 16]) for n in range(0, 16 * answers, 16)]


ANSWERS = {
    "a name": ("kms.us-east-1.amazonaws.com", 1, NO_ERROR, list(KMS)),
    "in capitals": ("KMS.us-east-1.AMAZONAWS.com", 1, NO_ERROR, list(KMS)),
    "below a wildcard": ("bucket.s3.us-east-1.amazonaws.com", 1, NO_ERROR, ["198.51.100.1"]),
    "another type": ("kms.us-east-1.amazonaws.com", 28, NO_ERROR, []),
    "an unknown name": ("sts.us-east-1.amazonaws.com", 1, NAME_ERROR, []),
    "the wildcard's own name": ("s3.us-east-1.amazonaws.com", 1, NAME_ERROR, []),
    "the internet": ("example.com", 1, NAME_ERROR, []),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_it_answers_what_the_vpc_knows_and_nothing_else(case: str) -> None:
    name, kind, code, addresses = ANSWERS[case]
    assert read(answer(query(name, kind), ZONE)) == (code, addresses)


def test_the_firewall_blocks_a_name_that_the_vpc_knows() -> None:
    allowed = FirewallRule(allow=True, domains=("*.s3.us-east-1.amazonaws.com",))
    zone = Zone(names=NAMES, firewall=[allowed, FirewallRule(allow=False, domains=("*",))])
    assert read(answer(query("bucket.s3.us-east-1.amazonaws.com"), zone)) == (NO_ERROR, ["198.51.100.1"])
    assert read(answer(query("kms.us-east-1.amazonaws.com"), zone)) == (NAME_ERROR, [])


def test_the_first_rule_that_matches_decides() -> None:
    rules = [FirewallRule(allow=False, domains=("*",)), FirewallRule(allow=True, domains=tuple(NAMES))]
    zone = Zone(names=NAMES, firewall=rules)
    assert read(answer(query("kms.us-east-1.amazonaws.com"), zone)) == (NAME_ERROR, [])


@pytest.mark.parametrize(
    ("domain", "name", "is_matched"),
    [
        ("*", "anything.example", True),
        ("a.example", "a.example", True),
        ("a.example", "b.a.example", False),
        ("*.a.example", "b.a.example", True),
        ("*.a.example", "c.b.a.example", True),
        ("*.a.example", "a.example", False),
        ("*.a.example", "ba.example", False),
    ],
)
def test_a_domain_matches_as_dns_firewall_says(domain: str, name: str, is_matched: bool) -> None:
    assert matches(name, domain) is is_matched


MALFORMED = {
    "no question": (struct.pack("!6H", 7, 0, 0, 0, 0, 0), FORMAT_ERROR),
    "a name that ends early": (query("kms.us-east-1.amazonaws.com")[:-10], FORMAT_ERROR),
    "a pointer for a name": (struct.pack("!6H", 7, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", FORMAT_ERROR),
    "two questions": (query("a.b", count=2), FORMAT_ERROR),
    "another operation": (query("a.b", flags=0x2800), NOT_IMPLEMENTED),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_is_refused(case: str) -> None:
    message, code = MALFORMED[case]
    assert read(answer(message, ZONE)) == (code, [])


@pytest.mark.parametrize("message", [b"", b"short", query("a.b", flags=0x8000)], ids=["empty", "short", "an answer"])
def test_what_is_no_query_gets_no_answer(message: bytes) -> None:
    assert answer(message, ZONE) == b""
