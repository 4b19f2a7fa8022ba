"""A lab host: network, process and mount namespaces of its own, held by one thread of the driver.

Whatever is started on a host is the driver's own child, so its exit status, its signals and its id are the
driver's to use. It lives in the host's process namespace, whose init ends when the driver closes a pipe or ends,
however it ends: then the kernel kills the rest.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from holdfast_local.hosts.isolation import NAMESPACE_TOOLS, Mode, detect
from holdfast_local.hosts.namespaces import CLONE_NEWNS, CLONE_NEWPID, NetworkNamespace
from holdfast_local.lab import view
from holdfast_local.lab.errors import LabError
from holdfast_node.contract.layout import UIDS, User
from holdfast_node.listeners import listening

ROOT = Path(__file__).resolve().parents[3]
#: The node's interpreter, with MXNet. Not resolved: it finds its virtual environment by the name it is called by.
NODE_PYTHON = ROOT / ".venv-node/bin/python"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: How many files a service may have open unless it asks for more (systemd.exec(5), LimitNOFILE=).
OPEN_FILES = 1024

T = TypeVar("T")


def require() -> None:
    """Return if this machine can hold a lab.

    Raises:
        LabError: no root, a tool or MXNet is missing. An ordinary user may start the driver in a user namespace of
            its own, with subordinate ids: `unshare --user --map-root-user --map-auto …` (package uidmap).
    """
    try:
        detect(Mode.ROOT)
    except Exception as error:
        raise LabError(
            f"the lab makes network namespaces: {error}; it needs root (or `unshare --user --map-root-user --map-auto` "
            f"around it) and the packages {', '.join(sorted(set(NAMESPACE_TOOLS.values())))}"
        ) from None
    if not NODE_PYTHON.exists():
        raise LabError(f"{NODE_PYTHON.relative_to(ROOT)} is missing; run `make setup`")


class Process:
    """A process on a host, with everything that it writes in one log file."""

    def __init__(self, name: str, popen: "subprocess.Popen[bytes]", log_path: Path) -> None:
        self.name, self.popen, self.log_path = name, popen, log_path

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def log(self) -> str:
        """Return what it has written so far."""
        return self.log_path.read_text(errors="replace")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the launcher's events of this name (`holdfast_node.engines.mxnet.events`)."""
        parsed = [json.loads(line) for line in self.log().splitlines() if line.startswith('{"event"')]
        return [entry for entry in parsed if entry["event"] == event]

    def await_text(self, text: str, seconds: float = 60) -> None:
        """Return once the log holds this text; raise LabError if the process ends before, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            ended = not self.running  # read before the log: what it wrote last is in it
            if text in self.log():
                return
            if ended or time.monotonic() > deadline:
                why = f"it ended with status {self.popen.returncode}" if ended else f"not within {seconds:g} s"
                raise LabError(f"{text!r} is not in the log of {self.name} ({why}):\n{self.log()[-4000:]}")
            time.sleep(0.02)

    def wait(self, seconds: float = 60) -> int:
        """Return its exit status; raise LabError if it still runs after `seconds`."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} still runs after {seconds:g} s:\n{self.log()[-4000:]}") from None

    def kill(self) -> None:
        """Kill it and wait for its end; what it started may live until its host ends."""
        if self.running:
            self.popen.kill()
        self.popen.wait(10)


class Host:
    """A host of a `Network`: make it with `Network.host`."""

    def __init__(self, *, name: str, address: str, directory: Path, visible: Sequence[Path]) -> None:
        self.name, self.address, self.directory = name, address, directory
        directory.mkdir(parents=True)
        self._namespace = NetworkNamespace(also=CLONE_NEWPID | CLONE_NEWNS)
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self.call(lambda: view.narrow([directory.parent, *visible]))
            self._init = self.call(self._start_init)
        except BaseException:
            self._namespace.close()
            raise

    @property
    def thread_id(self) -> int:
        """The id that stands for the host's network namespace where a process id is wanted."""
        return self._namespace.thread_id

    def call(self, function: Callable[[], T]) -> T:
        """Return what a quick `function` returns inside the host; the sockets that it makes belong to the host.

        One call at a time; it must not start threads.
        """
        return self._namespace.run(function)

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        name: str | None = None,
        user: User | int = 0,
        env: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
    ) -> Process:
        """Start a program as `user` (a node's user, or an uid) with this environment and no capabilities but root's."""
        name = name or f"{self.name}-{Path(argv[0]).name}-{len(self._processes)}"
        log_path = self.directory / f"{name}.log"
        with log_path.open("wb") as log:
            popen = self._popen(argv, user, env, cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        return Process(name, popen, log_path)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        user: User | int = 0,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
        seconds: float = 60,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end; the exit status is the caller's to judge.

        Raises:
            LabError: it did not end within `seconds`; it is killed.
        """
        pipe = subprocess.PIPE
        popen = self._popen(argv, user, env, cwd, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            out, err = popen.communicate(stdin.encode(), seconds)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.communicate()
            raise LabError(
                f"{' '.join(map(str, argv))[:200]} did not end within {seconds:g} s on {self.name}"
            ) from None
        texts = (data.decode(errors="replace") for data in (out, err))
        return subprocess.CompletedProcess(list(map(str, argv)), popen.returncode, *texts)

    def python(self, code: str, *arguments: str, user: User | int = 0, seconds: float = 60) -> str:
        """Return what Python code prints here under the node's interpreter; raise LabError if it fails."""
        done = self.run([NODE_PYTHON, "-c", code, *arguments], user=user, env=python_environment(), seconds=seconds)
        if done.returncode:
            raise LabError(f"Python code on {self.name} ended with status {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout.strip()

    def listens(self, address: str, port: int) -> bool:
        """Return whether somebody listens here, now."""
        table = self.call(lambda: Path("/proc/thread-self/net/tcp").read_text())
        return listening(table, address, port)

    def await_listener(self, address: str, port: int, seconds: float = 20) -> None:
        """Return once somebody listens here; raise LabError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.listens(address, port):
            if time.monotonic() > deadline:
                raise LabError(f"nothing listens on {address}:{port} of {self.name} after {seconds:g} s")
            time.sleep(0.02)

    def close(self) -> None:
        """End everything on the host and let go of its namespaces."""
        assert self._init.stdin is not None
        self._init.stdin.close()
        # First the others: an init ends only when everybody in its namespace has been waited for.
        for popen in (*self._processes, self._init):
            popen.wait(10)
        self._namespace.close()

    def _start_init(self) -> "subprocess.Popen[bytes]":
        argv = ["setpriv", "--pdeathsig=KILL", "sh", "-c", "read _"]
        return subprocess.Popen(argv, stdin=subprocess.PIPE, env={"PATH": _PATH}, cwd="/", start_new_session=True)

    def _popen(
        self, argv: Sequence[str | Path], user: User | int, env: Mapping[str, str] | None, cwd: Path, **streams: Any
    ) -> "subprocess.Popen[bytes]":
        number = UIDS[user] if isinstance(user, User) else user
        ids = [f"--reuid={number}", f"--regid={number}", "--clear-groups"] if number else []
        strict = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"] if number else []
        identity = ["setpriv", *ids, *strict, "--"] if number else []
        whole = ["prlimit", f"--nofile={OPEN_FILES}:", *identity, *map(str, argv)]

        def start() -> "subprocess.Popen[bytes]":
            environment = {"PATH": _PATH, "LANG": "C.UTF-8", **(env or {})}
            return subprocess.Popen(whole, env=environment, cwd=cwd, start_new_session=True, **streams)

        popen = self.call(start)
        self._processes.append(popen)
        return popen


def python_environment(**extra: str) -> dict[str, str]:
    """Return what the node's interpreter needs to find the node's package, and `extra`."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("node", "local"))
    return {"PATH": _PATH, "LANG": "C.UTF-8", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **extra}
