"""A node with the real systemd: this machine's own file system below an overlay, booted in namespaces of its own.

Nothing is fetched and nothing of this machine changes. What user data would have done is done from here: the bundle is
bound to its place, the environment has this machine's Debian Python and the packages of `.venv-node`, and
`units/install.sh` has run. There is no network but loopback, to which tests give the addresses that they need.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.node.test_agent import node_config

from holdfast_local.hosts.machines import cgroups
from holdfast_node.contract.layout import UIDS, NodePaths, User
from holdfast_node.contract.roles import Role

ROOT = Path(__file__).resolve().parents[2]
PATHS = NodePaths()
PYTHON = Path("/usr/bin/python3.11")
TOOLS = ("systemd-nspawn", "nsenter", "setpriv", "nft", "stunnel")
_BOOT_SECONDS = 60.0
T = TypeVar("T")

# The agent's command replaced: it enrols with nobody, and does what a test says. The rest of the unit is as it is.
_AGENT = """\
[Service]
ExecStart=
ExecStart=/opt/holdfast/venv/bin/python -P /opt/holdfast/test/agent.py
"""


def missing() -> str:
    """Return what this machine lacks to boot a node, or nothing."""
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "only root may boot a machine"
    if lacking or not PYTHON.exists():
        return f"this machine lacks {', '.join(lacking) or PYTHON}"
    return "" if cgroups.hierarchies() else "this machine gives no control groups"


def until(ask: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """Return the first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return answer


class SystemdNode:
    """One node; a context that ends it and whatever it has left."""

    def __init__(self, directory: Path, role: Role) -> None:
        self.directory, self.role = directory, role
        self.root = directory / "root"
        self.name = f"holdfast-test-{os.getpid()}-{directory.name}"
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "SystemdNode":
        try:
            self._mount()
            self._prepare()
            self.boot()
            # What the mount step of the boot would do: another device, for the trainer alone.
            self.run("mkdir", "-p", str(PATHS.checkpoints))
            self.mount_checkpoints()
            self.run("bash", "/opt/holdfast/bundle/units/install.sh", self.role)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def boot(self) -> None:
        """Start systemd, and return when it has done what it does at a boot."""
        argv = [
            *("setpriv", "--pdeathsig=KILL", "systemd-nspawn", "--boot", f"--directory={self.root}"),
            *(f"--machine={self.name}", "--register=no", "--keep-unit", "--private-network", "--console=read-only"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--kill-signal=SIGRTMIN+3"),
            "--capability=CAP_BPF,CAP_PERFMON,CAP_IPC_LOCK,CAP_NET_ADMIN",
            "--system-call-filter=bpf @keyring @memlock",
            f"--bind-ro={ROOT}/node:/opt/holdfast/bundle",
            f"--bind-ro={ROOT}/.venv-node/lib/python3.11/site-packages:{_packages()}",
            f"--bind-ro={ROOT}/tests/boot/in_node:/opt/holdfast/test",
        ]
        environment = {
            "PATH": os.environ["PATH"],
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        }
        script = "".join(f'echo 0 > "{group / "cgroup.procs"}"; ' for group in self._groups()) + 'exec "$@"'
        with (self.directory / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", script, "sh", *argv],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=environment,
            )
        until(self._leader, "the node's first process", _BOOT_SECONDS)
        states = ("running", "degraded")
        until(lambda: self.run("systemctl", "is-system-running").stdout.strip() in states, "the boot", _BOOT_SECONDS)

    def end(self) -> None:
        """End the machine without asking, as a power failure does; its disk stays."""
        if self._process is not None:
            for pid in (self._child(), self._process.pid):  # with its first process goes the whole machine
                if pid:
                    os.kill(pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None
        for group in self._groups():
            until(lambda group=group: not _pids(group), "the end of the node's processes", 10)  # type: ignore[misc]

    def mount_checkpoints(self) -> None:
        """Mount another file system where checkpoints go."""
        options = f"uid={UIDS[User.TRAINER]},gid={UIDS[User.TRAINER]},mode=700"
        self.run("mount", "-t", "tmpfs", "-o", options, "checkpoints", str(PATHS.checkpoints))

    def run(self, *argv: str, user: User | None = None, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run a command in the node, as root or as a user with its groups."""
        enter = [
            "nsenter",
            f"--target={self._leader()}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--root",
            "--wd=/",
        ]
        if user is not None:
            others = f"{UIDS[User.TUNNEL]},{UIDS[User.TRAINER]}" if user is User.AGENT else str(UIDS[user])
            enter += ["--", "setpriv", f"--reuid={UIDS[user]}", f"--regid={UIDS[user]}", f"--groups={others}"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        return subprocess.run(
            [*enter, "--", *argv], capture_output=True, text=True, env=environment, timeout=seconds, check=False
        )

    def systemctl(self, *argv: str) -> str:
        """Return what systemctl says."""
        done = self.run("systemctl", *argv)
        return (done.stdout + done.stderr).strip()

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit."""
        shown = self.systemctl("show", unit, *(f"--property={name}" for name in properties))
        return dict(line.split("=", 1) for line in shown.splitlines())

    def start(self, *, agent: str = "ready") -> None:
        """Start what a node runs; the agent does what `agent` says (in_node/agent.py)."""
        self.run("sh", "-c", f"echo {agent} > /etc/holdfast/do")
        self.systemctl("start", "holdfast.target")

    def launch(self, *argv: str) -> None:
        """Write what the trainer is to start, as the agent does."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": str(PATHS.work),
        }
        launch = json.dumps({"argv": argv, "env": environment | {"TMPDIR": str(PATHS.work)}, "cwd": str(PATHS.work)})
        script = f"umask 027; printf '%s' \"$1\" > {PATHS.launch}"
        done = self.run("sh", "-c", script, "sh", launch, user=User.AGENT)
        assert done.returncode == 0, done.stderr

    def ask(self, service: str) -> None:
        """Ask for a service, anew."""
        request = str(PATHS.start_request(service))
        self.run("rm", "-f", request, user=User.AGENT)
        self.run("rm", "-f", str(PATHS.exit_record(service)))
        self.run("touch", request, user=User.AGENT)

    def status(self, service: str) -> int | None:
        """Return what a service's exit record says, or None while there is none."""
        text = self.run("cat", str(PATHS.exit_record(service))).stdout
        return int(json.loads(text)["status"]) if text else None

    def ended(self, service: str, seconds: float = 60) -> int:
        """Return how a service ended, once it has."""
        until(lambda: self.status(service) is not None, f"the end of the {service}", seconds)
        status = self.status(service)
        assert status is not None
        return status

    def take_back(self, service: str) -> None:
        """Take a request back, and wait until nothing of it is left."""
        self.run("rm", "-f", str(PATHS.start_request(service)), user=User.AGENT)
        units = (f"holdfast-{service}.service", f"holdfast-request@{service}.service")
        until(lambda: all(self.state(unit) in ("inactive", "failed") for unit in units), f"the end of the {service}")

    def state(self, unit: str) -> str:
        """Return a unit's state, such as `active`."""
        return self.systemctl("is-active", unit)

    def log(self, service: str) -> str:
        """Return a service's log."""
        return self.run("cat", str(PATHS.log(service))).stdout

    def _mount(self) -> None:
        upper, work = self.directory / "upper", self.directory / "work"
        for path in (self.root, upper, work):
            path.mkdir(parents=True)
        options = f"lowerdir=/,upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)], check=True)
        self._stack.callback(subprocess.run, ["umount", "--lazy", str(self.root)], check=False)
        for group in self._groups():
            group.mkdir()
            self._stack.callback(_remove, group)
        self._stack.callback(self.end)

    def _prepare(self) -> None:
        # This machine's own services are none of a node's.
        shutil.rmtree(self.root / "etc/systemd/system")
        (self.root / "etc/systemd/system").mkdir()
        for path in ("etc/machine-id", "etc/fstab"):
            (self.root / path).write_text("")
        venv = self.root / "opt/holdfast/venv"
        shutil.rmtree(self.root / "opt/holdfast", ignore_errors=True)
        subprocess.run(
            ["chroot", str(self.root), str(PYTHON), "-m", "venv", "--without-pip", "/opt/holdfast/venv"], check=True
        )
        assert (venv / "bin/python").exists()
        for name in ("bundle", "test"):
            (self.root / "opt/holdfast" / name).mkdir()
        config = NodePaths(self.root).config
        config.parent.mkdir(exist_ok=True)
        config.write_bytes(node_config(self.role).to_json())
        drop_in = self.root / "etc/systemd/system/holdfast-agent.service.d/test.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(_AGENT)

    def _leader(self) -> int:
        assert self._process is not None and self._process.poll() is None, self._console()
        return self._child()

    def _child(self) -> int:
        pid = self._process.pid if self._process else 0
        with contextlib.suppress(OSError):
            return int((Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or ["0"])[0])
        return 0

    def _console(self) -> str:
        return (self.directory / "console.log").read_text(errors="replace")[-2000:]

    def _groups(self) -> list[Path]:
        return [hierarchy / self.name for hierarchy in cgroups.hierarchies()]


def _packages() -> str:
    return "/opt/holdfast/venv/lib/python3.11/site-packages"


def _pids(group: Path) -> list[str]:
    found: list[str] = []
    for directory, _, _ in os.walk(group):
        with contextlib.suppress(OSError):
            found += re.findall(r"\d+", (Path(directory) / "cgroup.procs").read_text())
    return found


def _remove(group: Path) -> None:
    for directory, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            Path(directory).rmdir()


@contextlib.contextmanager
def a_node(directory: Path, role: Role) -> Iterator[SystemdNode]:
    """A node of this role, booted and with its units installed."""
    with SystemdNode(directory, role) as node:
        yield node
