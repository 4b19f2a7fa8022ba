"""`holdfast local demo` in each isolation, uninterrupted, interrupted and in each other's way."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from tests.boot.support import cannot_boot
from tests.e2e.support import HOLDFAST, ROOT, require_isolation, run_holdfast

from holdfast_local.hosts.machines.trial import refusal
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


@pytest.mark.parametrize("isolation", ["boot", "root", "userns", "loopback"])
def test_demo_proves_every_claim_and_leaves_nothing(isolation: str, tmp_path: Path) -> None:
    if isolation != "boot":
        require_isolation(isolation)
    elif reason := refusal():
        cannot_boot(f"hosts cannot be booted here: {reason}")
    demo = run_holdfast(tmp_path / "state", "local", "demo", "--isolation", isolation, seconds=900)
    assert demo.status == 0, demo.output + demo.errors
    for claim in CLAIMS:
        assert f"yes  {claim}" in demo.output
    assert "all of it is true" in demo.output
    assert leftovers(tmp_path / "state") == []


def heed_signals() -> None:
    """Undo what the test run may have inherited: background jobs ignore SIGINT, nohup(1) makes them ignore SIGHUP."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_demo_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with subprocess.Popen(
        [str(HOLDFAST), "local", "demo"],
        env={**os.environ, "HOLDFAST_STATE_DIR": str(state)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    ) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "embedded AWS is up" in line:
                break
        second = run_holdfast(state, "local", "demo", seconds=60)
        for _ in range(10):  # impatience does not break the teardown
            os.killpg(demo.pid, number)
            time.sleep(0.05)
        rest = demo.stderr.read()
    left = leftovers(state)
    run_holdfast(state, "local", "down", seconds=60)  # whatever was found, the next test starts from nothing
    assert demo.returncode == 130
    assert "interrupted; nothing was left running" in rest
    assert second.status == 1
    assert "error: a local cluster is already running in" in second.errors
    assert left == []


def test_taken_port_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 4566)):
        demo = run_holdfast(tmp_path / "state", "local", "demo", seconds=60)
    assert demo.status == 1
    assert demo.errors.startswith("error: ")
    assert "4566" in demo.errors
    assert "Traceback" not in demo.errors
    assert leftovers(tmp_path / "state") == []


def test_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    for command in ("up", "down", "demo"):
        outcome = run_holdfast(tmp_path, "local", command, seconds=60)
        assert outcome.status == 1
        assert outcome.errors.startswith(
            f"error: the state directory must be new, empty or made by `holdfast local up`, got {tmp_path}"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_running_is_said_plainly(tmp_path: Path) -> None:
    down = run_holdfast(tmp_path / "state", "local", "down", seconds=30)
    assert (down.status, down.output) == (0, "no local cluster is running\n")
    submit = run_holdfast(tmp_path / "state", "--local", "status", seconds=30)
    assert submit.status == 1
    assert "error: no local cluster is running; start one with `holdfast local up`" in submit.errors
