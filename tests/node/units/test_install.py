"""Installing the units into an image: what systemd then finds, and makes, there."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.support import skip
from tests.node.units.unit_files import UNITS, image

from holdfast_local.hosts.setup import make_directories
from holdfast_node.contract.layout import UIDS, NodePaths


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
    assert done.returncode == 64
    assert done.stderr == "units: the role must be scheduler, server, worker or predictor, got master\n"
    assert not list(tmp_path.iterdir())
