"""`holdfast local demo` in each isolation, uninterrupted, interrupted and in each other's way."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from tests.e2e.support import HOLDFAST, ROOT, run_holdfast

from holdfast_local.session import leftovers

pytestmark = pytest.mark.e2e

CLAIMS = (
    "the three stacks are deployed",
    "5 nodes trained, each with its own identity",
    "every pair of peers spoke mutual TLS, and no other pair",
    "the model's signature is verified",
    "accuracy is at least 0.95",
    "a flipped byte in the fetched model is refused",
    "nothing is left: no process, mount, network link or file",
)


@pytest.mark.parametrize("isolation", ["root", "userns", "loopback"])
def test_demo_proves_every_claim_and_leaves_nothing(isolation: str, tmp_path: Path) -> None:
    demo = run_holdfast(tmp_path / "state", "local", "demo", "--isolation", isolation)
    assert demo.status == 0, demo.output + demo.errors
    for claim in CLAIMS:
        assert f"yes  {claim}" in demo.output
    assert "all of it is true" in demo.output
    assert leftovers(tmp_path / "state") == []


def test_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [str(HOLDFAST), "local", "demo"],
        env={**os.environ, "HOLDFAST_STATE_DIR": str(tmp_path / "state")},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "embedded AWS is up" in line:
                break
        second = run_holdfast(tmp_path / "state", "local", "demo", seconds=60)
        os.killpg(demo.pid, signal.SIGINT)
        rest = demo.stderr.read()
    assert demo.returncode == 130
    assert "interrupted; nothing was left running" in rest
    assert second.status == 1
    assert "error: a local cluster is already running in" in second.errors
    assert leftovers(tmp_path / "state") == []


def test_taken_port_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 4566)):
        demo = run_holdfast(tmp_path / "state", "local", "demo", seconds=60)
    assert demo.status == 1
    assert demo.errors.startswith("error: ")
    assert "4566" in demo.errors
    assert "Traceback" not in demo.errors
    assert leftovers(tmp_path / "state") == []


def test_nothing_running_is_said_plainly(tmp_path: Path) -> None:
    down = run_holdfast(tmp_path / "state", "local", "down", seconds=30)
    assert (down.status, down.output) == (0, "no local cluster is running\n")
    submit = run_holdfast(tmp_path / "state", "--local", "status", seconds=30)
    assert submit.status == 1
    assert "error: no local cluster is running; start one with `holdfast local up`" in submit.errors
