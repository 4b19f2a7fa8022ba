"""The enrolment function: turns an EC2 identity into a certificate."""

import json
from pathlib import Path
from typing import Any

from aws_cdk import AssetHashType, Duration, RemovalPolicy, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from constructs import Construct

from holdfast.conditions import DIGEST_ONLY, via_s3
from holdfast.dependencies import depend
from holdfast.errors import PropertyError
from holdfast.findings import acknowledge, acknowledge_keys
from holdfast.keys import AuthorityProps, ClusterKeys
from holdfast.names import ClusterNames
from holdfast.packing import pack_function
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import NODE_ROLES

SOURCES = Path(__file__).parent / "functions" / "enrolment"
#: What the function calls (handler.py).
SERVICES = ("acm-pca", "autoscaling", "ec2", "kms", "s3", "sts")
#: The most that the function takes (functions/enrolment/configuration.py); an AWS Private CA for short-lived
#: certificates takes no more either (AWS Private CA user guide, "CA modes").
MAX_CERTIFICATE_HOURS = 168
#: Subject and extensions come from the API call alone (AWS Private CA user guide, "Template definitions").
PRIVATE_CA_TEMPLATE = "template/BlankEndEntityCertificate_APIPassthrough/V1"
REFUSALS, REFUSALS_BY_REASON = "RefusedEnrolments", "RefusedEnrolmentsByReason"


class EnrolmentFunction(Construct):
    """A Lambda function that has the cluster's CA sign a certificate for a node that AWS vouches for.

    It is not attached to the VPC: it asks STS, EC2 and Auto Scaling who is calling, and inside the network it would
    need three more interface endpoints. It listens nowhere; nodes reach it through the network's Lambda endpoint.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster_name: str,
        keys: ClusterKeys,
        jobs_bucket: s3.IBucket,
        log_retention: logs.RetentionDays,
        authority: AuthorityProps,
        certificate_hours: int = 24,
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
        reserved_concurrency: int | None = None,
        cache_directory: Path | None = None,
    ) -> None:
        """Make the function, its role and its log group.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            cluster_name: the cluster whose nodes it admits, and no others'.
            keys: the CA's, and the one that encrypts its environment, its log and the objects it writes.
            jobs_bucket: where it keeps the CA's certificate.
            log_retention: how long its log, the record of every issue and refusal, is kept.
            authority: what signs certificates; `keys` were made for it.
            certificate_hours: how long a certificate lives; nodes renew it after two thirds. Default: 24.
            removal_policy: what happens to the log. Default: kept, unless its creation failed.
            reserved_concurrency: the most executions at once, set aside for it; a flood of requests cannot use the
                account's whole quota, and nobody else can use this share. Default: none is set aside.
            cache_directory: where dependencies are kept between syntheses. Default: `.build` in the working directory.

        Raises:
            PropertyError: certificates would live less than an hour or more than a week.
            BundleError: its dependencies could not be installed.
        """
        super().__init__(scope, construct_id)
        if not 1 <= certificate_hours <= MAX_CERTIFICATE_HOURS:
            raise PropertyError(
                f"certificate_hours must be between 1 and {MAX_CERTIFICATE_HOURS}, got {certificate_hours}; "
                "short lives are what ends a stolen key's use"
            )
        stack = Stack.of(self)
        names = ClusterNames(cluster_name)
        data_key = keys.data
        self.log_group = logs.LogGroup(
            self,
            "Log",
            log_group_name=names.log_group("enrolment"),
            encryption_key=data_key,
            retention=log_retention,
            removal_policy=removal_policy,
        )
        self.role = iam.Role(
            self,
            "Role",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            description=f"Holdfast {cluster_name}: signs node certificates",
        )
        policy = iam.ManagedPolicy(
            self,
            "Policy",
            description=f"Holdfast {cluster_name}: what the enrolment function does",
            roles=[self.role],
            statements=[
                *_authority_statements(authority, keys, jobs_bucket),
                *_statements(stack, data_key, jobs_bucket, self.log_group),
            ],
        )
        acknowledge(
            policy,
            "AwsSolutions-IAM5[Resource::*]",
            reason="ec2:DescribeInstances and autoscaling:DescribeAutoScalingInstances have no resource-level scope.",
        )
        acknowledge_keys(
            policy,
            jobs_bucket,
            f"{JobsBucket.PROOFS}*",
            reason="Keys end in the hash of a proof; the prefix is the narrowest that holds before it exists.",
        )
        self._count_refusals(names)
        directory, packed_digest = pack_function(SOURCES, cache_directory or Path.cwd() / ".build", services=SERVICES)
        roles = {
            str(role): {"role_arn": names.role_arn(role, stack), "group": names.group(role)} for role in NODE_ROLES
        }
        self.function = lambda_.Function(
            self,
            "Function",
            function_name=names.enrolment_function,
            description=f"Holdfast {cluster_name}: enrols nodes by their EC2 identity",
            runtime=lambda_.Runtime.PYTHON_3_11,
            architecture=lambda_.Architecture.X86_64,
            handler="handler.handler",
            code=lambda_.Code.from_asset(
                str(directory), asset_hash=packed_digest, asset_hash_type=AssetHashType.CUSTOM
            ),
            # By its ARN, so that CDK attaches nothing of its own: the policy above is all that the function may do.
            role=iam.Role.from_role_arn(self, "FixedRole", self.role.role_arn, mutable=False),
            timeout=Duration.seconds(30),
            memory_size=512,
            reserved_concurrent_executions=reserved_concurrency,
            environment_encryption=data_key,
            log_group=self.log_group,
            logging_format=lambda_.LoggingFormat.JSON,
            environment={
                "HOLDFAST_CLUSTER": cluster_name,
                **_authority_environment(authority, keys),
                "HOLDFAST_JOBS_BUCKET": jobs_bucket.bucket_name,
                "HOLDFAST_ROLES": json.dumps(roles, sort_keys=True),
                "HOLDFAST_CERT_HOURS": str(certificate_hours),
            },
        )
        depend(self.function, policy)
        acknowledge(
            self.function,
            "AwsSolutions-L1",
            reason="The locked wheels, the node runtime and the local cluster are all built for Python 3.11.",
        )

    def _count_refusals(self, names: ClusterNames) -> None:
        """Make two metrics of the log's refusals: all of them, and each reason's.

        A metric filter with dimensions has no default value (CloudWatch Logs API, MetricTransformation), so an alarm
        on the sum would have no data while all is well; hence two.
        """
        self._metrics = names.metrics
        pattern = logs.FilterPattern.string_value("$.event", "=", "enrolment_refused")
        common: dict[str, Any] = {
            "log_group": self.log_group,
            "filter_pattern": pattern,
            "metric_namespace": names.metrics,
            "metric_value": "1",
        }
        logs.MetricFilter(self, "Refusals", metric_name=REFUSALS, default_value=0, **common)
        logs.MetricFilter(
            self, "RefusalsByReason", metric_name=REFUSALS_BY_REASON, dimensions={"Reason": "$.reason"}, **common
        )

    def metric_refused_enrolments(self, reason: str | None = None) -> cloudwatch.Metric:
        """Return the number of refused enrolments, by default over five minutes.

        `reason` is one of the function's codes (functions/enrolment/refusal.py), such as `revoked` or `replayed`; by
        default all are counted.
        """
        return cloudwatch.Metric(
            namespace=self._metrics,
            metric_name=REFUSALS if reason is None else REFUSALS_BY_REASON,
            dimensions_map=None if reason is None else {"Reason": reason},
            statistic="Sum",
        )

    def grant_enrol(self, grantee: iam.IGrantable) -> iam.Grant:
        """Let `grantee` ask for a certificate; it gets one only as an instance of the cluster's groups."""
        return iam.Grant.add_to_principal(
            grantee=grantee, actions=["lambda:InvokeFunction"], resource_arns=[self.function.function_arn]
        )


def _authority_environment(authority: AuthorityProps, keys: ClusterKeys) -> dict[str, str]:
    if authority.private_ca_arn is not None:
        return {"HOLDFAST_PRIVATE_CA": authority.private_ca_arn}
    assert keys.certificate_authority is not None
    variables = {
        "HOLDFAST_CA_KEY": keys.certificate_authority.key_arn,
        "HOLDFAST_CA_GENERATION": str(authority.generation),
    }
    if keys.previous_certificate_authority is not None:
        variables["HOLDFAST_PREVIOUS_CA_KEY"] = keys.previous_certificate_authority.key_arn
    return variables


def _authority_statements(
    authority: AuthorityProps, keys: ClusterKeys, bucket: s3.IBucket
) -> list[iam.PolicyStatement]:
    if (arn := authority.private_ca_arn) is not None:
        template = f"arn:{arn.split(':')[1]}:acm-pca:::{PRIVATE_CA_TEMPLATE}"
        return [
            iam.PolicyStatement(
                sid="IssueCertificates",
                actions=["acm-pca:IssueCertificate"],
                resources=[arn],
                conditions={"StringEquals": {"acm-pca:TemplateArn": template}},
            ),
            iam.PolicyStatement(
                sid="ReadIssued",
                actions=["acm-pca:GetCertificate", "acm-pca:GetCertificateAuthorityCertificate"],
                resources=[arn],
            ),
        ]
    own = [key.key_arn for key in (keys.certificate_authority, keys.previous_certificate_authority) if key is not None]
    generations = [authority.generation, authority.generation - 1][: len(own)]
    certificates = [bucket.arn_for_objects(JobsBucket.ca_certificate(generation)) for generation in generations]
    return [
        iam.PolicyStatement(sid="SignCertificates", actions=["kms:Sign"], resources=own, conditions=DIGEST_ONLY),
        iam.PolicyStatement(sid="ReadAuthorityKey", actions=["kms:GetPublicKey"], resources=own),
        iam.PolicyStatement(sid="CaCertificate", actions=["s3:GetObject", "s3:PutObject"], resources=certificates),
    ]


def _statements(
    stack: Stack, data_key: kms.IKey, bucket: s3.IBucket, log_group: logs.ILogGroup
) -> list[iam.PolicyStatement]:
    return [
        iam.PolicyStatement(
            # Conditional writes: it never reads a used proof back.
            sid="RememberProofs",
            actions=["s3:PutObject"],
            resources=[bucket.arn_for_objects(f"{JobsBucket.PROOFS}*")],
        ),
        iam.PolicyStatement(
            sid="FindDenials",
            actions=["s3:ListBucket"],
            resources=[bucket.bucket_arn],
            conditions={"StringLike": {"s3:prefix": f"{JobsBucket.DENIED}*"}},
        ),
        iam.PolicyStatement(
            sid="EncryptedObjects",
            actions=["kms:Decrypt", "kms:GenerateDataKey"],
            resources=[data_key.key_arn],
            conditions=via_s3(stack),
        ),
        iam.PolicyStatement(
            # Lambda decrypts the environment as the function's own role.
            sid="OwnEnvironment",
            actions=["kms:Decrypt"],
            resources=[data_key.key_arn],
            conditions={"StringEquals": {"kms:ViaService": f"lambda.{stack.region}.amazonaws.com"}},
        ),
        iam.PolicyStatement(
            sid="IdentifyCallers",
            actions=["autoscaling:DescribeAutoScalingInstances", "ec2:DescribeInstances"],
            resources=["*"],
        ),
        iam.PolicyStatement(
            sid="OwnLog",
            actions=["logs:CreateLogStream", "logs:PutLogEvents"],
            resources=[log_group.log_group_arn],
        ),
    ]
