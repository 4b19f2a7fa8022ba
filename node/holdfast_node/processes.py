"""Which of the node's services run, from the kernel's own account of its processes (/proc/<pid>/stat, proc(5)).

ps-lite beats only once all nodes have joined, and its word of a stopped process is "not heard of". This is seen at
once, in every phase, and says what it is. A process that waits, computes or hangs in its own code looks well here.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

_LOG = logging.getLogger("holdfast")
_STOPPED = "Tt"  # by a signal; by a debugger


@dataclass(frozen=True, kw_only=True)
class Process:
    """A line of the process table: ids of the process, its parent and its session, and its state letter."""

    pid: int
    parent: int
    session: int
    state: str


def processes() -> list[Process]:
    """Return the process table."""
    table = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue
        # proc(5): field 2 is the name in parentheses and may hold spaces; 3 state, 4 parent, 6 session.
        state, parent, _group, session = text.rpartition(")")[2].split()[:4]
        table.append(Process(pid=int(entry.name), parent=int(parent), session=int(session), state=state))
    return table


class Liveness:
    """Knows since when services have stopped processes, or none at all. Feed it `look`s; it holds no clock.

    `main_pid` returns the id of a service's main process, or None while it has none. That process leads a session, to
    which the processes that it starts belong unless they leave it. Only what lasts for `limit_seconds` counts.
    """

    def __init__(self, services: Collection[str], main_pid: Callable[[str], int | None], limit_seconds: float) -> None:
        self._services, self._main_pid, self._limit_seconds = services, main_pid, limit_seconds
        self._since: dict[str, float] = {}
        self._told: set[str] = set()

    def look(self, table: Collection[Process], now: float) -> str | None:
        """Return why a service counts as lost, or None; what lasts a third as long is logged.

        `table` is the process table, `now` any clock's seconds.
        """
        found = [words for service in self._services for words in self._troubles(service, table)]
        for words in self._since.keys() - set(found):
            lasted = now - self._since.pop(words)
            if words in self._told:
                self._told.discard(words)
                _LOG.info("no more: %s, for %.0f s", words, lasted)
        for words in found:
            lasted = now - self._since.setdefault(words, now)
            if lasted >= self._limit_seconds:
                return f"{words}, for {lasted:.0f} s"
            if lasted >= self._limit_seconds / 3 and words not in self._told:
                self._told.add(words)
                _LOG.warning("%s, for %.0f s", words, lasted)
        return None

    def _troubles(self, service: str, table: Collection[Process]) -> Iterator[str]:
        main = self._main_pid(service)
        own = [process for process in table if process.session == main and process.state != "Z"]
        if not any(process.pid == main for process in own):
            yield f"the {service} has no process that can be seen, and nobody has said that it ended"
        for process in own:
            if process.state in _STOPPED:
                who = f"the {service}" if process.pid == main else f"process {process.pid} of the {service}"
                yield f"{who} is stopped (SIGSTOP, or a debugger)"
