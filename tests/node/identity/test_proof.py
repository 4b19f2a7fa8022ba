"""A proof can stand for one request only. `{}` in a case is the honest proof; each case changes one thing."""

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from identity_support import ACCOUNT, CLUSTER, INSTANCE, REGION, ROLE_ID
from proof import Caller, StsRequest, parse_caller, rebuild
from refusal import Refused

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
DIGEST = "ab" * 32
TOKEN = "to/k+en=="
SIGNATURE = "cd" * 32
HONEST: dict[str, dict[str, str]] = {
    "query": {
        "Action": "GetCallerIdentity",
        "Version": "2011-06-15",
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"ASIA0123456789ABCDEF/20261122/{REGION}/sts/aws4_request",
        "X-Amz-Date": "20261122T120000Z",
        "X-Amz-Expires": "60",
        "X-Amz-SignedHeaders": "host;x-holdfast-cluster;x-holdfast-csr-sha256",
        "X-Amz-Security-Token": TOKEN,
        "X-Amz-Signature": SIGNATURE,
    },
    "headers": {"x-holdfast-cluster": CLUSTER, "x-holdfast-csr-sha256": DIGEST},
}


def check(proof: object, now: datetime = NOW) -> StsRequest:
    return rebuild(proof, csr_sha256=DIGEST, cluster=CLUSTER, region=REGION, now=now)


def test_the_request_has_exactly_the_signed_parts() -> None:
    request = check(HONEST)
    url = urlsplit(request.path)
    assert (url.scheme, url.netloc, url.path, url.fragment) == ("", "", "/", "")
    assert dict(parse_qsl(url.query)) == HONEST["query"]
    assert request.headers == HONEST["headers"]


@pytest.mark.parametrize("seconds", [-60, -1, 0, 59, 60])
def test_a_fresh_proof_is_accepted(seconds: int) -> None:
    assert check(HONEST, NOW + timedelta(seconds=seconds))


def changed(**query: str | None) -> Callable[[Any], None]:
    def change(proof: Any) -> None:
        for name, value in query.items():
            key = name if name in ("Action", "Version") else "X-Amz-" + name
            proof["query"].pop(key) if value is None else proof["query"].__setitem__(key, value)

    return change


def added(where: str, name: Any, value: Any) -> Callable[[Any], None]:
    return lambda proof: proof[where].__setitem__(name, value)


SCOPE = HONEST["query"]["X-Amz-Credential"]
REFUSALS: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "another cluster": (added("headers", "x-holdfast-cluster", "prod"), "wrong_cluster", "for cluster 'prod', this is"),
    "another CSR": (
        added("headers", "x-holdfast-csr-sha256", "ef" * 32),
        "wrong_csr",
        "proof was made for another CSR",
    ),
    "CSR hash in capitals": (added("headers", "x-holdfast-csr-sha256", DIGEST.upper()), "wrong_csr", "another CSR"),
    "another action": (changed(Action="AssumeRole"), "bad_proof", "Action must match GetCallerIdentity, got 'Assume"),
    "two actions in one": (changed(Action="GetCallerIdentity&Action=X"), "bad_proof", "Action must match"),
    "action with a newline": (changed(Action="GetCallerIdentity\n"), "bad_proof", "Action must match"),
    "another version": (changed(Version="2010-01-01"), "bad_proof", "Version must match 2011-06-15, got '2010-01-01'"),
    "another algorithm": (changed(Algorithm="AWS4-ECDSA-P256-SHA256"), "bad_proof", "must match AWS4-HMAC-SHA256"),
    "CSR header unsigned": (changed(SignedHeaders="host;x-holdfast-cluster"), "bad_proof", "X-Amz-SignedHeaders must"),
    "cluster header unsigned": (
        changed(SignedHeaders="host;x-holdfast-csr-sha256"),
        "bad_proof",
        "X-Amz-SignedHeaders",
    ),
    "host unsigned": (
        changed(SignedHeaders="x-holdfast-cluster;x-holdfast-csr-sha256"),
        "bad_proof",
        "X-Amz-SignedHeaders",
    ),
    "more signed headers": (
        changed(SignedHeaders="accept;" + HONEST["query"]["X-Amz-SignedHeaders"]),
        "bad_proof",
        "X-Amz-SignedHeaders",
    ),
    "another service": (changed(Credential=SCOPE.replace("/sts/", "/s3/")), "bad_proof", "X-Amz-Credential must match"),
    "another region": (
        changed(Credential=SCOPE.replace(REGION, "us-east-1")),
        "bad_proof",
        "20261122/eu-central-1, got 20261122/us-",
    ),
    "another day's key": (changed(Credential=SCOPE.replace("20261122", "20261121")), "bad_proof", "got 20261121/"),
    "no token": (changed(**{"Security-Token": None}), "bad_proof", "proof.query lacks ['X-Amz-Security-Token']"),
    "empty token": (
        changed(**{"Security-Token": ""}),
        "bad_proof",
        "X-Amz-Security-Token must be a string of 1 to 8192",
    ),
    "huge token": (changed(**{"Security-Token": "x" * 8193}), "bad_proof", "must be a string of 1 to 8192 characters"),
    "token with a line break": (
        changed(**{"Security-Token": "a\r\nb"}),
        "bad_proof",
        "X-Amz-Security-Token must match",
    ),
    "short signature": (changed(Signature="ab"), "bad_proof", "X-Amz-Signature must match [0-9a-f]{64}"),
    "not a date": (
        changed(Date="20261322T120000Z", Credential=SCOPE.replace("20261122", "20261322")),
        "bad_proof",
        "X-Amz-Date must be a time, got '20261322T120000Z'",
    ),
    "long-lived": (changed(Expires="61"), "bad_proof", "X-Amz-Expires must be between 1 and 60, got 61"),
    "no life": (changed(Expires="0"), "bad_proof", "X-Amz-Expires must be between 1 and 60, got 0"),
    "negative life": (changed(Expires="-5"), "bad_proof", "X-Amz-Expires must match"),
    "extra parameter": (added("query", "RoleArn", "x"), "bad_proof", "proof.query has ['RoleArn'], allowed: ["),
    "parameter in another case": (added("query", "action", "AssumeRole"), "bad_proof", "proof.query has ['action']"),
    "extra header": (added("headers", "x-amz-target", "x"), "bad_proof", "proof.headers has ['x-amz-target'], allowed"),
    "host header": (added("headers", "host", "evil"), "bad_proof", "proof.headers has ['host'], allowed"),
    "header in another case": (added("headers", "X-Holdfast-Cluster", "p"), "bad_proof", "has ['X-Holdfast-Cluster']"),
    "header not text": (added("headers", "x-holdfast-cluster", ["demo"]), "bad_proof", "must be a string of 1 to 8192"),
    "a URL": (lambda proof: proof.__setitem__("url", "https://evil"), "bad_proof", 'exactly the keys "query" and'),
    "no headers": (lambda proof: proof.pop("headers"), "bad_proof", 'exactly the keys "query" and "headers"'),
    "query is a string": (lambda proof: proof.__setitem__("query", "Action=X"), "bad_proof", "query must be an object"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(case: str) -> None:
    change, reason, text = REFUSALS[case]
    proof = copy.deepcopy(HONEST)
    change(proof)
    with pytest.raises(Refused) as refusal:
        check(proof)
    assert (refusal.value.reason, text in str(refusal.value)) == (reason, True), str(refusal.value)
    assert SIGNATURE not in str(refusal.value)
    assert TOKEN not in str(refusal.value)


@pytest.mark.parametrize("proof", [None, [], "x", 7, {}], ids=repr)
def test_refused_when_not_a_proof_at_all(proof: object) -> None:
    with pytest.raises(Refused, match='proof must be an object with exactly the keys "query" and "headers"'):
        check(proof)


@pytest.mark.parametrize(
    ("seconds", "text"), [(61, "got 61 s old"), (86400, "got 86400 s old"), (-61, "got 61 s in the future")]
)
def test_refused_when_not_fresh(seconds: int, text: str) -> None:
    with pytest.raises(Refused, match=f"at most 60 s from this function's clock, {text}; check the node's time") as e:
        check(HONEST, NOW + timedelta(seconds=seconds))
    assert e.value.reason == "expired"


def test_a_shorter_life_is_kept() -> None:
    proof = copy.deepcopy(HONEST)
    proof["query"]["X-Amz-Expires"] = "10"
    with pytest.raises(Refused, match="got 11 s old"):
        check(proof, NOW + timedelta(seconds=11))


def answer(arn: str, user_id: str = f"{ROLE_ID}:{INSTANCE}", account: str = ACCOUNT) -> bytes:
    return (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
        f"<Arn>{arn}</Arn><UserId>{user_id}</UserId><Account>{account}</Account></GetCallerIdentityResult>"
        "<ResponseMetadata><RequestId>x</RequestId></ResponseMetadata></GetCallerIdentityResponse>"
    ).encode()


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
def test_the_caller_is_read_from_stss_answer(partition: str) -> None:
    caller = parse_caller(200, answer(f"arn:{partition}:sts::{ACCOUNT}:assumed-role/demo-worker/{INSTANCE}"))
    assert caller == Caller(account=ACCOUNT, partition=partition, role="demo-worker", instance_id=INSTANCE)


CALLERS: dict[str, tuple[int, bytes, str, str]] = {
    "root": (200, answer(f"arn:aws:iam::{ACCOUNT}:root", ACCOUNT), "not_an_instance", "must be an EC2 instance's role"),
    "user": (200, answer(f"arn:aws:iam::{ACCOUNT}:user/{INSTANCE}"), "not_an_instance", ":user/i-0123"),
    "session name is not an instance": (
        200,
        answer(f"arn:aws:sts::{ACCOUNT}:assumed-role/demo-worker/me"),
        "not_an_instance",
        "demo-worker/me'",
    ),
    "instance id with a suffix": (
        200,
        answer(f"arn:aws:sts::{ACCOUNT}:assumed-role/demo-worker/{INSTANCE}@x"),
        "not_an_instance",
        "@x'",
    ),
    "path in the role": (
        200,
        answer(f"arn:aws:sts::{ACCOUNT}:assumed-role/nodes/demo-worker/{INSTANCE}"),
        "not_an_instance",
        "nodes/",
    ),
    "account disagrees": (
        200,
        answer(f"arn:aws:sts::{ACCOUNT}:assumed-role/demo-worker/{INSTANCE}", account="999988887777"),
        "not_an_instance",
        "account and user id must agree with",
    ),
    "user id of a user": (
        200,
        answer(f"arn:aws:sts::{ACCOUNT}:assumed-role/demo-worker/{INSTANCE}", f"AIDA{'A' * 17}:{INSTANCE}"),
        "not_an_instance",
        "account and user id must agree with",
    ),
    "empty answer": (200, b"<a/>", "not_an_instance", "got ''"),
    "throttled": (429, b"<a/>", "unavailable", "HTTP status 429; try again"),
    "throttled by code": (
        400,
        b"<E><Error><Code>Throttling</Code></Error></E>",
        "unavailable",
        "HTTP status 400 (Throttling); try again",
    ),
    "down": (500, b"", "unavailable", "HTTP status 500; try again"),
    "cut off": (200, answer("x")[:50], "unavailable", "HTTP status 200 and no XML"),
    "not UTF-8": (200, b"<a>\xff</a>", "unavailable", "HTTP status 200 and no XML"),
    "refused": (403, b"<E><Error><Code>ExpiredToken</Code></Error></E>", "sts_refused", "403 (ExpiredToken); its"),
    "refused, with markup in the code": (
        403,
        b"<E><Code>a&#10;{&quot;b&quot;}</Code></E>",
        "sts_refused",
        "403 (ab); its signature or credentials",
    ),
}


@pytest.mark.parametrize("case", CALLERS)
def test_refused_by_stss_answer(case: str) -> None:
    status, body, reason, text = CALLERS[case]
    with pytest.raises(Refused) as refusal:
        parse_caller(status, body)
    assert (refusal.value.reason, text in str(refusal.value)) == (reason, True), str(refusal.value)
