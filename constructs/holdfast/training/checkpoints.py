"""The shared checkpoint directory: EFS, encrypted, reached over TLS by the nodes' roles alone."""

from dataclasses import asdict, dataclass

from aws_cdk import RemovalPolicy, Tags
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_efs as efs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from holdfast.errors import PropertyError
from holdfast.network import PrivateNetwork
from holdfast.security_groups import NFS, closed_security_group
from holdfast_node.contract.documents import Retention
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import UIDS, User


@dataclass(frozen=True, kw_only=True)
class CheckpointRetention:
    """Which checkpoints of a job are kept: the newest, for so many days, and the best ones by a metric.

    The job's own writer applies it after every checkpoint, with what a script asks for itself in place of these
    defaults. Tags on the file system record it; the function that works at rest comes in a later release.
    """

    keep_last: int = 3
    max_age_days: int = 30
    keep_best: int = 1
    best_metric: str = "loss"
    best: str = "lowest"

    def __post_init__(self) -> None:
        try:
            self.document.validate()
        except DocumentError as error:
            raise PropertyError(f"{error}; keep one checkpoint at least") from None

    @property
    def document(self) -> Retention:
        """What the nodes get."""
        return Retention(**asdict(self))


class CheckpointStore(Construct):
    """An EFS file system with an access point that pins the trainer's user id.

    Its policy refuses connections without TLS, mounts that do not go through the access point, and root. Nothing in
    it grants: a node mounts by its own role's policy. It is in no backup plan, so that a purged checkpoint is gone.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster_name: str,
        network: PrivateNetwork,
        encryption_key: kms.IKey,
        retention: CheckpointRetention,
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
    ) -> None:
        super().__init__(scope, construct_id)
        self.security_group = closed_security_group(
            self, "Group", vpc=network.vpc, description=f"Holdfast {cluster_name}: checkpoint mount targets"
        )
        self.file_system = efs.FileSystem(
            self,
            "FileSystem",
            vpc=network.vpc,
            vpc_subnets=network.subnets,
            file_system_name=f"{cluster_name}-checkpoints",
            security_group=self.security_group,
            encrypted=True,
            kms_key=encryption_key,
            throughput_mode=efs.ThroughputMode.ELASTIC,
            allow_anonymous_access=True,  # keeps CDK's own statement out; the policy below is complete
            file_system_policy=_file_system_policy(),
            enable_automatic_backups=False,
            removal_policy=removal_policy,
        )
        self.connections = ec2.Connections(security_groups=[self.security_group], default_port=ec2.Port.tcp(NFS))
        tags = Tags.of(self.file_system)
        tags.add("holdfast:keep-last", str(retention.keep_last))
        tags.add("holdfast:max-age-days", str(retention.max_age_days))
        tags.add("holdfast:keep-best", f"{retention.keep_best} by {retention.best} {retention.best_metric}")
        trainer = str(UIDS[User.TRAINER])
        self.access_point = efs.AccessPoint(
            self,
            "AccessPoint",
            file_system=self.file_system,
            path="/checkpoints",
            posix_user=efs.PosixUser(uid=trainer, gid=trainer),
            create_acl=efs.Acl(owner_uid=trainer, owner_gid=trainer, permissions="700"),
        )

    def mount_statement(self) -> iam.PolicyStatement:
        """Return the statement that lets a role mount the access point and write through it."""
        return iam.PolicyStatement(
            sid="MountCheckpoints",
            actions=["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"],
            resources=[self.file_system.file_system_arn],
            conditions={"StringEquals": {"elasticfilesystem:AccessPointArn": self.access_point.access_point_arn}},
        )

    def grant_mount(self, grantee: iam.IGrantable) -> None:
        """Let `grantee` mount the access point over TLS and write through it as the trainer."""
        grantee.grant_principal.add_to_principal_policy(self.mount_statement())


def _file_system_policy() -> iam.PolicyDocument:
    # The resource is always this file system, and a file system policy cannot refer to its own.
    client_actions = ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"]

    def deny(sid: str, actions: list[str], conditions: dict[str, dict[str, str]] | None = None) -> iam.PolicyStatement:
        return iam.PolicyStatement(
            sid=sid,
            effect=iam.Effect.DENY,
            principals=[iam.AnyPrincipal()],
            actions=actions,
            conditions=conditions or {},
        )

    return iam.PolicyDocument(
        statements=[
            deny("DenyPlaintext", ["*"], {"Bool": {"aws:SecureTransport": "false"}}),
            deny("DenyWithoutAccessPoint", client_actions, {"Null": {"elasticfilesystem:AccessPointArn": "true"}}),
            deny("DenyRoot", ["elasticfilesystem:ClientRootAccess"]),
        ]
    )
