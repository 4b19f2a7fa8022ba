"""The user data and the bundle's installer, run as root on a copy of this machine: how each failure is named.

The booted nodes of the same template are in the other modules of this folder.
"""

import dataclasses
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.boot.script import AWS, INSTANCE_ID, Boot, boot
from tests.kit.support import ROOT, synthesize

from holdfast.packing import pack_wheels, read_tree, write_zip
from holdfast.training.user_data import node_user_data
from holdfast_node.contract.documents import BootRecord, Bundle, NodeConfig, Wheelhouse
from holdfast_node.contract.layout import UIDS, JobsBucket, User
from holdfast_node.contract.roles import DEFAULT_PORTS, Role

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts an overlay, as root")

LOCK = ROOT / "node/requirements.txt"
#: An image with the environment in it: a venv with the stamp that `install.sh --bake` leaves, and no packages.
BAKED = (
    'chroot "$root" /usr/bin/python3.11 -m venv --without-pip /opt/holdfast/venv\n'
    f'echo {hashlib.sha256(LOCK.read_bytes()).hexdigest()} > "$root/opt/holdfast/venv/lock.sha256"\n'
)
SHUTDOWN = "systemd-run -q --on-active=60 systemctl poweroff"


@dataclasses.dataclass(frozen=True)
class Node:
    """What is deployed: the user data of a role, and the objects that it fetches."""

    bundle: Path
    wheels: Path
    digests: tuple[str, str]

    def config(self, role: Role, **changes: Any) -> NodeConfig:
        names = ("models_bucket", "enrolment_function", "job_signing_key", "model_signing_key", "log_group")
        mounts = role is not Role.SCHEDULER
        bundle, wheels = self.digests
        values = {
            **dict.fromkeys(names, "name"),
            "jobs_bucket": "jobs",
            "file_system_id": "fs-1" if mounts else "",
            "access_point_id": "fsap-1" if mounts else "",
            "bundle": Bundle(bucket="assets", key="bundle.zip", sha256=bundle),
            "wheelhouse": Wheelhouse(bucket="assets", key="wheels.zip", sha256=wheels, lock=LOCK.name),
        }
        return NodeConfig(cluster="demo", role=role, region="us-east-1", ports=DEFAULT_PORTS, **values | changes)

    def boot(
        self,
        folder: Path,
        role: Role = Role.WORKER,
        change: Callable[[str], str] = lambda script: script,
        objects: dict[str, bytes | Path] | None = None,
        **named: Any,
    ) -> Boot:
        given = {"bundle.zip": self.bundle, "wheels.zip": self.wheels, **(objects or {})}
        config = named.pop("config", self.config(role))
        return boot(folder, change(node_user_data(config)), objects=given, **named)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    source, target = ROOT / "node", tmp_path_factory.mktemp("bundle") / "bundle.zip"
    contents = {f"holdfast_node/{name}": data for name, data in read_tree(source / "holdfast_node", "*.py").items()}
    for folder in ("units", "host"):
        contents |= {f"{folder}/{name}": data for name, data in read_tree(source / folder, "*").items()}
    contents |= {name: (source / name).read_bytes() for name in ("install.sh", LOCK.name)}
    wheels, digest = pack_wheels(LOCK, ROOT / ".build")
    return Node(target, wheels, (write_zip(target, contents), digest))


INSTALLS = [
    *("metadata", "fetch", "packages", "wheels", "environment"),
    *("install", "scratch", "mount", "firewall", "ports", "enrol"),
]
BAKED_PHASES = [name for name in INSTALLS if name != "wheels"]


def test_a_fresh_instance_installs_itself_and_a_second_run_changes_nothing(node: Node, tmp_path: Path) -> None:
    accounts = (
        'grep ^holdfast- /etc/passwd > /given/accounts; stat -c "%n %U:%G %a" /var/lib/holdfast/* > /given/tree\n'
    )
    packages = '/opt/holdfast/venv/bin/python -I -c "import boto3, cryptography, mxnet" && touch /given/loads\n'

    def twice(script: str) -> str:
        return f"bash /given/once || exit 1\n{accounts}{packages}bash /given/once\n"

    before = f"cp /dev/stdin given/once <<'THE_SCRIPT'\n{node_user_data(node.config(Role.WORKER))}THE_SCRIPT\n"
    done = node.boot(tmp_path, change=twice, before=before)
    assert done.status == 0, done.output
    assert [phase["phase"] for phase in done.phases] == [*INSTALLS, *BAKED_PHASES]
    assert {phase["status"] for phase in done.phases} == {"ok"}
    assert [line for line in done.console.splitlines() if line][:2] == [
        "holdfast: boot: metadata ok",
        "holdfast: boot: fetch ok",
    ]
    users = [line.split(":") for line in (done.folder / "accounts").read_text().splitlines()]
    assert {(user[0], int(user[2])) for user in users} == {(name.value, UIDS[name]) for name in User}
    tree = (done.folder / "tree").read_text().splitlines()
    assert "/var/lib/holdfast/tls holdfast-agent:holdfast-tunnel 2750" in tree
    assert (done.folder / "loads").exists()
    line = "fs-1:/ /mnt/checkpoints efs _netdev,noresvport,tls,iam,accesspoint=fsap-1 0 0"
    assert [found for found in done.fstab.splitlines() if "checkpoints" in found] == [line]
    started = [call for call in done.calls if call.startswith("systemctl start holdfast")]
    assert started == 2 * [
        f"systemctl start holdfast{name}" for name in ("-firewall.service", "-agent.service", ".target")
    ]
    assert BootRecord.parse(json.dumps(done.stored)).failure is None
    assert SHUTDOWN not in done.calls


def refuse(operation: str, said: str) -> str:
    """An `aws` that fails one operation as the real one words it."""
    return f'case "$2" in {operation}) echo >&2; echo "{said}" >&2; exit 254 ;; esac\n{AWS}'


DENIED = "An error occurred (AccessDenied) when calling the GetObject operation: Access Denied"
NO_DISK = 'mount -t tmpfs -o size=60m tmpfs "$root/opt"\n'
TAKEN = (
    "python3 -c 'import socket, time\n"
    's = socket.create_server(("", 9093)); open("given/listens", "w"); time.sleep(300)\' &\n'
    "until [ -e given/listens ]; do :; done\n"
)
REFUSED = "2026-11-24 18:31:52,100 ERROR IdentityError: enrolment refused (denied): this instance was revoked"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """How a boot is made to fail, and what it says then."""

    phase: str
    cause: str
    remedy: str
    status: str = "failed"
    given: dict[str, Any] = dataclasses.field(default_factory=dict)


def agent_fails(said: str) -> str:
    return f'[ "$*" != "start holdfast-agent.service" ] || {{ echo "{said}" >> /var/log/holdfast/agent.log; exit 1; }}'


FAILURES = {
    "metadata down": Failure(
        phase="metadata",
        status="timeout",
        cause="the instance metadata service gives no credentials: ",
        remedy="check the launch template's metadata options and its instance profile",
        given={"metadata": False, "change": lambda script: script.replace("metadata 60", "metadata 3")},
    ),
    "S3 denied": Failure(
        phase="fetch",
        cause=f"the bundle s3://assets/bundle.zip cannot be fetched: {DENIED}",
        remedy="let the role, the S3 endpoint, its route and the bucket allow it; deploy again if it is gone",
        given={"commands": {"aws": refuse("get-object", DENIED)}},
    ),
    "a bundle with another digest": Failure(
        phase="fetch",
        cause="the bundle s3://assets/bundle.zip must have the SHA-256 ",
        remedy="deploy again, or find out who changed it",
        given={"objects": {"bundle.zip": b"junk"}},
    ),
    "wheels with another digest": Failure(
        phase="wheels",
        cause="the wheelhouse s3://assets/wheels.zip must have the SHA-256 ",
        remedy="deploy again, or find out who changed it",
        given={"objects": {"wheels.zip": b"junk"}},
    ),
    "a full disk": Failure(
        phase="environment",
        cause="the disk is full",
        remedy="give the role's instances a larger volume",
        given={"before": NO_DISK},
    ),
    "an image without a package": Failure(
        phase="packages",
        cause="the image lacks the packages stunnel4",
        remedy="bake them: nodes reach no repository",
        given={"commands": {"dpkg-query": '[ "${@: -1}" = stunnel4 ] || echo "ii "'}},
    ),
    "an unknown system": Failure(
        phase="packages",
        cause="the operating system plan9 is none that nodes run on: amzn, debian",
        remedy="use an image of Amazon Linux 2023",
        given={"before": 'rm -f "$root/etc/os-release"; echo ID=plan9 > "$root/etc/os-release"\n'},
    ),
    "EFS refuses": Failure(
        phase="mount",
        cause="the checkpoint file system fs-1 cannot be mounted: mount.nfs4: access denied by server while mounting",
        remedy="look at its policy and access point, the role, its mount targets and port 2049",
        given={
            "before": BAKED,
            "commands": {"mount": "echo 'mount.nfs4: access denied by server while mounting 127.0.0.1:/' >&2; exit 32"},
        },
    ),
    "a taken port": Failure(
        phase="ports",
        cause="port 9093 must be this node's, and something listens on it already",
        remedy="use an image that starts nothing there, or other ports: [ports] in the settings",
        given={"before": BAKED + TAKEN},
    ),
    "enrolment refused": Failure(
        phase="enrol",
        cause=f"agent: {REFUSED}",
        remedy="holdfast logs has its other lines; a refusal says what the enrolment function found wrong",
        given={"before": BAKED, "commands": {"systemctl": agent_fails(REFUSED)}},
    ),
    "a service that hangs": Failure(
        phase="firewall",
        status="timeout",
        cause="did not end within 2 s",
        remedy="read the instance's console",
        given={
            "before": BAKED,
            "commands": {"systemctl": '[ "$*" != "start holdfast-firewall.service" ] || sleep 100'},
            "change": lambda script: script.replace("firewall 30", "firewall 2"),
        },
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_boot_that_fails_says_why_and_ends_the_instance(node: Node, tmp_path: Path, case: str) -> None:
    failure = FAILURES[case]
    done = node.boot(tmp_path, **failure.given)
    assert done.status == 1
    last = done.last
    assert (last["phase"], last["status"], last["remedy"]) == (failure.phase, failure.status, failure.remedy), (
        done.output
    )
    assert last["cause"].startswith(failure.cause)
    assert done.console.splitlines()[-1] == (
        f"holdfast: boot: {failure.phase} {failure.status}: {last['cause']}; {failure.remedy}"
    )
    assert done.stored is not None
    record = BootRecord.parse(json.dumps(done.stored))
    assert record.failure == (
        f"worker ({INSTANCE_ID}) did not boot: {failure.phase}: {last['cause']}; {failure.remedy}"
    )
    key = JobsBucket.boot(Role.WORKER, INSTANCE_ID)
    put = next(call for call in done.calls if "put-object" in call)
    assert f" --key {key} " in put
    stream = f"--log-group-name name --log-stream-name nodes/worker/{INSTANCE_ID}/boot"
    assert [call.split()[2] for call in done.calls if stream in call] == ["create-log-stream", "put-log-events"]
    assert done.calls[-1] == SHUTDOWN
    assert not any("send-task-failure" in call for call in done.calls), "the scheduler's alone"


def test_a_wheel_that_is_not_the_locks_is_not_installed(node: Node, tmp_path: Path) -> None:
    with zipfile.ZipFile(node.wheels) as archive:
        wheels = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in wheels if name.startswith("six-"))
    target = tmp_path / "wheels.zip"
    digest = write_zip(target, wheels | {name: wheels[name] + b"\0"})
    wheelhouse = Wheelhouse(bucket="assets", key="wheels.zip", sha256=digest, lock=LOCK.name)
    (tmp_path / "boot").mkdir()
    config = node.config(Role.WORKER, wheelhouse=wheelhouse)
    done = node.boot(tmp_path / "boot", config=config, objects={"wheels.zip": target})
    assert (done.status, done.last["phase"]) == (1, "environment")
    assert done.last["cause"].startswith(
        "the packages of requirements.txt cannot be installed: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"
    )
    assert "six==1.17.0" in done.output


CONTROL = b'{"job_id": "digits-1", "started_at": "2026-11-24T18:00:00Z", "task_token": "the-token"}'


def test_a_scheduler_that_does_not_boot_fails_the_job_itself(node: Node, tmp_path: Path) -> None:
    objects: dict[str, bytes | Path] = {"bundle.zip": b"junk", "current.json": CONTROL}
    done = node.boot(tmp_path, Role.SCHEDULER, objects=objects)
    (call,) = [call for call in done.calls if "send-task-failure" in call]
    assert call.startswith(
        "aws stepfunctions send-task-failure --error Holdfast.BootFailed "
        f"--cause scheduler ({INSTANCE_ID}) did not boot: fetch: the bundle s3://assets/bundle.zip must have the SHA"
    )
    assert call.endswith("; deploy again, or find out who changed it --task-token the-token")


def test_a_report_that_fails_is_tried_again(node: Node, tmp_path: Path) -> None:
    down = f"[ $2 != put-object ] || {{ [ -e /given/tried ] || {{ touch /given/tried; exit 255; }}; }}\n{AWS}"
    done = node.boot(tmp_path, objects={"bundle.zip": b"junk"}, commands={"aws": down})
    assert len([call for call in done.calls if "put-object" in call]) == 2
    assert done.stored is not None


def test_a_download_that_breaks_off_is_tried_again_and_not_for_ever(node: Node, tmp_path: Path) -> None:
    broken = "Connection broken: IncompleteRead(8192 bytes read, 999 more expected)"
    fail = f'echo "{broken}" >&2; exit 255'
    down = f"[[ $* != *bundle.zip* ]] || {{ echo >> /given/tried; (($(wc -l < /given/tried) > 2)) || {{ {fail}; }}; }}"
    (tmp_path / "once").mkdir()
    done = node.boot(tmp_path / "once", objects={"wheels.zip": b"junk"}, commands={"aws": f"{down}\n{AWS}"})
    assert [(phase["phase"], phase["status"]) for phase in done.phases][:2] == [("metadata", "ok"), ("fetch", "ok")]
    assert len([call for call in done.calls if "bundle.zip" in call]) == 3
    (tmp_path / "always").mkdir()
    done = node.boot(tmp_path / "always", commands={"aws": refuse("get-object", broken)})
    assert len([call for call in done.calls if "bundle.zip" in call]) == 3
    assert done.last["cause"] == f"the bundle s3://assets/bundle.zip cannot be fetched: {broken}"


def test_a_role_without_checkpoints_mounts_nothing(node: Node, tmp_path: Path) -> None:
    done = node.boot(tmp_path, Role.SCHEDULER, before=BAKED)
    assert (done.status, "checkpoints" in done.fstab) == (0, False), done.output
    assert not any(call.startswith("mount ") for call in done.calls)


AMAZON = 'rm -f "$root/etc/os-release"; echo ID=amzn > "$root/etc/os-release"\n' + BAKED
#: Each is in Amazon's published lists of AL2023's packages (Amazon Linux 2023 release notes, "All packages").
DNF = (
    "dnf -y -q --setopt=install_weak_deps=False install "
    "python3.11 stunnel nftables amazon-efs-utils e2fsprogs libgomp libquadmath"
)
RPM = "rpm --quiet -q python3.11 stunnel nftables amazon-efs-utils e2fsprogs libgomp libquadmath"


@pytest.mark.parametrize(("there", "expected"), [(1, [RPM, DNF]), (0, [RPM])], ids=["fresh", "baked"])
def test_amazon_linux_gets_the_packages_that_it_lacks(
    node: Node, tmp_path: Path, there: int, expected: list[str]
) -> None:
    done = node.boot(tmp_path, before=AMAZON, commands={"dnf": "exit 0", "rpm": f"exit {there}"})
    assert done.status == 0, done.output
    assert [call for call in done.calls if call.startswith(("dnf ", "rpm "))] == expected


def test_a_repository_that_amazon_linux_does_not_reach_is_named(node: Node, tmp_path: Path) -> None:
    said = "Error: Failed to download metadata for repo 'amazonlinux'"
    done = node.boot(tmp_path, before=AMAZON, commands={"dnf": f'echo "{said}" >&2; exit 1', "rpm": "exit 1"})
    assert (done.last["phase"], done.last["cause"]) == (
        "packages",
        f"dnf cannot install python3.11 stunnel nftables amazon-efs-utils e2fsprogs libgomp libquadmath: {said}",
    )


@pytest.fixture(scope="module")
def bake(node: Node, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script that Image Builder runs, as the synthesized component holds it, for this module's objects."""
    deployment = synthesize(tmp_path_factory.mktemp("images"), {"images": {"pipeline": True}})
    component = deployment.properties("AWS::ImageBuilder::Component", "Images")["NodesComponent"]
    (step,) = json.loads(component["Data"])["phases"][0]["steps"]
    (script,) = step["inputs"]["commands"]
    fetches = re.findall(r"^fetch '([^']+)' '([^']+)' '([0-9a-f]{64})' \"\$disk/(\w+)\.zip\"$", script, re.MULTILINE)
    assert [name for *_, name in fetches] == ["bundle", "wheels"]
    for (bucket, key, _, name), digest in zip(fetches, node.digests, strict=True):
        ours = f"fetch 'assets' '{name}.zip' '{digest}' "
        script = re.sub(rf"^fetch '{re.escape(bucket)}' '{re.escape(key)}' '\w+' ", ours, script, flags=re.MULTILINE)
    return str(script)


def test_what_image_builder_bakes_is_what_a_node_then_skips(node: Node, tmp_path: Path, bake: str) -> None:
    done = boot(
        tmp_path,
        f"(\n{bake}\n)\nls /opt/holdfast /etc/holdfast /var/tmp\n",
        objects={"bundle.zip": node.bundle, "wheels.zip": node.wheels},
        commands={"aws": AWS},
    )
    assert done.status != 0, "there is no /etc/holdfast: an image holds nothing of a node"
    assert "/opt/holdfast:\nvenv\n" in done.output
    assert "holdfast-bake" not in done.output
    assert "cause: " not in done.output


@pytest.mark.parametrize("name", ["bundle", "wheels"])
def test_what_image_builder_would_bake_is_checked_first(node: Node, tmp_path: Path, bake: str, name: str) -> None:
    objects: dict[str, bytes | Path] = {"bundle.zip": node.bundle, "wheels.zip": node.wheels, f"{name}.zip": b"other"}
    done = boot(tmp_path, bake, objects=objects, commands={"aws": AWS})
    digest = node.digests[("bundle", "wheels").index(name)]
    assert done.status == 1
    assert f"cause: s3://assets/{name}.zip must have the SHA-256 {digest}; deploy again" in done.output
