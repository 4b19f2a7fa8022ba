"""Auto Scaling groups launch instances that EC2 knows: from the launch template, with addresses of their subnets.

ministack only counts: its group members exist nowhere else. Which processes or hosts an instance then is, is not
decided here; `holdfast_local.hosts` reads these instances through the EC2 API, as anyone would.
"""

from collections.abc import Callable
from typing import Any

from holdfast_local.emulator.extension.addresses import free_address
from holdfast_local.emulator.extension.seams import seam

GROUP_TAG = "aws:autoscaling:groupName"
Group = dict[str, Any]
Request = dict[str, Any]
Handler = Callable[[Request], Any]


def install() -> None:
    """Replace the group's bookkeeping by launches and terminations, and hold its bounds."""
    ec2 = seam(
        "ministack.services.ec2",
        "_ACTION_MAP",
        "_esc",
        "_instances",
        "_launch_instances_internal",
        "_launch_templates",
        "_p",
        "_parse_member_list",
        "_resolve_iam_instance_profile",
        "_security_groups",
        "_subnets",
        "_tags",
        "_terminate_instances",
        "_xml",
    )
    scaling = seam(
        "ministack.services.autoscaling",
        "_ACTION_MAP",
        "_asgs",
        "_error",
        "_p",
        "_parse_member_list",
        "_reconcile_instances",
        "_xml",
    )
    templates = seam("ministack.services.cloudformation.provisioners", "_RESOURCE_HANDLERS")
    fleet = _Fleet(ec2, scaling)
    scaling._reconcile_instances = fleet.reconcile
    _install_requests(scaling, fleet)
    _install_stack_handlers(templates._RESOURCE_HANDLERS["AWS::AutoScaling::AutoScalingGroup"], scaling, fleet)
    _install_ec2_requests(ec2, scaling, fleet)
    _install_resource_arns(scaling)


class _Fleet:
    """Keeps the members of a group and EC2's instances the same."""

    def __init__(self, ec2: Any, scaling: Any) -> None:
        self._ec2, self._scaling = ec2, scaling

    def reconcile(self, group: Group) -> None:
        """Launch or terminate until the group has its desired number of members."""
        members = group["Instances"]
        surplus = [members.pop()["InstanceId"] for _ in range(len(members) - int(group["DesiredCapacity"]))]
        self.terminate(surplus)
        while len(members) < int(group["DesiredCapacity"]):
            members.append(self._launch(group))

    def empty(self, group: Group) -> None:
        """Terminate every member."""
        group["DesiredCapacity"] = 0
        self.reconcile(group)

    def terminate(self, instance_ids: list[str]) -> None:
        """Terminate these instances as EC2 does for anyone."""
        known = [instance_id for instance_id in instance_ids if instance_id in self._ec2._instances]
        if known:
            self._ec2._terminate_instances({f"InstanceId.{n}": name for n, name in enumerate(known, start=1)})

    def replace(self, instance_ids: list[str]) -> None:
        """Have the groups of terminated instances launch others: they hold their desired number."""
        for group in list(self._scaling._asgs.values()):
            kept = [member for member in group["Instances"] if member["InstanceId"] not in instance_ids]
            if len(kept) != len(group["Instances"]):
                group["Instances"][:] = kept
                self.reconcile(group)

    def _launch(self, group: Group) -> dict[str, Any]:
        ec2, template = self._ec2, self._template(group)
        subnets = [name for name in str(group.get("VPCZoneIdentifier", "")).split(",") if name in ec2._subnets]
        if not subnets:
            raise ValueError(f"Auto Scaling group {group['AutoScalingGroupName']} names no existing subnet")
        subnet = ec2._subnets[subnets[len(group["Instances"]) % len(subnets)]]
        zone = subnet["AvailabilityZone"]
        (interface,) = template.get("NetworkInterfaces", [])[:1] or [{}]
        (instance,) = ec2._launch_instances_internal(
            template["ImageId"],
            template["InstanceType"],
            subnet["SubnetId"],
            1,
            user_data=template.get("UserData", ""),
            sg_ids=template.get("SecurityGroupIds") or interface.get("Groups") or [],
            requested_private_ip=free_address(subnet),
            iam_profile=self._profile(template.get("IamInstanceProfile") or {}),
        )
        instance["Placement"]["AvailabilityZone"] = zone
        instance["MetadataOptions"] = dict(template.get("MetadataOptions") or {})
        # ministack gives every instance a public address. Only a subnet or an interface that asks for one has it.
        instance["PublicIpAddress"] = instance["PublicDnsName"] = ""
        ec2._tags[instance["InstanceId"]] = _tags(template, group)
        return {
            "InstanceId": instance["InstanceId"],
            "LifecycleState": "InService",
            "HealthStatus": "Healthy",
            "AvailabilityZone": zone,
            "ProtectedFromScaleIn": group["NewInstancesProtectedFromScaleIn"],
            "LaunchTemplate": group.get("LaunchTemplate") or {},
            "LaunchConfigurationName": "",
        }

    def _template(self, group: Group) -> dict[str, Any]:
        name = group["AutoScalingGroupName"]
        named = group.get("LaunchTemplate") or {}
        record = self._ec2._launch_templates.get(named.get("LaunchTemplateId", ""))
        if record is None:
            raise ValueError(f"Auto Scaling group {name} names no existing launch template")
        version = str(named.get("Version") or "$Default")
        numbers = {"$Latest": record["LatestVersionNumber"], "$Default": record["DefaultVersionNumber"]}
        number = int(numbers.get(version, version))
        for candidate in record["Versions"]:
            if int(candidate["VersionNumber"]) == number:
                data: dict[str, Any] = candidate["LaunchTemplateData"]
                return data
        raise ValueError(f"launch template of Auto Scaling group {name} has no version {version}")

    def _profile(self, named: dict[str, Any]) -> dict[str, Any] | None:
        if not named:
            return None
        profile, error = self._ec2._resolve_iam_instance_profile(
            iam_arn=named.get("Arn", ""), iam_name=named.get("Name", "")
        )
        if error or profile is None:
            raise ValueError(f"instance profile {named} does not exist")
        found: dict[str, Any] = profile
        return found


def _tags(template: dict[str, Any], group: Group) -> list[dict[str, str]]:
    """Return an instance's tags: the template's, the group's that propagate, and the one that AWS adds."""
    tags: dict[str, str] = {}
    for specification in template.get("TagSpecifications") or []:
        if specification.get("ResourceType") == "instance":
            tags |= {tag["Key"]: tag["Value"] for tag in specification.get("Tags", [])}
    tags |= {tag["Key"]: tag["Value"] for tag in group.get("Tags", []) if tag.get("PropagateAtLaunch")}
    tags[GROUP_TAG] = group["AutoScalingGroupName"]
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _install_requests(scaling: Any, fleet: _Fleet) -> None:
    """Refuse capacities outside the group's bounds, and end the instances of deleted groups."""
    actions: dict[str, Handler] = scaling._ACTION_MAP
    set_desired, update, delete = (
        actions[name] for name in ("SetDesiredCapacity", "UpdateAutoScalingGroup", "DeleteAutoScalingGroup")
    )

    def find(request: Request) -> Group | None:
        found: Group | None = scaling._asgs.get(scaling._p(request, "AutoScalingGroupName"))
        return found

    def set_desired_capacity(request: Request) -> Any:
        group, wanted = find(request), scaling._p(request, "DesiredCapacity")
        if group and wanted:
            for word, side, bound in (("above", "max", int(group["MaxSize"])), ("below", "min", int(group["MinSize"]))):
                if (int(wanted) > bound) if word == "above" else (int(wanted) < bound):
                    return scaling._error(
                        "ValidationError",
                        f"New SetDesiredCapacity value {wanted} is {word} {side} value {bound} for the "
                        "AutoScalingGroup.",
                    )
        return set_desired(request)

    def update_group(request: Request) -> Any:
        group = find(request)
        if group:
            given = {name: scaling._p(request, name) for name in ("MinSize", "MaxSize", "DesiredCapacity")}
            low, high, wanted = (int(given[name] or group[name]) for name in given)
            if low > high:
                return scaling._error("ValidationError", f"Max bound, {high}, must be greater than min bound, {low}")
            if given["DesiredCapacity"] and not low <= wanted <= high:
                return scaling._error(
                    "ValidationError",
                    f"Desired capacity:{wanted} must be between the specified min size:{low} and max size:{high}",
                )
            # New bounds alone move the desired capacity inside them.
            request = request | {"DesiredCapacity": str(min(max(wanted, low), high))}
        return update(request)

    def delete_group(request: Request) -> Any:
        group = find(request)
        if group and group["Instances"] and scaling._p(request, "ForceDelete") != "true":
            return scaling._error(
                "ResourceInUse", "You cannot delete an AutoScalingGroup while there are instances still in the group."
            )
        if group:
            fleet.empty(group)
        return delete(request)

    def suspend_processes(request: Request) -> Any:
        # Recorded only: nothing here rebalances between zones or judges an instance's health.
        group = find(request)
        if group is None:
            return scaling._error("ValidationError", "AutoScalingGroup name not found - null")
        names = scaling._parse_member_list(request, "ScalingProcesses")
        group["SuspendedProcesses"] = sorted({*group.get("SuspendedProcesses", []), *names})
        return scaling._xml(200, "SuspendProcessesResponse", "")

    actions["SuspendProcesses"] = suspend_processes
    actions["SetDesiredCapacity"] = set_desired_capacity
    actions["UpdateAutoScalingGroup"] = update_group
    actions["DeleteAutoScalingGroup"] = delete_group


def _install_stack_handlers(handlers: dict[str, Any], scaling: Any, fleet: _Fleet) -> None:
    """Reconcile a stack's groups after they were made or changed, and empty them before they go."""
    create, update, delete = handlers["create"], handlers["update"], handlers["delete"]

    def reconciled(result: Any) -> Any:
        fleet.reconcile(scaling._asgs[result[0]])
        return result

    def delete_group(physical_id: str, properties: dict[str, Any]) -> Any:
        if physical_id in scaling._asgs:
            fleet.empty(scaling._asgs[physical_id])
        return delete(physical_id, properties)

    handlers["create"] = lambda *given, **named: reconciled(create(*given, **named))
    handlers["update"] = lambda *given, **named: reconciled(update(*given, **named))
    handlers["delete"] = delete_group


def _install_ec2_requests(ec2: Any, scaling: Any, fleet: _Fleet) -> None:
    """Answer for an instance's user data, and have groups replace what someone terminates."""
    actions: dict[str, Handler] = ec2._ACTION_MAP
    describe, terminate = actions["DescribeInstanceAttribute"], actions["TerminateInstances"]

    def describe_attribute(request: Request) -> Any:
        instance = ec2._instances.get(ec2._p(request, "InstanceId"))
        if instance is None or ec2._p(request, "Attribute") != "userData":
            return describe(request)
        value = f"<value>{ec2._esc(instance['UserData'])}</value>" if instance.get("UserData") else ""
        inner = f"<instanceId>{instance['InstanceId']}</instanceId><userData>{value}</userData>"
        return ec2._xml(200, "DescribeInstanceAttributeResponse", inner)

    def terminate_instances(request: Request) -> Any:
        answer = terminate(request)
        if answer[0] == 200:
            fleet.replace(ec2._parse_member_list(request, "InstanceId"))
        return answer

    actions["DescribeInstanceAttribute"] = describe_attribute
    actions["TerminateInstances"] = terminate_instances


def _install_resource_arns(scaling: Any) -> None:
    """Evaluate policies against a group's whole ARN; ministack leaves a star in the place of its unique part."""
    actions = seam("ministack.core.iam_actions", "extract_resource_arn")
    stock = actions.extract_resource_arn

    def extract_resource_arn(service: str, *request: Any, **named: Any) -> str:
        arn: str = stock(service, *request, **named)
        if service == "autoscaling" and ":autoScalingGroupName/" in arn:
            group = scaling._asgs.get(arn.rpartition("/")[2])
            return group["AutoScalingGroupARN"] if group else arn
        return arn

    actions.extract_resource_arn = extract_resource_arn
