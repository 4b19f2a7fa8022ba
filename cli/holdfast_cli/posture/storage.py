"""Checks of what is stored: buckets, the file system, and logs."""

from collections.abc import Iterator
from typing import Any

from holdfast_cli.posture.inventory import CHECKPOINTS, Inventory
from holdfast_cli.posture.reading import Unreadable
from holdfast_cli.posture.report import Check, Outcome
from holdfast_cli.posture.statements import Statement, parse, said, strangers
from holdfast_node.contract.layout import UIDS, User

_BLOCKS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
_ALGORITHM = "s3:x-amz-server-side-encryption"
_KEY = f"{_ALGORITHM}-aws-kms-key-id"
_CUSTOMER = f"{_ALGORITHM}-customer-algorithm"
_CLIENT_ACTIONS = {"elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"}


def _log_bucket(inventory: Inventory) -> str:
    """Return the bucket of access logs: the one of the stacks' three that holds neither jobs nor models."""
    own = {inventory.cluster.jobs_bucket, inventory.cluster.models_bucket}
    others = [name for name in inventory.of("S3::Bucket") if name not in own]
    if len(others) != 1:
        raise Unreadable(f"the stacks must hold one bucket for access logs, found {len(others)}")
    return others[0]


def _buckets(inventory: Inventory) -> tuple[str, str, str]:
    return inventory.cluster.jobs_bucket, inventory.cluster.models_bucket, _log_bucket(inventory)


def _policy(inventory: Inventory, bucket: str) -> tuple[Statement, ...]:
    answer = inventory.reader.get("s3:GetBucketPolicy", absent=("NoSuchBucketPolicy",), Bucket=bucket)
    return () if answer is None else parse(answer["Policy"], f"the policy of bucket {bucket}")


def look_at_access(inventory: Inventory) -> Outcome:
    """Look whether anybody outside the account can reach a bucket, or its own objects' owner by an ACL."""
    buckets = _buckets(inventory)
    return Outcome(
        ", ".join(buckets), tuple(f"{name}: {fault}" for name in buckets for fault in _access_faults(inventory, name))
    )


def _access_faults(inventory: Inventory, bucket: str) -> Iterator[str]:
    answer = inventory.reader.get(
        "s3:GetBucketPublicAccessBlock", absent=("NoSuchPublicAccessBlockConfiguration",), Bucket=bucket
    )
    blocks = (answer or {}).get("PublicAccessBlockConfiguration", {})
    if missing := [name for name in _BLOCKS if blocks.get(name) is not True]:
        yield f"public access is not blocked ({', '.join(missing)})"
    answer = inventory.reader.get(
        "s3:GetBucketOwnershipControls", absent=("OwnershipControlsNotFoundError",), Bucket=bucket
    )
    rules = (answer or {}).get("OwnershipControls", {}).get("Rules", [])
    if [rule["ObjectOwnership"] for rule in rules] != ["BucketOwnerEnforced"]:
        yield "access control lists are in force"
    answer = inventory.reader.get(
        "s3:GetReplicationConfiguration", absent=("ReplicationConfigurationNotFoundError",), Bucket=bucket
    )
    for rule in (answer or {}).get("ReplicationConfiguration", {}).get("Rules", ()):
        yield f"its objects are copied to {rule['Destination']['Bucket']}"
    for statement in _policy(inventory, bucket):
        for stranger in strangers(statement, inventory.account):
            yield f"{said(statement)} admits {stranger}"
        if statement.allows and not _delivers(statement):
            yield f"{said(statement)} allows what the account's own policies may not"


def _delivers(statement: Statement) -> bool:
    """Whether a statement is what lets S3 deliver access logs."""
    return statement.principals == ("logging.s3.amazonaws.com",) and statement.actions == ("s3:PutObject",)


def look_at_encryption(inventory: Inventory) -> Outcome:
    """Look whether objects of jobs and models are under the data key, whatever an upload asks for."""
    key = inventory.data_key
    problems = []
    for bucket in (inventory.cluster.jobs_bucket, inventory.cluster.models_bucket):
        problems += [f"{bucket}: {fault}" for fault in _default_faults(inventory, bucket, key)]
        denials = [item for item in _policy(inventory, bucket) if not item.allows and item.public]
        for what, conditions in _uploads(key).items():
            if not any("s3:PutObject" in item.actions and item.conditions == conditions for item in denials):
                problems.append(f"{bucket}: its policy does not deny uploads with {what}")
    logs = _log_bucket(inventory)
    if not _rules(inventory, logs):
        problems.append(f"{logs}: it has no default encryption")
    return Outcome(key, tuple(problems))


def _rules(inventory: Inventory, bucket: str) -> list[dict[str, Any]]:
    answer = inventory.reader.get(
        "s3:GetEncryptionConfiguration", absent=("ServerSideEncryptionConfigurationNotFoundError",), Bucket=bucket
    )
    return list((answer or {}).get("ServerSideEncryptionConfiguration", {}).get("Rules", []))


def _default_faults(inventory: Inventory, bucket: str, key: str) -> Iterator[str]:
    rules = _rules(inventory, bucket)
    defaults = [rule.get("ApplyServerSideEncryptionByDefault", {}) for rule in rules]
    if not defaults:
        yield "it has no default encryption"
    for default in defaults:
        if default.get("SSEAlgorithm") != "aws:kms" or default.get("KMSMasterKeyID") != key:
            name = default.get("KMSMasterKeyID", "no key of the account")
            yield f"its default encryption is {default.get('SSEAlgorithm')} with {name}"


def _uploads(key: str) -> dict[str, dict[tuple[str, str], tuple[str, ...]]]:
    null, other, same = "Null", "StringNotEquals", "StringEquals"
    return {
        "another algorithm": {(null, _ALGORITHM): ("false",), (other, _ALGORITHM): ("aws:kms",)},
        "another key": {(null, _KEY): ("false",), (other, _KEY): (key,)},
        "a key that is not named": {(null, _KEY): ("true",), (same, _ALGORITHM): ("aws:kms",)},
        "a customer's key": {(null, _CUSTOMER): ("false",)},
    }


def look_at_tls(inventory: Inventory) -> Outcome:
    """Look whether buckets refuse requests without TLS, or with an old version of it."""
    problems = []
    for bucket in _buckets(inventory):
        place = f"arn:{inventory.partition}:s3:::{bucket}"
        denials = [
            item
            for item in _policy(inventory, bucket)
            if not item.allows and item.public and "s3:*" in item.actions and {place, f"{place}/*"} <= {*item.resources}
        ]
        if not any(item.conditions == {("Bool", "aws:securetransport"): ("false",)} for item in denials):
            problems.append(f"{bucket}: its policy does not deny requests without TLS")
        if not any(item.conditions == {("NumericLessThan", "s3:tlsversion"): ("1.2",)} for item in denials):
            problems.append(f"{bucket}: its policy does not deny versions of TLS before 1.2")
    return Outcome(", ".join(_buckets(inventory)), tuple(problems))


def look_at_history(inventory: Inventory) -> Outcome:
    """Look whether objects keep their versions, and requests are recorded."""
    problems, logs = [], _log_bucket(inventory)
    for bucket in _buckets(inventory):
        answer = inventory.reader.get("s3:GetBucketVersioning", Bucket=bucket) or {}
        if answer.get("Status") != "Enabled":
            problems.append(f"{bucket}: versioning is {answer.get('Status', 'off').lower()}")
        if bucket == logs:
            continue
        answer = inventory.reader.get("s3:GetBucketLogging", Bucket=bucket) or {}
        target = answer.get("LoggingEnabled", {}).get("TargetBucket")
        if target != logs:
            problems.append(f"{bucket}: requests are recorded in {target or 'no bucket'}")
    return Outcome(f"access logs in {logs}", tuple(problems))


def look_at_file_system(inventory: Inventory) -> Outcome:
    """Look whether checkpoints are encrypted with the data key."""
    key = inventory.data_key
    (name,) = inventory.of("EFS::FileSystem")
    found = inventory.reader.every("elasticfilesystem:DescribeFileSystems", FileSystemId=name)
    problems = [
        f"{item['FileSystemId']} is encrypted with {item.get('KmsKeyId') if item.get('Encrypted') else 'no key'}"
        for item in found
        if not item.get("Encrypted") or item.get("KmsKeyId") != key
    ]
    return Outcome(f"{name}; {key}", tuple(problems))


def look_at_mounts(inventory: Inventory) -> Outcome:
    """Look whether the file system refuses plaintext, root and mounts past the access point, and who that one is."""
    (name,) = inventory.of("EFS::FileSystem")
    answer = inventory.reader.get(
        "elasticfilesystem:DescribeFileSystemPolicy", absent=("PolicyNotFound",), FileSystemId=name
    )
    statements = () if answer is None else parse(answer["Policy"], f"the policy of {name}")
    denials = [item for item in statements if not item.allows and item.public and not item.inverted]
    wanted = {
        "connections without TLS": ({"*"}, {("Bool", "aws:securetransport"): ("false",)}),
        "mounts past the access point": (
            _CLIENT_ACTIONS,
            {("Null", "elasticfilesystem:accesspointarn"): ("true",)},
        ),
        "root": ({"elasticfilesystem:ClientRootAccess"}, {}),
    }
    problems = [
        f"{name}: its policy does not deny {what}"
        for what, (actions, conditions) in wanted.items()
        if not any(actions <= {*item.actions} and item.conditions == conditions for item in denials)
    ]
    problems += [f"{name}: {said(item)} allows what roles' own policies may not" for item in statements if item.allows]
    points = inventory.reader.every("elasticfilesystem:DescribeAccessPoints", FileSystemId=name)
    trainer = UIDS[User.TRAINER]
    for point in points:
        user, where = point.get("PosixUser", {}), point["AccessPointId"]
        if where not in inventory.of("EFS::AccessPoint"):
            problems.append(f"{name}: access point {where} is not the cluster's")
        elif (user.get("Uid"), user.get("Gid")) != (trainer, trainer) or user.get("SecondaryGids"):
            problems.append(f"{name}: access point {where} is user {user.get('Uid', 'of the client')}, not {trainer}")
    targets = inventory.reader.every("elasticfilesystem:DescribeMountTargets", FileSystemId=name)
    for target in targets:
        where = target["MountTargetId"]
        groups = inventory.reader.every(
            "elasticfilesystem:DescribeMountTargetSecurityGroups", MountTargetId=target["MountTargetId"]
        )
        if groups != [inventory.group_id(CHECKPOINTS)]:
            problems.append(f"{name}: mount target {where} carries the security groups {', '.join(sorted(groups))}")
    return Outcome(f"{name}, {len(points)} access point, {len(targets)} mount targets", tuple(problems))


def look_at_logs(inventory: Inventory) -> Outcome:
    """Look whether log groups are encrypted with the data key and forget in the end."""
    key, own = inventory.data_key, f"/holdfast/{inventory.name}/"
    machine = f"/aws/vendedlogs/states/{inventory.name}-jobs"
    found = {
        str(group["logGroupName"]): group
        for prefix in (own, machine)
        for group in inventory.reader.every("logs:DescribeLogGroups", logGroupNamePrefix=prefix)
        if group["logGroupName"].startswith(own) or group["logGroupName"] == machine
    }
    wanted = {inventory.cluster.log_group, f"{own}enrolment", f"{own}flows", machine}
    problems = [f"log group {name} does not exist" for name in sorted(wanted - set(found))]
    for name, group in sorted(found.items()):
        if group.get("kmsKeyId") != key:
            problems.append(f"log group {name} is encrypted with {group.get('kmsKeyId') or 'no key of the account'}")
        if not group.get("retentionInDays"):
            problems.append(f"log group {name} never forgets")
        copies = inventory.reader.every("logs:DescribeSubscriptionFilters", logGroupName=name)
        problems += [f"log group {name} is copied to {copy['destinationArn']}" for copy in copies]
    return Outcome(f"{len(found)} log groups; {key}", tuple(problems))


_POLICY_REMEDY = "put the bucket's policy back as the foundation stack has it"
CHECKS = (
    Check(
        name="bucket-access",
        row="B4",
        claim="the buckets block public access, have no access control lists, admit nobody else's principals, and are "
        "copied nowhere",
        remedy=f"block all four kinds of public access, enforce the bucket owner, delete the replication, "
        f"and {_POLICY_REMEDY}",
        look=look_at_access,
    ),
    Check(
        name="bucket-encryption",
        row="B4",
        claim="jobs and models are encrypted with the cluster's data key, or not written at all",
        remedy=f"set the bucket's default encryption to the data key, and {_POLICY_REMEDY}; encrypt again what was "
        "written meanwhile",
        look=look_at_encryption,
    ),
    Check(
        name="bucket-tls",
        row="T2",
        claim="the buckets answer over TLS 1.2 or newer only",
        remedy=_POLICY_REMEDY,
        look=look_at_tls,
    ),
    Check(
        name="bucket-history",
        row="B4",
        claim="the buckets keep versions, and their requests are recorded",
        remedy="enable versioning, and access logs to the cluster's bucket for them",
        look=look_at_history,
    ),
    Check(
        name="file-system-encryption",
        row="B4",
        claim="checkpoints are encrypted with the cluster's data key",
        remedy="a file system cannot be encrypted later: copy what is in it to one that is, and delete it",
        look=look_at_file_system,
    ),
    Check(
        name="file-system-policy",
        row="T2",
        claim="the file system refuses plaintext, root, and mounts past the trainer's access point",
        remedy="put the file system's policy and access point back as the training stack has them",
        look=look_at_mounts,
    ),
    Check(
        name="log-groups",
        row="B4",
        claim="the cluster's log groups are encrypted with its data key, have a retention, and are copied nowhere",
        remedy="associate the data key with the log group again, set its retention to [cluster] "
        "log_retention_days, and delete the subscription filter",
        look=look_at_logs,
    ),
)
