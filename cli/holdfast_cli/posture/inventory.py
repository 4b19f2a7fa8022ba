"""Which resources are the cluster's: ids from CloudFormation, and how nodes are configured.

Only names and ids are taken from the stacks. What those resources are now, the checks ask the services themselves.
"""

import base64
from functools import cached_property
from typing import TYPE_CHECKING, Any

from holdfast_cli.aws import STACK_PREFIX
from holdfast_cli.posture.reading import Reader, Unreadable
from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.roles import NODE_ROLES, NodeRole, Role, Serving, group_name

if TYPE_CHECKING:
    from holdfast_cli.aws import Cluster

STACKS = ("Foundation", "Network", "Training")
#: What the descriptions of the two security groups say that are no role's; EC2 lets nobody change a description.
ENDPOINTS, CHECKPOINTS = "interface endpoints", "checkpoint mount targets"
_CONFIG_BEGINS, _CONFIG_ENDS = "<<'HOLDFAST_NODE_JSON'\n", "\nHOLDFAST_NODE_JSON\n"


class Inventory:
    """A deployed cluster's resources. Everything is read on first use, and raises `Unreadable` where it cannot be."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.reader = Reader(cluster)
        self.name = cluster.name
        # arn:partition:states:region:account:stateMachine:name
        _, self.partition, _, self.region, self.account, *_ = cluster.state_machine.split(":")

    @cached_property
    def resources(self) -> dict[str, tuple[str, ...]]:
        """Physical ids by resource type, of all three stacks."""
        found: dict[str, list[str]] = {}
        for stack in STACKS:
            name = f"{STACK_PREFIX}{self.name}-{stack}"
            for item in self.reader.every("cloudformation:ListStackResources", StackName=name):
                if "DELETE" not in item["ResourceStatus"] and item.get("PhysicalResourceId"):
                    found.setdefault(item["ResourceType"], []).append(item["PhysicalResourceId"])
        return {kind: tuple(ids) for kind, ids in found.items()}

    def of(self, kind: str) -> tuple[str, ...]:
        """Return the ids of the stacks' resources of a type such as `EC2::VPC`.

        Raises:
            Unreadable: there is none; every type that is asked for is part of every cluster.
        """
        ids = self.resources.get(f"AWS::{kind}", ())
        if not ids:
            raise Unreadable(f"the stacks of cluster {self.name} hold no AWS::{kind}")
        return ids

    def output(self, stack: str, key: str) -> str:
        """Return a stack's output, or nothing if it has none of that name."""
        (found,) = self.reader.every("cloudformation:DescribeStacks", StackName=f"{STACK_PREFIX}{self.name}-{stack}")
        outputs = {item["OutputKey"]: item["OutputValue"] for item in found.get("Outputs", ())}
        return str(outputs.get(key, ""))

    @cached_property
    def vpc(self) -> str:
        """The id of the VPC."""
        return self.of("EC2::VPC")[0]

    @property
    def in_vpc(self) -> list[dict[str, Any]]:
        """The filter of EC2's calls for what is in the VPC."""
        return [{"Name": "vpc-id", "Values": [self.vpc]}]

    @cached_property
    def data_key(self) -> str:
        """The ARN of the key that encrypts data."""
        key = self.output("Training", "DataKey")
        if not key:
            raise Unreadable(f"stack {STACK_PREFIX}{self.name}-Training has no output DataKey; deploy it again")
        return key

    @cached_property
    def roles(self) -> tuple[NodeRole, ...]:
        """The roles that nodes have here: a predictor is optional."""
        deployed = self.of("AutoScaling::AutoScalingGroup")
        return tuple(role for role in NODE_ROLES if role in set(Role) or group_name(self.name, role) in deployed)

    @cached_property
    def security_groups(self) -> dict[str, dict[str, Any]]:
        """The stacks' security groups as EC2 describes them, by role, `ENDPOINTS` or `CHECKPOINTS`."""
        own, prefix = self.of("EC2::SecurityGroup"), f"Holdfast {self.name}: "
        found = self.reader.every("ec2:DescribeSecurityGroups", Filters=self.in_vpc)
        groups = {item["Description"].removeprefix(prefix): item for item in found if item["GroupId"] in own}
        if missing := {*map(str, self.roles), ENDPOINTS, CHECKPOINTS} - set(groups):
            raise Unreadable(f"the cluster's security groups lack those of {', '.join(sorted(missing))}")
        return groups

    def group_id(self, owner: str) -> str:
        """Return the id of the security group of a role, `ENDPOINTS` or `CHECKPOINTS`."""
        return str(self.security_groups[owner]["GroupId"])

    def role_name(self, role: NodeRole) -> str:
        """Return the name of a node role's IAM role."""
        return f"{self.name}-{self.region}-{role}"

    @cached_property
    def profiles(self) -> dict[NodeRole, tuple[str, ...]]:
        """The ARNs of the instance profiles that hold each node role."""
        return {
            role: tuple(
                str(profile["Arn"])
                for profile in self.reader.every("iam:ListInstanceProfilesForRole", RoleName=self.role_name(role))
            )
            for role in self.roles
        }

    @cached_property
    def scaling_groups(self) -> dict[NodeRole, dict[str, Any]]:
        """The Auto Scaling groups by role; one that is gone is missing."""
        return self.read_scaling_groups(fresh=False)

    def read_scaling_groups(self, *, fresh: bool) -> dict[NodeRole, dict[str, Any]]:
        """Return `scaling_groups` as they are now."""
        names = {group_name(self.name, role): role for role in self.roles}
        found = self.reader.every(
            "autoscaling:DescribeAutoScalingGroups", fresh=fresh, AutoScalingGroupNames=sorted(names)
        )
        return {names[group["AutoScalingGroupName"]]: group for group in found}

    @cached_property
    def members(self) -> dict[str, NodeRole]:
        """The instances that belong to the cluster's groups."""
        return self.read_members(fresh=False)

    def read_members(self, *, fresh: bool) -> dict[str, NodeRole]:
        """Return `members` as they are now."""
        return {
            str(member["InstanceId"]): role
            for role, group in self.read_scaling_groups(fresh=fresh).items()
            for member in group.get("Instances", ())
        }

    @cached_property
    def instances(self) -> tuple[dict[str, Any], ...]:
        """Every instance of the account and region that is not terminated."""
        return self.read_instances(fresh=False)

    def read_instances(self, *, fresh: bool) -> tuple[dict[str, Any], ...]:
        """Return `instances` as they are now."""
        found = self.reader.every("ec2:DescribeInstances", fresh=fresh)
        every = (item for reservation in found for item in reservation.get("Instances", ()))
        return tuple(item for item in every if item["State"]["Name"] not in ("terminated", "shutting-down"))

    def template_versions(self, role: NodeRole) -> list[dict[str, Any]]:
        """Return the versions of a role's launch template that can be launched: the latest, the default, the group's.

        Raises:
            Unreadable: the template, the group or one of the versions is gone.
        """
        versions = ["$Latest", "$Default"]
        chosen = str(self.scaling_groups.get(role, {}).get("LaunchTemplate", {}).get("Version", ""))
        if chosen.isdigit():
            versions.append(chosen)
        found = self.reader.every(
            "ec2:DescribeLaunchTemplateVersions", LaunchTemplateName=group_name(self.name, role), Versions=versions
        )
        if not found:
            raise Unreadable(f"launch template {group_name(self.name, role)} has no version")
        return list({item["VersionNumber"]: item for item in found}.values())

    def config(self, role: NodeRole, version: dict[str, Any] | None = None) -> NodeConfig:
        """Return the configuration that a launch template's version gives to nodes; default: the first.

        Raises:
            Unreadable: its user data holds none.
        """
        chosen = version or self.template_versions(role)[0]
        try:
            script = base64.b64decode(chosen["LaunchTemplateData"].get("UserData", ""), validate=True).decode()
            text = script.split(_CONFIG_BEGINS, 1)[1].split(_CONFIG_ENDS, 1)[0]
            return NodeConfig.parse(text)
        except (ValueError, IndexError, DocumentError):
            name = f"{group_name(self.name, role)} version {chosen['VersionNumber']}"
            raise Unreadable(f"the user data of launch template {name} holds no node configuration") from None

    @property
    def serves(self) -> bool:
        """Whether there are predictors."""
        return Serving.PREDICTOR in self.roles
