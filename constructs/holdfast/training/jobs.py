"""The job state machine: one execution is one job."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from aws_cdk import ArnFormat, Duration, RemovalPolicy, Stack
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from holdfast.conditions import log_delivery, via_s3
from holdfast.dependencies import depend
from holdfast.errors import PropertyError
from holdfast.findings import acknowledge
from holdfast.foundation import ClusterFoundation
from holdfast.training.job_definition import job_definition
from holdfast_node.contract.documents import (
    DEFAULT_JOIN_SECONDS,
    DEFAULT_LOST_SECONDS,
    MIN_JOIN_SECONDS,
    MIN_LOST_SECONDS,
)
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role

#: Log delivery is set up by the state machine's own role, with actions that have no resource-level scope (Step
#: Functions developer guide, "Using CloudWatch Logs to log execution history").
_LOG_DELIVERY = (
    "logs:CreateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:DescribeLogGroups",
    "logs:DescribeResourcePolicies",
    "logs:GetLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:UpdateLogDelivery",
)

#: A week: Step Functions would wait a year (developer guide, "Quotas"), but a job that long is a mistake to pay for.
#: Certificates are renewed while a job runs, so they set no limit.
MAX_JOB_SECONDS = 168 * 3600


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """What no job may exceed, enforced by the state machine; and by the nodes, which the last two are for.

    `max_seconds` is the longest deadline. `heartbeat_seconds` is how long the scheduler may be silent, its boot
    included; a job's deadline must be longer. `lost_seconds` is within how long any other lost process, node or
    connection is noticed; the job then goes on as a new generation. So it does when its processes have not joined each
    other within `join_seconds`, because a script hangs before it makes its KVStore, for example.
    """

    max_seconds: int = 4 * 3600
    heartbeat_seconds: int = 600
    lost_seconds: int = DEFAULT_LOST_SECONDS
    join_seconds: int = DEFAULT_JOIN_SECONDS

    def __post_init__(self) -> None:
        if not MIN_LOST_SECONDS <= self.lost_seconds < self.heartbeat_seconds:
            raise PropertyError(
                f"lost_seconds must be between {MIN_LOST_SECONDS} and heartbeat_seconds - 1 "
                f"({self.heartbeat_seconds - 1}), got {self.lost_seconds}; a slow node is not a lost one"
            )
        if self.join_seconds < MIN_JOIN_SECONDS:
            raise PropertyError(
                f"join_seconds must be at least {MIN_JOIN_SECONDS}, got {self.join_seconds}; "
                "MXNet itself needs some of it"
            )
        if not 0 < self.heartbeat_seconds < self.max_seconds:
            raise PropertyError(
                f"heartbeat_seconds must be between 1 and max_seconds - 1 ({self.max_seconds - 1}), "
                f"got {self.heartbeat_seconds}; a scheduler is found dead before the job's deadline"
            )
        if self.max_seconds > MAX_JOB_SECONDS:
            raise PropertyError(
                f"max_seconds must be at most {MAX_JOB_SECONDS} ({MAX_JOB_SECONDS // 3600} h), got {self.max_seconds}; "
                "split the job: it can go on from its last checkpoint"
            )


class JobStateMachine(Construct):
    """A Standard state machine that raises the groups, waits for the scheduler, and always lowers the groups.

    One job holds the cluster at a time; an execution that finds it held fails and changes nothing. Executions are
    logged without their data and encrypted with the cluster's key. One role, which may scale the three groups and
    keep two objects.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        foundation: ClusterFoundation,
        groups: Mapping[Role, autoscaling.AutoScalingGroup],
        max_counts: Mapping[Role, int],
        limits: JobLimits,
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
    ) -> None:
        super().__init__(scope, construct_id)
        stack = Stack.of(self)
        names, jobs_bucket, key = foundation.names, foundation.buckets.jobs, foundation.keys.data
        self._name, self._key = names.state_machine, key
        self._history = {
            "StringEquals": {"kms:EncryptionContext:aws:states:stateMachineArn": names.state_machine_arn(stack)}
        }
        self.log_group = logs.LogGroup(
            self,
            "Log",
            log_group_name=names.job_log_group,
            encryption_key=key,
            retention=foundation.log_retention,
            removal_policy=removal_policy,
        )
        self.role = iam.Role(
            self,
            "Role",
            description=f"Holdfast {foundation.cluster_name}: runs jobs",
            assumed_by=iam.ServicePrincipal(
                "states.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": stack.account}}
            ),
        )
        policy = iam.ManagedPolicy(
            self,
            "Policy",
            description=f"Holdfast {foundation.cluster_name}: what the job state machine does",
            roles=[self.role],
            statements=[
                iam.PolicyStatement(
                    sid="Scale",
                    actions=["autoscaling:SetDesiredCapacity", "autoscaling:SuspendProcesses"],
                    resources=[_group_arn(group) for group in groups.values()],
                ),
                iam.PolicyStatement(
                    sid="HandOver",
                    actions=["s3:DeleteObject", "s3:PutObject"],
                    resources=[jobs_bucket.arn_for_objects(key) for key in (JobsBucket.CONTROL, JobsBucket.LOCK)],
                ),
                iam.PolicyStatement(
                    sid="ReadLock", actions=["s3:GetObject"], resources=[jobs_bucket.arn_for_objects(JobsBucket.LOCK)]
                ),
                iam.PolicyStatement(
                    sid="FindLock",
                    actions=["s3:ListBucket"],
                    resources=[jobs_bucket.bucket_arn],
                    conditions={"StringEquals": {"s3:prefix": JobsBucket.LOCK}},
                ),
                iam.PolicyStatement(
                    sid="EncryptedObjects",
                    actions=["kms:Decrypt", "kms:GenerateDataKey"],
                    resources=[key.key_arn],
                    conditions=via_s3(self),
                ),
                iam.PolicyStatement(
                    sid="EncryptedHistory",
                    actions=["kms:Decrypt", "kms:GenerateDataKey"],
                    resources=[key.key_arn],
                    conditions=self._history,
                ),
                iam.PolicyStatement(
                    # Log delivery encrypts what it has not written yet, as the machine's role (Step Functions
                    # developer guide, "Data at rest encryption", on state machines with logging).
                    sid="EncryptedLogDelivery",
                    actions=["kms:GenerateDataKey"],
                    resources=[key.key_arn],
                    conditions=log_delivery(self),
                ),
                iam.PolicyStatement(sid="LogDelivery", actions=list(_LOG_DELIVERY), resources=["*"]),
            ],
        )
        acknowledge(
            policy,
            "AwsSolutions-IAM5[Resource::*]",
            reason="The actions that set up log delivery have no resource-level scope; the rest of the policy has.",
        )
        definition = job_definition(
            partition=stack.partition,
            groups={role: group.auto_scaling_group_name for role, group in groups.items()},
            jobs_bucket=jobs_bucket.bucket_name,
            max_workers=max_counts[Role.WORKER],
            max_servers=max_counts[Role.SERVER],
            max_seconds=limits.max_seconds,
            heartbeat_seconds=limits.heartbeat_seconds,
        )
        self.state_machine = sfn.StateMachine(
            self,
            "StateMachine",
            state_machine_name=names.state_machine,
            state_machine_type=sfn.StateMachineType.STANDARD,
            # Not Stack.to_json_string: on the way through jsii a `null` would vanish, and ResultPath needs it.
            definition_body=sfn.DefinitionBody.from_string(json.dumps(definition)),
            # By its ARN, so that CDK attaches nothing of its own: the policy above is all that the machine may do.
            role=iam.Role.from_role_arn(self, "FixedRole", self.role.role_arn, mutable=False),
            # By its ARN, so that CDK leaves the key's policy alone: it would let log delivery decrypt for anybody.
            encryption_configuration=sfn.CustomerManagedEncryptionConfiguration(
                kms.Key.from_key_arn(self, "FixedKey", key.key_arn),
                kms_data_key_reuse_period_seconds=Duration.minutes(5),
            ),
            logs=sfn.LogOptions(destination=self.log_group, level=sfn.LogLevel.ALL, include_execution_data=False),
            removal_policy=RemovalPolicy.DESTROY,
        )
        depend(self.state_machine, policy)
        acknowledge(
            self.state_machine,
            "AwsSolutions-SF2",
            reason="A job has few steps, one after the other, and the execution log holds each; a trace adds nothing.",
        )

        self._sweep_after_end(names.state_machine_arn(stack))

    def _sweep_after_end(self, state_machine_arn: str) -> None:
        """Lower what an execution left that ended without running its own last states.

        A sweep names the ended execution and does nothing unless that one still holds the cluster, so a failed job
        that lowered its groups, or one that was refused, never disturbs the next.
        """
        role = iam.Role(
            self,
            "AbortRole",
            description="Holdfast: starts the lowering after a job that did not succeed",
            assumed_by=iam.ServicePrincipal(
                "events.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": Stack.of(self).account}}
            ),
        )
        iam.ManagedPolicy(
            self,
            "AbortPolicy",
            description="Holdfast: starts the job state machine",
            roles=[role],
            statements=[
                iam.PolicyStatement(
                    sid="StartLowering",
                    actions=["states:StartExecution"],
                    resources=[self.state_machine.state_machine_arn],
                )
            ],
        )
        events.CfnRule(
            self,
            "Abort",
            description="A job that did not succeed: lower what it left",
            event_pattern={
                "source": ["aws.states"],
                "detail-type": ["Step Functions Execution Status Change"],
                "detail": {"stateMachineArn": [state_machine_arn], "status": ["ABORTED", "FAILED", "TIMED_OUT"]},
            },
            targets=[
                events.CfnRule.TargetProperty(
                    id="Lower",
                    arn=self.state_machine.state_machine_arn,
                    role_arn=role.role_arn,
                    input_transformer=events.CfnRule.InputTransformerProperty(
                        input_paths_map={"execution": "$.detail.executionArn"},
                        # Without quotes: EventBridge puts them around a text.
                        input_template='{"lower": <execution>}',
                    ),
                )
            ],
        )

    def grant_start(self, grantee: iam.IGrantable) -> iam.Grant:
        """Let `grantee` start jobs; nodes run only what is also signed with the job signing key."""
        return self.state_machine.grant_start_execution(grantee)

    def grant_watch(self, grantee: iam.IGrantable) -> None:
        """Let `grantee` list executions and describe each; an execution's data is under the cluster's key."""
        executions = Stack.of(self).format_arn(
            service="states",
            resource="execution",
            resource_name=f"{self._name}:*",
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )
        for actions, resource, conditions in (
            (["states:ListExecutions"], self.state_machine.state_machine_arn, None),
            (["states:DescribeExecution"], executions, None),
            (["kms:Decrypt"], self._key.key_arn, self._history),
        ):
            iam.Grant.add_to_principal(
                grantee=grantee, actions=actions, resource_arns=[resource], conditions=conditions
            )

    def metric_failed(self) -> cloudwatch.Metric:
        """Return the number of jobs that failed, by default over five minutes."""
        return self.state_machine.metric_failed()


def _group_arn(group: autoscaling.AutoScalingGroup) -> str:
    resource = group.node.default_child
    assert isinstance(resource, autoscaling.CfnAutoScalingGroup)
    return resource.attr_auto_scaling_group_arn
