"""The init of a local host: boots the node and keeps its services until the instance ends.

It is process 1 of a host in namespaces; on shared loopback it is a plain process that adopts the orphans of its
services. Events go to the hypervisor as JSON lines on standard output, and to the boot log.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from holdfast_local.hosts.errors import BootError
from holdfast_local.hosts.manager import ServiceManager
from holdfast_local.hosts.processes import kill_family
from holdfast_local.hosts.setup import BUNDLE, CA_BUNDLE, HOST_CODE, VENV, HostSetup, make_directories
from holdfast_local.mark import own_mark
from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import User
from holdfast_node.contract.services import Service, services

_BOOT_SECONDS = 180
_TICK_SECONDS = 0.05
_PR_SET_CHILD_SUBREAPER = 36


class Init:
    """Boots one host and runs its services."""

    def __init__(self, setup: HostSetup) -> None:
        self._setup, self._paths = setup, setup.paths
        self._python = f"/{VENV}/bin/{Path(setup.python).name}" if setup.namespaces else setup.python
        self._stopping = False

    def run(self) -> None:
        """Boot, then serve until SIGTERM. A failed boot is recorded, and the host stays up as it would on EC2."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        manager = None
        try:
            self._directories()
            self.phase("boot")
            self._boot()
            table = self._table()
            manager = ServiceManager(
                paths=self._paths,
                table=table,
                uids=self._setup.uids,
                environment=self._environment,
                drop_capabilities=self._setup.namespaces,
                report=lambda name, state: self.tell({"event": "service", "name": name, "state": state}),
            )
            self.phase("services")
            manager.start()
            self.phase("running")
        except (HoldfastError, OSError) as error:
            self.tell({"event": "phase", "phase": "failed", "cause": str(error)})
        while not self._stopping:
            if manager is not None:
                manager.tick()
            time.sleep(_TICK_SECONDS)
        if manager is not None:
            manager.stop()

    def phase(self, name: str) -> None:
        """Tell that a phase of the boot has begun."""
        self.tell({"event": "phase", "phase": name})

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event to the hypervisor and append it to the boot log."""
        print(json.dumps(event), flush=True)
        if self._paths.logs.is_dir():
            with (self._paths.logs / "boot.log").open("a") as log:
                log.write(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}) + "\n")

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _directories(self) -> None:
        if not self._setup.namespaces:
            mount_point = self._paths.checkpoints
            mount_point.parent.mkdir(parents=True, exist_ok=True)
            if not mount_point.is_symlink():
                mount_point.symlink_to(self._setup.shared_disk)
        make_directories(self._paths, self._setup.uids)
        if not self._setup.namespaces and self._setup.ca_file is not None:
            shutil.copyfile(self._setup.ca_file, self._paths.root / CA_BUNDLE)

    def _boot(self) -> None:
        argv = [self._python, "-m", "holdfast_local.hosts.boot", "--root", str(self._paths.root)]
        if self._setup.namespaces:
            argv.append("--network")
        code = f"/{HOST_CODE}" if self._setup.namespaces else os.environ["PYTHONPATH"]
        environment = self._base_environment() | self._setup.aws_environment() | {"PYTHONPATH": code}
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment)
        deadline = time.monotonic() + _BOOT_SECONDS
        cause = ""
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            cause = told.get("error", cause)
            if "error" not in told:
                self.phase(told["phase"])
            if self._stopping or time.monotonic() > deadline:
                process.kill()
        if (status := process.wait(_BOOT_SECONDS)) != 0:
            raise BootError(cause or f"the boot ended with status {status}; its output is in the host's console log")

    def _table(self) -> list[Service]:
        NodeConfig.parse(self._paths.config.read_bytes())
        table = services(self._paths, python=self._python)
        if self._setup.namespaces:
            return list(table)
        for service in table:
            if service.user is None:
                self.tell({"event": "service", "name": service.name, "state": "skipped: no namespaces"})
        # What waits for a request is answered: whoever asks waits for its end.
        return [
            replace(service, argv=("true",), user=User.AGENT) if service.user is None else service
            for service in table
            if service.user is not None or service.waits_for_request
        ]

    def _environment(self, service: Service) -> dict[str, str]:
        homes = {User.AGENT: self._paths.state, User.TRAINER: self._paths.work}
        environment = self._base_environment() | {
            "HOME": str(homes.get(service.user, self._paths.root) if service.user else self._paths.root),
            "PYTHONPATH": str(self._paths.root / BUNDLE),
        }
        if service.user is User.AGENT:
            environment |= self._setup.aws_environment()
        if self._setup.preload is not None:
            environment["LD_PRELOAD"] = self._setup.preload
        return environment

    def _base_environment(self) -> dict[str, str]:
        return {
            **own_mark(),
            "HOME": str(self._paths.root),  # not the user's own, where AWS profiles could be
            "LANG": "C.UTF-8",
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "PYTHONUNBUFFERED": "1",
        }


def main() -> None:
    """Be the init of the host that `--setup` describes."""
    parser = argparse.ArgumentParser(description="Run as the init of a local host.")
    parser.add_argument("--setup", type=Path, required=True)
    setup = HostSetup.parse(parser.parse_args().setup.read_bytes())
    os.umask(0o022)  # the contract gives every mode; a stricter inherited mask would lock the services out
    if not setup.namespaces:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        Init(setup).run()
    finally:
        if not setup.namespaces:
            kill_family(os.getpid(), spare=os.getpid())


if __name__ == "__main__":
    main()
