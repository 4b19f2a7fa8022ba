"""The service manager of a local host: what systemd does on an instance, for the services of the contract.

A service that waits starts when its request file appears, ends (its whole process group) when that file is
removed, and starts again when a new one appears. A service's process id is written when it has started, and its exit
record when it has ended. A reload request becomes a SIGHUP. What was killed is started again where its service says so,
and what no longer says that it lives is killed.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast_local.hosts.errors import BootError
from holdfast_node.contract.layout import NodePaths, User
from holdfast_node.contract.services import WATCHDOG_START_SECONDS, Service

STOP_SECONDS = 3.0
RESTART_SECONDS = 1.0
_ONCE_SECONDS = 60.0
_UMASK = 0o027


@dataclass
class _Running:
    service: Service
    process: "subprocess.Popen[bytes]"
    mark: tuple[int, int] | None
    marked: float
    beats: bool = False
    stop_by: float | None = None


class ServiceManager:
    """Starts, stops and reaps a host's services; call `tick` often.

    Args:
        paths: the node's directories.
        table: the services, in start order.
        uids: the users' ids, or None where they share the caller's.
        environment: the whole environment of a service, by service.
        drop_capabilities: whether this process may empty the services' capability bounding set.
        report: called with a service's name and its state, `running` or `exited N` (negative: by a signal).
    """

    def __init__(
        self,
        *,
        paths: NodePaths,
        table: Sequence[Service],
        uids: Mapping[User, int] | None,
        environment: Callable[[Service], dict[str, str]],
        drop_capabilities: bool,
        report: Callable[[str, str], None],
    ) -> None:
        self._paths, self._table, self._uids = paths, table, uids
        self._environment, self._drop, self._report = environment, drop_capabilities, report
        self._running: dict[int, _Running] = {}
        self._handled: dict[str, tuple[int, int]] = {}
        self._restart_at: dict[str, float] = {}
        # Through descriptors: where a host's users are one, the agent owns the directory above these too.
        self._records = _open_directory(paths.exit_record("any").parent)
        self._reloads = _open_directory(paths.reload_request("any").parent)

    def start(self) -> None:
        """Run the `once` services to their end, then start those that wait for nothing.

        Raises:
            BootError: a `once` service failed; the message ends with the last line of its log.
        """
        for service in self._table:
            if service.once:
                self._run_once(service)
            elif not service.waits_for_request:
                self._start(service)

    def tick(self) -> None:
        """Reap what has ended, start what is asked for, stop what no longer is."""
        self.reap()
        now = time.monotonic()
        for service in self._table:
            if service.waits_for_request:
                self._follow_request(service, now)
            if service.reloads:
                self._follow_reload(service)
            if self._restart_at.get(service.name, now) < now:
                del self._restart_at[service.name]
                self._start(service)
        self._watch(now)
        for running in self._running.values():
            if running.stop_by is not None and now >= running.stop_by:
                _signal_group(running.process.pid, signal.SIGKILL)

    def _watch(self, now: float) -> None:
        """Kill what has not said for too long that it lives; times are compared with each other, not with a clock."""
        for running in self._running.values():
            if (limit := running.service.watchdog_seconds) is None:
                continue
            mark = _identity(self._paths.alive(running.service.name))
            if mark != running.mark:
                running.mark, running.marked, running.beats = mark, now, True
            elif now - running.marked > (limit if running.beats else WATCHDOG_START_SECONDS):
                _signal_group(running.process.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Collect every child that has ended; orphans of services are collected without a record."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if running := self._running.pop(pid, None):
                    self._ended(running, os.waitstatus_to_exitcode(status))

    def stop(self) -> None:
        """End every service: politely, then by force after `STOP_SECONDS`."""
        for pid in self._running:
            _signal_group(pid, signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        while self._running and time.monotonic() < until:
            time.sleep(0.02)
            self.reap()
        for pid in self._running:
            _signal_group(pid, signal.SIGKILL)
        while self._running:
            time.sleep(0.02)
            self.reap()

    def argv(self, service: Service) -> list[str]:
        """Return how a service is started: as its user, with no way to more privileges."""
        argv = ["setpriv", "--pdeathsig=KILL"]
        if service.user is not None:
            argv.append("--no-new-privs")
            if self._drop:
                argv += ["--inh-caps=-all", "--bounding-set=-all"]
            if self._uids is not None:
                uid = self._uids[service.user]
                argv += [f"--reuid={uid}", f"--regid={uid}"]
                # The agent hands files to the other two and reads what they leave.
                others = f"{self._uids[User.TUNNEL]},{self._uids[User.TRAINER]}"
                argv.append(f"--groups={others}" if service.user is User.AGENT else "--clear-groups")
        return [*argv, "--", *service.argv]

    def _run_once(self, service: Service) -> None:
        process = self._spawn(service)
        try:
            status = process.wait(_ONCE_SECONDS)
        except subprocess.TimeoutExpired:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
            raise BootError(f"the {service.name} service did not end within {_ONCE_SECONDS:.0f} s") from None
        self._report(service.name, f"exited {status}")
        self._record(service.name, status)
        if status != 0:
            lines = self._paths.log(service.name).read_text(errors="replace").strip().splitlines()
            raise BootError(
                f"the {service.name} service ended with status {status}: {lines[-1] if lines else 'it logged nothing'}"
            )

    def _follow_request(self, service: Service, now: float) -> None:
        request = _identity(self._paths.start_request(service.name))
        running = self._running_process(service)
        if running is not None:
            if request is None and running.stop_by is None:
                _signal_group(running.process.pid, signal.SIGTERM)
                running.stop_by = now + STOP_SECONDS
        elif request is not None and request != self._handled.get(service.name):
            self._handled[service.name] = request
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{service.name}.json", dir_fd=self._records)
            self._start(service)

    def _follow_reload(self, service: Service) -> None:
        try:
            os.unlink(service.name, dir_fd=self._reloads)  # first: a request made from now on is another one
        except OSError:
            return
        running = self._running_process(service)
        if running is not None and running.stop_by is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.process.pid, signal.SIGHUP)
            self._report(service.name, "reloaded")
            self._report(service.name, "running")

    def _running_process(self, service: Service) -> _Running | None:
        return next((entry for entry in self._running.values() if entry.service is service), None)

    def _start(self, service: Service) -> None:
        mark = _identity(self._paths.alive(service.name))  # an earlier process may have left one
        process = self._spawn(service)
        self._running[process.pid] = _Running(service, process, mark, time.monotonic())
        _write(self._records, f"{service.name}.pid", str(process.pid))
        self._report(service.name, "running")

    def _spawn(self, service: Service) -> "subprocess.Popen[bytes]":
        log = self._paths.log(service.name)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o640)
        try:
            if self._uids is not None and service.user is not None:
                os.fchown(descriptor, self._uids[service.user], self._uids[service.user])
            os.fchmod(descriptor, 0o640)
            return subprocess.Popen(
                self.argv(service),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                env=self._environment(service),
                cwd=self._paths.root,
                start_new_session=True,
                umask=_UMASK,
            )
        finally:
            os.close(descriptor)

    def _ended(self, running: _Running, status: int) -> None:
        running.process.returncode = status  # Popen did not see it end: waitpid(-1) took the status
        _signal_group(running.process.pid, signal.SIGKILL)  # what is left of its group has lost its leader
        self._record(running.service.name, status)
        self._report(running.service.name, f"exited {status}")
        if running.service.restarts and status < 0 and running.stop_by is None:
            self._restart_at[running.service.name] = time.monotonic() + RESTART_SECONDS

    def _record(self, name: str, status: int) -> None:
        _write(self._records, f"{name}.json", json.dumps({"status": status}))


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _write(directory: int, name: str, text: str) -> None:
    """Write a file that everybody may read, atomically, below an open directory."""
    temporary = f".{name}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o644, dir_fd=directory)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchmod(descriptor, 0o644)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
