"""What each of the cluster's roles does: who may take it, its actions, and which objects it reads and writes.

The kit grants these (constructs/holdfast/training/policies.py, node_policy.py, enrolment.py, training/jobs.py,
network.py); a test holds that this and a deployment's policies agree.
"""

from dataclasses import dataclass, replace

from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import NodeRole, Role, Serving

_LOG = {"logs:CreateLogStream", "logs:PutLogEvents"}
_OBJECTS = {"s3:GetObject", "s3:ListBucket", "s3:PutObject"}
_ENCRYPTED = {"kms:Decrypt", "kms:GenerateDataKey"}
_NODE = frozenset({"lambda:InvokeFunction", "kms:GetPublicKey", *_LOG, *_OBJECTS, *_ENCRYPTED})
_MOUNT = frozenset({"elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"})
_CHANNELS = frozenset(
    {
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
    }
)
_SESSIONS = _CHANNELS | {"ssm:UpdateInstanceInformation", "logs:DescribeLogStreams", "logs:DescribeLogGroups"}
_DELIVERY = frozenset(
    {
        "logs:CreateLogDelivery",
        "logs:DeleteLogDelivery",
        "logs:DescribeLogGroups",
        "logs:DescribeResourcePolicies",
        "logs:GetLogDelivery",
        "logs:ListLogDeliveries",
        "logs:PutResourcePolicy",
        "logs:UpdateLogDelivery",
    }
)
_IDENTITY = frozenset({"autoscaling:DescribeAutoScalingInstances", "ec2:DescribeInstances"})
#: Actions that AWS gives no resource to name (Service Authorization Reference).
UNSCOPED = _CHANNELS | _DELIVERY | _IDENTITY
#: The condition key that a statement with one of these actions must name.
CONDITIONED = {
    "kms:Sign": "kms:MessageType",
    "s3:ListBucket": "s3:prefix",
    "elasticfilesystem:ClientMount": "elasticfilesystem:AccessPointArn",
    "elasticfilesystem:ClientWrite": "elasticfilesystem:AccessPointArn",
}


@dataclass(frozen=True, kw_only=True)
class Duty:
    """What a role is for. `reads` and `writes` are beginnings of keys, in the jobs or the models bucket.

    With `own_account` its trust must name the account that a service acts for, because services act for many.
    """

    service: str
    actions: frozenset[str]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    own_account: bool = False


def of_node(role: NodeRole, *, sessions: bool) -> Duty:
    """Return a node role's duty; with `sessions` its instances run the SSM agent."""
    duty = _node(role)
    return replace(duty, actions=duty.actions | _SESSIONS) if sessions else duty


def _node(role: NodeRole) -> Duty:
    boots, service = JobsBucket.boot_prefix(role), "ec2.amazonaws.com"
    if role is Serving.PREDICTOR:
        return Duty(service=service, actions=_NODE, reads=("models/",), writes=(boots,))
    assert isinstance(role, Role)
    reads = ("jobs/", JobsBucket.RENDEZVOUS)
    writes = (boots, JobsBucket.node_prefix(role), JobsBucket.result_prefix(role))
    if role is Role.SCHEDULER:
        ending = {"states:SendTaskFailure", "states:SendTaskHeartbeat", "states:SendTaskSuccess"}
        return Duty(
            service=service,
            actions=_NODE | ending,
            reads=(*reads, JobsBucket.CONTROL, "nodes/", "results/", JobsBucket.BOOTS),
            writes=(*writes, JobsBucket.RENDEZVOUS, "status/"),
        )
    if role is Role.WORKER:
        return Duty(service=service, actions=_NODE | _MOUNT | {"kms:Sign"}, reads=reads, writes=(*writes, "models/"))
    return Duty(service=service, actions=_NODE | _MOUNT, reads=reads, writes=writes)


ENROLMENT = Duty(
    service="lambda.amazonaws.com",
    actions=_IDENTITY
    | {"kms:Sign", "kms:GetPublicKey", *_LOG, *_OBJECTS, *_ENCRYPTED}
    | {"acm-pca:IssueCertificate", "acm-pca:GetCertificate", "acm-pca:GetCertificateAuthorityCertificate"},
    reads=("pki/ca",),
    writes=("pki/ca", JobsBucket.PROOFS),
)
JOBS = Duty(
    service="states.amazonaws.com",
    actions=_DELIVERY
    | {"autoscaling:SetDesiredCapacity", "autoscaling:SuspendProcesses", "s3:DeleteObject", *_OBJECTS, *_ENCRYPTED},
    reads=(JobsBucket.LOCK,),
    writes=(JobsBucket.CONTROL, JobsBucket.LOCK),
    own_account=True,
)
#: The roles that nothing reads back names: by the service that their trust admits.
OTHERS = {
    duty.service: duty
    for duty in (
        Duty(service="events.amazonaws.com", actions=frozenset({"states:StartExecution"}), own_account=True),
        Duty(
            service="vpc-flow-logs.amazonaws.com",
            actions=frozenset({"logs:DescribeLogStreams", *_LOG}),
            own_account=True,
        ),
    )
}
