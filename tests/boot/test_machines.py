"""The deployed templates' nodes boot and train, survive a reboot, and mount only what they may."""

import base64
from collections.abc import Iterator

import pytest
from tests.boot.booted import Booted, until
from tests.e2e.support import deploy_predictor

from holdfast_node.contract.layout import UIDS, User
from holdfast_node.contract.roles import Role, Serving

pytestmark = pytest.mark.e2e

CHECKPOINTS = "/mnt/checkpoints"
#: The last phases of every boot.
STARTING = ("firewall", "ports", "enrol")
BOOT_ID, BOOT_LOG = "/proc/sys/kernel/random/boot_id", "/var/log/holdfast/boot.log"


@pytest.fixture(scope="module")
def server(booted: Booted) -> Iterator[str]:
    """A server that its group has launched outside any job."""
    (instance_id,) = booted.scale(Role.SERVER, 1)
    booted.await_phase(instance_id)
    yield instance_id
    booted.scale(Role.SERVER, 0)


@pytest.fixture(scope="module")
def trained(booted: Booted) -> str:
    """The job that trained on hosts that booted for it."""
    submit = ("submit", "examples/digits", "--entry", "train.py", "--workers", "2", "--servers", "2", "--wait")
    done = booted.holdfast("--output", "json", *submit)
    assert done.status == 0, done.errors
    return str(done.json["job_id"])


def test_nodes_boot_from_their_templates_and_train(booted: Booted, trained: str) -> None:
    status = booted.holdfast("--output", "json", "status", trained).json
    assert [node["status"] for node in status["nodes"]] == [0] * 5, status


def test_what_runs_is_the_template_s_user_data(booted: Booted, server: str) -> None:
    given = booted.run(server, "cat", "/var/lib/cloud/instance/user-data.txt")
    assert given == base64.b64decode(booted.template(Role.SERVER)["UserData"]).decode().strip()
    assert booted.run(server, "cloud-init", "query", "platform") == "ec2"
    assert booted.run(server, "ps", "-o", "comm=", "1") == "systemd"
    assert booted.run(server, "systemctl", "is-active", "holdfast-agent", "holdfast-firewall").split() == ["active"] * 2


def test_every_phase_of_the_boot_is_recorded(booted: Booted, server: str) -> None:
    records = booted.boot_records(server)
    assert [record["status"] for record in records] == ["ok"] * len(records)
    phases = [record["phase"] for record in records]
    # The environment is baked into the image: no wheels are fetched.
    assert phases == ["metadata", "fetch", "packages", "environment", "install", "scratch", "mount", *STARTING]


def test_a_reboot_brings_everything_back_by_itself(booted: Booted, server: str) -> None:
    boot, record = (booted.run(server, "cat", path) for path in (BOOT_ID, BOOT_LOG))
    first, pid = booted.host(server)["pid"], booted.run(server, "systemctl", "show", "-P", "MainPID", "holdfast-agent")
    booted.run(server, "touch", f"{CHECKPOINTS}/kept")
    booted.run(server, "systemctl", "--no-block", "reboot")
    until(lambda: booted.host(server)["pid"] not in (0, first), "the machine has another process 1")
    booted.await_phase(server)
    until(lambda: booted.host(server)["services"].get("agent") == "running", "the agent runs again")
    assert booted.run(server, "systemctl", "is-active", "holdfast-agent", "holdfast-firewall").split() == ["active"] * 2
    assert "kept" in booted.run(server, "ls", CHECKPOINTS).split()
    assert "table inet holdfast" in booted.run(server, "nft", "list", "tables")
    assert booted.run(server, "systemctl", "show", "-P", "MainPID", "holdfast-agent") != "0", pid
    # User data ran once: its record is the first boot's.
    assert booted.run(server, "cat", BOOT_LOG) == record
    assert booted.run(server, "cat", BOOT_ID) != boot


def test_checkpoints_belong_to_the_access_point_s_user(booted: Booted, server: str) -> None:
    trainer = UIDS[User.TRAINER]
    assert booted.run(server, "stat", "-c", "%u %g %a", CHECKPOINTS) == f"{trainer} {trainer} 700"
    booted.run(server, "touch", f"{CHECKPOINTS}/mine", user=User.TRAINER)


MOUNTS = {
    "without TLS": ("tls,", "", "the mount options must include tls, iam, noresvport, missing: tls"),
    "without IAM": ("iam,", "", "missing: iam"),
    "without an access point": ("accesspoint=fsap-", "x-nothing=", "must include accesspoint=fsap-ID once"),
    "another access point": ("accesspoint=fsap-", "accesspoint=fsap-0", "has no access point fsap-0"),
    "another file system": ("fs-", "fs-0", "Failed to resolve"),
}


@pytest.mark.parametrize("case", MOUNTS)
def test_a_mount_that_ec2_would_refuse_is_refused(booted: Booted, server: str, case: str) -> None:
    old, new, said = MOUNTS[case]
    line = booted.run(server, "grep", CHECKPOINTS, "/etc/fstab")
    assert old in line
    source, _, kind, options, *_ = line.replace(old, new, 1).split()
    booted.run(server, "mkdir", "-p", "/mnt/other")
    assert said in booted.attempt(server, "mount", "-t", kind, "-o", options, source, "/mnt/other")


def test_a_role_that_may_not_mount_is_denied(booted: Booted, server: str) -> None:
    line = booted.run(server, "grep", CHECKPOINTS, "/etc/fstab").split()
    iam = booted.client("iam")
    role = booted.template(Role.SERVER)["IamInstanceProfile"]
    name = role.get("Name") or role["Arn"].rpartition("/")[2]
    role_name = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"][0]["RoleName"]
    denied = '{"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":"elasticfilesystem:*","Resource":"*"}}'
    booted.run(server, "mkdir", "-p", "/mnt/other")
    mount = ("mount", "-t", "efs", "-o", line[3], line[0], "/mnt/other")
    iam.put_role_policy(RoleName=role_name, PolicyName="denied", PolicyDocument=denied)
    try:
        said = booted.attempt(server, *mount)
    finally:
        iam.delete_role_policy(RoleName=role_name, PolicyName="denied")
    assert "access denied by server" in said and "may not elasticfilesystem:ClientMount" in said
    # As a service: what a test runs in a machine may not mount.
    booted.run(server, "systemd-run", "--quiet", "--wait", "--pipe", *mount)
    assert booted.run(server, "ls", "/mnt/other") == booted.run(server, "ls", CHECKPOINTS)
    booted.run(server, "systemd-run", "--quiet", "--wait", "--pipe", "umount", "/mnt/other")


def test_a_predictor_boots_from_its_template_and_serves(booted: Booted, trained: str) -> None:
    deploy_predictor(booted.state, trained)
    (instance_id,) = booted.scale(Serving.PREDICTOR, 1)
    try:
        booted.await_phase(instance_id)
        log = "/var/log/holdfast/agent.log"
        until(lambda: "serving predictions" in booted.run(instance_id, "cat", log), "it serves")
        stored = until(lambda: booted.stored(Serving.PREDICTOR, instance_id), "its boot's record is stored")
        assert [phase["phase"] for phase in stored["phases"]][-3:] == list(STARTING)
        assert {phase["status"] for phase in stored["phases"]} == {"ok"}
        assert CHECKPOINTS not in booted.run(instance_id, "cat", "/proc/mounts"), "it has no part in checkpoints"
    finally:
        booted.scale(Serving.PREDICTOR, 0)
