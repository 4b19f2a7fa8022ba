"""One JSON object per line on standard output: how a launcher tells the agent what happened."""

import json
import os
import sys


def emit(event: str, **fields: object) -> None:
    """Write one event line at once, whole, and on a line of its own.

    It starts with a line break because a script's progress bar may have left the cursor within a line. It bypasses
    Python's buffers, so that it is out even if the process ends in the next instruction.
    """
    sys.stdout.flush()
    line = json.dumps({"event": event, **fields}, sort_keys=False, allow_nan=False)
    os.write(1, f"\n{line}\n".encode())


def refused(reason: str, **fields: object) -> None:
    """Write a security event: something was refused, and why."""
    emit("command_refused", security=True, reason=reason[:300], **fields)
