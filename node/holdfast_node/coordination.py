"""What the scheduler decides about a job: who trains in which generation, when one has failed, and how it all ends.

No socket, no clock, no disk: `coordinator` feeds it and publishes what it decides.

    gathering ─► running ─► ended well
        ▲           │
        └── failed ◄┴─► ended with the cause: not restartable, or no restart is left

A generation starts when every seat has a node that is alive, allowed, and has nothing left of the generation before
it. ps-lite's processes of two generations would join each other, so a node's result is also its word that its
trainer has ended.
"""

import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from holdfast_node.contract.documents import (
    ENDED,
    RUNNING,
    STOPPED,
    JobDocument,
    NodeResult,
    Peer,
    Registration,
    Rendezvous,
)
from holdfast_node.contract.roles import Role
from holdfast_node.contract.statuses import EXIT_LOST, EXIT_REFUSED, restartable

#: How long the scheduler waits for every node to enrol and register, at first and for a generation after a failure.
#: An instance that its group replaces needs minutes.
GATHER_SECONDS = 600
#: What follows when nodes are missing and none has said why: without credentials, a node can tell nobody else.
UNTOLD = "; what `holdfast nodes` does not show says why on its console (aws ec2 get-console-output)"
#: How long a node that is alive may take to stop before its seat goes to another that is ready. Its agent needs 10 s
#: at most, and a node that is in no generation is refused by every tunnel of it.
STOP_SECONDS = 30
#: How long it waits for scheduler and servers to end once every worker's part has ended.
DRAIN_SECONDS = 60
#: Step Functions limits: error 256, cause 32,768 characters; a cause for a human is shorter.
MAX_CAUSE = 1000


@dataclass(frozen=True)
class Outcome:
    """How a job ended: well, or with a cause."""

    cause: str | None


@dataclass(kw_only=True)
class Generation:
    """When a generation ran (seconds since the epoch) and why it had to end."""

    generation: int
    started_at: float
    ended_at: float | None = None
    cause: str | None = None


@dataclass
class Coordination:
    """What the scheduler knows about a job. Tell it what happens, let it `advance`, publish its `rendezvous`.

    `previous` is the rendezvous that an earlier agent of this job's scheduler published, if there was one.
    """

    job: JobDocument
    previous: Rendezvous | None = None
    wall: Callable[[], float] = time.time
    rendezvous: Rendezvous | None = field(default=None, init=False)
    outcome: Outcome | None = field(default=None, init=False)
    registrations: dict[str, Registration] = field(default_factory=dict, init=False)
    results: dict[str, NodeResult] = field(default_factory=dict, init=False)
    history: list[Generation] = field(default_factory=list, init=False)
    _losses: dict[str, NodeResult] = field(default_factory=dict, init=False)
    _excluded: dict[str, str] = field(default_factory=dict, init=False)
    _not_booted: dict[str, tuple[Role, str]] = field(default_factory=dict, init=False)
    _causes: tuple[str, ...] = field(default=(), init=False)
    _late: dict[tuple[str, int], float] = field(default_factory=dict, init=False)
    _first_steps: dict[str, int] = field(default_factory=dict, init=False)
    _gather_until: float | None = field(default=None, init=False)
    _drain_until: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.previous is None:
            return
        self.rendezvous, self._causes = self.previous, self.previous.causes
        self.history = [Generation(generation=self.previous.generation, started_at=self.wall())]
        if self.previous.phase == RUNNING:
            (scheduler,) = (peer for peer in self.previous.peers if peer.role is Role.SCHEDULER)
            self.lose(scheduler.instance_id, "the scheduler's agent was lost and started anew")

    @property
    def generation(self) -> int:
        """The generation that runs, or that is gathered."""
        return len(self._causes) + 1 if self.gathering or not self.rendezvous else self.rendezvous.generation

    @property
    def gathering(self) -> bool:
        """Whether nodes are waited for."""
        return self.outcome is None and (self.rendezvous is None or self.rendezvous.phase != RUNNING)

    @property
    def wanted(self) -> dict[Role, int]:
        """How many nodes of each role the job needs."""
        return {Role.SCHEDULER: 1, Role.SERVER: self.job.servers, Role.WORKER: self.job.workers}

    def register(self, registration: Registration) -> None:
        """Note a node that is ready, or that has a new certificate."""
        self.registrations[registration.instance_id] = registration

    def note(self, instance_id: str, result: NodeResult) -> None:
        """Note how a node's part in the current generation ended; its trainer has ended too."""
        self.results[instance_id] = result
        if result.first_step_ms and self.rendezvous and self.rendezvous.generation == self.history[0].generation:
            self._first_steps[instance_id] = result.first_step_ms

    def lose(self, instance_id: str, cause: str) -> None:
        """Note that nothing more is heard of a node; the generation that it trains in is lost with it."""
        self._losses.setdefault(instance_id, NodeResult(status=EXIT_LOST, cause=cause, rank=0, **_NO_TLS))

    def note_late(self, late: Collection[tuple[str, int]]) -> None:
        """Note who answers late in the current generation, by role and rank: for people, nothing ends for it."""
        self._late = {seat: self._late.get(seat, round(self.wall(), 1)) for seat in late}

    def exclude(self, instance_id: str, cause: str) -> None:
        """Never let this instance take part again; the generation that it trains in goes on without it."""
        if instance_id not in self._excluded:
            self._excluded[instance_id] = cause
            self.lose(instance_id, cause)

    def boot_failed(self, instance_id: str, role: Role, cause: str) -> None:
        """Note that an instance will not become a node. A job that lacks a node of its role ends with this cause.

        Its group starts another one, which boots from the same template: that would fail again, at the owner's cost.
        """
        self._not_booted.setdefault(instance_id, (role, cause))

    def advance(self, now: float, alive: Collection[str]) -> None:
        """Decide what can be decided at `now` (any clock's seconds), with these instances heard of lately.

        Each wait ends: `GATHER_SECONDS` for nodes, `DRAIN_SECONDS` for servers, and the job's own deadline, which the
        state machine keeps, for training.
        """
        if self.outcome is not None:
            return
        if self.gathering:
            self._gather(now, alive)
        else:
            self._supervise(now)

    def missing(self, alive: Collection[str]) -> dict[Role, int]:
        """How many nodes of each role a generation lacks; empty when it could start."""
        lacking = {role: count - len(self._ready(role, alive)) for role, count in self.wanted.items()}
        return {role: count for role, count in lacking.items() if count > 0}

    def running(self) -> list[Peer]:
        """Return the nodes whose part in the current generation has not ended."""
        return [peer for peer in self._peers() if peer.instance_id not in self.results]

    def failure(self) -> tuple[str, int] | None:
        """Return cause and status of the first failed node, or None. A node's own error beats what it caused elsewhere.

        First a refusal, then what a program said itself, then what ended a process, then what others noticed of it.
        """
        failed = [(peer, self._ending(peer)) for peer in self._peers()]
        bad = [(peer, ending) for peer, ending in failed if ending is not None and ending.status != 0]
        bad.sort(key=lambda item: (_weight(item[1].status), item[0].role is not Role.WORKER))
        if not bad:
            return None
        peer, ending = bad[0]
        return f"{peer.role} {peer.rank} ({peer.instance_id}): {ending.cause}"[:MAX_CAUSE], ending.status

    def record(self) -> bytes:
        """Return the job's record as JSON: its phase, its generations, its nodes, and how each ended.

        `first_step_at` is when the last worker began the job's first training step (seconds since the epoch), or null;
        a node's `late_since` is when it began to answer late, or null.
        """
        ranks = {peer.instance_id: peer.rank for peer in self._peers()}
        late = {p.instance_id: self._late.get((p.role, p.rank)) for p in self.running()}
        nodes = [
            asdict(node)
            | {"rank": ranks.get(node.instance_id), "late_since": late.get(node.instance_id)}
            | _shown(self._ending_of(node.instance_id))
            for role in Role
            for node in self._of(role)
        ]
        document = {
            "job_id": self.job.job_id,
            "phase": self._phase(),
            "cause": self.outcome.cause if self.outcome else None,
            "generation": self.generation,
            "max_restarts": self.job.max_restarts,
            "seed": self.job.seed,
            "generations": [asdict(generation) for generation in self.history],
            "nodes": nodes,
            "first_step_at": max(self._first_steps.values()) / 1000 if self._first_steps else None,
        }
        return json.dumps(document).encode()

    def _gather(self, now: float, alive: Collection[str]) -> None:
        if self._gather_until is None:
            self._gather_until = now + GATHER_SECONDS
        stopping = any(p.instance_id in alive and p.instance_id not in self._excluded for p in self.running())
        if stopping and now < self._gather_until - GATHER_SECONDS + STOP_SECONDS:
            return
        lacking = self.missing(alive)
        if not lacking:
            self._start(alive)
        elif missed := [cause for role, cause in self._not_booted.values() if role in lacking]:
            self._end(f"{self._causes[0]}; then {missed[0]}" if self._causes else missed[0])
        elif now > self._gather_until:
            words = ", ".join(f"{count} {role}" for role, count in lacking.items())
            late = f"nodes did not register within {GATHER_SECONDS:g} s: {words}{self._at_one_address(alive) or UNTOLD}"
            self._end(f"{self._causes[0]}; then {late}" if self._causes else late)

    def _start(self, alive: Collection[str]) -> None:
        peers = [peer for role, count in self.wanted.items() for peer in self._seats(role, count, alive)]
        number = len(self._causes) + 1
        self.rendezvous = Rendezvous(
            job_id=self.job.job_id, generation=number, peers=tuple(peers), phase=RUNNING, causes=self._causes
        )
        self.results, self._losses, self._gather_until, self._drain_until = {}, {}, None, None
        self.history.append(Generation(generation=number, started_at=self.wall()))

    def _seats(self, role: Role, count: int, alive: Collection[str]) -> list[Peer]:
        """Fill a role's ranks: who had one keeps it, the others follow in the order of their ids."""
        ready = {node.instance_id: node for node in self._ready(role, alive)}
        kept = {p.rank: p.instance_id for p in self._peers() if p.role is role and p.instance_id in ready}
        spare = iter([instance_id for instance_id in ready if instance_id not in kept.values()])
        holders = [kept[rank] if rank in kept else next(spare) for rank in range(count)]
        return [
            Peer(role=role, rank=rank, instance_id=holder, address=ready[holder].address)
            for rank, holder in enumerate(holders)
        ]

    def _supervise(self, now: float) -> None:
        failure = self.failure()
        if failure is None and not self.running():
            self._end(None)
            return
        if failure is None and not any(peer.role is Role.WORKER for peer in self.running()):
            if self._drain_until is None:
                self._drain_until = now + DRAIN_SECONDS
            elif now > self._drain_until:
                failure = f"workers ended, but scheduler or servers did not within {DRAIN_SECONDS:g} s", EXIT_LOST
        if failure is not None:
            self._fail(*failure)

    def _fail(self, cause: str, status: int) -> None:
        assert self.rendezvous is not None
        self._causes = (*self._causes, cause)
        if not restartable(status):
            number = len(self._causes)
            self._end(cause if number == 1 else f"{cause} (in generation {number}, after: {self._causes[0]})")
        elif len(self._causes) > self.job.max_restarts:
            restarts = self.job.max_restarts
            last = f"; gave up after {restarts} restart{'s' if restarts > 1 else ''}, the last cause: {cause}"
            self._end(self._causes[0] + (last if restarts else ""))
        else:
            self._close(cause)
            self.rendezvous = replace(self.rendezvous, phase=STOPPED, causes=self._causes)

    def _end(self, cause: str | None) -> None:
        self._close(self._causes[-1] if cause and self._causes else cause)
        self.outcome = Outcome(cause[:MAX_CAUSE] if cause else None)
        if self.rendezvous is not None:
            self.rendezvous = replace(self.rendezvous, phase=ENDED, causes=self._causes)

    def _close(self, cause: str | None) -> None:
        if self.history and self.history[-1].ended_at is None:
            self.history[-1].ended_at, self.history[-1].cause = self.wall(), cause

    def _ready(self, role: Role, alive: Collection[str]) -> list[Registration]:
        """Return the nodes of a role that could start now: heard of, allowed, and done with what was before."""
        busy = {peer.instance_id for peer in self.running()} if self.rendezvous else set()
        taken = self._addresses(alive)
        return [
            node
            for node in self._of(role)
            if node.instance_id in alive
            and node.instance_id not in self._excluded
            and node.instance_id not in busy
            and len(taken[node.address]) == 1  # else one of them lies, or is gone and not missed yet
        ]

    def _addresses(self, alive: Collection[str]) -> dict[str, list[str]]:
        """Return who says to be at each address, of those that could take part: a firewall leads an address to one."""
        found: dict[str, list[str]] = {}
        for node in self.registrations.values():
            if node.instance_id in alive and node.instance_id not in self._excluded:
                found.setdefault(node.address, []).append(node.instance_id)
        return found

    def _at_one_address(self, alive: Collection[str]) -> str:
        rivals = [
            f"; {' and '.join(sorted(nodes))} both say that they are at {address}: revoke the one that is not"
            for address, nodes in sorted(self._addresses(alive).items())
            if len(nodes) > 1
        ]
        return "".join(rivals[:1])

    def _of(self, role: Role) -> list[Registration]:
        return sorted((n for n in self.registrations.values() if n.role is role), key=lambda n: n.instance_id)

    def _peers(self) -> tuple[Peer, ...]:
        return self.rendezvous.peers if self.rendezvous else ()

    def _ending(self, peer: Peer) -> NodeResult | None:
        return self._ending_of(peer.instance_id)

    def _ending_of(self, instance_id: str) -> NodeResult | None:
        return self._losses.get(instance_id) if instance_id not in self.results else self.results[instance_id]

    def _phase(self) -> str:
        if self.outcome:
            return "failed" if self.outcome.cause else "succeeded"
        if self.gathering:
            return "restarting" if self._causes else "gathering"
        return "running"


_NO_TLS: dict[str, Any] = {"tls_connections": 0, "tls_peers": ()}


def _weight(status: int) -> int:
    if status == EXIT_REFUSED:
        return 0
    if status == EXIT_LOST:
        return 3
    return 2 if status < 0 else 1


def _shown(result: NodeResult | None) -> dict[str, Any]:
    if result is None:
        return {"status": None, "cause": "", "tls_connections": None, "tls_peers": []}
    return {
        "status": result.status,
        "cause": result.cause,
        "tls_connections": result.tls_connections,
        "tls_peers": list(result.tls_peers),
    }
