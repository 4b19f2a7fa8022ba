"""Revoking an instance: one object below `denied/`, which nodes and the enrolment function look for.

There is no way back: an instance's id is never given to another one, and a node is replaced more easily than trusted
again (docs/revocation.md).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from holdfast_cli.aws import Cluster
from holdfast_cli.aws_errors import code_of
from holdfast_cli.errors import RevocationError
from holdfast_node.contract.documents import Denial
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import INSTANCE_ID_PATTERN

#: S3's answer to a conditional write of an object that is there (S3 user guide, "Conditional writes").
_THERE = {"PreconditionFailed", "412"}
MAX_DENIAL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """A revoked instance. `new` tells whether this command revoked it; values of an older one are untrusted text."""

    instance_id: str
    reason: str
    revoked_at: str
    new: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the revocation for JSON output."""
        return asdict(self)


def check(instance_id: str, reason: str, now: datetime | None = None) -> Denial:
    """Return the denial that `revoke` writes; it needs no AWS.

    Raises:
        RevocationError: the id is not an instance's, or the reason is not one printable line.
    """
    moment = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    denial = Denial(instance_id=instance_id, reason=reason, revoked_at=moment)
    try:
        denial.validate()
    except DocumentError as error:
        remedy = "" if INSTANCE_ID_PATTERN.fullmatch(instance_id) else "; `holdfast status JOB` shows a job's instances"
        raise RevocationError(f"{error}{remedy}") from None
    return denial


def revoke(cluster: Cluster, denial: Denial) -> Revocation:
    """Deny an instance, or return the denial that is there: the first reason is kept."""
    from botocore.exceptions import ClientError

    key = JobsBucket.denial(denial.instance_id)
    try:
        cluster.client("s3").put_object(
            Bucket=cluster.jobs_bucket,
            Key=key,
            Body=denial.to_json(),
            ContentType="application/json",
            IfNoneMatch="*",
        )
    except ClientError as error:
        if code_of(error) not in _THERE:
            raise
        return _read(cluster, key)
    return Revocation(**asdict(denial), new=True)


def revoked(cluster: Cluster) -> list[Revocation]:
    """Return every revoked instance, the latest first."""
    return sorted((_read(cluster, key) for key in _keys(cluster)), key=lambda one: one.revoked_at, reverse=True)


def _keys(cluster: Cluster) -> Iterator[str]:
    pages = cluster.client("s3").get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=cluster.jobs_bucket, Prefix=JobsBucket.DENIED):
        yield from (item["Key"] for item in page.get("Contents", ()))


def _read(cluster: Cluster, key: str) -> Revocation:
    answer = cluster.client("s3").get_object(Bucket=cluster.jobs_bucket, Key=key)
    with contextlib.closing(answer["Body"]) as body:
        data = body.read(MAX_DENIAL_BYTES)
    try:
        denial = Denial.parse(data)
        return Revocation(instance_id=denial.instance_id, reason=denial.reason, revoked_at=denial.revoked_at)
    except DocumentError:
        # It denies all the same: its existence counts.
        name = key.removeprefix(JobsBucket.DENIED).removesuffix(".json")
        written = answer["LastModified"].isoformat(timespec="seconds")
        return Revocation(instance_id=name, reason=f"(s3 object {key} is not a denial document)", revoked_at=written)
