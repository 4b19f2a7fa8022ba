"""What can be seen of a machine from outside: its boot record, cloud-init's result, its units' control groups."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast_local.hosts.machines import cgroups
from holdfast_local.hosts.machines.setup import MachineSetup

BOOT_LOG = "var/log/holdfast/boot.log"
#: How cloud-init says that it has ended; it removes the file when a boot begins.
RESULT = "var/lib/cloud/data/result.json"
_UNITS = "system.slice/holdfast-*.service/cgroup.events"
_MARK = "holdfast: "


class Follower:
    """Tells a machine's phases and services as events, each when it changes; call `tick` often.

    One follower sees one boot: what an earlier boot has left is not told again.
    """

    def __init__(self, setup: MachineSetup, tree: Path, tell: Callable[[dict[str, str]], None]) -> None:
        self._setup, self._tree, self._tell = setup, tree, tell
        self._told = ""
        self._services: dict[str, str] = {}
        self._console = Path(setup.directory) / "console.log"
        self._console_from = _size(self._console)
        self._boot_log_from = _size(tree / BOOT_LOG)
        self._result_before = _identity(tree / RESULT)

    def tick(self) -> None:
        """Tell what has changed."""
        self._tell_phase()
        self._tell_services()

    def _tell_phase(self) -> None:
        phase, cause = self._phase()
        if phase and f"{phase} {cause}" != self._told:
            self._told = f"{phase} {cause}"
            self._tell({"event": "phase", "phase": phase, "cause": cause})

    def _phase(self) -> tuple[str, str]:
        records = self._records()
        if failed := next((record for record in records if record.get("status") != "ok"), None):
            cause = f"{failed.get('phase')}: {failed.get('cause', '')}"
            remedy = failed.get("remedy", "")
            return "failed", f"{cause}; {remedy}" if remedy else cause
        if _identity(self._tree / RESULT) in (None, self._result_before):
            return (str(records[-1].get("phase", "")), "") if records else ("", "")
        result = _read(self._tree / RESULT)
        if errors := json.loads(result or b"{}").get("v1", {}).get("errors"):
            return "failed", self._last_words() or f"cloud-init: {errors[-1]}"
        return "running", ""

    def _records(self) -> list[dict[str, Any]]:
        """Return this boot's records; a line that is still being written is left for the next time."""
        text = _read(self._tree / BOOT_LOG)[self._boot_log_from :]
        records = []
        for line in text.split(b"\n")[:-1]:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
        return records

    def _last_words(self) -> str:
        """Return the last line of the console that is ours; user data's own failures are written there."""
        text = _read(self._console)[self._console_from :].decode(errors="replace")
        lines = [line[line.index(_MARK) :].strip() for line in text.splitlines() if _MARK in line]
        return lines[-1].removeprefix(_MARK) if lines else ""

    def _tell_services(self) -> None:
        hierarchies = cgroups.hierarchies()
        if not hierarchies:
            return
        running = {
            events.parent.name.removeprefix("holdfast-").removesuffix(".service")
            for pattern in (_UNITS, f"*/{_UNITS}")
            for events in (hierarchies[-1] / self._setup.cgroup).glob(pattern)
            if b"populated 1" in _read(events)
        }
        states = {name: "running" if name in running else "ended" for name in {*running, *self._services}}
        for name, state in states.items():
            if self._services.get(name) != state:
                self._services[name] = state
                self._tell({"event": "service", "name": name, "state": state})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells one file at a path from the next one there; their contents may be the same."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _size(path: Path) -> int:
    return len(_read(path))
