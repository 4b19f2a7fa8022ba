"""What each role may do, and nothing else: the statements of the nodes' policies."""

from aws_cdk import aws_iam as iam

from holdfast.conditions import DIGEST_ONLY, via_s3
from holdfast.findings import acknowledge_keys
from holdfast.foundation import ClusterFoundation
from holdfast.node_policy import boot_records, every_node
from holdfast.training.checkpoints import CheckpointStore
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role

#: The roles whose trainers write checkpoints or start from them; the scheduler holds no state.
CHECKPOINTING = frozenset({Role.SERVER, Role.WORKER})


def acknowledge_wildcards(role: Role, policy: iam.ManagedPolicy, foundation: ClusterFoundation) -> None:
    """Excuse the object keys that end in a wildcard: jobs and instances have ids that nobody knows at deployment."""
    jobs = ["jobs/*", f"{JobsBucket.node_prefix(role)}*", f"{JobsBucket.result_prefix(role)}*", boot_records(role)]
    if role is Role.SCHEDULER:
        jobs += ["nodes/*", "results/*", "status/*", f"{JobsBucket.BOOTS}*"]
    reason = "Keys end in the id of a job or an instance; the prefix is the narrowest that holds before they exist."
    acknowledge_keys(policy, foundation.buckets.jobs, *jobs, reason=reason)
    if role is Role.WORKER:
        acknowledge_keys(policy, foundation.buckets.models, "models/*", reason=reason)


def node_statements(
    role: Role,
    *,
    foundation: ClusterFoundation,
    checkpoints: CheckpointStore,
    state_machine_arn: str,
    gpu: bool = False,
) -> list[iam.PolicyStatement]:
    """Return the statements of the policy of `role`'s nodes; `gpu` says whether they have GPUs."""
    statements = _common(role, foundation, gpu)
    if role in CHECKPOINTING:
        statements.append(checkpoints.mount_statement())
    if role is Role.SCHEDULER:
        statements += _scheduler(foundation, state_machine_arn)
    if role is Role.WORKER:
        statements += _worker(foundation)
    return statements


def _common(role: Role, foundation: ClusterFoundation, gpu: bool) -> list[iam.PolicyStatement]:
    jobs, keys = foundation.buckets.jobs, foundation.keys
    own = [
        jobs.arn_for_objects(f"{JobsBucket.node_prefix(role)}*"),
        jobs.arn_for_objects(f"{JobsBucket.result_prefix(role)}*"),
    ]
    return [
        *every_node(foundation, role, gpu=gpu),
        iam.PolicyStatement(sid="VerifyJobs", actions=["kms:GetPublicKey"], resources=[keys.job_signing.key_arn]),
        iam.PolicyStatement(
            sid="EncryptedObjects",
            actions=["kms:Decrypt", "kms:GenerateDataKey"],
            resources=[keys.data.key_arn],
            conditions=via_s3(foundation),
        ),
        iam.PolicyStatement(
            sid="ReadJobs",
            actions=["s3:GetObject"],
            resources=[jobs.arn_for_objects("jobs/*"), jobs.arn_for_objects(JobsBucket.RENDEZVOUS)],
        ),
        iam.PolicyStatement(sid="OwnRecords", actions=["s3:PutObject"], resources=own),
    ]


def _scheduler(foundation: ClusterFoundation, state_machine_arn: str) -> list[iam.PolicyStatement]:
    jobs = foundation.buckets.jobs
    return [
        iam.PolicyStatement(
            sid="ReadControlAndRecords",
            actions=["s3:GetObject"],
            resources=[
                jobs.arn_for_objects(key)
                for key in (JobsBucket.CONTROL, "nodes/*", "results/*", f"{JobsBucket.BOOTS}*")
            ],
        ),
        iam.PolicyStatement(
            sid="ListRegistrations",
            actions=["s3:ListBucket"],
            resources=[jobs.bucket_arn],
            conditions={"StringLike": {"s3:prefix": ["nodes/*", f"{JobsBucket.BOOTS}*"]}},
        ),
        iam.PolicyStatement(
            sid="LeadJobs",
            actions=["s3:PutObject"],
            resources=[jobs.arn_for_objects(JobsBucket.RENDEZVOUS), jobs.arn_for_objects("status/*")],
        ),
        iam.PolicyStatement(
            sid="ReportJobs",
            actions=["states:SendTaskFailure", "states:SendTaskHeartbeat", "states:SendTaskSuccess"],
            resources=[state_machine_arn],
        ),
    ]


def _worker(foundation: ClusterFoundation) -> list[iam.PolicyStatement]:
    model_key = foundation.keys.model_signing.key_arn
    return [
        iam.PolicyStatement(sid="SignModels", actions=["kms:Sign"], resources=[model_key], conditions=DIGEST_ONLY),
        iam.PolicyStatement(sid="VerifyModels", actions=["kms:GetPublicKey"], resources=[model_key]),
        iam.PolicyStatement(
            sid="PublishModels",
            actions=["s3:PutObject"],
            resources=[foundation.buckets.models.arn_for_objects("models/*")],
        ),
    ]
