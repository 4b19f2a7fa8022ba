"""The cluster's buckets: encrypted with the cluster's key or not written at all."""

from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from holdfast_node.contract.layout import JobsBucket

_ALGORITHM = "s3:x-amz-server-side-encryption"
_KEY = "s3:x-amz-server-side-encryption-aws-kms-key-id"
_CUSTOMER_ALGORITHM = "s3:x-amz-server-side-encryption-customer-algorithm"


class ClusterBuckets(Construct):
    """The jobs and the models bucket: versioned, private, TLS only, encrypted with `encryption_key`.

    An upload that names no encryption gets the bucket's default, which is that key; one that names anything else is
    denied by the bucket's policy. Requests are recorded in a bucket of access logs.

    Default removal: kept, unless its creation failed. With DESTROY a bucket must be empty before it can go; nothing
    empties it for you.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        encryption_key: kms.IKey,
        access_log_retention: Duration,
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
    ) -> None:
        super().__init__(scope, construct_id)
        self.access_logs = s3.Bucket(
            self,
            "AccessLogs",
            # S3's log delivery cannot write to a bucket whose default is a KMS key.
            encryption=s3.BucketEncryption.S3_MANAGED,
            lifecycle_rules=[_hygiene(), s3.LifecycleRule(id="Expiry", expiration=access_log_retention)],
            **_common(removal_policy),
        )

        def bucket(bucket_id: str, *rules: s3.LifecycleRule) -> s3.Bucket:
            made = s3.Bucket(
                self,
                bucket_id,
                encryption=s3.BucketEncryption.KMS,
                encryption_key=encryption_key,
                bucket_key_enabled=True,
                lifecycle_rules=[_hygiene(), *rules],
                **_common(removal_policy),
            )
            self._record_requests(made, f"{bucket_id.lower()}/")
            _enforce_encryption(made, encryption_key)
            return made

        self.jobs = bucket("Jobs", _used_proofs())
        self.models = bucket("Models")
        self.access_logs.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AccessLogDelivery",
                principals=[iam.ServicePrincipal("logging.s3.amazonaws.com")],
                actions=["s3:PutObject"],
                resources=[self.access_logs.arn_for_objects("*")],
                conditions={"StringEquals": {"aws:SourceAccount": Stack.of(self).account}},
            )
        )

    def _record_requests(self, bucket: s3.Bucket, prefix: str) -> None:
        # The L2's property would grant by ACL or by policy as a feature flag says; this is the same for every app.
        resource = bucket.node.default_child
        assert isinstance(resource, s3.CfnBucket)
        resource.logging_configuration = s3.CfnBucket.LoggingConfigurationProperty(
            destination_bucket_name=self.access_logs.bucket_name, log_file_prefix=prefix
        )


def _common(removal_policy: RemovalPolicy) -> dict[str, Any]:
    return {
        "versioned": True,
        "enforce_ssl": True,
        "minimum_tls_version": 1.2,
        "block_public_access": s3.BlockPublicAccess.BLOCK_ALL,
        "object_ownership": s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
        "removal_policy": removal_policy,
    }


def _hygiene() -> s3.LifecycleRule:
    return s3.LifecycleRule(
        id="Hygiene",
        abort_incomplete_multipart_upload_after=Duration.days(7),
        noncurrent_version_expiration=Duration.days(30),
        expired_object_delete_marker=True,
    )


def _used_proofs() -> s3.LifecycleRule:
    """Return the rule that forgets used proofs: they are good for a minute, and a day is S3's shortest period."""
    return s3.LifecycleRule(
        id="UsedProofs",
        prefix=JobsBucket.PROOFS,
        expiration=Duration.days(1),
        noncurrent_version_expiration=Duration.days(1),
    )


def _enforce_encryption(bucket: s3.Bucket, key: kms.IKey) -> None:
    """Deny every upload that asks for an encryption other than the bucket's own.

    A negated condition is true where its key is absent (IAM user guide, "Condition operators"), so each statement
    says by `Null` whether the header is there: an upload without any is allowed and gets the default.
    """
    refused: dict[str, dict[str, Any]] = {
        "DenyOtherAlgorithm": {"Null": {_ALGORITHM: "false"}, "StringNotEquals": {_ALGORITHM: "aws:kms"}},
        "DenyOtherKey": {"Null": {_KEY: "false"}, "StringNotEquals": {_KEY: key.key_arn}},
        # `aws:kms` without a key means the account's `aws/s3` key, not the bucket's default.
        "DenyUnnamedKey": {"Null": {_KEY: "true"}, "StringEquals": {_ALGORITHM: "aws:kms"}},
        "DenyCustomerProvidedKey": {"Null": {_CUSTOMER_ALGORITHM: "false"}},
    }
    for sid, conditions in refused.items():
        bucket.add_to_resource_policy(
            iam.PolicyStatement(
                sid=sid,
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                actions=["s3:PutObject"],
                resources=[bucket.arn_for_objects("*")],
                conditions=conditions,
            )
        )
