"""A job's log lines, from the streams `<job>/<role>/<instance-id>/<service>` of the cluster's log group."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from holdfast_cli.aws import Cluster
from holdfast_cli.errors import NotFoundError
from holdfast_cli.jobs import check_job_id
from holdfast_cli.status import job as describe_job
from holdfast_node.contract.roles import Role

#: CloudWatch makes an event searchable a few seconds after it was put: while following, look back this far.
_LOOK_BACK_MILLISECONDS = 30_000


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One log event. Everything in it comes from a node: escape it before printing."""

    time: datetime
    role: str
    instance_id: str
    service: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return the line for JSON output."""
        return asdict(self)


def read(cluster: Cluster, job_id: str, role: Role | None = None, tail: int | None = None) -> list[LogLine]:
    """Return a job's log lines so far in the order of time, or the last `tail` of them.

    Raises:
        NotFoundError: no such job, or no log group.
    """
    events = sorted(_events(cluster, job_id, role), key=_order)
    kept = events if tail is None else deque(events, maxlen=tail)
    lines = [_line(event) for event in kept]
    if not lines:
        describe_job(cluster, job_id)  # tells a job without lines from a job that does not exist
    return lines


def follow(
    cluster: Cluster, job_id: str, role: Role | None = None, tail: int | None = None, *, poll_seconds: float
) -> Iterator[LogLine]:
    """Yield a job's log lines as they appear, until the job has ended and its last lines were read."""
    events = sorted(_events(cluster, job_id, role), key=_order)
    yield from (_line(event) for event in (events if tail is None else deque(events, maxlen=tail)))
    seen = {event["eventId"]: event["timestamp"] for event in events}
    ended = describe_job(cluster, job_id).ended
    while True:
        if not ended:
            time.sleep(poll_seconds)
            ended = describe_job(cluster, job_id).ended  # asked before the last read, so that no line is lost
        newest = max(seen.values(), default=0)
        since = max(0, newest - _LOOK_BACK_MILLISECONDS)
        fresh = [event for event in _events(cluster, job_id, role, since) if event["eventId"] not in seen]
        yield from (_line(event) for event in sorted(fresh, key=_order))
        seen |= {event["eventId"]: event["timestamp"] for event in fresh}
        seen = {key: stamp for key, stamp in seen.items() if stamp >= since}
        if ended and not fresh:
            return


def _events(cluster: Cluster, job_id: str, role: Role | None, since: int = 0) -> Iterator[dict[str, Any]]:
    from botocore.exceptions import ClientError

    check_job_id(job_id)
    prefix = f"{job_id}/{role}/" if role else f"{job_id}/"
    pages = cluster.client("logs").get_paginator("filter_log_events")
    arguments: dict[str, Any] = {"logGroupName": cluster.log_group, "logStreamNamePrefix": prefix}
    if since:
        arguments["startTime"] = since
    try:
        for page in pages.paginate(**arguments):
            # The embedded AWS returns every stream's events; AWS has already left the others out.
            yield from (event for event in page["events"] if event["logStreamName"].startswith(prefix))
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceNotFoundException":
            raise
        raise NotFoundError(
            f"the log group {cluster.log_group} of cluster {cluster.name} is gone; "
            "deploy it again with `cdk deploy --all`"
        ) from None


def _order(event: dict[str, Any]) -> int:
    # The sort is stable: lines of one stream with the same millisecond stay in the order that CloudWatch gave.
    return int(event["timestamp"])


def _line(event: dict[str, Any]) -> LogLine:
    _, role, instance_id, service = [*event["logStreamName"].split("/", 3), "", "", ""][:4]
    return LogLine(
        time=datetime.fromtimestamp(event["timestamp"] / 1000, UTC),
        role=role,
        instance_id=instance_id,
        service=service,
        message=event["message"],
    )
