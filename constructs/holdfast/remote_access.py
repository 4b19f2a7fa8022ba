"""Shells on nodes through Session Manager, for whoever asks for them: recorded, encrypted, with a second factor."""

from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from holdfast.access import AGENT_CHANNELS, ServiceAccess, agent_services
from holdfast.findings import acknowledge, written
from holdfast.names import CLUSTER_TAG, ClusterNames
from holdfast_node.contract.layout import OPERATOR

#: A session ends after so many minutes without a keystroke, and after so many in any case; Session Manager takes 1 to
#: 60 and 1 to 1440 (Systems Manager user guide, "Session document schema").
IDLE_MINUTES = 10
SESSION_MINUTES = 60
_RECORD = ("logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")


class SessionAccess(Construct):
    """What it takes to open a shell on a node: a key, a log, a Session document, and a policy for operators.

    Every byte of a session is encrypted under a key of its own, on top of TLS, and written to an encrypted log group
    while it is typed. The shell belongs to `holdfast-operator`, who has no sudo rule, no credentials and no part in
    the trainer's files. A session ends after ten minutes of silence and after an hour.

    Nobody may open one but whom `operator_policy` is attached to, and they only with a second factor, on this
    cluster's instances, and with this document: one that names another user, or no log, is refused.

    Nodes get the few actions that the agent needs, not AWS's managed policy, which also lets it run commands, read
    parameters and collect an inventory. There is no endpoint for `ec2messages`: Run Command used it, which nodes don't
    take, and since version 3.3.40.0 the agent asks for sessions over `ssmmessages` (Systems Manager user guide,
    "Reference: ec2messages, ssmmessages, and other API operations").
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster_name: str,
        encryption_key: kms.IKey,
        log_retention: logs.RetentionDays = logs.RetentionDays.ONE_YEAR,
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
    ) -> None:
        """Make the document, its key and log, and the operators' policy, attached to nobody.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            cluster_name: the cluster whose nodes it is for.
            encryption_key: encrypts the record of sessions.
            log_retention: how long that record is kept. Default: one year.
            removal_policy: what happens to the record and the key. Default: kept, unless their creation failed.
        """
        super().__init__(scope, construct_id)
        stack, names = Stack.of(self), ClusterNames(cluster_name)
        self._instances = stack.format_arn(service="ec2", resource="instance", resource_name="*")
        self._log_groups = f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:*"
        self.key = kms.Key(
            self,
            "Key",
            alias=f"holdfast/{cluster_name}/sessions",
            description=f"Holdfast {cluster_name}: operators' sessions on nodes",
            enable_key_rotation=True,
            removal_policy=removal_policy,
        )
        self.log = logs.LogGroup(
            self,
            "Log",
            log_group_name=names.log_group("sessions"),
            encryption_key=encryption_key,
            retention=log_retention,
            removal_policy=removal_policy,
        )
        self.document = ssm.CfnDocument(
            self,
            "Document",
            name=names.session_document,
            document_type="Session",
            document_format="JSON",
            update_method="NewVersion",
            content={
                "schemaVersion": "1.0",
                "description": f"Holdfast {cluster_name}: an unprivileged, recorded shell on a node",
                "sessionType": "Standard_Stream",
                "inputs": {
                    "kmsKeyId": self.key.key_arn,
                    "cloudWatchLogGroupName": self.log.log_group_name,
                    "cloudWatchEncryptionEnabled": True,
                    "cloudWatchStreamingEnabled": True,
                    "s3BucketName": "",
                    "s3KeyPrefix": "",
                    "s3EncryptionEnabled": True,
                    "runAsEnabled": True,
                    "runAsDefaultUser": OPERATOR,
                    "idleSessionTimeout": str(IDLE_MINUTES),
                    "maxSessionDuration": str(SESSION_MINUTES),
                },
            },
        )
        self.operator_policy = self._operators(names)

    def _operators(self, names: ClusterNames) -> iam.ManagedPolicy:
        stack = Stack.of(self)
        # A session that never had a second factor has no such key; `Bool` is then false, unlike `BoolIfExists`.
        second_factor = {"aws:MultiFactorAuthPresent": "true"}
        # Session Manager prefers the user that a caller's own tag names to the document's: nobody with that tag.
        no_other_user = {"Null": {"aws:PrincipalTag/SSMSessionRunAs": "true"}}
        document = stack.format_arn(service="ssm", resource="document", resource_name=names.session_document)
        session = stack.format_arn(service="ssm", resource="session", resource_name="${aws:userid}-*")
        policy = iam.ManagedPolicy(
            self,
            "Operators",
            description=f"Holdfast {names.cluster}: open a recorded, unprivileged shell on a node, with MFA",
            statements=[
                iam.PolicyStatement(
                    sid="OpenSessions",
                    actions=["ssm:StartSession"],
                    resources=[self._instances],
                    conditions={
                        "Bool": {**second_factor, "ssm:SessionDocumentAccessCheck": "true"},
                        "StringEquals": {f"aws:ResourceTag/{CLUSTER_TAG}": names.cluster},
                        **no_other_user,
                    },
                ),
                iam.PolicyStatement(
                    sid="WithThisDocument",
                    actions=["ssm:StartSession"],
                    resources=[document],
                    conditions={"Bool": second_factor, **no_other_user},
                ),
                iam.PolicyStatement(
                    sid="OwnSessions", actions=["ssm:ResumeSession", "ssm:TerminateSession"], resources=[session]
                ),
                iam.PolicyStatement(
                    sid="EncryptSessions",
                    actions=["kms:GenerateDataKey"],
                    resources=[self.key.key_arn],
                    conditions={"Bool": second_factor},
                ),
            ],
        )
        for arn, reason in (
            (self._instances, "Instances live for a job and have ids that nobody knows; their tag is the condition."),
            (session, "A session's id begins with its owner's own id and ends in what AWS makes up."),
        ):
            acknowledge(policy, f"AwsSolutions-IAM5[Resource::{written(stack, arn)}]", reason=reason)
        return policy

    def node_statements(self) -> list[iam.PolicyStatement]:
        """Return what the SSM agent on a node may do: report itself, carry sessions, record and decrypt them."""
        return [
            iam.PolicyStatement(sid="SessionChannels", actions=list(AGENT_CHANNELS), resources=["*"]),
            iam.PolicyStatement(
                sid="ReportAgent", actions=["ssm:UpdateInstanceInformation"], resources=[self._instances]
            ),
            iam.PolicyStatement(sid="RecordSessions", actions=list(_RECORD), resources=[self.log.log_group_arn]),
            # The agent looks whether the log group is encrypted before it lets a session begin.
            iam.PolicyStatement(sid="FindRecord", actions=["logs:DescribeLogGroups"], resources=[self._log_groups]),
            iam.PolicyStatement(sid="DecryptSessions", actions=["kms:Decrypt"], resources=[self.key.key_arn]),
        ]

    def acknowledge_wildcards(self, policy: iam.ManagedPolicy) -> None:
        """Excuse what AWS lets nobody scope in `node_statements`, on the policy that holds them."""
        stack = Stack.of(policy)
        for arn, reason in (
            ("*", "The message gateway's actions know no resource; the endpoint's policy holds the account."),
            (written(stack, self._instances), "A node reports itself; its own id is not known at deployment."),
            (written(stack, self._log_groups), "The agent finds its log group by listing; this reads names only."),
        ):
            acknowledge(policy, f"AwsSolutions-IAM5[Resource::{arn}]", reason=reason)

    def services(self) -> tuple[ServiceAccess, ...]:
        """Return the services that the agent calls and no other part of a node does."""
        return agent_services(self._instances)

    def statements_of(self, service: str) -> tuple[iam.PolicyStatement, ...]:
        """Return those of `node_statements` that go through the endpoint of a service such as `kms`."""
        return tuple(
            statement
            for statement in self.node_statements()
            if all(action.startswith(f"{service}:") for action in statement.actions)
        )
