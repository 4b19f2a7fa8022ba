"""The proof of who calls: a presigned `sts:GetCallerIdentity` that only the caller's credentials could sign.

The node signs it; this function sends it to its own STS endpoint, and STS says whose credentials they are. Nothing
here does I/O. What makes it safe:

- the request names no URL, method or path: `rebuild` makes the only request that can be sent;
- the query parameters and headers are a closed list, so that no other action and no other credential can be meant;
- the signature covers the CSR's hash and the cluster's name, so a captured proof enrols no other key, nowhere else;
- it is fresh by this function's clock, and by STS's, which enforces `X-Amz-Expires` itself.

Format: AWS Signature Version 4, query-string authentication
(https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-authentication-methods.html).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from names import CLUSTER_HEADER, CSR_HEADER, INSTANCE_ID_PATTERN
from refusal import Reason, Refused

MAX_AGE = timedelta(seconds=60)
SIGNED_HEADERS = f"host;{CLUSTER_HEADER};{CSR_HEADER}"
MAX_VALUE_CHARACTERS = 8192

#: Every query parameter of the request, and the form of its value; there is no other and none may be missing.
QUERY_PARAMETERS: dict[str, re.Pattern[str]] = {
    "Action": re.compile("GetCallerIdentity"),
    "Version": re.compile("2011-06-15"),
    "X-Amz-Algorithm": re.compile("AWS4-HMAC-SHA256"),
    "X-Amz-Credential": re.compile(r"[A-Z0-9]{16,128}/[0-9]{8}/[a-z0-9-]{1,40}/sts/aws4_request"),
    "X-Amz-Date": re.compile(r"[0-9]{8}T[0-9]{6}Z"),
    "X-Amz-Expires": re.compile(r"[0-9]{1,6}"),
    "X-Amz-Security-Token": re.compile(r"[\x21-\x7e]+"),
    "X-Amz-Signature": re.compile(r"[0-9a-f]{64}"),
    "X-Amz-SignedHeaders": re.compile(re.escape(SIGNED_HEADERS)),
}
_UNSHOWN = frozenset({"X-Amz-Signature", "X-Amz-Security-Token"})
#: Error codes of STS that say nothing about the caller; it sends them with status 400.
_STS_IS_BUSY = frozenset({"Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalFailure"})


@dataclass(frozen=True)
class StsRequest:
    """A GET of `path` on the function's own STS endpoint."""

    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Caller:
    """Who signed the proof, in STS's words: the role and the EC2 instance that its session belongs to."""

    account: str
    partition: str
    role: str
    instance_id: str


def rebuild(proof: object, *, csr_sha256: str, cluster: str, region: str, now: datetime) -> StsRequest:
    """Return the only request to STS that this proof can stand for.

    Args:
        proof: the event's `proof`: `{"query": {…}, "headers": {…}}`, untrusted.
        csr_sha256: hex SHA-256 of the DER of the CSR that came with it.
        cluster: this function's cluster.
        region: this function's region; the signature must be scoped to it.
        now: the function's clock, in UTC.

    Raises:
        Refused: the proof is malformed, is not this request, or is not fresh.
    """
    if not isinstance(proof, Mapping) or set(proof) != {"query", "headers"}:
        raise Refused(Reason.BAD_PROOF, 'proof must be an object with exactly the keys "query" and "headers"')
    headers = _strings(proof["headers"], "proof.headers", {CLUSTER_HEADER, CSR_HEADER})
    query = _strings(proof["query"], "proof.query", set(QUERY_PARAMETERS))
    for name, pattern in QUERY_PARAMETERS.items():
        if not pattern.fullmatch(query[name]):
            shown = f", got {query[name][:80]!r}" if name not in _UNSHOWN else ""
            raise Refused(Reason.BAD_PROOF, f"{name} must match {pattern.pattern}{shown}")
    _, date, scope_region, _, _ = query["X-Amz-Credential"].split("/")
    if scope_region != region or date != query["X-Amz-Date"][:8]:
        message = f"proof must be signed for {query['X-Amz-Date'][:8]}/{region}, got {date}/{scope_region}"
        raise Refused(Reason.BAD_PROOF, message)
    if headers[CLUSTER_HEADER] != cluster:
        message = f"proof was made for cluster {headers[CLUSTER_HEADER][:80]!r}, this is {cluster!r}"
        raise Refused(Reason.WRONG_CLUSTER, message)
    if headers[CSR_HEADER] != csr_sha256:
        raise Refused(Reason.WRONG_CSR, "proof was made for another CSR; sign a new proof for each CSR")
    _check_fresh(query["X-Amz-Date"], int(query["X-Amz-Expires"]), now)
    return StsRequest(path=f"/?{urlencode(sorted(query.items()), quote_via=quote, safe='-_.~')}", headers=headers)


def parse_caller(status: int, body: bytes) -> Caller:
    """Return who the caller is, from STS's answer.

    `Arn` ends in the session's name, which EC2 sets to the instance id for an instance's credentials. `UserId` is
    the role's unique id and the same session name; both must agree.

    Raises:
        Refused: STS refused the signature, or the caller is not an EC2 instance's role session.
    """
    if status >= 500 or status == 429:
        raise Refused(Reason.UNAVAILABLE, f"STS answered with HTTP status {status}; try again")
    try:
        if b"<!" in body:  # no document type, so no entities to expand
            raise ElementTree.ParseError("unexpected declaration")
        root = ElementTree.fromstring(body.decode())  # noqa: S314 - see above; it came from STS over TLS
    except (ElementTree.ParseError, UnicodeDecodeError):
        raise Refused(Reason.UNAVAILABLE, f"STS answered with HTTP status {status} and no XML; try again") from None
    if status != 200:
        code = re.sub(r"[^A-Za-z0-9.]", "", _text(root, "Code"))[:80] or "unknown"
        if code in _STS_IS_BUSY:
            raise Refused(Reason.UNAVAILABLE, f"STS answered with HTTP status {status} ({code}); try again")
        message = f"STS refused the proof with HTTP status {status} ({code}); its signature or credentials are invalid"
        raise Refused(Reason.STS_REFUSED, message)
    arn, account, user_id = _text(root, "Arn"), _text(root, "Account"), _text(root, "UserId")
    match = re.fullmatch(r"arn:(aws[a-z-]*):sts::([0-9]{12}):assumed-role/([\w+=,.@-]+)/([\w+=,.@-]+)", arn)
    if not match or not INSTANCE_ID_PATTERN.fullmatch(match[4]):
        raise Refused(Reason.NOT_AN_INSTANCE, f"caller must be an EC2 instance's role session, got {arn[:200]!r}")
    if match[2] != account or not re.fullmatch(r"AROA[A-Z0-9]{12,124}:" + re.escape(match[4]), user_id):
        message = f"STS's account and user id must agree with {arn[:200]!r}, got {account!r} and {user_id[:160]!r}"
        raise Refused(Reason.NOT_AN_INSTANCE, message)
    return Caller(account=account, partition=match[1], role=match[3], instance_id=match[4])


def _strings(value: Any, where: str, names: set[str]) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise Refused(Reason.BAD_PROOF, f"{where} must be an object")
    if unknown := sorted(str(name)[:80] for name in set(value) - names):
        raise Refused(Reason.BAD_PROOF, f"{where} has {unknown[:8]}, allowed: {sorted(names)}")
    if missing := sorted(names - set(value)):
        raise Refused(Reason.BAD_PROOF, f"{where} lacks {missing}")
    for name, item in value.items():
        if not isinstance(item, str) or not 0 < len(item) <= MAX_VALUE_CHARACTERS:
            message = f"{where}.{name} must be a string of 1 to {MAX_VALUE_CHARACTERS} characters"
            raise Refused(Reason.BAD_PROOF, message)
    return dict(value)


def _check_fresh(date: str, expires: int, now: datetime) -> None:
    try:
        signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise Refused(Reason.BAD_PROOF, f"X-Amz-Date must be a time, got {date!r}") from None
    if not 1 <= expires <= MAX_AGE.seconds:
        raise Refused(Reason.BAD_PROOF, f"X-Amz-Expires must be between 1 and {MAX_AGE.seconds}, got {expires}")
    if not -MAX_AGE <= now - signed <= timedelta(seconds=expires):
        apart = abs(round((now - signed).total_seconds()))
        side = "old" if now > signed else "in the future"
        message = (
            f"proof must be at most {MAX_AGE.seconds} s from this function's clock, got {apart} s {side}; "
            "check the node's time synchronisation"
        )
        raise Refused(Reason.EXPIRED, message)


def _text(root: ElementTree.Element, name: str) -> str:
    return next((element.text or "" for element in root.iter() if element.tag.rpartition("}")[2] == name), "")
