"""Notices peers that no longer beat, and ends this process: MXNet itself waits for them for ever.

With PS_HEARTBEAT_INTERVAL every process sends the scheduler a heartbeat, from a thread that neither a script nor a
long computation can hold up, and gets one back. So the scheduler knows of everybody and everybody of the scheduler;
ps-lite only keeps the times. Whoever beats slowly is reported, whoever does not beat is lost.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from holdfast_node.contract.roles import Role
from holdfast_node.contract.statuses import EXIT_LOST
from holdfast_node.engines.mxnet import events

_POLL_SECONDS = 0.5
#: This process has itself not run for a while (a suspended machine): what it missed gets this long to arrive.
_CATCH_UP_SECONDS = 3.0
#: ps-lite is "ready" up to 100 ms before it notes its start time (postoffice.cc, `Postoffice::Start`), and calls
#: everybody dead in between: a silence counts once it was there a second ago too.
_CONFIRM_SECONDS = 1.0


@dataclass(frozen=True)
class Watched:
    """A process by its role and rank; `node` is its id in ps-lite (`Postoffice::ServerRankToID` and its sisters)."""

    role: Role
    rank: int

    @property
    def node(self) -> int:
        """The id: the scheduler is 1, servers are 8, 10, … and workers 9, 11 and so on."""
        return {Role.SCHEDULER: 1, Role.SERVER: 8 + 2 * self.rank, Role.WORKER: 9 + 2 * self.rank}[self.role]

    def __str__(self) -> str:
        return str(self.role) if self.role is Role.SCHEDULER else f"{self.role} {self.rank}"


def watched_by(role: Role, servers: int, workers: int) -> tuple[Watched, ...]:
    """Return whose heartbeats reach a process of this role."""
    if role is not Role.SCHEDULER:
        return (Watched(Role.SCHEDULER, 0),)
    return (
        *(Watched(Role.SERVER, rank) for rank in range(servers)),
        *(Watched(Role.WORKER, rank) for rank in range(workers)),
    )


class Watch:
    """Judges heartbeats. `is_silent(node, seconds)` is ps-lite's word; the clock is the caller's."""

    def __init__(
        self,
        watched: tuple[Watched, ...],
        limit_seconds: int,
        is_silent: Callable[[int, int], bool],
        report: Callable[..., None] = events.emit,
    ) -> None:
        self._watched, self._limit, self._is_silent, self._report = watched, limit_seconds, is_silent, report
        self._silent: dict[tuple[Watched, int], float] = {}
        self._late: dict[Watched, float] = {}
        self._looked: float | None = None
        self._blind_until = 0.0

    def look(self, now: float) -> str | None:
        """Return who is lost, in words, or None; report who is late, and who is heard of again."""
        if self._looked is not None and now - self._looked > _CATCH_UP_SECONDS:
            self._blind_until = now + _CATCH_UP_SECONDS
        self._looked = now
        if now < self._blind_until:
            return None
        late = max(1, self._limit // 3)
        for peer in self._watched:
            if self._holds(peer, late, now):
                if peer not in self._late:
                    self._late[peer] = now
                    self._report("peer_late", role=peer.role, rank=peer.rank, seconds=late)
            elif (since := self._late.pop(peer, None)) is not None:
                self._report("peer_back", role=peer.role, rank=peer.rank, seconds=round(now - since) + late)
        lost = [peer for peer in self._watched if self._holds(peer, self._limit, now)]
        for peer in lost:
            self._report("peer_lost", role=peer.role, rank=peer.rank, seconds=self._limit)
        if not lost:
            return None
        who = "nobody" if len(lost) == len(self._watched) > 1 else f"nothing of {', '.join(map(str, lost))}"
        return f"{who} was heard of for {self._limit} s: stopped, hung or cut off"

    def _holds(self, peer: Watched, seconds: int, now: float) -> bool:
        if not self._is_silent(peer.node, seconds):
            self._silent.pop((peer, seconds), None)
            return False
        return now - self._silent.setdefault((peer, seconds), now) >= _CONFIRM_SECONDS


def watch(store: Any, library: Any, role: Role) -> NoReturn:
    """Watch this process's peers; when one is lost, say so and end the process.

    ps-lite must have started, which a listening socket shows: it crashes when it is asked before. And `store` must live
    as long as the process does: its native handle is used without a lock.
    """

    def is_silent(node: int, seconds: int) -> bool:
        number = ctypes.c_int()
        library.MXKVStoreGetNumDeadNode(store.handle, node, ctypes.byref(number), seconds)
        return number.value > 0

    servers, workers = (int(os.environ[name]) for name in ("DMLC_NUM_SERVER", "DMLC_NUM_WORKER"))
    judge = Watch(watched_by(role, servers, workers), int(os.environ["HOLDFAST_HEARTBEAT_SECONDS"]), is_silent)
    while True:
        if lost := judge.look(time.monotonic()):
            print(f"PeerLostError: {lost}", file=sys.stderr, flush=True)
            os._exit(EXIT_LOST)
        time.sleep(_POLL_SECONDS)
