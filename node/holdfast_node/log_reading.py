"""What the agent reads out of its services' logs. User code writes some of them: nothing in them is trusted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAX_CAUSE = 300
_MAX_HEAD_BYTES = 4 << 20
_MAX_TAIL_BYTES = 64 << 10
_MAX_TIME = 1 << 40  # seconds; beyond it no time stamp is honest


def first_step_ms(trainer_log: str) -> int | None:
    """Return when the trainer says its first training step began (milliseconds since the epoch), or None.

    The log is user code's: a line that only looks like the event is passed over.
    """
    for event in _events(trainer_log, "first_step"):
        time = event.get("time")
        if isinstance(time, int | float) and 0 < time < _MAX_TIME:
            return int(time * 1000)
    return None


def late_peers(trainer_log: str) -> frozenset[tuple[str, int]]:
    """Return role and rank of those whose heartbeats the trainer says are late."""
    late: set[tuple[str, int]] = set()
    for event in _events(trainer_log, "peer_late", "peer_back"):
        role, rank = event.get("role"), event.get("rank")
        if isinstance(role, str) and isinstance(rank, int):
            (late.add if event["event"] == "peer_late" else late.discard)((role, rank))
    return frozenset(late)


def _events(trainer_log: str, *names: str) -> Iterator[dict[str, Any]]:
    """Yield the launcher's events of these names, in order; what only looks like one is passed over."""
    for line in trainer_log.splitlines():
        if line.startswith("{") and any(f'"{name}"' in line for name in names):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if event.get("event") in names:
                yield event


def exit_cause(status: int, trainer_log: str) -> str:
    """Return one line that says why a trainer ended: its signal, or its status and its log's last line."""
    if status < 0:
        return f"the trainer was killed by signal {-status}"
    return one_line(f"the trainer exited with status {status}: {last_line(trainer_log)}")


def last_line(log: str) -> str:
    """Return the last line of a log that is no event, or "its log is empty"."""
    lines = (line.strip() for line in reversed(log.splitlines()))
    return next((line for line in lines if line and not line.startswith("{")), "its log is empty")


def one_line(text: str, most: int = _MAX_CAUSE) -> str:
    """Return `text` as one printable line of at most `most` characters: logs of user code reach people's terminals."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:most]


def read_head(path: Path, start: int = 0) -> str:
    """Return a log from the byte `start` on, at most 4 MiB of it; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(_MAX_HEAD_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""


def read_tail(path: Path, start: int = 0) -> str:
    """Return the end of what a log holds after the byte `start`, at most 64 KiB of it; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - _MAX_TAIL_BYTES))
            return file.read(_MAX_TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
