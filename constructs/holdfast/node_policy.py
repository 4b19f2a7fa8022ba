"""What every node may do, whatever its role: get an identity and its code, say how it booted, see who is revoked."""

from aws_cdk import aws_iam as iam

from holdfast.foundation import ClusterFoundation
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import NodeRole


def boot_records(role: NodeRole) -> str:
    """Return the pattern of the keys below which nodes of `role` say how they booted."""
    return f"{JobsBucket.boot_prefix(role)}*"


def every_node(foundation: ClusterFoundation, role: NodeRole, *, gpu: bool = False) -> list[iam.PolicyStatement]:
    """Return the statements that the policies of all nodes of a cluster share; `role` is whose policy it is for.

    `gpu` says which wheels its nodes install. Boot records are encrypted with the bucket's key, so that the policy must
    allow `kms:GenerateDataKey` as well.
    """
    return [
        iam.PolicyStatement(
            sid="Enrol", actions=["lambda:InvokeFunction"], resources=[foundation.enrolment.function.function_arn]
        ),
        iam.PolicyStatement(sid="FetchBundle", actions=["s3:GetObject"], resources=foundation.code_arns(gpu=gpu)),
        iam.PolicyStatement(
            sid="RecordBoot",
            actions=["s3:PutObject"],
            resources=[foundation.buckets.jobs.arn_for_objects(boot_records(role))],
        ),
        iam.PolicyStatement(
            # Their names are all that a node needs, and all that it may read.
            sid="ListDenials",
            actions=["s3:ListBucket"],
            resources=[foundation.buckets.jobs.bucket_arn],
            conditions={"StringEquals": {"s3:prefix": JobsBucket.DENIED}},
        ),
        iam.PolicyStatement(
            sid="WriteLogs",
            actions=["logs:CreateLogStream", "logs:PutLogEvents"],
            resources=[foundation.node_log.log_group_arn],
        ),
        *(foundation.sessions.node_statements() if foundation.sessions else ()),
    ]
