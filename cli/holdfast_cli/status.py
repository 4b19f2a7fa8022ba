"""What a job is doing: its execution, and the record that the scheduler keeps of it."""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from holdfast_cli.aws import Cluster
from holdfast_cli.aws_errors import code_of
from holdfast_cli.errors import JobFailed, NotFoundError
from holdfast_cli.jobs import check_job_id
from holdfast_node.contract.layout import JobsBucket

MAX_RECORD_BYTES = 1 << 20
LATEST = 10


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """A node as the scheduler saw it. Every value comes from a node: escape it before printing.

    `late_since` is when it began to answer late (seconds since the epoch), or None while it does not.
    """

    role: str
    instance_id: str
    address: str
    spiffe_id: str
    serial: str
    rank: int | None
    status: int | None
    cause: str
    tls_connections: int | None
    late_since: float | None
    tls_peers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Why a generation of a job had to end, and how long it had run. The cause comes from a node."""

    generation: int
    cause: str
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job at one moment. `phase` is for people; `execution` is Step Functions' own status."""

    job_id: str
    execution: str
    phase: str
    cause: str | None
    started_at: datetime
    stopped_at: datetime | None
    first_step_seconds: float | None = None
    generation: int | None = None
    max_restarts: int | None = None
    restarts: tuple["Restart", ...] = ()
    seed: str | None = None
    nodes: tuple[NodeView, ...] = field(default=())

    @property
    def ended(self) -> bool:
        """Whether the execution has ended, which includes that the groups were lowered."""
        return self.execution != "RUNNING"

    @property
    def succeeded(self) -> bool:
        """Whether the job has ended well."""
        return self.execution == "SUCCEEDED"

    @property
    def seconds(self) -> float:
        """How long the job has taken so far."""
        return ((self.stopped_at or datetime.now(UTC)) - self.started_at).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        """Return the view for JSON output."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}


def latest(cluster: Cluster) -> list[JobView]:
    """Return the latest jobs of the cluster, newest first, from their executions alone."""
    views = [_view(execution, {}) for execution in itertools.islice(cluster.executions(), LATEST)]
    return sorted(views, key=lambda view: view.started_at, reverse=True)


def job(cluster: Cluster, job_id: str) -> JobView:
    """Return a job's state.

    Raises:
        NotFoundError: the cluster has no such job; the latest ones are named.
    """
    from botocore.exceptions import ClientError

    check_job_id(job_id)
    try:
        execution = cluster.client("stepfunctions").describe_execution(executionArn=cluster.execution_arn(job_id))
    except ClientError as error:
        if code_of(error) != "ExecutionDoesNotExist":
            raise
        names = ", ".join(view.job_id for view in latest(cluster)) or "it has run none yet"
        raise NotFoundError(f"cluster {cluster.name} has no job {job_id}; its latest: {names}") from None
    return _view(execution, _record(cluster, job_id))


def latest_job_id(cluster: Cluster) -> str:
    """Return the id of the job that was started last.

    Raises:
        NotFoundError: none was started yet.
    """
    for view in latest(cluster):
        return view.job_id
    raise NotFoundError(f"cluster {cluster.name} has run no job yet; start one with `holdfast submit DIR --entry FILE`")


def watch(cluster: Cluster, job_id: str, poll_seconds: float) -> Iterator[JobView]:
    """Yield a job's state now and every `poll_seconds` until its execution has ended; the last one is final."""
    while True:
        view = job(cluster, job_id)
        yield view
        if view.ended:
            return
        time.sleep(poll_seconds)


def require_success(view: JobView) -> None:
    """Raise JobFailed, with the cause, unless the job has succeeded."""
    if not view.succeeded:
        raise JobFailed(
            f"job {view.job_id} {view.phase}: {view.cause or 'no cause was recorded'}; "
            f"see `holdfast logs {view.job_id}`"
        )


def _record(cluster: Cluster, job_id: str) -> dict[str, Any]:
    """Return the scheduler's record, or an empty one: it is for display, so nothing in it is required."""
    from botocore.exceptions import ClientError

    try:
        reply = cluster.client("s3").get_object(Bucket=cluster.jobs_bucket, Key=JobsBucket.status(job_id))
    except ClientError as error:
        if code_of(error) in {"NoSuchKey", "404"}:
            return {}
        raise
    with contextlib.closing(reply["Body"]) as body:
        data = body.read(MAX_RECORD_BYTES + 1)
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return {"cause": f"{JobsBucket.status(job_id)} is not JSON"}
    return record if isinstance(record, dict) else {}


def _view(execution: dict[str, Any], record: dict[str, Any]) -> JobView:
    started: datetime = execution["startDate"]
    return JobView(
        job_id=execution["name"],
        execution=execution["status"],
        phase=_phase(execution["status"], record),
        cause=_cause(execution, record),
        started_at=started,
        stopped_at=execution.get("stopDate"),
        first_step_seconds=_first_step(started, record.get("first_step_at")),
        seed=_text(record.get("seed")) or None,
        generation=_integer(record.get("generation")),
        max_restarts=_integer(record.get("max_restarts")),
        restarts=tuple(_restart(i) for i in _list(record.get("generations")) if isinstance(i, dict) and i.get("cause")),
        nodes=tuple(_node(item) for item in _list(record.get("nodes")) if isinstance(item, dict)),
    )


def _phase(execution: str, record: dict[str, Any]) -> str:
    if execution != "RUNNING":
        words = {"SUCCEEDED": "succeeded", "FAILED": "failed", "TIMED_OUT": "timed out", "ABORTED": "was aborted"}
        return words.get(execution, execution.lower())
    phase = _text(record.get("phase"))
    # The job is over but its groups are still being lowered; the execution decides how it ended.
    return "cleaning up" if phase in {"succeeded", "failed"} else phase or "starting instances"


def _cause(execution: dict[str, Any], record: dict[str, Any]) -> str | None:
    if execution["status"] == "SUCCEEDED":
        return None
    own = _text(record.get("cause"))
    if own:
        return own
    parts = [_text(execution.get("error")), _text(execution.get("cause"))]
    return ": ".join(part for part in parts if part) or None


def _first_step(started: datetime, value: object) -> float | None:
    """Return the seconds from start to the first training step; the record has Unix seconds or ISO 8601."""
    with contextlib.suppress(ValueError, OverflowError, OSError, TypeError):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return round(float(value) - started.timestamp(), 1)
        if isinstance(value, str):
            return round((datetime.fromisoformat(value) - started).total_seconds(), 1)
    return None


def _restart(item: dict[str, Any]) -> Restart:
    started, ended = item.get("started_at"), item.get("ended_at")
    seconds = round(ended - started, 1) if isinstance(started, float) and isinstance(ended, float) else None
    return Restart(generation=_integer(item.get("generation")) or 0, cause=_text(item.get("cause")), seconds=seconds)


def _node(item: dict[str, Any]) -> NodeView:
    return NodeView(
        role=_text(item.get("role")),
        instance_id=_text(item.get("instance_id")),
        address=_text(item.get("address")),
        spiffe_id=_text(item.get("spiffe_id")),
        serial=_text(item.get("serial")),
        rank=_integer(item.get("rank")),
        status=_integer(item.get("status")),
        cause=_text(item.get("cause")),
        tls_connections=_integer(item.get("tls_connections")),
        late_since=late if isinstance(late := item.get("late_since"), float) and math.isfinite(late) else None,
        tls_peers=tuple(_text(name) for name in _list(item.get("tls_peers"))),
    )


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    return "" if value is None else str(value)[:2000]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
