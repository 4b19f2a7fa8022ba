"""The JSON documents that parts of Holdfast exchange: closed schemas, parsed strictly.

`parse` refuses unknown, missing, duplicate and mistyped keys with a `DocumentError` that names them; nothing is
guessed for a document that was signed.
"""

import dataclasses
import json
import re
import types
import typing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Any, TypeVar

from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.roles import (
    CLUSTER_PATTERN,
    DIALS,
    INSTANCE_ID_PATTERN,
    PREDICTOR_PORT,
    NodeRole,
    Role,
    Serving,
    overlay_address,
)
from holdfast_node.contract.seeds import SEED_PATTERN

JOB_ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{2,62}")
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
RELATIVE_PATH_PATTERN = re.compile(r"(?!/)(?!.*(?:^|/)\.\.?(?:/|$))[A-Za-z0-9._/-]{1,200}")
DOCUMENT_VERSION = 1
#: How long a node may be silent before it is lost, in seconds, unless the settings say otherwise.
DEFAULT_LOST_SECONDS = 15
#: Less leaves no room for a pause of the network or of a busy machine.
MIN_LOST_SECONDS = 10
#: How long all scripts may take to make their KVStore, counted from the generation's start, unless the settings say
#: otherwise: they may load their data before. Less than a minute leaves no room for MXNet's own start.
DEFAULT_JOIN_SECONDS = 1800
MIN_JOIN_SECONDS = 60
#: How often a job starts again after a failure, unless its submission says otherwise; and the most that it may say.
DEFAULT_MAX_RESTARTS = 2
MAX_RESTARTS = 100
MAX_REASON_CHARACTERS = 200
_PEM = re.compile(
    r"(?=.{1,4096}\Z)(-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+\n-----END CERTIFICATE-----\n?)+", re.DOTALL
)
#: Decimals of a probability that may leave a predictor. With three, one answer per parameter already copies a linear
#: model in all but its last digits (docs/predictions.md).
MAX_DIGITS = 3

D = TypeVar("D", bound="Document")


@dataclass(frozen=True, kw_only=True)
class Document:
    """A JSON object with a closed schema: the fields of a dataclass."""

    @classmethod
    def parse(cls: type[D], data: bytes | str) -> D:
        """Return the document in `data` (JSON, UTF-8).

        Raises:
            DocumentError: not JSON, or not of this schema; the message names the key.
        """
        try:
            value = json.loads(data, object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise DocumentError(f"{cls.__name__} is not valid JSON: {error}") from None
        return typing.cast(D, _build(cls, value, cls.__name__))

    def to_json(self) -> bytes:
        """Return the document as JSON that `parse` accepts, with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def validate(self) -> None:
        """Raise DocumentError where single values are typed right but impossible."""


@dataclass(frozen=True, kw_only=True)
class Bundle(Document):
    """Where the node bundle is: bucket, key, and SHA-256 (hex) of its bytes."""

    bucket: str
    key: str
    sha256: str

    def validate(self) -> None:
        """Check the digest's form."""
        require(SHA256_PATTERN, self.sha256, "bundle.sha256")


#: The name of a lock file in the node bundle.
LOCK_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}\.txt")


@dataclass(frozen=True, kw_only=True)
class Wheelhouse(Document):
    """Where the wheels of a lock file are: bucket, key, and SHA-256 (hex) of the zip that holds them.

    `lock` names the file in the node bundle that they fulfil (pip's requirements format, with hashes).
    """

    bucket: str
    key: str
    sha256: str
    lock: str

    def validate(self) -> None:
        """Check the digest's form, and that the lock is a plain file name."""
        require(SHA256_PATTERN, self.sha256, "wheelhouse.sha256")
        require(LOCK_PATTERN, self.lock, "wheelhouse.lock")


#: A metric's name, as scripts and settings write it.
METRIC_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BEST = ("lowest", "highest")


@dataclass(frozen=True, kw_only=True)
class Retention(Document):
    """Which checkpoints of a job stay; the writer removes the others after every new one.

    One stays that is among the newest `keep_last` and younger than `max_age_days`. The newest stays in any case, and so
    do the `keep_best` best ones by the metric `best_metric` (`best` is lowest or highest), and any that is in use.
    """

    keep_last: int = 3
    max_age_days: int = 30
    keep_best: int = 1
    best_metric: str = "loss"
    best: str = "lowest"

    def validate(self) -> None:
        """Check the bounds: one checkpoint stays at least."""
        for name, least in (("keep_last", 1), ("max_age_days", 1), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise DocumentError(f"{name} must be at least {least}, got {getattr(self, name)}")
        require(METRIC_PATTERN, self.best_metric, "best_metric")
        if self.best not in BEST:
            raise DocumentError(f"best must be {' or '.join(BEST)}, got {self.best[:80]!r}")


DEFAULT_RETENTION = Retention()


class Output(StrEnum):
    """What of a prediction leaves a predictor; scores and logits never do."""

    LABELS = "labels"
    TOP_K = "top-k"
    PROBABILITIES = "probabilities"


@dataclass(frozen=True, kw_only=True)
class Predictions(Document):
    """What a predictor serves and how much of it one client gets (docs/predictions.md has the numbers behind).

    `job_id` names the signed model. `digits` is how many decimals of a probability leave; `top_k` how many labels do
    where `output` is `top-k`. `batch_rows` is the most rows of one request, `rows_per_minute` and `rows_per_day` the
    most of one client. `client_ca` is the PEM of the authority that clients' certificates come from; empty: the
    cluster's own.
    """

    job_id: str
    port: int = PREDICTOR_PORT
    output: Output = Output.LABELS
    digits: int = 2
    top_k: int = 3
    batch_rows: int = 32
    rows_per_minute: int = 120
    rows_per_day: int = 1_000
    client_ca: str = ""

    def validate(self) -> None:
        """Check that every number can work; more than three decimals are refused, because they give the model away."""
        require(JOB_ID_PATTERN, self.job_id, "predictions.job_id")
        if self.client_ca and not _PEM.fullmatch(self.client_ca):
            raise DocumentError("predictions.client_ca must be certificates in PEM, at most 4096 characters of them")
        bounds = {
            "port": (1024, 65535),
            "digits": (1, MAX_DIGITS),
            "top_k": (1, 100),
            "batch_rows": (1, 1024),
            "rows_per_minute": (1, 1_000_000),
            "rows_per_day": (1, 1_000_000_000),
        }
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise DocumentError(f"predictions.{name} must be between {least} and {most}, got {getattr(self, name)}")
        if self.rows_per_minute < 2 * self.batch_rows or self.rows_per_day < self.rows_per_minute:
            raise DocumentError(
                f"predictions.rows_per_minute must be between 2 * batch_rows ({2 * self.batch_rows}) and rows_per_day "
                f"({self.rows_per_day}), got {self.rows_per_minute}; half of a limit is free at once, the rest as time "
                "goes by"
            )


#: EC2's names for volumes beside the root one (EC2 user guide, "Device names for volumes on Amazon EC2 instances").
DEVICE_PATTERN = re.compile(r"/dev/sd[b-z]")


class RemoteAccess(StrEnum):
    """Whether operators may open a shell on a node; never by SSH."""

    NONE = "none"
    SESSION_MANAGER = "session-manager"


@dataclass(frozen=True, kw_only=True)
class NodeConfig(Document):
    """A node's constants, stamped into its user data by the kit. It holds no secret.

    `ports` maps every role of a job to its pinned port. `retention` is what writers of checkpoints apply by default.
    `file_system_id` and `access_point_id` are empty for roles that mount no file system: schedulers and predictors.
    `wheelhouse` is None where the bundle has no installer, which is for local hosts only. `predictions` is a
    predictor's alone.
    `lost_seconds` is within how long a lost process, node or connection is noticed, `join_seconds` how long the nodes
    of a generation may take to join each other (see docs/failure.md).
    `remote_access` says whether the image's SSM agent may run: a node masks it unless it is `session-manager`, and
    then has the user `OPERATOR` (contract/layout.py) for the sessions' shells.
    `scratch_device` is the name under which a blank volume is attached for `NodePaths.work`, such as /dev/sdb (a link
    to the NVMe device on Amazon Linux 2023); empty: there is none, and the directory is on the root volume.
    """

    cluster: str
    role: NodeRole
    region: str
    ports: dict[Role, int]
    jobs_bucket: str
    models_bucket: str
    enrolment_function: str
    job_signing_key: str
    model_signing_key: str
    log_group: str
    file_system_id: str
    access_point_id: str
    bundle: Bundle
    wheelhouse: Wheelhouse | None = None
    lost_seconds: int = DEFAULT_LOST_SECONDS
    join_seconds: int = DEFAULT_JOIN_SECONDS
    retention: Retention = DEFAULT_RETENTION
    predictions: Predictions | None = None
    remote_access: RemoteAccess = RemoteAccess.NONE
    scratch_device: str = ""

    @property
    def port(self) -> int:
        """The port that this node listens on."""
        if isinstance(self.role, Role):
            return self.ports[self.role]
        assert self.predictions is not None  # validated
        return self.predictions.port

    def validate(self) -> None:
        """Check the cluster's name, that the ports are complete and distinct, and who serves predictions."""
        require(CLUSTER_PATTERN, self.cluster, "cluster")
        if self.scratch_device:
            require(DEVICE_PATTERN, self.scratch_device, "scratch_device")
        if self.lost_seconds < MIN_LOST_SECONDS:
            raise DocumentError(f"lost_seconds must be at least {MIN_LOST_SECONDS}, got {self.lost_seconds}")
        if self.join_seconds < MIN_JOIN_SECONDS:
            raise DocumentError(f"join_seconds must be at least {MIN_JOIN_SECONDS}, got {self.join_seconds}")
        if (self.predictions is not None) != (self.role is Serving.PREDICTOR):
            raise DocumentError(f"predictions must be given for a predictor and for nobody else, this is a {self.role}")
        if set(self.ports) != set(Role) or len(set(self.ports.values())) != len(Role):
            raise DocumentError(f"ports must name one distinct port for each of {[r.value for r in Role]}")


@dataclass(frozen=True, kw_only=True)
class CodeArchive(Document):
    """The job's code: SHA-256 (hex) and size in bytes of the archive at `JobsBucket.job_code`."""

    sha256: str
    size: int

    def validate(self) -> None:
        """Check the digest's form and that the size is positive."""
        require(SHA256_PATTERN, self.sha256, "code.sha256")
        if self.size <= 0:
            raise DocumentError(f"code.size must be positive, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class JobDocument(Document):
    """What a job is; the operator signs it and nodes verify it before running a byte.

    `entry` is the script, relative to the archive's root; `args` its arguments; `model_dir` the directory,
    relative to the working directory, that worker 0 exports; `timeout_seconds` the job's deadline after its start;
    `max_restarts` how often it may go on as a new generation after a failure;
    `seed` (64 hex digits) is what every process derives its random numbers from, for training only.
    """

    job_id: str
    cluster: str
    engine: str
    entry: str
    args: tuple[str, ...]
    workers: int
    servers: int
    model_dir: str
    timeout_seconds: int
    code: CodeArchive
    seed: str | None = None
    max_restarts: int = DEFAULT_MAX_RESTARTS
    version: int = DOCUMENT_VERSION

    def validate(self) -> None:
        """Check names, paths, counts and the seed's form."""
        require(JOB_ID_PATTERN, self.job_id, "job_id")
        require(CLUSTER_PATTERN, self.cluster, "cluster")
        require(RELATIVE_PATH_PATTERN, self.entry, "entry")
        require(RELATIVE_PATH_PATTERN, self.model_dir, "model_dir")
        for name in ("workers", "servers", "timeout_seconds"):
            if getattr(self, name) < 1:
                raise DocumentError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed is not None:
            require(SEED_PATTERN, self.seed, "seed")
        if not 0 <= self.max_restarts <= MAX_RESTARTS:
            raise DocumentError(f"max_restarts must be between 0 and {MAX_RESTARTS}, got {self.max_restarts}")
        if self.version != DOCUMENT_VERSION:
            raise DocumentError(f"version must be {DOCUMENT_VERSION}, got {self.version}")


@dataclass(frozen=True, kw_only=True)
class Control(Document):
    """What the state machine hands to the scheduler: the job, when its execution started, and the task token."""

    job_id: str
    started_at: str
    task_token: str

    def validate(self) -> None:
        """Check the job id's form, and that the start is a time with its zone."""
        require(JOB_ID_PATTERN, self.job_id, "job_id")
        try:
            zone = datetime.fromisoformat(self.started_at).tzinfo
        except ValueError:
            zone = None
        if zone is None:
            raise DocumentError(f"started_at must be an ISO 8601 time with its zone, got {self.started_at[:100]!r}")


@dataclass(frozen=True, kw_only=True)
class Registration(Document):
    """A node that has enrolled and is ready for a job. `serial` is its certificate's, in hex."""

    role: Role
    instance_id: str
    address: str
    spiffe_id: str
    serial: str

    def validate(self) -> None:
        """Check the forms of the instance id and the address: both become lines of other nodes' configuration."""
        require(INSTANCE_ID_PATTERN, self.instance_id, "instance_id")
        require_address(self.address, "address")


@dataclass(frozen=True, kw_only=True)
class Peer(Document):
    """A node of a job: who it is, where it is, and its 0-based rank within its role."""

    role: Role
    rank: int
    instance_id: str
    address: str

    def validate(self) -> None:
        """Check the forms of instance id and address, and that the role has such a rank."""
        require(INSTANCE_ID_PATTERN, self.instance_id, "instance_id")
        require_address(self.address, "address")
        try:
            overlay_address(self.role, self.rank)
        except ValueError as error:
            raise DocumentError(str(error)) from None

    @property
    def overlay(self) -> str:
        """The peer's overlay address, the same on every host."""
        return overlay_address(self.role, self.rank)


#: What the nodes of a rendezvous are to do: train; stop and wait for the next generation; go.
RUNNING, STOPPED, ENDED = PHASES = ("running", "stopped", "ended")


@dataclass(frozen=True, kw_only=True)
class Rendezvous(Document):
    """The nodes of a generation of a job, published by the scheduler; it is void for a node that is not in it.

    Generations count from 1. `phase` is one of `PHASES`; a generation that is not running runs never again. `causes`
    says why each earlier generation, and this one if it was stopped, had to end.
    """

    job_id: str
    generation: int
    peers: tuple[Peer, ...]
    phase: str = RUNNING
    causes: tuple[str, ...] = ()

    def validate(self) -> None:
        """Check phase and generation, that there is one scheduler, and that nothing is named twice."""
        require(JOB_ID_PATTERN, self.job_id, "job_id")
        if self.phase not in PHASES:
            raise DocumentError(f"phase must be one of {list(PHASES)}, got {self.phase[:100]!r}")
        if self.generation < 1:
            raise DocumentError(f"generation must be at least 1, got {self.generation}")
        seats = [(peer.role, peer.rank) for peer in self.peers]
        instances = [peer.instance_id for peer in self.peers]
        if len(set(seats)) != len(seats) or len(set(instances)) != len(instances):
            raise DocumentError("peers must name every instance and every rank of a role once")
        if [role for role, _ in seats].count(Role.SCHEDULER) != 1:
            raise DocumentError("peers must name exactly one scheduler")

    def me(self, instance_id: str) -> Peer | None:
        """Return this instance's entry, or None if it has no part in the job."""
        return next((peer for peer in self.peers if peer.instance_id == instance_id), None)

    def dialled_by(self, role: Role) -> tuple[Peer, ...]:
        """Return the peers that a node of `role` dials, in order."""
        return tuple(peer for peer in self.peers if peer.role in DIALS[role])


@dataclass(frozen=True, kw_only=True)
class Denial(Document):
    """What an operator said when revoking an instance. For people: the object's existence is what denies it."""

    instance_id: str
    reason: str
    revoked_at: str

    def validate(self) -> None:
        """Check the form of the instance id, and that the reason is one printable line of at most 200 characters."""
        require(INSTANCE_ID_PATTERN, self.instance_id, "instance_id")
        if len(self.reason) > MAX_REASON_CHARACTERS or not self.reason.isprintable():
            raise DocumentError(
                f"reason must be one printable line of at most {MAX_REASON_CHARACTERS} characters, "
                f"got {self.reason[:100]!r}"
            )


@dataclass(frozen=True, kw_only=True)
class NodeResult(Document):
    """How a node's part in a job ended.

    `status` 0 is success, negative a signal; `cause` is one line for a human; `tls_connections` counts the
    handshakes that this node accepted, and `tls_peers` has the certificate names that it accepted them from;
    `first_step_ms` is when a worker's first training step began (milliseconds since the epoch); `model_sha256` is
    the digest of the published model's signature bundle.
    """

    status: int
    cause: str
    rank: int
    tls_connections: int
    tls_peers: tuple[str, ...]
    first_step_ms: int | None = None
    model_sha256: str | None = None


#: How a phase of a node's boot can end.
BOOT_STATUSES = BOOT_OK, BOOT_FAILED, BOOT_TIMEOUT = ("ok", "failed", "timeout")


@dataclass(frozen=True, kw_only=True)
class BootPhase(Document):
    """A phase of a node's boot, as its user data recorded it (docs/boot.md): a line of the node's boot log.

    `start` and `end` are ISO 8601 times by the node's clock; `status` is one of `BOOT_STATUSES`; `timeout_seconds` is
    what it was allowed; `cause` and `remedy` are a line each for a human, and empty where it went well.
    """

    phase: str
    start: str
    end: str
    status: str
    timeout_seconds: int
    cause: str = ""
    remedy: str = ""

    def validate(self) -> None:
        """Check that the status is one, and that the times are some with a zone."""
        if self.status not in BOOT_STATUSES:
            raise DocumentError(f"status must be one of {list(BOOT_STATUSES)}, got {self.status[:100]!r}")
        _ = self.seconds

    @property
    def seconds(self) -> float:
        """How long the phase took."""
        try:
            start, end = datetime.fromisoformat(self.start), datetime.fromisoformat(self.end)
            return (end - start).total_seconds()
        except (ValueError, TypeError):
            raise DocumentError(
                f"start and end must be ISO 8601 times, got {self.start[:40]!r} and {self.end[:40]!r}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class BootRecord(Document):
    """How a node's boot went, phase by phase; it is written when the last phase has ended, or one has failed."""

    role: NodeRole
    instance_id: str
    phases: tuple[BootPhase, ...]

    def validate(self) -> None:
        """Check the form of the instance id, and that there is a phase."""
        require(INSTANCE_ID_PATTERN, self.instance_id, "instance_id")
        if not self.phases:
            raise DocumentError("phases must name one phase at least")

    @property
    def failure(self) -> str | None:
        """Why the node did not boot, with its name, in one line; None if it did."""
        last = self.phases[-1]
        if last.status == BOOT_OK:
            return None
        return f"{self.role} ({self.instance_id}) did not boot: {last.phase}: {last.cause}; {last.remedy}"


def require(pattern: re.Pattern[str], value: str, where: str) -> str:
    """Return `value` if all of it matches `pattern`; else raise DocumentError."""
    if not pattern.fullmatch(value):
        raise DocumentError(f"{where} must match {pattern.pattern}, got {value[:100]!r}")
    return value


def require_address(value: str, where: str) -> str:
    """Return `value` if it is one host's IPv4 address in its canonical form; else raise DocumentError."""
    try:
        address = IPv4Address(value)
    except ValueError:
        address = None
    if address is None or str(address) != value or address.is_unspecified or address.is_multicast:
        raise DocumentError(f"{where} must be a host's IPv4 address, got {value[:100]!r}")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _build(cls: type[Any], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DocumentError(f"{where} must be an object, got {type(value).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if unknown := sorted(set(value) - set(fields)):
        raise DocumentError(f"{where} has unknown keys {unknown}, allowed: {sorted(fields)}")
    if missing := sorted(required - set(value)):
        raise DocumentError(f"{where} lacks the keys {missing}")
    hints = typing.get_type_hints(cls)
    document = cls(**{name: _convert(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    document.validate()
    return document


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        inner = [argument for argument in arguments if argument is not types.NoneType]
        if all(isinstance(argument, type) and issubclass(argument, StrEnum) for argument in inner):
            return _member(inner, value, where)
        return None if value is None else _convert(inner[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise DocumentError(f"{where} must be a list, got {type(value).__name__}")
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise DocumentError(f"{where} must be an object, got {type(value).__name__}")
        return {_convert(arguments[0], k, where): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type[Any], kind), value, where)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _member([kind], value, where)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DocumentError(f"{where} must be {kind.__name__}, got {value!r}")
    return value


def _member(kinds: list[type[StrEnum]], value: Any, where: str) -> StrEnum:
    members = {member.value: member for kind in kinds for member in kind}
    if not isinstance(value, str) or value not in members:
        raise DocumentError(f"{where} must be one of {list(members)}, got {value!r}")
    return members[value]
