"""How the instances of a job booted: what each of them recorded, phase by phase.

A record is written when an instance has become a node, or will not: one that still boots is not there yet.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from holdfast_cli.aws import Cluster
from holdfast_cli.status import JobView
from holdfast_node.contract.documents import BOOT_OK, BootPhase, BootRecord
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import JobsBucket

MAX_RECORD_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Boot:
    """One instance's boot. Every text comes from a node: escape it before printing.

    `phases` are in order; the last one is what it ended with. `cause` and `remedy` are empty where it went well.
    """

    role: str
    instance_id: str
    status: str
    seconds: float
    cause: str
    remedy: str
    phases: tuple[BootPhase, ...]

    @property
    def failed(self) -> bool:
        """Whether the instance did not become a node."""
        return self.status != BOOT_OK

    def to_dict(self) -> dict[str, Any]:
        """Return the boot for JSON output, each phase with its seconds."""
        phases = [asdict(phase) | {"seconds": phase.seconds} for phase in self.phases]
        return {**asdict(self), "phases": phases}


def of_job(cluster: Cluster, view: JobView) -> list[Boot]:
    """Return the boots that were recorded while the job ran, those that failed first, then by role and instance."""
    # S3 keeps whole seconds.
    since, until = view.started_at - timedelta(seconds=1), view.stopped_at
    boots: list[Boot] = []
    for page in (
        cluster.client("s3")
        .get_paginator("list_objects_v2")
        .paginate(Bucket=cluster.jobs_bucket, Prefix=JobsBucket.BOOTS)
    ):
        for item in page.get("Contents", ()):
            if item["LastModified"] >= since and (until is None or item["LastModified"] <= until):
                boots += _read(cluster, item["Key"])
    return sorted(boots, key=lambda boot: (not boot.failed, boot.role, boot.instance_id))


def _read(cluster: Cluster, key: str) -> Iterator[Boot]:
    answer = cluster.client("s3").get_object(Bucket=cluster.jobs_bucket, Key=key)
    with contextlib.closing(answer["Body"]) as body:
        data = body.read(MAX_RECORD_BYTES + 1)
    role, _, name = key.removeprefix(JobsBucket.BOOTS).partition("/")
    try:
        record = BootRecord.parse(data)
    except DocumentError as error:
        yield Boot(
            role=role,
            instance_id=name.removesuffix(".json"),
            status="unreadable",
            seconds=0.0,
            cause=f"{key} is not a record of a boot: {error}"[:300],
            remedy="look at the instance's console",
            phases=(),
        )
        return
    last = record.phases[-1]
    yield Boot(
        role=role,
        instance_id=record.instance_id,
        status=last.status,
        seconds=sum(phase.seconds for phase in record.phases),
        cause=last.cause,
        remedy=last.remedy,
        phases=record.phases,
    )
