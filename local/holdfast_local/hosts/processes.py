"""Families of processes: for hosts that no process namespace holds together."""

import contextlib
import os
import signal
import time

from holdfast_node.processes import Process, processes

_ROUNDS = 100


def children(pid: int) -> list[int]:
    """Return the ids of the child processes of `pid`."""
    return [process.pid for process in processes() if process.parent == pid]


def family(pids: set[int]) -> set[int]:
    """Return these processes, their descendants and the orphans of sessions that they lead."""
    members = set(pids)
    _grow(members, set(), [process for process in processes() if process.state != "Z"])
    return members


def kill_family(pid: int, *, spare: int | None = None) -> None:
    """Kill a process, its descendants and the orphans of their sessions, until none is left; `spare` lives on.

    An orphan has lost its parent and keeps its session; what left its session too is found while its parent lives.
    """
    members, sessions = {pid}, set[int]()
    for _ in range(_ROUNDS):
        alive = [process for process in processes() if process.state != "Z"]
        _grow(members, sessions, alive)
        victims = (members & {process.pid for process in alive}) - {spare, os.getpid()}
        if not victims:
            return
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        time.sleep(0.01)


def _grow(members: set[int], sessions: set[int], table: list[Process]) -> None:
    """Add to a family whoever is a child of a member, or in a session that a member leads."""
    while True:
        sessions |= {process.session for process in table if process.pid in members and process.session in members}
        found = {p.pid for p in table if p.parent in members or p.session in sessions} - members
        if not found:
            return
        members |= found
