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
from holdfast_cli.aws_errors import code_of, explain
from holdfast_cli.errors import NoMember, RevocationError
from holdfast_node.contract.documents import Denial
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import INSTANCE_ID_PATTERN, NODE_ROLES, group_name

#: S3's answer to a conditional write of an object that is there (S3 user guide, "Conditional writes").
_THERE = {"PreconditionFailed", "412"}
MAX_DENIAL_BYTES = 4096
#: How many instances a message names.
_NAMED = 20


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


def require_member(cluster: Cluster, instance_id: str) -> None:
    """Return if an instance is in one of the cluster's groups: else its denial has cut nobody off.

    Ask after `revoke`: a denial waits for no look-up, and one of a stranger's id harms nobody.

    Raises:
        NoMember: it is in none of them, or they cannot be read.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    names = [group_name(cluster.name, role) for role in NODE_ROLES]
    try:
        answer = cluster.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=names)
    except (BotoCoreError, ClientError) as error:
        raise NoMember(
            f"{instance_id} is denied from now on, but whether it is an instance of cluster {cluster.name} could not "
            f"be looked up: {explain(error)}"
        ) from None
    members = sorted(item["InstanceId"] for group in answer["AutoScalingGroups"] for item in group["Instances"])
    if instance_id in members:
        return
    named = ", ".join(members[:_NAMED]) + (f" and {len(members) - _NAMED} more" if len(members) > _NAMED else "")
    raise NoMember(
        f"{instance_id} is denied from now on, but nobody was cut off: it must be an instance of cluster "
        f"{cluster.name}, which has {named or 'none, because no job runs'}; compare the id with `holdfast status JOB`, "
        "and revoke the right one"
    )


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
