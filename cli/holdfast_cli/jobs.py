"""Submitting a job: validate everything, pack, sign, upload, start."""

import base64
import hashlib
import json
import re
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from holdfast_cli.aws import Cluster
from holdfast_cli.aws_errors import code_of
from holdfast_cli.errors import NotFoundError, SubmitError
from holdfast_cli.packing import find_entry, pack
from holdfast_node.contract import dsse
from holdfast_node.contract.documents import (
    DEFAULT_MAX_RESTARTS,
    JOB_ID_PATTERN,
    RELATIVE_PATH_PATTERN,
    CodeArchive,
    JobDocument,
)
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.seeds import new_seed

DEFAULT_TIMEOUT_SECONDS = 3600
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_TIMEOUT = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the operator asked for; None takes what the cluster allows, and for `seed` a fresh one from the system."""

    directory: Path
    entry: str
    args: tuple[str, ...] = ()
    workers: int | None = None
    servers: int | None = None
    model_dir: str = "model"
    timeout_seconds: int | None = None
    seed: str | None = None
    max_restarts: int | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that has been started."""

    job_id: str
    execution: str
    document: JobDocument

    def to_dict(self) -> dict[str, Any]:
        """Return the submission for JSON output."""
        return {"job_id": self.job_id, "execution": self.execution, **asdict(self.document)}


def parse_timeout(text: str) -> int:
    """Return the seconds in a length of time such as `90s`, `30m`, `1h30m` or `2d`.

    Raises:
        SubmitError: not such a length.
    """
    match = _TIMEOUT.fullmatch(text.strip().lower())
    if not match or not text.strip():
        raise SubmitError(f"timeout must look like 90s, 30m, 1h30m or 2d, got {text!r}; say the unit")
    return sum(int(number) * unit for number, unit in zip(match.groups(), _UNITS.values(), strict=True) if number)


def check_request(request: Request) -> Request:
    """Return the request with its paths normalised; checks all that needs no AWS.

    Raises:
        SubmitError: the directory, entry, model directory or an argument is impossible.
    """
    entry = find_entry(request.directory, request.entry)
    model_dir = request.model_dir.rstrip("/")
    if not RELATIVE_PATH_PATTERN.fullmatch(model_dir):
        raise SubmitError(
            f"model-dir must be a relative path without '..', of letters, digits and ._-/, got {request.model_dir!r}"
        )
    for argument in request.args:
        if "\0" in argument or (not argument.isascii() and argument != argument.encode("utf-8", "ignore").decode()):
            raise SubmitError(f"arguments must be UTF-8 text without NUL characters, got {argument!r}")
    return Request(**{**vars(request), "entry": entry, "model_dir": model_dir})


def submit(cluster: Cluster, request: Request, report: Callable[[str], None]) -> Submission:
    """Start the job and return it; `report` is told each step.

    Nothing is uploaded before everything was validated. One job runs at a time: an execution that is still running is
    an error that names it. (Two operators who submit in the same second can both pass that check; the scheduler then
    serves the one that wrote its control object last.)

    Raises:
        SubmitError: invalid, too big for the cluster, or another job is running.
    """
    request = check_request(request)
    workers = _within("workers", request.workers, cluster.max_workers, cluster)
    servers = _within("servers", request.servers, cluster.max_servers, cluster)
    timeout = _timeout(request.timeout_seconds, cluster)
    restarts = _restarts(request.max_restarts, cluster)
    if not cluster.nodes_can_boot:
        raise SubmitError(
            f"nodes of cluster {cluster.name} cannot boot on EC2: its node bundle has no installer, so "
            "instances would be paid for and never train. Deploy it from a checkout, whose bundle has one"
        )
    _refuse_while_running(cluster)
    job_id = new_job_id(request.directory, datetime.now(UTC), secrets.token_hex(2))
    with tempfile.TemporaryFile() as archive:
        report(f"packing {request.directory}")
        code = pack(request.directory, archive)
        document = JobDocument(
            job_id=job_id,
            cluster=cluster.name,
            engine=cluster.engine,
            entry=request.entry,
            args=request.args,
            workers=workers,
            servers=servers,
            model_dir=request.model_dir,
            timeout_seconds=timeout,
            max_restarts=restarts,
            code=code,
            seed=request.seed or new_seed(),
        )
        report("signing the job document")
        envelope = sign_document(cluster, document)
        report(f"uploading {code.size / 1024:,.0f} KiB of code")
        archive.seek(0)
        s3 = cluster.client("s3")
        s3.put_object(
            Bucket=cluster.jobs_bucket,
            Key=JobsBucket.job_code(job_id),
            Body=archive,
            ContentLength=code.size,
            ContentType="application/gzip",
            ChecksumSHA256=_base64(code),
        )
    s3.put_object(
        Bucket=cluster.jobs_bucket,
        Key=JobsBucket.job_document(job_id),
        Body=envelope,
        ContentType="application/json",
    )
    report(f"starting {job_id}")
    return Submission(job_id=job_id, execution=_start(cluster, document), document=document)


def sign_document(cluster: Cluster, document: JobDocument) -> bytes:
    """Return the job document as a DSSE envelope signed with the cluster's job signing key.

    Raises:
        SubmitError: the document is not one that the nodes would accept.
    """
    payload = document.to_json()
    try:
        JobDocument.parse(payload)  # what a node will do: better to learn of a refusal here
    except DocumentError as error:
        raise SubmitError(f"the job document would be refused: {error}") from None
    envelope = dsse.seal(dsse.JOB_PAYLOAD_TYPE, payload, lambda message: _sign(cluster, message))
    if len(envelope) > dsse.MAX_ENVELOPE_BYTES:
        raise SubmitError(
            f"the signed job document must be at most {dsse.MAX_ENVELOPE_BYTES} bytes, got {len(envelope)}; "
            "pass fewer or shorter arguments, or put them in a file of the job's directory"
        )
    return envelope


def new_job_id(directory: Path, now: datetime, suffix: str) -> str:
    """Return an id that names the directory and the time, and is the same for nobody else."""
    slug = re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower()).strip("-")[:30].strip("-") or "job"
    return f"{slug}-{now:%Y%m%d-%H%M%S}-{suffix}"


def check_job_id(job_id: str) -> str:
    """Return the id if it has the form of a job's id.

    Raises:
        NotFoundError: it has not, so no job can have it.
    """
    if not JOB_ID_PATTERN.fullmatch(job_id):
        raise NotFoundError(
            f"a job's id matches {JOB_ID_PATTERN.pattern}, got {job_id!r}; `holdfast status` lists them"
        )
    return job_id


def _within(what: str, wanted: int | None, limit: int, cluster: Cluster) -> int:
    if wanted is None:
        return limit
    if not 1 <= wanted <= limit:
        raise SubmitError(
            f"{what} must be between 1 and {limit}, got {wanted}; the limit of cluster {cluster.name} is "
            f"[{what}] max in its settings file"
        )
    return wanted


def _timeout(wanted: int | None, cluster: Cluster) -> int:
    if wanted is None:
        return max(cluster.min_job_seconds, min(DEFAULT_TIMEOUT_SECONDS, cluster.max_job_seconds))
    if not cluster.min_job_seconds <= wanted <= cluster.max_job_seconds:
        raise SubmitError(
            f"timeout must be between {cluster.min_job_seconds} and {cluster.max_job_seconds} seconds, got {wanted}; "
            f"the limits of cluster {cluster.name} are [limits] heartbeat_seconds and max_hours in its settings file"
        )
    return wanted


def _restarts(wanted: int | None, cluster: Cluster) -> int:
    if wanted is None:
        return min(DEFAULT_MAX_RESTARTS, cluster.max_restarts)
    if not 0 <= wanted <= cluster.max_restarts:
        raise SubmitError(
            f"max-restarts must be between 0 and {cluster.max_restarts}, got {wanted}; the limit of cluster "
            f"{cluster.name} is [limits] max_restarts in its settings file"
        )
    return wanted


def _refuse_while_running(cluster: Cluster) -> None:
    for execution in cluster.executions(statusFilter="RUNNING"):
        raise SubmitError(
            f"job {execution['name']} is still running on cluster {cluster.name}, which runs one job at a time; "
            f"watch it with `holdfast status {execution['name']}` and submit again when it has ended"
        )


def _sign(cluster: Cluster, message: bytes) -> bytes:
    reply = cluster.client("kms").sign(
        KeyId=cluster.job_signing_key,
        Message=hashlib.sha256(message).digest(),
        MessageType="DIGEST",
        SigningAlgorithm="ECDSA_SHA_256",
    )
    return bytes(reply["Signature"])


def _start(cluster: Cluster, document: JobDocument) -> str:
    from botocore.exceptions import ClientError

    fields = ("job_id", "workers", "servers", "timeout_seconds")
    try:
        reply = cluster.client("stepfunctions").start_execution(
            stateMachineArn=cluster.state_machine,
            name=document.job_id,
            input=json.dumps({field: getattr(document, field) for field in fields}),
        )
    except ClientError as error:
        if code_of(error) == "StateMachineDoesNotExist":
            raise SubmitError(
                f"the state machine of cluster {cluster.name} is gone; deploy it again with `cdk deploy --all`"
            ) from None
        raise
    return str(reply["executionArn"])


def _base64(code: CodeArchive) -> str:
    return base64.b64encode(bytes.fromhex(code.sha256)).decode()
