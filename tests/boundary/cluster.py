"""A deployed local cluster as its network sees it: security-group rules that can be taken away, jobs, scans."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from tests.e2e.support import client_of, run_holdfast

from holdfast_local import session
from holdfast_local.hosts import exec_in_host
from holdfast_local.hosts.endpoints import Network, Networks
from holdfast_node.contract.roles import Role

#: The least training there is: one value goes to a server and comes back from it.
TRAIN = """
import os
import mxnet as mx
kv = mx.kv.create("dist_sync")
kv.init("value", mx.nd.zeros((2,)))
kv.push("value", mx.nd.ones((2,)))
out = mx.nd.zeros((2,))
kv.pull("value", out=out)
assert out.asnumpy().tolist() == [kv.num_workers] * 2, out
if kv.rank == 0:
    os.makedirs("model", exist_ok=True)
    mx.nd.save("model/value.params", {"value": out})
"""
#: Training that does not end by itself.
STAY = TRAIN + "import time\ntime.sleep(900)\n"
_LOOK_UP = """
import json, socket, sys
def found(name):
    try:
        return sorted({item[4][0] for item in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)})
    except socket.gaierror:
        return []
print(json.dumps([found(name) for name in sys.argv[1:]]))
"""
NODE_PYTHON = "/opt/holdfast/venv/bin/python"
_SCAN = Path(__file__).parent / "in_host/scan.py"
#: It stands in every group for the rule that AWS adds to a group without rules, and matches no packet on a network.
_PLACEHOLDER = {
    "CidrIp": "127.0.0.1/32",
    "Description": "Nothing: stands in for the default rule, which allows everything",
}
_POLL_SECONDS = 0.3
_SETTLE_SECONDS = 60.0
OUTSIDER = "outsider"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of a deployed security group."""

    rule_id: str
    group_id: str
    egress: bool
    name: str
    permission: Mapping[str, Any] = field(hash=False)

    @property
    def way(self) -> str:
        """The end that the rule stands at."""
        return "out" if self.egress else "in"

    def __str__(self) -> str:
        return f"{self.name} ({self.way})"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a try to train ended: whether it completed, after how long, and what was seen last."""

    completed: bool
    seconds: float
    seen: str


class BoundaryError(Exception):
    """A step of the trial could not be done at all."""


class Cluster:
    """The local cluster that runs in a state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state
        client = partial(client_of, session.environment(state))
        self.ec2, self.efs, self.resolver = map(client, ("ec2", "efs", "route53resolver"))
        self.states, self.scaling = map(client, ("stepfunctions", "autoscaling"))
        groups = self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=["local-worker"])["AutoScalingGroups"]
        self._subnets = groups[0]["VPCZoneIdentifier"].split(",")
        self.vpc = self.ec2.describe_subnets(SubnetIds=self._subnets[:1])["Subnets"][0]["VpcId"]

    def rules(self) -> list[Rule]:
        """Return every rule of the VPC's security groups that can let a packet through, by name and way."""
        filters = [{"Name": "vpc-id", "Values": [self.vpc]}]
        groups = self.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
        found = []
        for group in groups:
            if group["GroupName"] == "default":
                continue  # AWS's own; nothing carries it
            rules = self.ec2.describe_security_group_rules(
                Filters=[{"Name": "group-id", "Values": [group["GroupId"]]}]
            )["SecurityGroupRules"]
            # Both list the rules in one order; the first gives a rule's id, the second what it is for.
            for egress, kind in ((False, "IpPermissions"), (True, "IpPermissionsEgress")):
                named = [rule for rule in rules if rule["IsEgress"] is egress]
                found += [
                    Rule(
                        rule_id=rule["SecurityGroupRuleId"],
                        group_id=group["GroupId"],
                        egress=egress,
                        name=rule.get("Description") or rule["SecurityGroupRuleId"],
                        permission={name: value for name, value in permission.items() if value},
                    )
                    for rule, permission in zip(named, group[kind], strict=True)
                    if permission.get("IpRanges") != [_PLACEHOLDER]
                ]
        return sorted(found, key=str)

    @contextlib.contextmanager
    def without(self, rule: Rule) -> Iterator[None]:
        """Take a rule away, and put it back."""
        way = "egress" if rule.egress else "ingress"
        revoke, authorize = (getattr(self.ec2, f"{verb}_security_group_{way}") for verb in ("revoke", "authorize"))
        revoke(GroupId=rule.group_id, SecurityGroupRuleIds=[rule.rule_id])
        try:
            yield
        finally:
            authorize(GroupId=rule.group_id, IpPermissions=[rule.permission])

    def network(self) -> Network:
        """Return the VPC with its endpoints."""
        clients = {"ec2": self.ec2, "efs": self.efs, "resolver": self.resolver}
        return Networks(**clients, region=self.ec2.meta.region_name).read([self.vpc])[0]

    def hosts(self) -> list[dict[str, Any]]:
        """Return the hosts that run now, as the hypervisor describes them."""
        return list(session.hosts(self.state)["hosts"])

    def train(self, seconds: float) -> Ended:
        """Train with one server and one worker; give up after `seconds`, or when a host says that it cannot boot."""
        with self.job(TRAIN) as execution:
            began, seen = time.monotonic(), ""
            while time.monotonic() < began + seconds:
                told = self.states.describe_execution(executionArn=execution)
                if told["status"] != "RUNNING":
                    completed, seen = told["status"] == "SUCCEEDED", told.get("cause") or told["status"]
                    return Ended(completed=completed, seconds=time.monotonic() - began, seen=seen)
                failed = [host for host in self.hosts() if host["phase"] == "failed"]
                if failed:
                    seen = f"{failed[0]['role']} does not boot: {failed[0]['cause']}"
                    break
                time.sleep(_POLL_SECONDS)
            seen = seen or "; ".join(sorted({f"{host['role']} {_progress(host)}" for host in self.hosts()}))
            return Ended(completed=False, seconds=time.monotonic() - began, seen=seen)

    @contextlib.contextmanager
    def job(self, script: str, *, workers: int = 1, servers: int = 1) -> Iterator[str]:
        """Start a job; at the end stop it and wait until its hosts are gone. Yields its execution's ARN."""
        with tempfile.TemporaryDirectory(prefix="holdfast-boundary-") as directory:
            (Path(directory) / "train.py").write_text(script)
            options = ["--entry", "train.py", "--workers", str(workers), "--servers", str(servers)]
            submitted = run_holdfast(self.state, "--local", "--output", "json", "submit", directory, *options)
        if submitted.status:
            raise BoundaryError(submitted.errors)
        execution = self._execution(submitted.json["job_id"])
        try:
            yield execution
        finally:
            with contextlib.suppress(self.states.exceptions.ClientError):
                self.states.stop_execution(executionArn=execution)
            self._await(lambda: not self.hosts() and not any(self._capacities()), "the job's hosts are gone")

    def await_training(self, count: int) -> None:
        """Wait until `count` hosts run their trainers."""

        def training() -> bool:
            running = [host for host in self.hosts() if host["services"].get("trainer") == "running"]
            return len(running) == count

        self._await(training, f"{count} hosts train")

    @contextlib.contextmanager
    def outsider(self) -> Iterator[dict[str, Any]]:
        """A host in the cluster's network that is in none of its groups: in one that lets everything out."""
        group = self.ec2.create_security_group(GroupName=OUTSIDER, Description="outside", VpcId=self.vpc)["GroupId"]
        tags = [{"Key": "aws:autoscaling:groupName", "Value": f"{OUTSIDER}-worker"}]
        template = self.ec2.describe_launch_templates()["LaunchTemplates"][0]["LaunchTemplateId"]
        data = self.ec2.describe_launch_template_versions(LaunchTemplateId=template)["LaunchTemplateVersions"][0]
        instance = self.ec2.run_instances(
            ImageId=data["LaunchTemplateData"]["ImageId"],
            InstanceType="m7i.large",
            MinCount=1,
            MaxCount=1,
            SubnetId=self._subnets[0],
            PrivateIpAddress=self._last_address(),
            SecurityGroupIds=[group],
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )["Instances"][0]["InstanceId"]

        def there() -> dict[str, Any]:
            # It has no user data, so it has booted as far as it ever will.
            named = [host for host in self.hosts() if host["instance_id"] == instance and host["phase"] == "failed"]
            return named[0] if named else {}

        try:
            yield self._await(there, "the outsider is there")
        finally:
            self.ec2.terminate_instances(InstanceIds=[instance])
            self._await(lambda: instance not in [h["instance_id"] for h in self.hosts()], "the outsider is gone")
            self.ec2.delete_security_group(GroupId=group)

    def look_up(self, host: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
        """Return the addresses that a host finds for each of these names; none where there is no such name."""
        argv = [NODE_PYTHON, "-c", _LOOK_UP, *names]
        done = exec_in_host(self.state, host["instance_id"], argv)
        if done.returncode:
            raise BoundaryError(done.stderr)
        return list(json.loads(done.stdout))

    def scan(
        self, host: Mapping[str, Any], addresses: Sequence[str], *, tcp: str, udp: str
    ) -> dict[str, dict[str, dict[str, str]]]:
        """Return by address and protocol what answers a host's scan of these ports."""
        argv = [NODE_PYTHON, "-c", _SCAN.read_text(), host["address"], tcp, udp, *addresses]
        done = exec_in_host(self.state, host["instance_id"], argv, timeout=560)
        if done.returncode:
            raise BoundaryError(done.stderr)
        answers: dict[str, dict[str, dict[str, str]]] = json.loads(done.stdout)
        return answers

    def _execution(self, job_id: str) -> str:
        machines = self.states.list_state_machines()["stateMachines"]
        for machine in machines:
            for item in self.states.list_executions(stateMachineArn=machine["stateMachineArn"])["executions"]:
                if item["name"] == job_id:
                    return str(item["executionArn"])
        raise BoundaryError(f"job {job_id} has no execution")

    def _capacities(self) -> list[int]:
        names = [f"local-{role}" for role in Role]
        groups = self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=names)["AutoScalingGroups"]
        return [group["DesiredCapacity"] for group in groups]

    def _last_address(self) -> str:
        cidr = self.ec2.describe_subnets(SubnetIds=self._subnets[:1])["Subnets"][0]["CidrBlock"]
        return str(IPv4Network(cidr)[-2])

    def _await(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(_POLL_SECONDS)
        raise BoundaryError(f"not within {_SETTLE_SECONDS:.0f} s: {what}; hosts: {self.hosts()}")


def _progress(host: Mapping[str, Any]) -> str:
    services = [name for name, state in host["services"].items() if state == "running"]
    return f"runs {', '.join(services)}" if services else str(host["phase"])
