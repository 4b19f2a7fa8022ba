"""Whether an instance is a running node of a role, and its private address: in AWS's words, not the instance's."""

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Any

from botocore.exceptions import ClientError
from configuration import RoleSettings
from proof import Caller
from refusal import Reason, Refused

#: Lifecycle states of an instance that is coming or is here
#: (https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-lifecycle.html).
_MEMBER_STATES = ("Pending", "Pending:Wait", "Pending:Proceed", "InService")
_RUNNING_STATES = ("pending", "running")


def role_of(caller: Caller, roles: Mapping[str, RoleSettings]) -> str:
    """Return the node role whose IAM role the caller has.

    Raises:
        Refused: another account, or an IAM role that no node role has.
    """
    accounts = sorted({role.account for role in roles.values()})
    if caller.account not in accounts:
        raise Refused(Reason.WRONG_ACCOUNT, f"caller must be of account {accounts[0]}, got {caller.account}")
    for name, role in roles.items():
        if (caller.partition, caller.account, caller.role) == (role.partition, role.account, role.role):
            return name
    allowed = sorted(role.role for role in roles.values())
    raise Refused(Reason.UNKNOWN_ROLE, f"IAM role must be one of {allowed}, got {caller.role!r}")


def require_member(autoscaling: Any, instance_id: str, group: str) -> None:
    """Return if the instance is a member of the Auto Scaling group.

    Raises:
        Refused: it is in no group, in another one, or on its way out.
    """
    answer = autoscaling.describe_auto_scaling_instances(InstanceIds=[instance_id])
    found = [item for item in answer["AutoScalingInstances"] if item["InstanceId"] == instance_id]
    if not found:
        raise Refused(Reason.NOT_IN_GROUP, f"{instance_id} must be in Auto Scaling group {group}, it is in none")
    actual, state = found[0]["AutoScalingGroupName"], found[0]["LifecycleState"]
    if actual != group:
        raise Refused(Reason.NOT_IN_GROUP, f"{instance_id} must be in Auto Scaling group {group}, it is in {actual}")
    if state not in _MEMBER_STATES:
        message = f"{instance_id} must be one of {list(_MEMBER_STATES)} in {group}, it is {state}"
        raise Refused(Reason.NOT_IN_GROUP, message)


def private_address(ec2: Any, instance_id: str) -> IPv4Address:
    """Return the private address of a running instance.

    Raises:
        Refused: EC2 does not know it, or it is not running.
    """
    try:
        answer = ec2.describe_instances(InstanceIds=[instance_id])
    except ClientError as error:
        if error.response.get("Error", {}).get("Code", "").startswith("InvalidInstanceID"):
            raise Refused(Reason.NOT_RUNNING, f"EC2 knows no instance {instance_id} in this account") from None
        raise
    instances = [instance for reservation in answer["Reservations"] for instance in reservation["Instances"]]
    found = [instance for instance in instances if instance["InstanceId"] == instance_id]
    if not found:
        raise Refused(Reason.NOT_RUNNING, f"EC2 knows no instance {instance_id} in this account")
    state = found[0]["State"]["Name"]
    if state not in _RUNNING_STATES or "PrivateIpAddress" not in found[0]:
        message = f"{instance_id} must be {' or '.join(_RUNNING_STATES)} with a private address, it is {state}"
        raise Refused(Reason.NOT_RUNNING, message)
    return IPv4Address(found[0]["PrivateIpAddress"])
