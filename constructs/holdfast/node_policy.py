"""What every node may do, whatever its role: get an identity, its code, the list of the revoked, and write its log."""

from aws_cdk import aws_iam as iam

from holdfast.foundation import ClusterFoundation
from holdfast_node.contract.layout import JobsBucket


def every_node(foundation: ClusterFoundation) -> list[iam.PolicyStatement]:
    """Return the statements that the policies of all nodes of a cluster share."""
    return [
        iam.PolicyStatement(
            sid="Enrol", actions=["lambda:InvokeFunction"], resources=[foundation.enrolment.function.function_arn]
        ),
        iam.PolicyStatement(sid="FetchBundle", actions=["s3:GetObject"], resources=foundation.code_arns),
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
