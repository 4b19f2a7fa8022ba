"""The cluster's KMS keys."""

from dataclasses import dataclass
from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from holdfast.conditions import log_delivery
from holdfast.errors import PropertyError
from holdfast.names import ClusterNames

MAX_GENERATION = 99


@dataclass(frozen=True, kw_only=True)
class AuthorityProps:
    """What signs the nodes' certificates: a CA of the cluster's own, whose key is in KMS, or an AWS Private CA.

    `generation` numbers the cluster's own CAs; raising it by one with `overlap` rotates the CA, and with it the
    generation before is trusted too, until a later deployment leaves `overlap` out (docs/ca-rotation.md).
    `private_ca_arn` names an existing root CA in AWS Private CA instead.

    Raises:
        PropertyError: no such generation, an overlap with none, or both kinds of CA.
    """

    generation: int = 1
    overlap: bool = False
    private_ca_arn: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.generation <= MAX_GENERATION:
            raise PropertyError(
                f"generation must be between 1 and {MAX_GENERATION}, got {self.generation}; raise it by one to rotate"
            )
        if self.overlap and self.generation == 1:
            raise PropertyError("overlap must be false for generation 1: there is no CA before it to trust")
        if self.private_ca_arn is not None and (self.generation, self.overlap) != (1, False):
            raise PropertyError("private_ca_arn goes without generation and overlap: AWS Private CA keeps that CA")


class ClusterKeys(Construct):
    """One symmetric key for data at rest and asymmetric ones that sign, each for a single purpose.

    The signing keys are ECC NIST P-256: what TLS certificates, job documents and model signatures are verified
    with everywhere. Their private halves never leave KMS. AWS does not rotate asymmetric keys.

    Default removal: kept, unless its creation failed. With DESTROY, KMS deletes the keys after a pending window of
    seven days.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster_name: str,
        authority: AuthorityProps | None = None,
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
    ) -> None:
        """Make the keys.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            cluster_name: the cluster; it is part of the keys' aliases.
            authority: what signs certificates. Default: the first generation of a CA of the cluster's own.
            removal_policy: what happens to the keys when they leave the stack. Default: kept, unless their creation
                failed.

        Raises:
            PropertyError: the cluster's name does not fit.
        """
        super().__init__(scope, construct_id)
        names = ClusterNames(cluster_name)
        authority = authority or AuthorityProps()
        destroyed = removal_policy is RemovalPolicy.DESTROY
        pending_window = Duration.days(7) if destroyed else Duration.days(30)

        self.data = kms.Key(
            self,
            "Data",
            alias=f"holdfast/{cluster_name}/data",
            description=f"Holdfast {cluster_name}: data at rest",
            enable_key_rotation=True,
            pending_window=pending_window,
            removal_policy=removal_policy,
        )
        self._allow_logs(names)
        self._allow_log_delivery()
        self._allow_auto_scaling()

        def signing_key(key_id: str, alias: str, purpose: str) -> kms.Key:
            return kms.Key(
                self,
                key_id,
                alias=f"holdfast/{cluster_name}/{alias}",
                description=f"Holdfast {cluster_name}: {purpose}",
                key_spec=kms.KeySpec.ECC_NIST_P256,
                key_usage=kms.KeyUsage.SIGN_VERIFY,
                pending_window=pending_window,
                removal_policy=removal_policy,
            )

        def ca_key(generation: int) -> kms.Key:
            # The ids and aliases are contract: another id is another key, and so another CA.
            number = "" if generation == 1 else str(generation)
            alias = f"ca-{generation}" if number else "ca"
            return signing_key(f"CertificateAuthority{number}", alias, "signs the nodes' certificates")

        own = authority.private_ca_arn is None
        #: The key of the CA's generation; None where an AWS Private CA signs.
        self.certificate_authority = ca_key(authority.generation) if own else None
        #: The key of the generation before it, while a rotation lasts; else None.
        self.previous_certificate_authority = ca_key(authority.generation - 1) if own and authority.overlap else None
        self.job_signing = signing_key("JobSigning", "jobs", "signs job documents")
        self.model_signing = signing_key("ModelSigning", "models", "signs trained models")

    def _allow_logs(self, names: ClusterNames) -> None:
        """Let CloudWatch Logs encrypt this cluster's log groups and no others."""
        stack = Stack.of(self)
        group = f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:"
        self.data.add_to_resource_policy(
            iam.PolicyStatement(
                sid="CloudWatchLogs",
                principals=[iam.ServicePrincipal(f"logs.{stack.region}.amazonaws.com")],
                actions=[
                    "kms:Encrypt",
                    "kms:Decrypt",
                    "kms:ReEncryptFrom",
                    "kms:ReEncryptTo",
                    "kms:GenerateDataKey",
                    "kms:DescribeKey",
                ],
                resources=["*"],
                conditions={
                    "ArnLike": {
                        "kms:EncryptionContext:aws:logs:arn": [
                            f"{group}{names.log_group('*')}",
                            f"{group}{names.image_log_group('*')}",
                            f"{group}{names.job_log_group}",
                        ]
                    }
                },
            )
        )

    def _allow_log_delivery(self) -> None:
        """Let log delivery read what waits for this account's log groups, and nothing for anybody else."""
        self.data.add_to_resource_policy(
            iam.PolicyStatement(
                sid="LogDelivery",
                principals=[iam.ServicePrincipal("delivery.logs.amazonaws.com")],
                actions=["kms:Decrypt"],
                resources=["*"],
                conditions={
                    "StringEquals": {"aws:SourceAccount": Stack.of(self).account},
                    **log_delivery(self),
                },
            )
        )

    def _allow_auto_scaling(self) -> None:
        """Let the Auto Scaling service's own role launch instances with volumes under this key.

        The role is matched by a condition: as a principal it would have to exist before the first deployment, and
        in a new account it doesn't. The two conditions together admit this one role of this account only.
        """
        stack = Stack.of(self)
        conditions = {
            "StringEquals": {"kms:CallerAccount": stack.account},
            "ArnEquals": {
                "aws:PrincipalArn": f"arn:{stack.partition}:iam::{stack.account}:role/aws-service-role/"
                "autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
            },
        }
        self.data.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AutoScalingVolumes",
                principals=[iam.AnyPrincipal()],
                actions=[
                    "kms:Encrypt",
                    "kms:Decrypt",
                    "kms:ReEncryptFrom",
                    "kms:ReEncryptTo",
                    "kms:GenerateDataKey",
                    "kms:GenerateDataKeyWithoutPlaintext",
                    "kms:DescribeKey",
                ],
                resources=["*"],
                conditions=conditions,
            )
        )
        self.data.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AutoScalingGrants",
                principals=[iam.AnyPrincipal()],
                actions=["kms:CreateGrant"],
                resources=["*"],
                conditions={**conditions, "Bool": {"kms:GrantIsForAWSResource": "true"}},
            )
        )


def only_signer(key: kms.Key, role_name: str) -> None:
    """Let nobody but one role sign with `key`, not even an administrator's policy, and digests only.

    A denial in the key's own policy holds against every allow in the account. `aws:PrincipalArn` is the role's ARN
    in each of its sessions (IAM user guide, "Global condition keys"); an emulator may name the session instead. A
    negated condition is true where its key is absent, so a request that names no message type, which KMS takes as a
    whole message, is denied too.
    """
    stack = Stack.of(key)
    signer = [
        f"arn:{stack.partition}:iam::{stack.account}:role/{role_name}",
        f"arn:{stack.partition}:sts::{stack.account}:assumed-role/{role_name}/*",
    ]
    denied: dict[str, dict[str, Any]] = {
        "DenyOtherSigners": {"ArnNotLike": {"aws:PrincipalArn": signer}},
        "DenyOtherMessages": {"StringNotEquals": {"kms:MessageType": "DIGEST"}},
        "DenyOtherAlgorithms": {"StringNotEquals": {"kms:SigningAlgorithm": "ECDSA_SHA_256"}},
    }
    for sid, conditions in denied.items():
        key.add_to_resource_policy(
            iam.PolicyStatement(
                sid=sid,
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                actions=["kms:Sign"],
                resources=["*"],
                conditions=conditions,
            )
        )
