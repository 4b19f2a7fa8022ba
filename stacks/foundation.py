"""The foundation stack: what outlives every job."""

from pathlib import Path

from aws_cdk import CfnOutput, Duration
from constructs import Construct

from holdfast import AuthorityProps, ClusterFoundation
from stacks.base import ClusterStack
from stacks.instances import has_gpu
from stacks.settings import Settings


class FoundationStack(ClusterStack):
    """Keys, buckets, the enrolment function, the nodes' log and the node bundle."""

    def __init__(self, scope: Construct, *, settings: Settings, node_source: Path, cache_directory: Path) -> None:
        super().__init__(
            scope, "Foundation", settings=settings, description="keys, buckets, enrolment; it outlives every job"
        )
        self.foundation = ClusterFoundation(
            self,
            "Foundation",
            cluster_name=settings.cluster.name,
            log_retention=self.log_retention,
            access_log_retention=Duration.days(settings.cluster.log_retention_days),
            removal_policy=self.data_removal,
            enrolment_concurrency=settings.limits.enrolment_concurrency,
            certificate_hours=settings.identity.certificate_hours,
            authority=AuthorityProps(
                generation=settings.identity.ca_generation,
                overlap=settings.identity.ca_overlap,
                private_ca_arn=settings.identity.private_ca_arn,
            ),
            remote_access=settings.cluster.remote_access,
            gpu=has_gpu(settings.workers.instance_type),
            node_source=node_source,
            cache_directory=cache_directory,
        )
        if self.foundation.sessions is not None:
            operators = self.foundation.sessions.operator_policy
            CfnOutput(self, "SessionDocument", value=self.foundation.names.session_document)
            CfnOutput(self, "SessionPolicy", value=operators.managed_policy_arn, description="for operators with MFA")
        # The bundle is published with this stack; its digest here makes a new bundle a change of this stack.
        CfnOutput(self, "NodeBundle", value=self.foundation.bundle.sha256, description="SHA-256 of the node bundle")
