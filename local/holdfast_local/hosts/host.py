"""One host of the hypervisor: its processes, its directories, and what it has told about itself."""

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import holdfast_local
import holdfast_node
from holdfast_local.hosts.cloud import Instance
from holdfast_local.hosts.machines.setup import MachineSetup
from holdfast_local.hosts.processes import children, kill_family
from holdfast_local.hosts.setup import HostSetup
from holdfast_local.mark import own_mark
from holdfast_node.contract.layout import NodePaths
from holdfast_node.processes import processes

_DEATH_SECONDS = 3.0
Setup = HostSetup | MachineSetup


class Host:
    """A host that runs on this machine for one instance."""

    def __init__(
        self, *, instance: Instance, slot: int, address: str, directory: Path, routes: tuple[str, ...] = ()
    ) -> None:
        self.instance, self.slot, self.address, self.directory = instance, slot, address, directory
        #: Where its VPC's routes lead beside the VPC itself.
        self.routes = routes
        self.phase, self.cause = "starting", ""
        self.services: dict[str, str] = {}
        self.resources = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._init_pid = 0
        self._killed = False
        self._lock = threading.Lock()

    @property
    def disk(self) -> Path:
        """The instance's own volume."""
        return self.directory / "disk"

    @property
    def console(self) -> Path:
        """What the host's first processes wrote outside any service."""
        return self.directory / "console.log"

    @property
    def launcher_pid(self) -> int:
        """The process that holds the host's namespaces; also the init's parent."""
        return self._process.pid if self._process else 0

    def start(self, setup: Setup, equip: Callable[["Host"], Setup], changed: Callable[[], None]) -> None:
        """Start the host's processes. Call it from the thread that lives as long as the hypervisor.

        The kernel kills a child when the thread that made it ends (PR_SET_PDEATHSIG, prctl(2)), and so, however the
        hypervisor ends, the host does. `equip` is called in another thread once the host's namespaces are there: it
        gives the host its network and services, and returns the setup that the host is to have.
        """
        self.disk.mkdir(parents=True, exist_ok=True)
        (self.directory / "setup.json").write_bytes(setup.to_json())
        environment = {
            **own_mark(),
            "LANG": "C.UTF-8",
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "PYTHONPATH": os.pathsep.join(_source_roots()),
        }
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                self._argv(setup),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        if not setup.namespaces:
            self._init_pid = self._process.pid
        arguments = (self._process, setup, equip, changed)
        threading.Thread(target=self._follow, args=arguments, name=self.instance.instance_id, daemon=True).start()

    def kill(self) -> None:
        """End the host at once with everything in it, and keep of its disk only the logs."""
        with self._lock:
            self._killed = True
            self.phase = "terminated"
        if self._process is not None:
            init = self.init_pid()
            if self._init_pid == self._process.pid:
                kill_family(self._process.pid)
            self._process.kill()
            self._process.wait(_DEATH_SECONDS)
            _await_end(init)
        self.resources.close()
        logs = NodePaths(self.disk).logs
        with contextlib.suppress(OSError):
            logs.rename(self.directory / "logs")
        shutil.rmtree(self.disk, ignore_errors=True)

    def init_pid(self) -> int:
        """Return the id of the host's init as this machine counts, or 0 while there is none."""
        if not self._init_pid and self._process is not None:
            self._init_pid = next(iter(children(self._process.pid)), 0)
        return self._init_pid

    def describe(self) -> dict[str, Any]:
        """Return the host's entry in `hosts.json`."""
        with self._lock:
            return {
                "instance_id": self.instance.instance_id,
                "role": str(self.instance.role),
                "group": self.instance.group,
                "address": self.address,
                "pid": self.init_pid(),
                "phase": self.phase,
                "cause": self.cause,
                "services": dict(self.services),
                "directory": str(self.directory),
            }

    def _argv(self, setup: Setup) -> list[str]:
        module = [setup.python, "-m"]
        if not setup.namespaces:
            # TERM, so that the init ends its services' families itself: no process namespace does it for it.
            file = str(self.directory / "setup.json")
            return ["setpriv", "--pdeathsig=TERM", *module, "holdfast_local.hosts.init", "--setup", file]
        own = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        return ["setpriv", "--pdeathsig=KILL", *own, *module, "holdfast_local.hosts.rootfs"]

    def _follow(
        self,
        process: "subprocess.Popen[bytes]",
        setup: Setup,
        equip: Callable[["Host"], Setup],
        changed: Callable[[], None],
    ) -> None:
        assert process.stdout is not None and process.stdin is not None
        with process.stdout, process.stdin:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "namespaces":
                    try:
                        process.stdin.write(equip(self).to_json() + b"\n")
                        process.stdin.flush()
                    except Exception as error:
                        self._set("failed", f"the host could not be given its network: {error}")
                        process.kill()
                else:
                    self._note(event)
                changed()
        if not self._killed and self.phase != "failed":
            self._set("dead", self._last_words())
        changed()

    def _note(self, event: dict[str, Any]) -> None:
        with self._lock:
            if event["event"] == "service":
                self.services[str(event["name"])] = str(event["state"])
            elif event["event"] == "phase" and not self._killed:
                self.phase, self.cause = str(event["phase"]), str(event.get("cause", ""))

    def _set(self, phase: str, cause: str) -> None:
        with self._lock:
            if not self._killed:
                self.phase, self.cause = phase, cause

    def _last_words(self) -> str:
        try:
            lines = self.console.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "the host's processes ended and said nothing"


def _source_roots() -> list[str]:
    return [str(Path(str(package.__file__)).parent.parent) for package in (holdfast_local, holdfast_node)]


def _await_end(pid: int) -> None:
    until = time.monotonic() + _DEATH_SECONDS
    while pid and time.monotonic() < until and any(p.pid == pid and p.state != "Z" for p in processes()):
        time.sleep(0.01)
