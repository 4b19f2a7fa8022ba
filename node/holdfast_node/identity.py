"""A node's identity: a fresh key, and a certificate that the cluster's CA gives on AWS's word.

The key never leaves the node, and reaches its disk only with a certificate that has been checked. The proof of who
asks is a presigned `sts:GetCallerIdentity` that covers the CSR's hash and the cluster's name: the enrolment function
sends it to STS, so the node itself needs no way to STS (docs/adr/0003-enrolment.md).
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import boto3
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from holdfast_node.contract.documents import NodeConfig, Registration
from holdfast_node.contract.errors import HoldfastError, VerificationError
from holdfast_node.contract.roles import NodeRole, Role, spiffe_id
from holdfast_node.issued import check_issued, load_one
from holdfast_node.trust import bundle, load_authorities, trusted_authorities

#: The headers that the proof's signature covers beside `host`.
CSR_HEADER = "x-holdfast-csr-sha256"
CLUSTER_HEADER = "x-holdfast-cluster"

PROOF_SECONDS = 60
ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 16.0
_CLIENT = Config(connect_timeout=5, read_timeout=35, retries={"total_max_attempts": 1})  # a retry needs a fresh proof
#: Lambda's answers that mean "later" (https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html).
_LATER = frozenset(
    {
        "TooManyRequestsException",
        "ThrottlingException",
        "Throttling",
        "ServiceException",
        "EC2ThrottledException",
        "ResourceConflictException",
        "ResourceNotReadyException",
        "RequestTimeout",
    }
)


#: The function's refusals that a fresh proof may overcome. Proofs of one second for one CSR are the same request, so a
#: retry within it is a replay.
_AGAIN = frozenset({"unavailable", "replayed"})


#: What the function answers with, and what it adds while the CA is rotated.
_ANSWERS = ({"certificate", "ca"}, {"certificate", "ca", "trusted", "voucher"})


class IdentityError(HoldfastError):
    """A node could not get an identity. `reason` is the enrolment function's code, or None if it did not decide."""

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Identity:
    """Who this node is, as its certificate says; key, certificate and CA are in the directory that `enrol` wrote."""

    role: NodeRole
    instance_id: str
    address: str
    spiffe_id: str
    serial: str
    not_before: datetime
    not_after: datetime

    @property
    def renew_at(self) -> datetime:
        """When to enrol again: at two thirds of the certificate's life."""
        return self.not_before + (self.not_after - self.not_before) * 2 / 3

    def registration(self, address: str | None = None) -> Registration:
        """Return this node's registration; `address` replaces EC2's where the host listens on another one."""
        return Registration(
            role=Role(self.role),  # a predictor has no part in jobs and registers for none
            instance_id=self.instance_id,
            address=address or self.address,
            spiffe_id=self.spiffe_id,
            serial=self.serial,
        )


def enrol(
    config: NodeConfig,
    session: boto3.Session,
    *,
    instance_id: str,
    tls_dir: Path,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Identity:
    """Make a key, get a certificate for it, check it, and write `key.pem`, `cert.pem` and `ca.pem` to `tls_dir`.

    Each call makes a new key; call it again at `Identity.renew_at`. The files are of mode 0640 in the directory's
    group, and replaced only once everything has been checked: after a failure the old ones are untouched. The first
    CA that this node sees is pinned by its `ca.pem`; another one is trusted if a pinned one vouches for it, which is
    how the cluster's CA is rotated.

    It waits and asks again, up to five times in all, while Lambda or the function's AWS calls are throttled or down.

    Args:
        config: the node's constants.
        session: the instance's credentials.
        instance_id: this instance, from its metadata.
        tls_dir: where the tunnel finds its files; it exists.
        clock: the time, in UTC; default: the system's.
        sleep: how to wait between attempts, in seconds.

    Raises:
        IdentityError: refused (the message and `reason` are the function's), or no answer.
        VerificationError: the answer is not a certificate for this node by the pinned CA.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    answer = _ask(config, session, csr, sleep)
    now = clock()
    issued = check_issued(
        certificate_pem=answer["certificate"],
        ca_pem=answer["ca"],
        key=key.public_key(),
        cluster=config.cluster,
        role=config.role,
        instance_id=instance_id,
        now=now,
    )
    trusted = _trusted(tls_dir / "ca.pem", issued.ca, answer, now)
    _write(
        tls_dir,
        {
            "ca.pem": bundle(trusted),
            "key.pem": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "cert.pem": issued.certificate.public_bytes(Encoding.PEM),
        },
    )
    return Identity(
        role=config.role,
        instance_id=instance_id,
        address=issued.address,
        spiffe_id=spiffe_id(config.cluster, config.role, instance_id),
        serial=f"{issued.certificate.serial_number:x}",
        not_before=issued.certificate.not_valid_before_utc,
        not_after=issued.certificate.not_valid_after_utc,
    )


def prove(session: boto3.Session, *, region: str, cluster: str, csr_sha256: str) -> dict[str, dict[str, str]]:
    """Return the proof of whose credentials these are: the parts of a presigned `sts:GetCallerIdentity`.

    It is valid for 60 seconds and only with the CSR and the cluster that it was made for.

    Raises:
        IdentityError: there are no credentials, or they are not those of a role's session.
    """
    credentials = session.get_credentials()
    if credentials is None:
        raise IdentityError("no AWS credentials: the instance needs an instance profile and its metadata service")
    try:
        frozen = credentials.get_frozen_credentials()
    except BotoCoreError as error:
        raise IdentityError(f"the instance's credentials could not be read ({type(error).__name__})") from None
    if not frozen.token:
        raise IdentityError("credentials must be a role's temporary ones, got a user's long-lived key; remove it")
    endpoint: str = session.client("sts", region_name=region).meta.endpoint_url
    headers = {CLUSTER_HEADER: cluster, CSR_HEADER: csr_sha256}
    request = AWSRequest(
        method="GET",
        url=f"{endpoint.rstrip('/')}/",
        params={"Action": "GetCallerIdentity", "Version": "2011-06-15"},
        headers=headers,
    )
    SigV4QueryAuth(frozen, "sts", region, expires=PROOF_SECONDS).add_auth(request)
    query = dict(parse_qsl(urlsplit(str(request.url)).query, keep_blank_values=True, strict_parsing=True))
    return {"query": query, "headers": headers}


def _ask(
    config: NodeConfig,
    session: boto3.Session,
    csr: x509.CertificateSigningRequest,
    sleep: Callable[[float], None],
) -> dict[str, str]:
    client = session.client("lambda", region_name=config.region, config=_CLIENT)
    csr_sha256 = hashlib.sha256(csr.public_bytes(Encoding.DER)).hexdigest()
    pem = csr.public_bytes(Encoding.PEM).decode()
    jitter = random.SystemRandom()
    for attempt in range(ATTEMPTS):
        if attempt:  # full jitter, so that a group that starts together does not return together
            longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**attempt)
            sleep(jitter.uniform(longest / 4, longest))
        proof = prove(session, region=config.region, cluster=config.cluster, csr_sha256=csr_sha256)
        try:
            return _invoke(client, config.enrolment_function, {"csr": pem, "proof": proof})
        except _Later as later:
            reason = later
    raise IdentityError(f"no certificate after {ATTEMPTS} attempts, the last: {reason}", reason=reason.reason)


class _Later(Exception):  # noqa: N818 - not an error yet
    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


def _invoke(client: Any, function: str, event: dict[str, Any]) -> dict[str, str]:
    try:
        answer = client.invoke(FunctionName=function, Payload=json.dumps(event).encode())
        payload = answer["Payload"].read()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        if code in _LATER or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            raise _Later(f"Lambda answered {code}") from None
        raise IdentityError(
            f"this node may not ask {function} for an identity ({code}); check the node role's lambda:InvokeFunction "
            "permission and the function's name"
        ) from None
    except BotoCoreError as error:
        raise _Later(f"Lambda did not answer ({type(error).__name__})") from None
    try:
        value = json.loads(payload)
    except ValueError:
        value = None
    if "FunctionError" in answer:
        detail = value.get("errorMessage", "") if isinstance(value, dict) else ""
        raise IdentityError(f"the enrolment function failed: {str(detail)[:300]}; see its log")
    if isinstance(value, dict) and set(value) == {"refused"} and isinstance(value["refused"], dict):
        reason, message = str(value["refused"].get("reason")), str(value["refused"].get("message"))
        if reason in _AGAIN:
            raise _Later(message, reason)
        raise IdentityError(f"enrolment refused ({reason}): {message}", reason=reason)
    if not isinstance(value, dict) or set(value) not in _ANSWERS:
        raise IdentityError("the enrolment function's answer must be a certificate and a CA, or a refusal; see its log")
    return {name: str(item) for name, item in value.items()}


def _trusted(path: Path, ca: x509.Certificate, answer: dict[str, str], now: datetime) -> list[x509.Certificate]:
    try:
        pinned = load_authorities(path.read_bytes())
    except FileNotFoundError:
        pinned = []
    except ValueError:
        raise VerificationError(f"{path} is not a certificate; replace this node") from None
    other = load_one(answer["trusted"], "second CA") if "trusted" in answer else None
    voucher = load_one(answer["voucher"], "voucher") if "voucher" in answer else None
    return trusted_authorities(pinned, ca=ca, other=other, voucher=voucher, now=now)


def _write(directory: Path, files: dict[str, bytes]) -> None:
    """Write all files beside their places, then move all: the moment when they disagree is as short as can be."""
    for name, data in files.items():
        temporary = directory / f".{name}.new"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o640)  # whatever the umask; the setgid directory gives the tunnel's group
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    for name in files:
        (directory / f".{name}.new").replace(directory / name)
