"""The job state machine: one execution is one job."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from holdfast.conditions import via_s3
from holdfast.dependencies import depend
from holdfast.errors import PropertyError
from holdfast.findings import acknowledge
from holdfast.foundation import ClusterFoundation
from holdfast.training.job_definition import LOWER_ONLY, job_definition
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


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """What no job may exceed, enforced by the state machine.

    `max_seconds` is the longest deadline. `heartbeat_seconds` is how long the scheduler may be silent, its boot
    included; a job's deadline must be longer.
    """

    max_seconds: int = 4 * 3600
    heartbeat_seconds: int = 600

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_seconds < self.max_seconds:
            raise PropertyError(
                f"heartbeat_seconds must be between 1 and max_seconds - 1 ({self.max_seconds - 1}), "
                f"got {self.heartbeat_seconds}; a scheduler is found dead before the job's deadline"
            )


class JobStateMachine(Construct):
    """A Standard state machine that raises the groups, waits for the scheduler, and always lowers the groups.

    Executions are logged without their data and encrypted with the cluster's key. One role, which may set the
    capacity of the three groups and write one object.
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
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN,
    ) -> None:
        super().__init__(scope, construct_id)
        stack = Stack.of(self)
        names, jobs_bucket, key = foundation.names, foundation.buckets.jobs, foundation.keys.data
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
                    actions=["autoscaling:SetDesiredCapacity"],
                    resources=[_group_arn(group) for group in groups.values()],
                ),
                iam.PolicyStatement(
                    sid="HandOver",
                    actions=["s3:DeleteObject", "s3:PutObject"],
                    resources=[jobs_bucket.arn_for_objects(JobsBucket.CONTROL)],
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
                    conditions={
                        "StringEquals": {
                            "kms:EncryptionContext:aws:states:stateMachineArn": names.state_machine_arn(stack)
                        }
                    },
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
            encryption_configuration=sfn.CustomerManagedEncryptionConfiguration(
                key, kms_data_key_reuse_period_seconds=Duration.minutes(5)
            ),
            logs=sfn.LogOptions(destination=self.log_group, level=sfn.LogLevel.ALL, include_execution_data=False),
            removal_policy=RemovalPolicy.DESTROY,
        )
        depend(self.state_machine, policy)
        acknowledge(
            self.state_machine,
            "AwsSolutions-SF2",
            reason="X-Ray would add a service outside the network's list; the execution log holds every step.",
        )

        self._lower_after_abort(names.state_machine_arn(stack))

    def _lower_after_abort(self, state_machine_arn: str) -> None:
        """Lower the groups after an execution that ended without running its own last states."""
        role = iam.Role(
            self,
            "AbortRole",
            description="Holdfast: starts the lowering after an aborted job",
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
            description="An aborted job: lower its groups",
            event_pattern={
                "source": ["aws.states"],
                "detail-type": ["Step Functions Execution Status Change"],
                # Not FAILED: a job that fails has lowered its groups, and the next one may have begun.
                "detail": {"stateMachineArn": [state_machine_arn], "status": ["ABORTED", "TIMED_OUT"]},
            },
            targets=[
                events.CfnRule.TargetProperty(
                    id="Lower",
                    arn=self.state_machine.state_machine_arn,
                    role_arn=role.role_arn,
                    input=json.dumps(LOWER_ONLY),
                )
            ],
        )

    def grant_start(self, grantee: iam.IGrantable) -> iam.Grant:
        """Let `grantee` start jobs; nodes run only what is also signed with the job signing key."""
        return self.state_machine.grant_start_execution(grantee)

    def metric_failed(self) -> cloudwatch.Metric:
        """Return the number of jobs that failed, by default over five minutes."""
        return self.state_machine.metric_failed()


def _group_arn(group: autoscaling.AutoScalingGroup) -> str:
    resource = group.node.default_child
    assert isinstance(resource, autoscaling.CfnAutoScalingGroup)
    return resource.attr_auto_scaling_group_arn
