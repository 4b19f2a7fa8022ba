"""Hosts follow an Auto Scaling group's desired capacity, as instances do."""

import base64

from tests.local.hosts.lab import CLUSTER, Lab, Machine, until

from holdfast_node.contract.roles import Role


def test_raising_a_group_gives_hosts_and_lowering_it_ends_them(lab: Lab, root_machine: Machine) -> None:
    ec2, scaling = lab.ec2, lab.client("autoscaling")
    name = f"{CLUSTER}-{Role.SERVER}"
    template = ec2.create_launch_template(
        LaunchTemplateName=name,
        LaunchTemplateData={
            "ImageId": "ami-12345678",
            "InstanceType": "m7i.large",
            "SecurityGroupIds": [lab.groups[Role.SERVER]],
            "IamInstanceProfile": {"Name": "lab-node"},
            "UserData": base64.b64encode(lab.user_data(Role.SERVER).encode()).decode(),
        },
    )["LaunchTemplate"]
    scaling.create_auto_scaling_group(
        AutoScalingGroupName=name,
        LaunchTemplate={"LaunchTemplateId": template["LaunchTemplateId"], "Version": "$Latest"},
        MinSize=0,
        MaxSize=2,
        DesiredCapacity=0,
        VPCZoneIdentifier=lab.subnet,
    )
    try:
        scaling.update_auto_scaling_group(AutoScalingGroupName=name, DesiredCapacity=2)
        hosts = until(lambda: _all_running(root_machine, name, 2), "two hosts run")
        assert {host["role"] for host in hosts} == {"server"}
        assert all(host["address"].startswith("10.42.1.") for host in hosts)
    finally:
        scaling.update_auto_scaling_group(AutoScalingGroupName=name, DesiredCapacity=0)
    until(lambda: not _of(root_machine, name), "no host is left")


def _of(machine: Machine, group: str) -> list[dict[str, str]]:
    return [host for host in machine.state()["hosts"] if host["group"] == group]


def _all_running(machine: Machine, group: str, count: int) -> list[dict[str, str]]:
    hosts = _of(machine, group)
    assert not [host for host in hosts if host["phase"] in ("failed", "dead")], hosts
    return hosts if [host["phase"] for host in hosts] == ["running"] * count else []


def test_instances_of_no_cluster_are_no_hosts(lab: Lab, root_machine: Machine) -> None:
    foreign = [lab.launch(Role.WORKER, "", group=name) for name in ("web", "other-worker", "demo-gateway")]
    mine = lab.launch(Role.WORKER)
    root_machine.await_phase(mine)
    assert not {host["instance_id"] for host in root_machine.state()["hosts"]} & set(foreign)
