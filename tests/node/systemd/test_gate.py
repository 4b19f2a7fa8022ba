"""What must be true before a trainer starts, and how it is said: with programs on PATH in the driver's place."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.support import skip
from tests.node.test_agent import node_config

from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.roles import Role
from holdfast_node.systemd import gate

ROOT = Path(__file__).resolve().parents[3]
Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts a shell script on PATH, which is nothing else than these."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str, body: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return put


TESLA = "echo 'Tesla T4, 550.90.07'"


def test_a_gpu_that_runs_a_kernel_passes_and_is_named(program: Program) -> None:
    program("nvidia-smi", f'test "$2" = --format=csv,noheader && {TESLA}; {TESLA}')
    python = program("python", 'test "$*" = "-P -m holdfast_node.engines.mxnet.kernel"')
    assert gate.require_gpu(str(python)) == "Tesla T4, 550.90.07; Tesla T4, 550.90.07"


@pytest.mark.parametrize(
    ("driver", "kernel", "words"),
    [
        (
            None,
            "true",
            "the NVIDIA driver cannot be asked: nvidia-smi: No such file or directory; use an image with the driver, "
            "and an NVIDIA instance type",
        ),
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9",
            "true",
            "the NVIDIA driver failed with status 9: NVIDIA-SMI has failed because it could not communicate with the "
            "NVIDIA driver.; use an image with the driver, and an NVIDIA instance type",
        ),
        ("true", "true", "the NVIDIA driver finds no GPU; use an NVIDIA instance type"),
        (
            TESLA,
            "echo 'MXNet sees no GPU'; exit 1",
            "one kernel failed with status 1: MXNet sees no GPU; the node's wheelhouse must hold the CUDA build of "
            "MXNet for this GPU",
        ),
    ],
    ids=["no driver", "a driver that fails", "no GPU", "no kernel"],
)
def test_a_gpu_that_does_not_compute_is_refused_by_name(
    driver: str | None, kernel: str, words: str, program: Program
) -> None:
    if driver is not None:
        program("nvidia-smi", driver)
    python = program("python", kernel)
    with pytest.raises(HoldfastError) as refused:
        gate.require_gpu(str(python))
    assert str(refused.value) == words


def test_a_driver_that_hangs_is_refused_in_time(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "DRIVER_SECONDS", 0.3)
    program("nvidia-smi", "while :; do :; done")
    with pytest.raises(HoldfastError, match=r"the NVIDIA driver did not answer within 0\.3 s; use an image"):
        gate.require_gpu(sys.executable)


def test_the_cpu_build_of_mxnet_runs_no_kernel_and_says_why() -> None:
    python = ROOT / ".venv-node/bin/python"
    argv = [str(python), "-P", "-m", "holdfast_node.engines.mxnet.kernel"]
    environment = {"PYTHONPATH": str(ROOT / "node"), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "MXNet sees no GPU: this is its build for CPUs, or CUDA's libraries do not fit the driver"
    ]


def run_gate(root: Path, *, mount: bool) -> subprocess.CompletedProcess[str]:
    """Run the gate with or without something mounted where checkpoints go, in a mount namespace of its own."""
    if os.geteuid():
        skip("only root may mount a file system")
    paths = NodePaths(root)
    paths.config.parent.mkdir(parents=True)
    paths.config.write_bytes(node_config(Role.WORKER).to_json())
    paths.checkpoints.mkdir(parents=True)
    done = f"{sys.executable} -m holdfast_node.systemd.gate --root {root}"
    script = f"mount -t tmpfs none {paths.checkpoints} && {done}" if mount else done
    environment = os.environ | {"PYTHONPATH": str(ROOT / "node"), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = ["unshare", "--mount", "sh", "-c", script]
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_a_node_whose_checkpoints_are_mounted_passes(tmp_path: Path) -> None:
    done = run_gate(tmp_path, mount=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_node_whose_checkpoints_would_be_lost_with_it_is_refused(tmp_path: Path) -> None:
    done = run_gate(tmp_path, mount=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"gate: no file system is mounted at {NodePaths(tmp_path).checkpoints}, so checkpoints would be lost with this "
        "node; the boot record of the node says why the mount failed\n"
    )
