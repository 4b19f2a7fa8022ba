"""Rules of what is kept: buckets, the file system, logs, and what deletion does to them."""

from collections.abc import Iterator
from typing import Any

from tests.kit.posture.model import (
    ACCOUNT,
    DATA_KEY,
    Problem,
    Resource,
    Templates,
    allowed,
    denies,
    expect,
    label,
    wrong,
)

from holdfast_node.contract.layout import UIDS, User

BUCKET = "AWS::S3::Bucket"
#: S3's log delivery cannot write to a bucket whose default is a KMS key (S3 user guide, "Enabling server access
#: logging").
LOG_BUCKET = "FoundationBucketsAccessLogs"
_ENCRYPTION = "s3:x-amz-server-side-encryption"
_OTHER_ENCRYPTION: tuple[dict[str, Any], ...] = (
    {"Null": {_ENCRYPTION: "false"}, "StringNotEquals": {_ENCRYPTION: "aws:kms"}},
    {
        "Null": {f"{_ENCRYPTION}-aws-kms-key-id": "false"},
        "StringNotEquals": {f"{_ENCRYPTION}-aws-kms-key-id": DATA_KEY},
    },
    {"Null": {f"{_ENCRYPTION}-aws-kms-key-id": "true"}, "StringEquals": {_ENCRYPTION: "aws:kms"}},
    {"Null": {f"{_ENCRYPTION}-customer-algorithm": "false"}},
)
_PLAINTEXT: tuple[dict[str, Any], ...] = (
    {"Bool": {"aws:SecureTransport": "false"}},
    {"NumericLessThan": {"s3:TlsVersion": 1.2}},
)
_FILE_SYSTEM: tuple[dict[str, Any], ...] = (
    {"Action": "*", "Condition": {"Bool": {"aws:SecureTransport": "false"}}},
    {
        "Action": ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"],
        "Condition": {"Null": {"elasticfilesystem:AccessPointArn": "true"}},
    },
    {"Action": "elasticfilesystem:ClientRootAccess"},
)


#: What nodes and the enrolment function refuse, and renewals that fail, in their logs.
_REFUSALS = {
    ("<FoundationEnrolmentLog>", '{ $.event = "enrolment_refused" }'),
    ("<FoundationNodeLog>", '{ $.event = "command_refused" }'),
    ("<FoundationNodeLog>", '"WARNING" "renewal_failed"'),
}


def buckets_are_private(templates: Templates) -> Iterator[Problem]:
    for bucket in templates.of(BUCKET):
        for key in ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"):
            yield from expect(bucket, True, "PublicAccessBlockConfiguration", key)
        yield from expect(bucket, [{"ObjectOwnership": "BucketOwnerEnforced"}], "OwnershipControls", "Rules")
        for key in ("AccessControl", "CorsConfiguration", "ReplicationConfiguration", "WebsiteConfiguration"):
            yield from expect(bucket, None, key)


def buckets_are_encrypted(templates: Templates) -> Iterator[Problem]:
    wanted = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": DATA_KEY}
    for bucket in templates.of(BUCKET):
        rules = bucket.at("BucketEncryption", "ServerSideEncryptionConfiguration") or []
        got = [rule.get("ServerSideEncryptionByDefault") for rule in rules]
        if got != [{"SSEAlgorithm": "AES256"} if bucket.name == LOG_BUCKET else wanted]:
            yield wrong(bucket, "the default encryption", got, "the data key's (SSE-S3 for access logs)")


def buckets_keep_versions(templates: Templates) -> Iterator[Problem]:
    for bucket in templates.of(BUCKET):
        yield from expect(bucket, "Enabled", "VersioningConfiguration", "Status")


def buckets_forget_old_versions(templates: Templates) -> Iterator[Problem]:
    for bucket in templates.of(BUCKET):
        days = [
            rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays")
            for rule in bucket.at("LifecycleConfiguration", "Rules") or []
            if rule["Status"] == "Enabled" and "Prefix" not in rule
        ]
        if 30 not in days:
            yield wrong(bucket, "when old versions expire", days, "after 30 days, everywhere in the bucket")


def buckets_record_requests(templates: Templates) -> Iterator[Problem]:
    for bucket in templates.of(BUCKET):
        if bucket.name != LOG_BUCKET:
            yield from expect(bucket, f"<{LOG_BUCKET}>", "LoggingConfiguration", "DestinationBucketName")


def _policy(templates: Templates, bucket: Resource) -> dict[str, Any]:
    """Return the policy of a bucket; one that denies nothing if it has none."""
    documents = [
        policy.properties["PolicyDocument"]
        for policy in templates.of("AWS::S3::BucketPolicy", part=bucket.part)
        if policy.at("Bucket") == f"<{bucket.name}>"
    ]
    return dict(documents[0]) if documents else {"Statement": []}


def buckets_refuse_plaintext_and_old_tls(templates: Templates) -> Iterator[Problem]:
    for bucket in templates.of(BUCKET):
        arn = f"<{bucket.name}.Arn>"
        for condition in _PLAINTEXT:
            wanted = {"Action": "s3:*", "Resource": [arn, f"{arn}/*"], "Condition": condition}
            if not denies(_policy(templates, bucket), wanted):
                yield wrong(bucket, f"a denial where {condition}", None, "in the bucket's policy")


def buckets_refuse_other_encryption(templates: Templates) -> Iterator[Problem]:
    for bucket in templates.of(BUCKET):
        for condition in _OTHER_ENCRYPTION if bucket.name != LOG_BUCKET else ():
            wanted = {"Action": "s3:PutObject", "Resource": f"<{bucket.name}.Arn>/*", "Condition": condition}
            if not denies(_policy(templates, bucket), wanted):
                yield wrong(bucket, f"a denial where {condition}", None, "in the bucket's policy")


def bucket_policies_grant_log_delivery_alone(templates: Templates) -> Iterator[Problem]:
    grant = {
        "Principal": {"Service": "logging.s3.amazonaws.com"},
        "Action": "s3:PutObject",
        "Resource": f"<{LOG_BUCKET}.Arn>/*",
        "Condition": {"StringEquals": {"aws:SourceAccount": ACCOUNT}},
    }
    for policy in templates.of("AWS::S3::BucketPolicy"):
        for statement in allowed(policy.at("PolicyDocument")):
            got = {key: value for key, value in statement.items() if key not in ("Sid", "Effect")}
            if got != grant:
                yield wrong(policy, label(statement), got, "nothing; S3's own log delivery, to the log bucket")


def file_systems_are_encrypted(templates: Templates) -> Iterator[Problem]:
    for system in templates.of("AWS::EFS::FileSystem"):
        yield from expect(system, True, "Encrypted")
        yield from expect(system, DATA_KEY, "KmsKeyId")


def file_systems_have_no_copy(templates: Templates) -> Iterator[Problem]:
    for system in templates.of("AWS::EFS::FileSystem"):
        yield from expect(system, None, "ReplicationConfiguration")
        if (got := system.at("BackupPolicy", "Status")) not in (None, "DISABLED"):
            yield wrong(system, "BackupPolicy.Status", got, "DISABLED: a purged checkpoint is gone")


def file_systems_refuse_plaintext_strangers_and_root(templates: Templates) -> Iterator[Problem]:
    for system in templates.of("AWS::EFS::FileSystem"):
        policy = system.at("FileSystemPolicy")
        for wanted in _FILE_SYSTEM:
            if not denies(policy, wanted):
                yield wrong(system, f"a denial of {wanted}", None, "in the file system's policy")
        for statement in allowed(policy):
            yield wrong(system, label(statement), statement, "no grant: a node mounts by its own role's policy")


def access_points_pin_the_trainer(templates: Templates) -> Iterator[Problem]:
    uid = str(UIDS[User.TRAINER])
    for point in templates.of("AWS::EFS::AccessPoint"):
        yield from expect(point, {"Uid": uid, "Gid": uid}, "PosixUser")
        made = {"OwnerUid": uid, "OwnerGid": uid, "Permissions": "700"}
        yield from expect(point, made, "RootDirectory", "CreationInfo")
        yield from expect(point, "/checkpoints", "RootDirectory", "Path")


def mount_targets_are_in_their_group(templates: Templates) -> Iterator[Problem]:
    for target in templates.of("AWS::EFS::MountTarget"):
        yield from expect(target, ["<ClusterCheckpointsGroup.GroupId>"], "SecurityGroups")


def log_groups_are_encrypted(templates: Templates) -> Iterator[Problem]:
    for group in templates.of("AWS::Logs::LogGroup"):
        yield from expect(group, DATA_KEY, "KmsKeyId")


def log_groups_expire(templates: Templates) -> Iterator[Problem]:
    for group in templates.of("AWS::Logs::LogGroup"):
        if not group.at("RetentionInDays"):
            yield wrong(group, "RetentionInDays", group.at("RetentionInDays"), "a number of days")


def refusals_are_counted(templates: Templates) -> Iterator[Problem]:
    counted = {
        (found.at("LogGroupName"), found.at("FilterPattern")) for found in templates.of("AWS::Logs::MetricFilter")
    }
    for part in templates.parts:
        for missing in _REFUSALS - counted if part == "Foundation" else ():
            yield Problem(part, f"metric filters must count {missing}, got {sorted(counted)}")


def production_keeps_its_data(templates: Templates) -> Iterator[Problem]:
    for resource in templates.of(BUCKET, "AWS::EFS::FileSystem", "AWS::KMS::Key"):
        tags = resource.at("Tags") or resource.at("FileSystemTags") or []
        if {"Key": "holdfast:environment", "Value": "prod"} not in tags:
            continue
        if (got := (resource.deletion_policy, resource.replacement_policy)) != ("RetainExceptOnCreate", "Retain"):
            yield wrong(resource, "deletion and replacement", got, "RetainExceptOnCreate and Retain in production")


RULES = (
    buckets_are_private,
    buckets_are_encrypted,
    buckets_keep_versions,
    buckets_forget_old_versions,
    buckets_record_requests,
    buckets_refuse_plaintext_and_old_tls,
    buckets_refuse_other_encryption,
    bucket_policies_grant_log_delivery_alone,
    file_systems_are_encrypted,
    file_systems_have_no_copy,
    file_systems_refuse_plaintext_strangers_and_root,
    access_points_pin_the_trainer,
    mount_targets_are_in_their_group,
    log_groups_are_encrypted,
    log_groups_expire,
    refusals_are_counted,
    production_keeps_its_data,
)
