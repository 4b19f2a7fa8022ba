"""Starts and stops the node's other services through the service manager's files, and hears how they ended."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from holdfast_node.contract.layout import NodePaths

#: A service has 3 s to end by itself before it is killed (the service manager's limit); twice that, and some.
STOP_SECONDS = 10.0


class ServiceControl:
    """Asks for services by creating files, and takes the requests back to end them.

    An exit record belongs to the request after which it appeared: the one that the last generation left is not this
    generation's, and the manager may not have removed it yet.
    """

    def __init__(self, paths: NodePaths, sleep: Callable[[float], None] = time.sleep) -> None:
        self._paths, self._sleep = paths, sleep
        self._stale: dict[str, tuple[int, int] | None] = {}
        self._stale_pids: dict[str, tuple[int, int] | None] = {}

    def start(self, service: str) -> None:
        """Have the service started."""
        request = self._paths.start_request(service)
        request.parent.mkdir(exist_ok=True)
        self._stale[service] = _identity(self._paths.exit_record(service))
        self._stale_pids[service] = _identity(self._paths.main_pid(service))
        request.touch()

    def reload(self, service: str) -> None:
        """Have a running service read its files again."""
        request = self._paths.reload_request(service)
        request.parent.mkdir(exist_ok=True)
        request.touch()

    def requested(self, service: str) -> bool:
        """Return whether the service was asked for, by this agent or by one before it."""
        return self._paths.start_request(service).exists()

    def exit_status(self, service: str) -> int | None:
        """Return how the service ended since it was last asked for (negative: by a signal), or None."""
        record = self._paths.exit_record(service)
        with contextlib.suppress(FileNotFoundError):
            if _identity(record) != self._stale.get(service):
                return int(json.loads(record.read_text())["status"])
        return None

    def main_pid(self, service: str) -> int | None:
        """Return the id of the process that the service was last started as; None until it was, since it was asked for.

        The manager bounds how long a start takes, and records one that fails.
        """
        record = self._paths.main_pid(service)
        try:
            return int(record.read_text()) if _identity(record) != self._stale_pids.get(service) else None
        except (FileNotFoundError, ValueError):
            return None

    def stop(self, *services: str) -> bool:
        """End these services, all at once; return whether all have ended, within 10 s."""
        running = [service for service in services if self.requested(service) and self.exit_status(service) is None]
        for service in services:
            self._paths.start_request(service).unlink(missing_ok=True)
        until = time.monotonic() + STOP_SECONDS
        while any(self.exit_status(service) is None for service in running):
            if time.monotonic() > until:
                return False
            self._sleep(0.05)
        return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
