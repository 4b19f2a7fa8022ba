"""Checks of what runs: groups that hold the cluster's nodes and no others, and nobody beside them."""

from collections.abc import Iterator
from typing import Any

from holdfast_cli.posture.inventory import Inventory
from holdfast_cli.posture.nodes import metadata_faults
from holdfast_cli.posture.reading import Unreadable
from holdfast_cli.posture.report import Check, Outcome
from holdfast_node.contract.roles import NodeRole, Role, group_name

CLUSTER_TAG = "holdfast:cluster"


def look_at_groups(inventory: Inventory) -> Outcome:
    """Look whether each group launches its role's template into the cluster's subnets, up to its limit."""
    problems = [
        f"group {group_name(inventory.name, role)}: {fault}"
        for role in inventory.roles
        for fault in _group_faults(inventory, role)
    ]
    return Outcome(", ".join(group_name(inventory.name, role) for role in inventory.roles), tuple(problems))


def _group_faults(inventory: Inventory, role: NodeRole) -> Iterator[str]:
    group = inventory.scaling_groups.get(role)
    if group is None:
        yield "it does not exist"
        return
    template = group.get("LaunchTemplate", {})
    if template.get("LaunchTemplateName") != group_name(inventory.name, role):
        yield f"it launches {template.get('LaunchTemplateName') or group.get('LaunchConfigurationName') or 'nothing'}"
    elif template.get("LaunchTemplateId") not in inventory.of("EC2::LaunchTemplate"):
        yield f"it launches {template.get('LaunchTemplateId')}, which is not the cluster's"
    if group.get("MixedInstancesPolicy"):
        yield "it has a mixed instances policy, which can name other templates"
    own = inventory.of("EC2::Subnet")
    foreign = [name for name in str(group.get("VPCZoneIdentifier", "")).split(",") if name not in own]
    if foreign:
        yield f"it launches into {', '.join(foreign) or 'no subnet'}"
    most = {Role.SCHEDULER: 1, Role.SERVER: inventory.cluster.max_servers, Role.WORKER: inventory.cluster.max_workers}
    if isinstance(role, Role) and group["MaxSize"] > most[role]:
        yield f"it may have {group['MaxSize']} instances, and jobs at most {most[role]}"
    if group["MinSize"] > 0:
        yield f"it keeps at least {group['MinSize']} instances without a job"


def look_for_strays(inventory: Inventory) -> Outcome:
    """Look for instances that have a part of the cluster's and are members of none of its groups."""
    instances, members = inventory.instances, inventory.members
    if strays := list(_strays(inventory, instances, members)):
        # A group may have launched or ended one between the two answers.
        instances, members = inventory.read_instances(fresh=True), inventory.read_members(fresh=True)
        again = list(_strays(inventory, instances, members))
        strays = [text for text in again if text in strays]
    return Outcome(f"{len(members)} nodes, {len(instances)} instances in the region", tuple(strays))


def _strays(inventory: Inventory, instances: tuple[dict[str, Any], ...], members: dict[str, NodeRole]) -> Iterator[str]:
    own = {group["GroupId"]: owner for owner, group in inventory.security_groups.items()}
    profiles = {arn: role for role, arns in inventory.profiles.items() for arn in arns}
    for item in instances:
        if item["InstanceId"] in members:
            continue
        groups = [group["GroupId"] for group in item.get("SecurityGroups", ())]
        marks = [f"the security group of {own[name]}" for name in groups if name in own]
        arn = item.get("IamInstanceProfile", {}).get("Arn")
        marks += [f"the instance profile of {profiles[arn]}"] if arn in profiles else []
        marks += ["an address in its VPC"] if item.get("VpcId") == inventory.vpc else []
        marks += [
            "its tag" for tag in item.get("Tags", ()) if (tag["Key"], tag["Value"]) == (CLUSTER_TAG, inventory.name)
        ]
        if marks:
            yield f"{item['InstanceId']} is in none of the cluster's groups and has {', '.join(marks)}"


def look_at_rest(inventory: Inventory) -> Outcome:
    """Look whether the groups of a job are at zero while no job runs."""

    def running(*, fresh: bool) -> int:
        return len(
            inventory.reader.every(
                "states:ListExecutions",
                fresh=fresh,
                stateMachineArn=inventory.cluster.state_machine,
                statusFilter="RUNNING",
            )
        )

    if jobs := running(fresh=False):
        return Outcome(f"{jobs} execution of the state machine runs: groups may have instances")
    raised = _raised(inventory, inventory.scaling_groups)
    if raised and running(fresh=True):
        return Outcome("a job has just started")
    return Outcome("no job runs", tuple(raised))


def _raised(inventory: Inventory, groups: dict[NodeRole, dict[str, Any]]) -> list[str]:
    return [
        f"group {group_name(inventory.name, role)} has {group['DesiredCapacity']} instances and no job asked for them"
        for role, group in groups.items()
        if isinstance(role, Role) and (group["DesiredCapacity"] > 0 or group.get("Instances"))
    ]


def look_at_members(inventory: Inventory) -> Outcome:
    """Look whether the nodes that run are as their template launched them."""
    members = inventory.members
    nodes = [item for item in inventory.instances if item["InstanceId"] in members]
    problems = []
    for item in nodes:
        name, role = item["InstanceId"], members[item["InstanceId"]]
        if not item.get("MetadataOptions"):
            raise Unreadable(f"EC2 does not say the metadata options of instance {name}")
        problems += [f"{name} ({role}): {fault}" for fault in metadata_faults(item["MetadataOptions"])]
        groups = {group["GroupId"] for group in item.get("SecurityGroups", ())}
        if groups != {inventory.group_id(role)}:
            problems.append(f"{name} ({role}) carries the security groups {', '.join(sorted(groups)) or '(none)'}")
        if item.get("IamInstanceProfile", {}).get("Arn") not in inventory.profiles[role]:
            problems.append(f"{name} ({role}) has another instance profile than its role's")
        if item.get("KeyName"):
            problems.append(f"{name} ({role}) has the key pair {item['KeyName']}")
    return Outcome(f"{len(nodes)} nodes run", tuple(problems))


CHECKS = (
    Check(
        name="groups",
        row="T1",
        claim="the groups whose members may enrol launch their role's template, into the cluster's subnets, up to "
        "their limit",
        remedy="put the group back as the training stack has it: its template, subnets and sizes",
        look=look_at_groups,
    ),
    Check(
        name="no-stray-node",
        row="T1",
        claim="every instance with the cluster's security groups, profiles, network or tag is a member of its groups",
        remedy="terminate the instance, `holdfast revoke` its id, and see in CloudTrail who ran it",
        look=look_for_strays,
    ),
    Check(
        name="at-rest",
        row="T1",
        claim="no node runs that no job has asked for",
        remedy="set the group's desired capacity to 0, and see in CloudTrail who raised it",
        look=look_at_rest,
    ),
    Check(
        name="running-nodes",
        row="B3",
        claim="the nodes that run still have the metadata options, security group and profile of their template",
        remedy="terminate the instance: its job goes on without it or fails, and the next one is launched right",
        look=look_at_members,
    ),
)
