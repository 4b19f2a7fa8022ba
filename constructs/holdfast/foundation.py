"""What outlives every job and every node: keys, buckets, the enrolment function, the nodes' log, the node bundle."""

from pathlib import Path

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from holdfast.access import NodeAccess, ServiceAccess
from holdfast.buckets import ClusterBuckets
from holdfast.bundle import LateWheelhouse, NodeBundle, Wheelhouse
from holdfast.conditions import DIGEST_ONLY, via_s3
from holdfast.enrolment import EnrolmentFunction
from holdfast.errors import PropertyError
from holdfast.keys import AuthorityProps, ClusterKeys, only_signer
from holdfast.names import ClusterNames
from holdfast.remote_access import SessionAccess
from holdfast_node.contract.documents import RemoteAccess
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role

#: The metrics of the nodes' log: renewals of certificates that failed, messages between nodes that a guard refused.
FAILED_RENEWALS = "FailedRenewals"
REFUSED_MESSAGES = "RefusedMessages"


class ClusterFoundation(Construct):
    """A cluster's keys, buckets, enrolment function, node log and node bundle.

    It costs what its keys and stored bytes cost; nothing in it runs between jobs.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster_name: str,
        log_retention: logs.RetentionDays = logs.RetentionDays.ONE_YEAR,
        access_log_retention: Duration | None = None,
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
        enrolment_concurrency: int | None = None,
        certificate_hours: int = 24,
        authority: AuthorityProps | None = None,
        remote_access: RemoteAccess = RemoteAccess.NONE,
        gpu: bool = False,
        node_source: Path | None = None,
        cache_directory: Path | None = None,
    ) -> None:
        """Make the foundation of one cluster.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            cluster_name: 3 to 32 lower-case letters, digits and hyphens; unique in its account and region.
            log_retention: how long logs are kept. Default: one year.
            access_log_retention: how long the buckets' access logs are kept. Default: one year.
            removal_policy: what happens to keys, buckets and logs when they leave the stack. Default: kept, unless
                the stack's creation failed.
            enrolment_concurrency: how many executions of the enrolment function are set aside, which is also the
                most at once. Default: none; it shares the account's quota, which in a new account is too small
                (Lambda keeps 100 unreserved) to set anything aside.
            certificate_hours: how long a node's certificate lives, 1 to 168. Default: 24.
            authority: what signs certificates. Default: the first generation of a CA of the cluster's own.
            remote_access: whether operators may open a shell on a node (see `SessionAccess`). Default: nobody may, and
                nodes neither run the SSM agent nor reach its service.
            gpu: whether the cluster has workers with NVIDIA GPUs: then MXNet's CUDA build is published too (1.9 GB,
                downloaded once, at the first deployment). Default: it is not.
            node_source: the directory with the package `holdfast_node`. Default: the installed one.
            cache_directory: where packed code is kept. Default: `.build` in the working directory.

        Raises:
            PropertyError: the cluster's name or the certificates' life does not fit.
            BundleError: code could not be packed.
        """
        super().__init__(scope, construct_id)
        self.cluster_name = cluster_name
        self.names = ClusterNames(cluster_name)
        self.removal_policy = removal_policy
        self.log_retention = log_retention
        authority = authority or AuthorityProps()
        self.keys = ClusterKeys(
            self, "Keys", cluster_name=cluster_name, authority=authority, removal_policy=removal_policy
        )
        self.buckets = ClusterBuckets(
            self,
            "Buckets",
            encryption_key=self.keys.data,
            access_log_retention=access_log_retention or Duration.days(365),
            removal_policy=removal_policy,
        )
        self.node_log = logs.LogGroup(
            self,
            "NodeLog",
            log_group_name=self.names.log_group("nodes"),
            encryption_key=self.keys.data,
            retention=log_retention,
            removal_policy=removal_policy,
        )
        self._count(FAILED_RENEWALS, logs.FilterPattern.all_terms("WARNING", "renewal_failed"))
        # What nodes' launchers report (holdfast_node/engines/mxnet/events.py): one JSON line each.
        self._count(REFUSED_MESSAGES, logs.FilterPattern.string_value("$.event", "=", "command_refused"))
        self.enrolment = EnrolmentFunction(
            self,
            "Enrolment",
            cluster_name=cluster_name,
            authority=authority,
            keys=self.keys,
            jobs_bucket=self.buckets.jobs,
            log_retention=log_retention,
            removal_policy=removal_policy,
            certificate_hours=certificate_hours,
            reserved_concurrency=enrolment_concurrency,
            cache_directory=cache_directory,
        )
        for key in (self.keys.certificate_authority, self.keys.previous_certificate_authority):
            if key is not None:
                only_signer(key, self.enrolment.role.role_name)
        only_signer(self.keys.model_signing, self.names.role(Role.WORKER, Stack.of(self)))
        self.remote_access = remote_access
        #: The operators' way to a shell; None unless `remote_access` is `session-manager`.
        self.sessions: SessionAccess | None = None
        if remote_access is RemoteAccess.SESSION_MANAGER:
            self.sessions = SessionAccess(
                self,
                "Sessions",
                cluster_name=cluster_name,
                encryption_key=self.keys.data,
                log_retention=log_retention,
                removal_policy=removal_policy,
            )
        self.bundle = NodeBundle(self, "NodeBundle", source=node_source, cache_directory=cache_directory)
        #: What nodes install from; None where the bundle is for local hosts only.
        self.wheelhouse = Wheelhouse(self, "Wheelhouse", bundle=self.bundle) if self.bundle.boots_on_ec2 else None
        #: What workers with GPUs install from instead; None unless `gpu`.
        self.gpu_wheelhouse = (
            LateWheelhouse(self, "GpuWheelhouse", bundle=self.bundle) if gpu and self.bundle.boots_on_ec2 else None
        )

    def metric_failed_renewals(self) -> cloudwatch.Metric:
        """Return how often nodes asked in vain for their certificate's renewal, by default over five minutes.

        A node tries again until its certificate ends, and fails then: an alarm here leaves hours to act in. What fails
        while a job runs counts twice: the line is in the node's log and in the job's.
        """
        return cloudwatch.Metric(namespace=self.names.metrics, metric_name=FAILED_RENEWALS, statistic="Sum")

    def node_access(self) -> NodeAccess:
        """Return what nodes call and why: the network makes its endpoints, and their policies, from it."""
        services = ec2.InterfaceVpcEndpointAwsService
        keys, sessions = self.keys, self.sessions
        return NodeAccess(
            services=(
                ServiceAccess(
                    name="Kms",
                    service=services.KMS,
                    actions=("kms:GetPublicKey", "kms:Sign"),
                    resources=(keys.job_signing.key_arn, keys.model_signing.key_arn),
                    also=sessions.statements_of("kms") if sessions else (),
                ),
                ServiceAccess(
                    name="Logs",
                    service=services.CLOUDWATCH_LOGS,
                    actions=("logs:CreateLogStream", "logs:PutLogEvents"),
                    resources=(self.node_log.log_group_arn,),
                    also=sessions.statements_of("logs") if sessions else (),
                ),
                ServiceAccess(
                    name="States",
                    service=services.STEP_FUNCTIONS,
                    actions=("states:SendTaskFailure", "states:SendTaskHeartbeat", "states:SendTaskSuccess"),
                    resources=(self.names.state_machine_arn(Stack.of(self)),),
                ),
                ServiceAccess(
                    name="Lambda",
                    service=services.LAMBDA_,
                    actions=("lambda:InvokeFunction",),
                    resources=(self.enrolment.function.function_arn,),
                ),
                *(sessions.services() if sessions else ()),
            ),
            objects=(
                iam.PolicyStatement(
                    sid="ListRegistrations", actions=["s3:ListBucket"], resources=[self.buckets.jobs.bucket_arn]
                ),
                iam.PolicyStatement(
                    sid="JobObjects",
                    actions=["s3:GetObject", "s3:PutObject"],
                    resources=[self.buckets.jobs.arn_for_objects("*")],
                ),
                iam.PolicyStatement(
                    sid="ModelObjects",
                    actions=["s3:GetObject", "s3:PutObject"],
                    resources=[self.buckets.models.arn_for_objects("*")],
                ),
                iam.PolicyStatement(sid="NodeBundle", actions=["s3:GetObject"], resources=self._published()),
            ),
        )

    def wheels(self, *, gpu: bool = False) -> Wheelhouse | LateWheelhouse | None:
        """Return what a node, with a GPU or not, installs from; None where the bundle is for local hosts only.

        Raises:
            PropertyError: the node has a GPU, and the foundation was made without `gpu`.
        """
        if gpu and self.wheelhouse is not None and self.gpu_wheelhouse is None:
            raise PropertyError(
                "a fleet with gpu=True needs ClusterFoundation(gpu=True), which publishes CUDA's libraries"
            )
        return self.gpu_wheelhouse if gpu else self.wheelhouse

    def code_arns(self, *, gpu: bool = False) -> list[str]:
        """Return the ARNs of the published objects that a node installs: the bundle, and its wheels where needed."""
        wheels = self.wheels(gpu=gpu)
        return [self.bundle.object_arn, *([wheels.object_arn] if wheels else [])]

    def _published(self) -> list[str]:
        houses = [house.object_arn for house in (self.wheelhouse, self.gpu_wheelhouse) if house is not None]
        return [self.bundle.object_arn, *houses]

    def _count(self, metric: str, pattern: logs.IFilterPattern) -> None:
        """Count the lines of the nodes' log that match; the metric's name is the filter's id."""
        logs.MetricFilter(
            self,
            metric,
            log_group=self.node_log,
            filter_pattern=pattern,
            metric_namespace=self.names.metrics,
            metric_name=metric,
            metric_value="1",
            default_value=0,
        )

    def metric_refused_messages(self) -> cloudwatch.Metric:
        """Return the number of messages between nodes that a trainer's guard refused, by default over five minutes."""
        return cloudwatch.Metric(namespace=self.names.metrics, metric_name=REFUSED_MESSAGES, statistic="Sum")

    def grant_sign_jobs(self, grantee: iam.IGrantable) -> None:
        """Let `grantee` sign job documents and store them with their code, under `jobs/` and nowhere else."""
        key, jobs = self.keys, self.buckets.jobs
        for actions, resource, conditions in (
            (["kms:Sign"], key.job_signing.key_arn, DIGEST_ONLY),
            (["s3:PutObject"], jobs.arn_for_objects("jobs/*"), None),
            (["kms:Decrypt", "kms:GenerateDataKey"], key.data.key_arn, via_s3(self)),
        ):
            iam.Grant.add_to_principal(
                grantee=grantee, actions=actions, resource_arns=[resource], conditions=conditions
            )

    def grant_revoke(self, grantee: iam.IGrantable) -> None:
        """Let `grantee` revoke instances and see which are: write, read and list denials, and delete none.

        It may also see the account's Auto Scaling groups, to hear whether an id is one of the cluster's. There is no
        way back by design (docs/revocation.md), so the right to delete one is nobody's.
        """
        key, jobs = self.keys.data, self.buckets.jobs
        listing = {"StringEquals": {"s3:prefix": JobsBucket.DENIED}}
        for actions, resource, conditions in (
            (["s3:GetObject", "s3:PutObject"], jobs.arn_for_objects(f"{JobsBucket.DENIED}*"), None),
            (["s3:ListBucket"], jobs.bucket_arn, listing),
            (["kms:Decrypt", "kms:GenerateDataKey"], key.key_arn, via_s3(self)),
            (["autoscaling:DescribeAutoScalingGroups"], "*", None),  # it has no resource-level scope
        ):
            iam.Grant.add_to_principal(
                grantee=grantee, actions=actions, resource_arns=[resource], conditions=conditions
            )

    def grant_read_results(self, grantee: iam.IGrantable) -> None:
        """Let `grantee` read jobs' and boots' records, logs and models, and the key that models are verified with."""
        keys, jobs, models = self.keys, self.buckets.jobs, self.buckets.models

        def listing(*prefixes: str) -> dict[str, dict[str, list[str]]]:
            # S3 asks for the right to list, without a prefix, before it says that an object is not there.
            return {"StringLikeIfExists": {"s3:prefix": list(prefixes)}}

        for actions, resource, conditions in (
            (["kms:GetPublicKey"], keys.model_signing.key_arn, None),
            (["kms:Decrypt"], keys.data.key_arn, via_s3(self)),
            (["s3:GetObject"], jobs.arn_for_objects("status/*"), None),
            (["s3:GetObject"], jobs.arn_for_objects(f"{JobsBucket.BOOTS}*"), None),
            (["s3:ListBucket"], jobs.bucket_arn, listing("status/*", f"{JobsBucket.BOOTS}*")),
            (["s3:GetObject"], models.arn_for_objects("models/*"), None),
            (["s3:ListBucket"], models.bucket_arn, listing("models/*")),
            (["logs:FilterLogEvents"], self.node_log.log_group_arn, None),
        ):
            iam.Grant.add_to_principal(
                grantee=grantee, actions=actions, resource_arns=[resource], conditions=conditions
            )
