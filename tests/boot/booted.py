"""A cluster of this machine whose instances boot, for tests: what the launch templates say is what runs."""

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.support import Outcome, client_of, run_holdfast
from tests.local.hosts import lab

from holdfast_local import session
from holdfast_local.hosts import exec_in_host
from holdfast_node.contract.layout import JobsBucket, User
from holdfast_node.contract.roles import NodeRole

CLUSTER = "local"
#: Two cores that boot five machines, with other tests beside them.
SECONDS = 240.0


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Return the first true value of a condition; fail, naming it, if there is none in time."""
    return lab.until(condition, what, seconds)


@dataclass(frozen=True)
class Booted:
    """A deployed local cluster with `--hosts boot`, below the state directory `state`."""

    state: Path

    def holdfast(self, *arguments: str) -> Outcome:
        """Run `holdfast --local …` to its end."""
        return run_holdfast(self.state, "--local", *arguments)

    def client(self, service: str) -> Any:
        """Return a client of the embedded AWS, as its root user."""
        return client_of(session.environment(self.state), service)

    def hosts(self) -> list[dict[str, Any]]:
        """Return the hosts as the hypervisor publishes them."""
        found: list[dict[str, Any]] = session.hosts(self.state)["hosts"]
        return found

    def host(self, instance_id: str) -> dict[str, Any]:
        """Return one host's entry; empty if it is gone."""
        return next((host for host in self.hosts() if host["instance_id"] == instance_id), {})

    def template(self, role: NodeRole) -> dict[str, Any]:
        """Return what the role's deployed launch template says; its `UserData` is decoded by nobody."""
        name = f"{CLUSTER}-{role}"
        (version,) = self.client("ec2").describe_launch_template_versions(
            LaunchTemplateName=name, Versions=["$Latest"]
        )["LaunchTemplateVersions"]
        found: dict[str, Any] = version["LaunchTemplateData"]
        return found

    def scale(self, role: NodeRole, count: int) -> list[str]:
        """Have the role's group hold so many instances; return their ids once they are hosts."""
        self.client("autoscaling").set_desired_capacity(AutoScalingGroupName=f"{CLUSTER}-{role}", DesiredCapacity=count)

        def members() -> list[str]:
            return [host["instance_id"] for host in self.hosts() if host["role"] == role]

        until(lambda: len(members()) == count, f"{count} hosts are {role}s")
        return members()

    def launch(self, role: NodeRole, change: Callable[[str], str] = lambda script: script) -> str:
        """Launch an instance of a role's template outside its group's count, and return its id.

        `change` is given the template's user data, for an instance that must not boot well.
        """
        data, ec2 = self.template(role), self.client("ec2")
        (interface,) = data.get("NetworkInterfaces", [])[:1] or [{}]
        groups = data.get("SecurityGroupIds") or interface["Groups"]
        vpc = ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"][0]["VpcId"]
        subnet = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"][0]
        taken = [host["address"] for host in self.hosts()]
        base, _, _ = subnet["CidrBlock"].rpartition(".")
        first = int(subnet["CidrBlock"].rpartition(".")[2].partition("/")[0])
        address = next(a for a in (f"{base}.{first + n}" for n in range(90, 120)) if a not in taken)
        profile = data["IamInstanceProfile"]
        answer = ec2.run_instances(
            ImageId=data["ImageId"],
            InstanceType=data["InstanceType"],
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet["SubnetId"],
            PrivateIpAddress=address,
            SecurityGroupIds=groups,
            IamInstanceProfile={key: profile[key] for key in ("Arn", "Name") if profile.get(key)},
            UserData=change(base64.b64decode(data["UserData"]).decode()),
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": "aws:autoscaling:groupName", "Value": f"{CLUSTER}-{role}"}],
                }
            ],
        )
        return str(answer["Instances"][0]["InstanceId"])

    def terminate(self, instance_id: str) -> None:
        """Terminate an instance and wait until its machine is off."""
        self.client("ec2").terminate_instances(InstanceIds=[instance_id])
        until(lambda: not self.host(instance_id), f"{instance_id} is off")

    def await_phase(self, instance_id: str, phase: str = "running", seconds: float = SECONDS) -> dict[str, Any]:
        """Return the host's entry once it is in `phase`; fail at once if it has ended in another way."""

        def reached() -> dict[str, Any]:
            host = self.host(instance_id)
            assert host.get("phase") not in {"failed", "dead"} - {phase}, (host["cause"], self.console(instance_id))
            return host if host.get("phase") == phase else {}

        try:
            found: dict[str, Any] = until(reached, f"{instance_id} is {phase}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.console(instance_id)}") from None
        return found

    def run(self, instance_id: str, *argv: str, user: User | None = None) -> str:
        """Return what a command prints inside a machine, as its root or as one of its users."""
        done = exec_in_host(self.state, instance_id, argv, user=user, timeout=60)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout.strip()

    def attempt(self, instance_id: str, *argv: str) -> str:
        """Return what a command inside a machine says about why it fails; fail if it succeeds."""
        done = exec_in_host(self.state, instance_id, argv, timeout=60)
        assert done.returncode != 0, (argv, done.stdout)
        return done.stdout + done.stderr

    def boot_records(self, instance_id: str) -> list[dict[str, Any]]:
        """Return the flight recorder's records of a machine, running or ended."""
        directory = self.state / "hosts" / instance_id
        for log in (directory / "disk/var/log/holdfast/boot.log", directory / "logs/boot.log"):
            if log.is_file():
                return [json.loads(line) for line in log.read_text().splitlines()]
        return []

    def stored(self, role: NodeRole, instance_id: str) -> dict[str, Any] | None:
        """Return the record of its boot that an instance has stored; None if it has not."""
        formation, s3 = self.client("cloudformation"), self.client("s3")
        (stack,) = formation.describe_stacks(StackName=f"Holdfast-{CLUSTER}-Training")["Stacks"]
        bucket = next(output["OutputValue"] for output in stack["Outputs"] if output["OutputKey"] == "JobsBucket")
        try:
            answer = s3.get_object(Bucket=bucket, Key=JobsBucket.boot(role, instance_id))
        except s3.exceptions.NoSuchKey:
            return None
        found: dict[str, Any] = json.loads(answer["Body"].read())
        return found

    def console(self, instance_id: str) -> str:
        """Return the end of what a machine's screen has shown."""
        try:
            text = (self.state / "hosts" / instance_id / "console.log").read_text(errors="replace")
        except OSError:
            return ""
        return os.linesep.join(line for line in text.splitlines() if line.strip())[-4000:]
