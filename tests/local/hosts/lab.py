"""What the tests of this folder share: an account of the embedded AWS, and hypervisors beside it that act as EC2."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from holdfast_local.emulator.process import Emulator
from holdfast_local.hosts import IsolationError, detect, exec_in_host, status
from holdfast_node.contract.layout import User
from holdfast_node.contract.roles import DEFAULT_PORTS, DIALS, Role

ROOT = Path(__file__).parents[3]
REGION = "us-east-1"
CLUSTER = "demo"
LIMIT_SECONDS = 60

#: A node's package as small as it can be: the agent tells what it sees and starts the others, the firewall does
#: nothing, the trainer stays.
FIREWALL = "print('firewall set')\n"
AGENT = """
import argparse, pathlib, time
root = pathlib.Path(argparse.ArgumentParser().parse_known_args()[1][1])
start = root / "run/holdfast/start/trainer"
start.touch()
print("agent is up", flush=True)
time.sleep(600)
"""
#: What every agent has to do, or its watchdog ends it.
PULSE = """
import pathlib, sys, threading, time
def pulse():
    while True:
        pathlib.Path(sys.argv[2], "run/holdfast/alive/agent").touch()
        time.sleep(1)
threading.Thread(target=pulse, daemon=True).start()
"""
TRAINER = "import time\nprint('trainer is up', flush=True)\ntime.sleep(600)\n"

_numbers = itertools.count(1)


def until(condition: Callable[[], Any], what: str, seconds: float = LIMIT_SECONDS) -> Any:
    """Return the first true value of a condition; fail, naming it, if there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def bundle(**modules: str) -> bytes:
    """Return a node bundle with these modules of `holdfast_node`; the usual ones stand in for those not given."""
    sources = {"__init__": "", "firewall": FIREWALL, "agent": AGENT, "trainer": TRAINER} | modules
    sources["agent"] = PULSE + sources["agent"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in sources.items():
            archive.writestr(f"holdfast_node/{name}.py", text)
    return buffer.getvalue()


class Lab:
    """An account with a network, a role, and security groups as the kit makes them."""

    def __init__(self, emulator: Emulator, public: Path) -> None:
        self.public, self.launched = public, list[str]()
        # The embedded AWS's own directory is closed; hosts of another user need the certificate.
        shutil.copyfile(emulator.ca_certificate, public / "ca.pem")
        self.environment = {**emulator.environment(), "AWS_CA_BUNDLE": str(public / "ca.pem")}
        self.ec2, self.s3, self.iam = (self.client(name) for name in ("ec2", "s3", "iam"))
        self.bucket = "holdfast-bundles"
        self.s3.create_bucket(Bucket=self.bucket)
        self.vpc = self.ec2.create_vpc(CidrBlock="10.42.0.0/16")["Vpc"]["VpcId"]
        self.subnet = self.ec2.create_subnet(VpcId=self.vpc, CidrBlock="10.42.1.0/24")["Subnet"]["SubnetId"]
        self.groups = {role: self._group(role) for role in Role}
        for role in Role:
            for peer in DIALS[role]:
                self._allow(self.groups[role], self.groups[peer], DEFAULT_PORTS[peer])
        self.endpoints = self._endpoints()
        self.file_system = self._file_system()
        self.role_arn = self._node_role()

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            verify=self.environment["AWS_CA_BUNDLE"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )

    def _group(self, name: str) -> str:
        answer = self.ec2.create_security_group(GroupName=f"lab-{name}", Description="lab", VpcId=self.vpc)
        group = str(answer["GroupId"])
        everything = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
        self.ec2.revoke_security_group_egress(GroupId=group, IpPermissions=everything)
        return group

    def _allow(self, group: str, peer: str, port: int) -> None:
        self.rule("authorize", "egress", group, peer, port)
        self.rule("authorize", "ingress", peer, group, port)

    def _endpoints(self) -> dict[str, str]:
        """Make a gateway for S3 and interface endpoints as the kit's are; every role goes out to all of them."""
        group = self._group("endpoints")
        for role in Role:
            self._allow(self.groups[role], group, 443)
            self.s3_rule("authorize", self.groups[role])
        made = {}
        interface = {"VpcEndpointType": "Interface", "SubnetIds": [self.subnet], "SecurityGroupIds": [group]}
        for service, more in {"s3": {"VpcEndpointType": "Gateway"}, "kms": interface, "sts": interface}.items():
            name = f"com.amazonaws.{REGION}.{service}"
            answer = self.ec2.create_vpc_endpoint(VpcId=self.vpc, ServiceName=name, **more)
            made[service] = str(answer["VpcEndpoint"]["VpcEndpointId"])
        return made

    def _file_system(self) -> str:
        efs, group = self.client("efs"), self._group("checkpoints")
        for role in (Role.SERVER, Role.WORKER):
            self._allow(self.groups[role], group, 2049)
        name = str(efs.create_file_system(CreationToken="lab")["FileSystemId"])
        efs.create_mount_target(FileSystemId=name, SubnetId=self.subnet, SecurityGroups=[group])
        return name

    def s3_rule(self, verb: str, group: str) -> None:
        """Authorize or revoke the rule that lets a group out to S3."""
        lists = [{"PrefixListId": "pl-63a5400a"}]
        permission = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "PrefixListIds": lists}
        getattr(self.ec2, f"{verb}_security_group_egress")(GroupId=group, IpPermissions=[permission])

    def rule(self, verb: str, way: str, group: str, peer: str, port: int) -> None:
        """Authorize or revoke one rule."""
        pairs = [{"GroupId": peer}]
        permission = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "UserIdGroupPairs": pairs}
        getattr(self.ec2, f"{verb}_security_group_{way}")(GroupId=group, IpPermissions=[permission])

    def _node_role(self) -> str:
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "ec2.amazonaws.com"}}
            ],
        }
        role = self.iam.create_role(RoleName="lab-node", AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{self.bucket}/bundles/*"},
                {"Effect": "Allow", "Action": "kms:ListKeys", "Resource": "*"},
            ],
        }
        self.iam.put_role_policy(RoleName="lab-node", PolicyName="bundle", PolicyDocument=json.dumps(policy))
        self.iam.create_instance_profile(InstanceProfileName="lab-node")
        self.iam.add_role_to_instance_profile(InstanceProfileName="lab-node", RoleName="lab-node")
        return str(role["Arn"])

    def user_data(self, role: Role, data: bytes | None = None, *, digest: str | None = None) -> str:
        """Return user data like the kit's, for a bundle that is uploaded here."""
        data = bundle() if data is None else data
        key = f"bundles/{next(_numbers)}.zip"
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)
        config = {
            "cluster": CLUSTER,
            "role": role,
            "region": REGION,
            "ports": DEFAULT_PORTS,
            "jobs_bucket": "jobs",
            "models_bucket": "models",
            "enrolment_function": "enrolment",
            "job_signing_key": "key",
            "model_signing_key": "key",
            "log_group": "nodes",
            "file_system_id": self.file_system,
            "access_point_id": "fsap-1",
            "bundle": {
                "bucket": self.bucket,
                "key": key,
                "sha256": digest or hashlib.sha256(data).hexdigest(),
            },
        }
        body = json.dumps(config, indent=1)
        return (
            "#!/bin/bash\nset -eu\n"
            f"cat > /etc/holdfast/node.json <<'HOLDFAST_NODE_JSON'\n{body}\nHOLDFAST_NODE_JSON\necho more\n"
        )

    def launch(self, role: Role, user_data: str | None = None, *, group: str | None = None) -> str:
        """Launch an instance as the role's Auto Scaling group would; return its id."""
        tags = [{"Key": "aws:autoscaling:groupName", "Value": group or f"{CLUSTER}-{role}"}]
        answer = self.ec2.run_instances(
            ImageId="ami-12345678",
            InstanceType="m7i.large",
            MinCount=1,
            MaxCount=1,
            SubnetId=self.subnet,
            PrivateIpAddress=f"10.42.1.{next(_numbers) % 240 + 10}",
            SecurityGroupIds=[self.groups[role]],
            IamInstanceProfile={"Name": "lab-node"},
            UserData=self.user_data(role) if user_data is None else user_data,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )
        self.launched.append(str(answer["Instances"][0]["InstanceId"]))
        return self.launched[-1]

    def terminate(self, *instance_ids: str) -> None:
        """Terminate instances."""
        self.launched = [name for name in self.launched if name not in instance_ids]
        self.ec2.terminate_instances(InstanceIds=list(instance_ids))


class Machine:
    """A running hypervisor and its hosts."""

    def __init__(self, state_dir: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.state_dir, self.process, self.log = state_dir, process, log

    def state(self) -> dict[str, Any]:
        state = status(self.state_dir)
        assert state is not None, self.log.read_text()
        return state

    def host(self, instance_id: str) -> dict[str, Any]:
        return next((host for host in self.state()["hosts"] if host["instance_id"] == instance_id), {})

    def await_phase(self, instance_id: str, phase: str = "running") -> dict[str, Any]:
        def reached() -> dict[str, Any]:
            host = self.host(instance_id)
            assert not self.state()["error"], self.log.read_text()
            assert host.get("phase") not in {"failed", "dead"} - {phase}, (host, self.log.read_text())
            return host if host.get("phase") == phase else {}

        return dict(until(reached, f"{instance_id} is {phase}"))

    def run(self, instance_id: str, *argv: str, user: User | None = None) -> "subprocess.CompletedProcess[str]":
        return exec_in_host(self.state_dir, instance_id, argv, user=user)

    def python(self, instance_id: str, code: str, *, user: User | None = None) -> str:
        """Return what Python code prints inside a host; its traceback is part of a failure."""
        done = self.run(instance_id, "/opt/holdfast/venv/bin/python", "-c", code, user=user)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def end(self, number: int = signal.SIGTERM, seconds: float = 10) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


def hypervisor_argv(state_dir: Path, isolation: str) -> list[str]:
    argv = [sys.executable, "-m", "holdfast_local.hosts.hypervisor", "--state-dir", str(state_dir)]
    return [*argv, "--cluster", CLUSTER, "--isolation", isolation, "--node-python", str(ROOT / ".venv-node/bin/python")]


def hypervisor_environment(lab: Lab) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**inherited, **lab.environment, "PYTHONPATH": f"{ROOT}/local:{ROOT}/node", "PYTHONDONTWRITEBYTECODE": "1"}


@contextlib.contextmanager
def machine(lab: Lab, state_dir: Path, isolation: str, prefix: tuple[str, ...] = ()) -> Iterator[Machine]:
    log = state_dir.parent / f"{state_dir.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, *hypervisor_argv(state_dir, isolation)],
            env=hypervisor_environment(lab),
            stderr=output,
            umask=0o077,  # the strictest that a user may have: hosts must not inherit it
        )
    started = Machine(state_dir, process, log)
    try:

        def published() -> bool:
            assert process.poll() is None, log.read_text()
            return status(state_dir) is not None

        until(published, "the hypervisor publishes its state")
        yield started
    finally:
        try:
            started.end()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            sys.stderr.write(log.read_text())


#: A user of the machine without any privilege, and the ids that /etc/subuid may give it.
UNPRIVILEGED_UID = 65000
_AS_USER = """
set -e
umask 022
if [ -n "$TOP" ]; then
  mount --bind "$BASE" /mnt; mount -t tmpfs -o mode=755 none "$TOP"; mkdir -p "$BASE"; mount --move /mnt "$BASE"
fi
if [ -n "$IDS" ]; then for name in passwd subuid subgid; do mount --bind "$IDS/$name" "/etc/$name"; done; fi
umask 077
exec setpriv --reuid="$UID_" --regid="$UID_" --clear-groups --inh-caps=-all "$@"
"""


def as_user(directory: Path, *, subordinate_ids: bool) -> tuple[str, ...]:
    """Return a prefix that runs a command as an unprivileged user who can reach the interpreter.

    In a mount namespace of its own, `/root` and the like are opened for the interpreter only, and the user gets
    (or does not get) subordinate ids; nothing of the machine changes.
    """
    base = Path(sys.base_prefix)
    closed = [parent for parent in [*base.parents][::-1] if not parent.stat().st_mode & 0o001]
    ids = directory / "ids"
    ids.mkdir()
    ids.chmod(0o755)
    uid = UNPRIVILEGED_UID
    (ids / "passwd").write_text(f"root:x:0:0:root:/:/bin/sh\nlab:x:{uid}:{uid}:lab:/:/bin/sh\n")
    for name in ("subuid", "subgid"):
        (ids / name).write_text("lab:200000:65536\n" if subordinate_ids else "")
    variables = {"TOP": closed[0] if closed else "", "BASE": base, "IDS": ids, "UID_": uid}
    assigned = [f"{name}={value}" for name, value in variables.items()]
    return ("unshare", "--mount", "env", *assigned, "sh", "-c", _AS_USER, "sh")


def require(isolation: str) -> None:
    try:
        detect(isolation)
    except IsolationError as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def machine_of(kind: str, lab: Lab) -> Iterator[Machine]:
    """A hypervisor as `root`, as a user without or with subordinate ids (`userns`, `userns-ids`), or on `loopback`."""
    require("userns" if kind.startswith("userns") else kind)
    directory = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=lab.public))
    prefix: tuple[str, ...] = ()
    if kind.startswith("userns"):
        require("root")  # to become somebody else
        if kind == "userns-ids" and shutil.which("newuidmap") is None:
            pytest.skip("newuidmap is not installed; install the package uidmap")
        prefix = as_user(directory, subordinate_ids=kind == "userns-ids")
        os.chown(directory, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    with machine(lab, directory / "state", kind.partition("-")[0], prefix) as running:
        yield running
        if lab.launched:
            lab.terminate(*lab.launched)
