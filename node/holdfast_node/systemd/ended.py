"""Writes a service's exit record when systemd has seen it end (`ExecStopPost=`, systemd.service(5)).

It runs as root and follows nothing: `NodePaths.run` and the directory of the records are root's.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from holdfast_node.contract.layout import NodePaths

#: systemd's own exit statuses, for what went wrong before the program began (systemd.exec(5), "Process exit codes").
_SETUP = range(200, 246)
_CAUSES = {
    "oom-kill": "it needed more memory than there is, or than its unit's MemoryMax= allows; use a larger instance",
    "watchdog": "it no longer said that it lives",
    "timeout": "it did not start or end in the time that its unit allows",
}


def exit_status(environment: Mapping[str, str]) -> int:
    """Return how the main process ended: its status, or the negative number of the signal that killed it.

    A service whose process never ran has the status 1 (a check before it failed), or 0 where nothing failed.
    """
    code, status = environment.get("EXIT_CODE", ""), environment.get("EXIT_STATUS", "")
    if code in ("killed", "dumped"):
        return -int(status) if status.isdecimal() else -signal.Signals[f"SIG{status}"].value
    if code == "exited" and status.isdecimal():
        return int(status)
    return 0 if environment.get("SERVICE_RESULT", "success") == "success" else 1


def explanation(service: str, environment: Mapping[str, str]) -> str:
    """Return what systemd knows about an end and the service itself could not log, or nothing."""
    result, status = environment.get("SERVICE_RESULT", ""), exit_status(environment)
    if result in _CAUSES:
        return f"{service}: {_CAUSES[result]}"
    if result == "exit-code" and environment.get("EXIT_CODE") == "exited" and status in _SETUP:
        return f"{service}: systemd could not start it: {status}, see systemd.exec(5); root finds more in the journal"
    return ""


def write_record(record: Path, status: int) -> None:
    """Replace a record by `{"status": status}`, which everybody on the node may read."""
    temporary = record.with_name(f".{record.name}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o644)  # whatever the unit's UMask= is
        file.write(json.dumps({"status": status}))
    temporary.replace(record)


def main() -> int:
    """Record the end of one service of the node below `--root`, from what systemd says of it in the environment."""
    parser = argparse.ArgumentParser(description="Record how a service ended.")
    parser.add_argument("service")
    parser.add_argument("--root", type=Path, default=Path("/"))
    arguments = parser.parse_args()
    if words := explanation(arguments.service, os.environ):
        print(words, flush=True)
    write_record(NodePaths(arguments.root).exit_record(arguments.service), exit_status(os.environ))
    return 0


if __name__ == "__main__":
    sys.exit(main())
