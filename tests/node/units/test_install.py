"""Installing the units into an image: what systemd then finds, and makes, there."""

import configparser
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.e2e.support import skip
from tests.node.test_agent import node_config
from tests.node.units.unit_files import UNITS, image

from holdfast_local.hosts.setup import make_directories
from holdfast_node.contract.documents import RemoteAccess
from holdfast_node.contract.layout import OPERATOR, OPERATOR_UID, UIDS, NodePaths
from holdfast_node.contract.roles import Role


@pytest.fixture(scope="module", autouse=True)
def tools() -> Iterator[None]:
    if os.geteuid():
        skip("only root may give files to the node's users")
    yield


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image(tmp_path_factory.mktemp("worker"))


def verify(root: Path) -> subprocess.CompletedProcess[str]:
    units = [path.name for path in UNITS.glob("holdfast-*.service") if "@" not in path.name]
    argv = ["systemd-analyze", "verify", f"--root={root}", "--recursive-errors=no", "holdfast.target", *units]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_systemd_finds_no_fault_in_the_units(worker: Path) -> None:
    verified = verify(worker)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_systemd_would_find_one(tmp_path: Path) -> None:
    root = image(tmp_path)
    unit = root / "etc/systemd/system/holdfast-trainer.service"
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHome=certainly"))
    assert "Failed to parse protect home value" in verify(root).stderr


def listed(root: Path) -> dict[str, tuple[int, int, int]]:
    paths = NodePaths(root)
    found = {}
    for top in (paths.run, paths.state.parent, paths.logs):
        for directory in (top, *(path for path in top.rglob("*") if path.is_dir())):
            status = directory.stat()
            owner = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
            found[str(directory.relative_to(root))] = owner
    return found


def test_directories_are_those_of_the_contract_as_local_hosts_make_them(worker: Path, tmp_path: Path) -> None:
    make_directories(NodePaths(tmp_path), UIDS)
    assert listed(worker) == listed(tmp_path)


def test_a_boot_starts_the_target_and_the_firewall_and_nothing_else(worker: Path) -> None:
    system = worker / "etc/systemd/system"
    enabled = {str(path.relative_to(system)) for path in system.glob("*.wants/*")}
    assert enabled == {"multi-user.target.wants/holdfast.target", "sysinit.target.wants/holdfast-firewall.service"}


@pytest.mark.parametrize("role", ["worker", "predictor", "server", "scheduler"])
def test_a_role_gets_its_own_drop_in_and_loses_another_ones(role: str, tmp_path: Path) -> None:
    image(tmp_path, "worker" if role != "worker" else "predictor")
    subprocess.run(["bash", str(UNITS / "install.sh"), role, str(tmp_path)], check=True, capture_output=True)
    drop_in = tmp_path / "etc/systemd/system/holdfast-trainer.service.d/10-role.conf"
    own = UNITS / f"{role}.conf"
    assert drop_in.exists() == own.exists()
    assert not own.exists() or drop_in.read_text() == own.read_text()


def test_a_role_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    argv = ["bash", str(UNITS / "install.sh"), "master", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == (
        "cause: the role must be scheduler, server, worker or predictor, got master\nremedy: deploy again\n"
    )
    assert not list(tmp_path.iterdir())


def give_pci_device(root: Path, vendor: str, kind: str) -> None:
    device = root / "sys/bus/pci/devices/0000:00:1e.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")


@pytest.mark.parametrize(
    ("vendor", "kind", "gpu"),
    [("0x10de", "0x030200", True), ("0x10de", "0x028000", False), ("0x1d0f", "0x030000", False)],
    ids=["an NVIDIA GPU", "another device of NVIDIA", "another display controller"],
)
def test_the_gpu_drop_in_comes_with_the_hardware_whatever_driver_there_is(
    vendor: str, kind: str, gpu: bool, tmp_path: Path
) -> None:
    give_pci_device(tmp_path, vendor, kind)
    system = image(tmp_path) / "etc/systemd/system"
    assert (system / "holdfast-trainer.service.d/20-gpu.conf").exists() is gpu
    assert (system / "holdfast-gpu.service").exists() is gpu


CLOSED = ("sshd.service", "sshd.socket", "ssh.service", "ssh.socket", "ec2-instance-connect.service")
SESSIONS = "amazon-ssm-agent.service"


def masked(root: Path, unit: str) -> bool:
    link = root / "etc/systemd/system" / unit
    return link.is_symlink() and str(link.readlink()) == "/dev/null"


def test_nobody_logs_in_to_a_node(worker: Path) -> None:
    assert [unit for unit in (*CLOSED, "serial-getty@ttyS0.service", SESSIONS) if not masked(worker, unit)] == []


@pytest.mark.parametrize("access", RemoteAccess, ids=str)
def test_session_manager_is_there_only_where_it_is_asked_for(access: RemoteAccess, tmp_path: Path) -> None:
    config = NodePaths(tmp_path).config
    config.parent.mkdir(parents=True)
    config.write_bytes(replace(node_config(Role.WORKER), remote_access=access).to_json())
    root = image(tmp_path)
    assert masked(root, SESSIONS) is (access is RemoteAccess.NONE)
    assert all(masked(root, unit) for unit in CLOSED)
    users = {line.split(":")[0]: int(line.split(":")[2]) for line in (root / "etc/passwd").read_text().splitlines()}
    operator = {} if access is RemoteAccess.NONE else {OPERATOR: OPERATOR_UID}
    assert users == {str(user): uid for user, uid in UIDS.items()} | operator


def test_a_node_that_may_have_sessions_opens_what_its_image_had_closed(tmp_path: Path) -> None:
    config = NodePaths(image(tmp_path)).config
    assert masked(tmp_path, SESSIONS)
    config.parent.mkdir(parents=True)
    config.write_bytes(replace(node_config(Role.WORKER), remote_access=RemoteAccess.SESSION_MANAGER).to_json())
    subprocess.run(["bash", str(UNITS / "install.sh"), "worker", str(tmp_path)], check=True, capture_output=True)
    assert not masked(tmp_path, SESSIONS)


def test_a_service_whose_unit_cannot_be_masked_is_disabled(tmp_path: Path) -> None:
    system = tmp_path / "etc/systemd/system"
    (system / "multi-user.target.wants").mkdir(parents=True)
    (system / SESSIONS).write_text("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")
    (system / "multi-user.target.wants" / SESSIONS).symlink_to(f"../{SESSIONS}")
    image(tmp_path)
    assert not (system / "multi-user.target.wants" / SESSIONS).is_symlink()


def test_the_hosts_settings_are_where_each_system_looks(tmp_path: Path) -> None:
    (tmp_path / "etc/chrony").mkdir(parents=True)
    root = image(tmp_path)
    for name in ("etc/chrony.conf", "etc/chrony/chrony.conf"):
        servers = [line for line in (root / name).read_text().splitlines() if line.startswith(("server", "pool"))]
        assert servers == ["server 169.254.169.123 prefer iburst minpoll 4 maxpoll 4"]
    ini = configparser.ConfigParser()
    ini.read(root / "etc/systemd/timesyncd.conf.d/60-holdfast.conf")
    assert dict(ini["Time"]) == {"ntp": "169.254.169.123", "fallbackntp": ""}
    ini.read(root / "etc/systemd/coredump.conf.d/60-holdfast.conf")
    assert dict(ini["Coredump"]) == {"storage": "none", "processsizemax": "0"}
    assert (root / "etc/sysctl.d/60-holdfast.conf").stat().st_mode & 0o777 == 0o644


def settings() -> dict[str, tuple[str, bool]]:
    """The kernel's settings: their value, and whether every kernel must have them."""
    lines = (UNITS.parent / "host/etc/sysctl.d/60-holdfast.conf").read_text().splitlines()
    pairs = [line.split(" = ") for line in lines if line and not line.startswith("#")]
    return {key.lstrip("-"): (value, not key.startswith("-")) for key, value in pairs}


def test_settings_are_those_of_a_kernel() -> None:
    missing = [key for key, (_, needed) in settings().items() if needed and not sysctl(key).exists()]
    assert missing == []


@pytest.mark.parametrize(
    ("key", "value"),
    {"fs.suid_dumpable": "0", "kernel.core_pattern": "|/bin/false", "net.ipv4.conf.all.route_localnet": "0"}.items(),
)
def test_what_the_rest_relies_on_is_set(key: str, value: str) -> None:
    assert settings()[key] == (value, True)


def sysctl(key: str) -> Path:
    return Path("/proc/sys") / key.replace(".", "/")
