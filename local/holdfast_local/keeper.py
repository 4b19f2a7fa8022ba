"""The keeper: the process that owns a running local cluster. `session.up` starts it; it dies last.

It starts the embedded AWS and the hosts' process as children that die with it, and ends when it is told to or when
one of them ends.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

from holdfast_local.emulator.process import Emulator
from holdfast_local.errors import LocalError
from holdfast_local.session import EMULATOR_PORT, ENDING_SIGNALS, checkout
from holdfast_node.contract.errors import HoldfastError

REGION = "us-east-1"


def main() -> int:
    """Hold a cluster in `--state-dir` until SIGTERM."""
    parser = argparse.ArgumentParser(description="Own a running local cluster.")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--isolation", default="auto")
    parser.add_argument("--port", type=int, default=EMULATOR_PORT)
    arguments = parser.parse_args()
    os.umask(0o077)
    stop = threading.Event()
    for number in ENDING_SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    try:
        _hold(arguments.state_dir, arguments.isolation, arguments.port, stop)
    except HoldfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        traceback.print_exc()  # for the log; who waits for the keeper shows the line below
        print(f"error: the keeper failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _hold(state: Path, isolation: str, port: int, stop: threading.Event) -> None:
    root = checkout()
    emulator = Emulator(state, root / ".venv-aws/bin/python", port=port, region=REGION)
    emulator.start()
    hosts = None
    try:
        _write_private(state / "environment.json", json.dumps(emulator.environment()))
        hosts = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "holdfast_local.hosts.hypervisor",
                "--state-dir",
                str(state),
                "--isolation",
                isolation,
                "--node-python",
                str(root / ".venv-node/bin/python"),
            ],
            env={**os.environ, **emulator.environment()},
            stdin=subprocess.DEVNULL,
        )
        while not stop.wait(0.2):
            if hosts.poll() is not None:
                raise LocalError(f"the hosts' process ended with status {hosts.returncode}")
            if emulator.pid is None:
                raise LocalError(f"the embedded AWS ended; the last lines of {emulator.log} may say why")
    finally:
        if hosts and hosts.poll() is None:
            hosts.terminate()
            try:
                hosts.wait(timeout=10)
            except subprocess.TimeoutExpired:
                hosts.kill()
        emulator.stop()


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    sys.exit(main())
