"""What the scheduler decides, told in cases: no clock, no bucket."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
from tests.node.support import JOB

from holdfast_node.contract.documents import ENDED, RUNNING, STOPPED, NodeResult, Registration, Rendezvous
from holdfast_node.contract.roles import Role
from holdfast_node.contract.statuses import EXIT_LOST, EXIT_PORT, EXIT_REFUSED
from holdfast_node.coordination import (
    DRAIN_SECONDS,
    GATHER_SECONDS,
    MAX_CAUSE,
    STOP_SECONDS,
    UNTOLD,
    Coordination,
    Outcome,
)

SCHEDULER, SERVER, FIRST, SECOND = "i-00000001", "i-00000002", "i-00000003", "i-00000004"
SPARE = "i-00000000"  # its id comes before every other's, and still it takes nobody's seat
NODES = {SCHEDULER: Role.SCHEDULER, SERVER: Role.SERVER, SECOND: Role.WORKER, FIRST: Role.WORKER}


def registration(instance_id: str, role: Role = Role.WORKER) -> Registration:
    address = f"10.0.0.{int(instance_id[-1], 16) + 1}"
    return Registration(role=role, instance_id=instance_id, address=address, spiffe_id="spiffe://x", serial="0a")


def ended(status: int = 0, cause: str = "", first_step_ms: int | None = None) -> NodeResult:
    peers = ("x",)
    return NodeResult(
        status=status, cause=cause, rank=0, tls_connections=1, tls_peers=peers, first_step_ms=first_step_ms
    )


STOPPED_WITH_IT = ended(-15, "stopped with its generation")


class Job:
    """A coordination with a clock of its own, and the nodes that are alive."""

    def __init__(self, max_restarts: int = 2, previous: Rendezvous | None = None) -> None:
        self.now = 0.0
        job = replace(JOB, max_restarts=max_restarts)
        self.coordination = Coordination(job, previous, wall=lambda: 1_000_000 + self.now)
        self.alive = set(NODES)
        for instance_id, role in NODES.items():
            self.coordination.register(registration(instance_id, role))

    def after(self, seconds: float = 0.5) -> Rendezvous | None:
        self.now += seconds
        self.coordination.advance(self.now, self.alive)
        return self.coordination.rendezvous

    def end(self, results: dict[str, NodeResult]) -> Rendezvous | None:
        for instance_id, result in results.items():
            self.coordination.note(instance_id, result)
        return self.after()

    def acknowledge(self, instance_ids: Iterable[str] = tuple(NODES)) -> Rendezvous | None:
        """What the agents say once they have stopped."""
        return self.end({name: STOPPED_WITH_IT for name in instance_ids if name not in self.coordination.results})

    @property
    def cause(self) -> str | None:
        assert self.coordination.outcome is not None
        return self.coordination.outcome.cause

    @property
    def state(self) -> tuple[int, str]:
        rendezvous = self.coordination.rendezvous
        assert rendezvous is not None
        return rendezvous.generation, rendezvous.phase


def running(max_restarts: int = 2) -> Job:
    job = Job(max_restarts)
    job.after()
    assert job.state == (1, RUNNING)
    return job


def test_rendezvous_waits_until_every_role_is_complete() -> None:
    job = Job()
    job.alive.discard(FIRST)
    assert job.after() is None
    assert job.coordination.missing(job.alive) == {Role.WORKER: 1}


def test_ranks_follow_instance_ids_whatever_the_order_of_registration() -> None:
    rendezvous = running().coordination.rendezvous
    assert rendezvous is not None
    assert [peer.instance_id for peer in rendezvous.peers] == [SCHEDULER, SERVER, FIRST, SECOND]
    assert [peer.rank for peer in rendezvous.peers] == [0, 0, 0, 1]


def test_a_late_node_does_not_change_the_rendezvous() -> None:
    job = running()
    before = job.coordination.rendezvous
    job.coordination.register(registration(SPARE))
    job.alive.add(SPARE)
    assert job.after() == before


def test_job_succeeds_only_with_every_result() -> None:
    job = running()
    job.end(dict.fromkeys([SCHEDULER, SERVER, FIRST], ended()))
    assert job.coordination.outcome is None
    job.end({SECOND: ended()})
    assert job.coordination.outcome == Outcome(None)
    assert job.state == (1, ENDED)


@dataclass(frozen=True)
class Ending:
    """How parts end, and what the job makes of it."""

    results: dict[str, NodeResult]
    goes_on: bool
    cause: str


ENDINGS = {
    "a worker's trainer is killed": Ending(
        {FIRST: ended(-9, "the trainer was killed by signal 9")}, True, "worker 0 (i-00000003): the trainer was killed"
    ),
    "a server's launcher lost a peer": Ending(
        {SCHEDULER: ended(EXIT_LOST, "PeerLost: server 0")}, True, "scheduler 0 (i-00000001): PeerLost: server 0"
    ),
    "a killed process beats what others saw of it": Ending(
        {SCHEDULER: ended(EXIT_LOST, "lost worker 1"), SECOND: ended(-9, "killed")},
        True,
        "worker 1 (i-00000004): killed",
    ),
    "a script raises": Ending({SECOND: ended(1, "ValueError: boom")}, False, "worker 1 (i-00000004): ValueError: boom"),
    "a script raises and others are lost through it": Ending(
        {SERVER: ended(-6, "aborted"), SCHEDULER: ended(EXIT_LOST, "lost"), FIRST: ended(3, "exit 3")},
        False,
        "worker 0 (i-00000003): exit 3",
    ),
    "a script asks for another try": Ending(
        {FIRST: ended(EXIT_LOST, "the data is not there yet")}, True, "worker 0 (i-00000003): the data is not there yet"
    ),
    "a command was refused": Ending(
        {FIRST: ended(1, "it noticed"), SERVER: ended(EXIT_REFUSED, "worker 1 sent a pickle")},
        False,
        "server 0 (i-00000002): worker 1 sent a pickle",
    ),
    "a port is taken": Ending(
        {SERVER: ended(EXIT_PORT, "PortError: port 9092")}, False, "server 0 (i-00000002): PortError: port 9092"
    ),
}


@pytest.mark.parametrize("case", ENDINGS.values(), ids=ENDINGS)
def test_a_failure_ends_the_job_only_where_it_would_come_again(case: Ending) -> None:
    job = running()
    job.end(case.results)
    if case.goes_on:
        assert job.state == (1, STOPPED)
        assert job.coordination.rendezvous is not None
        assert job.coordination.rendezvous.causes[0].startswith(case.cause)
    else:
        assert job.cause == case.cause
        assert job.state == (1, ENDED)


def test_next_generation_waits_until_every_trainer_has_ended_and_keeps_the_ranks() -> None:
    job = running()
    job.coordination.register(registration(SPARE))
    job.alive.add(SPARE)
    job.end({FIRST: ended(-9, "killed")})
    assert job.state == (1, STOPPED)
    job.acknowledge([SCHEDULER, SERVER])
    assert job.state == (1, STOPPED)  # one worker may still train
    job.coordination.note(SECOND, STOPPED_WITH_IT)
    rendezvous = job.after()
    assert job.state == (2, RUNNING)
    assert rendezvous is not None
    assert [peer.instance_id for peer in rendezvous.peers] == [SCHEDULER, SERVER, FIRST, SECOND]
    assert rendezvous.causes == ("worker 0 (i-00000003): killed",)


def test_a_node_that_does_not_stop_loses_its_seat_to_one_that_is_ready() -> None:
    job = running()
    job.coordination.register(registration(SPARE))
    job.alive.add(SPARE)
    job.end({FIRST: ended(-9, "killed")})
    job.acknowledge([SCHEDULER, SERVER])
    rendezvous = job.after(STOP_SECONDS)
    assert job.state == (2, RUNNING)
    assert rendezvous is not None
    assert [peer.instance_id for peer in rendezvous.peers] == [SCHEDULER, SERVER, FIRST, SPARE]


def test_a_lost_node_is_replaced_by_one_that_registers_and_takes_its_rank() -> None:
    job = running()
    job.coordination.lose(FIRST, "not heard of for 12 s")
    job.alive.discard(FIRST)
    job.after()
    job.acknowledge([SCHEDULER, SERVER, SECOND])
    job.after(300)
    assert job.state == (1, STOPPED)
    job.coordination.register(registration("i-00000009"))
    job.alive.add("i-00000009")
    rendezvous = job.after()
    assert job.state == (2, RUNNING)
    assert rendezvous is not None
    assert [peer.instance_id for peer in rendezvous.peers] == [SCHEDULER, SERVER, "i-00000009", SECOND]


def test_a_silent_node_that_comes_back_takes_part_again_once_it_has_stopped() -> None:
    job = running()
    job.coordination.lose(FIRST, "not heard of for 12 s")
    job.alive.discard(FIRST)
    job.after()
    job.acknowledge([SCHEDULER, SERVER, SECOND])
    job.alive.add(FIRST)
    assert job.after() == job.coordination.rendezvous
    assert job.state == (1, STOPPED)
    job.acknowledge([FIRST])
    assert job.state == (2, RUNNING)


def test_an_excluded_node_ends_its_generation_and_never_comes_back() -> None:
    job = running()
    job.coordination.exclude(SECOND, "it was revoked by an operator")
    job.after()
    assert job.coordination.rendezvous is not None
    assert job.coordination.rendezvous.causes == ("worker 1 (i-00000004): it was revoked by an operator",)
    job.acknowledge()
    job.coordination.register(registration(SECOND))
    job.after(100)
    assert job.state == (1, STOPPED)
    assert job.coordination.missing(job.alive) == {Role.WORKER: 1}


def test_a_node_that_was_excluded_before_the_job_never_gets_a_seat() -> None:
    job = Job()
    job.coordination.exclude(SERVER, "it was revoked by an operator")
    assert job.after() is None


def fail(job: Job, cause: str) -> None:
    job.end({FIRST: ended(-9, cause)})
    job.acknowledge()


@pytest.mark.parametrize(
    ("max_restarts", "cause"),
    [
        (0, "worker 0 (i-00000003): first"),
        (
            1,
            "worker 0 (i-00000003): first; gave up after 1 restart, the last cause: worker 0 (i-00000003): second",
        ),
        (
            2,
            "worker 0 (i-00000003): first; gave up after 2 restarts, the last cause: worker 0 (i-00000003): third",
        ),
    ],
)
def test_after_the_last_restart_the_job_fails_with_the_first_cause(max_restarts: int, cause: str) -> None:
    job = running(max_restarts)
    for word in ("first", "second", "third")[: max_restarts + 1]:
        assert job.coordination.outcome is None
        fail(job, word)
    assert job.cause == cause
    assert job.state == (max_restarts + 1, ENDED)


def test_a_script_that_raises_in_a_later_generation_is_named_with_what_was_before() -> None:
    job = running()
    fail(job, "killed")
    job.end({SECOND: ended(1, "ValueError: no checkpoint")})
    assert job.cause == (
        "worker 1 (i-00000004): ValueError: no checkpoint (in generation 2, after: worker 0 (i-00000003): killed)"
    )


def test_nodes_that_never_register_fail_the_job_by_role() -> None:
    job = Job()
    job.alive -= {FIRST, SERVER}
    job.after()
    job.after(GATHER_SECONDS + 1)
    assert job.cause == f"nodes did not register within {GATHER_SECONDS} s: 1 server, 1 worker{UNTOLD}"


def test_a_lost_node_that_nobody_replaces_fails_the_job_with_its_cause() -> None:
    job = running()
    job.coordination.lose(SECOND, "not heard of for 12 s")
    job.alive.discard(SECOND)
    job.after()
    job.acknowledge([SCHEDULER, SERVER, FIRST])
    job.after(GATHER_SECONDS + 1)
    assert job.cause == (
        "worker 1 (i-00000004): not heard of for 12 s; "
        f"then nodes did not register within {GATHER_SECONDS} s: 1 worker{UNTOLD}"
    )


def test_servers_that_do_not_end_after_the_workers_start_the_next_generation() -> None:
    job = running()
    job.end(dict.fromkeys([SCHEDULER, FIRST, SECOND], ended()))
    job.after(DRAIN_SECONDS - 1)
    assert job.state == (1, RUNNING)
    rendezvous = job.after(2)
    assert job.state == (1, STOPPED)
    assert rendezvous is not None
    assert rendezvous.causes == (f"workers ended, but scheduler or servers did not within {DRAIN_SECONDS} s",)


def previous(phase: str, *causes: str) -> Rendezvous:
    rendezvous = running().coordination.rendezvous
    assert rendezvous is not None
    return replace(rendezvous, phase=phase, causes=causes)


def test_a_scheduler_s_agent_that_takes_over_stops_what_ran_and_starts_the_next_generation() -> None:
    job = Job(previous=previous(RUNNING))
    job.after()
    assert job.state == (1, STOPPED)
    job.acknowledge()
    rendezvous = job.after()
    assert rendezvous is not None
    assert (rendezvous.generation, rendezvous.causes) == (
        2,
        ("scheduler 0 (i-00000001): the scheduler's agent was lost and started anew",),
    )


def test_a_scheduler_s_agent_that_takes_over_counts_the_restarts_before_it() -> None:
    job = Job(max_restarts=1, previous=replace(previous(RUNNING, "worker 0: killed"), generation=2))
    job.after()
    assert job.cause is not None
    assert job.cause.startswith("worker 0: killed; gave up after 1 restart, the last cause: scheduler 0 ")


def test_a_scheduler_s_agent_that_takes_over_a_stopped_generation_adds_no_cause() -> None:
    job = Job(previous=previous(STOPPED, "worker 0: killed"))
    job.after()
    assert job.acknowledge() is not None
    assert job.state == (2, RUNNING)
    assert job.coordination.rendezvous is not None
    assert job.coordination.rendezvous.causes == ("worker 0: killed",)


def test_record_names_nodes_generations_and_causes() -> None:
    job = running()
    job.now = 60
    job.coordination.note(SECOND, ended(-15, "stopped", first_step_ms=7_000))
    job.end({FIRST: ended(-9, "killed", first_step_ms=9_000)})
    job.acknowledge()
    record = json.loads(job.coordination.record())
    assert (record["phase"], record["generation"], record["max_restarts"], record["cause"]) == ("running", 2, 2, None)
    first, second = record["generations"]
    assert first == {
        "generation": 1,
        "started_at": 1_000_000.5,
        "ended_at": 1_000_060.5,
        "cause": "worker 0 (i-00000003): killed",
    }
    assert (second["generation"], second["cause"], second["ended_at"]) == (2, None, None)
    assert record["first_step_at"] == 9.0
    assert {node["instance_id"]: node["role"] for node in record["nodes"]} == {n: str(r) for n, r in NODES.items()}
    assert all(node["spiffe_id"] and node["status"] is None for node in record["nodes"])


def test_record_says_who_answers_late_and_since_when() -> None:
    def late() -> dict[str, float]:
        nodes = json.loads(job.coordination.record())["nodes"]
        return {node["instance_id"]: node["late_since"] for node in nodes if node["late_since"] is not None}

    job = running()
    assert late() == {}
    job.now = 60
    job.coordination.note_late({(Role.WORKER, 1)})
    job.now = 70
    job.coordination.note_late({(Role.WORKER, 1), (Role.SERVER, 0)})
    assert late() == {SECOND: 1_000_060.0, SERVER: 1_000_070.0}
    job.end({SECOND: ended()})
    assert late() == {SERVER: 1_000_070.0}, "who has ended is not waited for"
    job.coordination.note_late(())
    assert late() == {}


PHASES = {
    "gathering": (lambda job: job.alive.clear(), "gathering"),
    "restarting": (lambda job: (job.after(), job.end({FIRST: ended(-9, "killed")})), "restarting"),
    "failed": (lambda job: (job.after(), job.end({FIRST: ended(1, "boom")})), "failed"),
    "succeeded": (lambda job: (job.after(), job.end(dict.fromkeys(NODES, ended()))), "succeeded"),
}


@pytest.mark.parametrize(("act", "phase"), PHASES.values(), ids=PHASES)
def test_record_says_the_phase(act: object, phase: str) -> None:
    job = Job()
    act(job)  # type: ignore[operator]
    assert json.loads(job.coordination.record())["phase"] == phase


def test_a_long_cause_is_cut() -> None:
    job = running()
    job.end({FIRST: ended(1, "x" * 5000)})
    assert job.cause is not None
    assert len(job.cause) == MAX_CAUSE


def test_two_nodes_at_one_address_get_no_seat_and_are_named() -> None:
    job = Job()
    job.coordination.register(replace(registration(SECOND), address=registration(FIRST).address))
    assert job.after() is None
    assert job.after(GATHER_SECONDS + 1) is None
    assert job.cause == (
        f"nodes did not register within 600 s: 2 worker; {FIRST} and {SECOND} both say that they are at 10.0.0.4: "
        "revoke the one that is not"
    )


def test_a_node_at_the_address_of_one_that_is_gone_or_revoked_gets_its_seat() -> None:
    for leave in (lambda job: job.alive.discard(SPARE), lambda job: job.coordination.exclude(SPARE, "revoked")):
        job = Job()
        job.alive.add(SPARE)
        job.coordination.register(replace(registration(SPARE), address=registration(FIRST).address))
        assert job.after() is None
        leave(job)
        assert job.after() is not None
        assert job.state == (1, RUNNING)


def test_an_instance_that_did_not_boot_ends_a_job_that_lacks_its_role_and_no_other() -> None:
    job = Job()
    job.alive.discard(FIRST)
    job.coordination.boot_failed(SPARE, Role.SERVER, "server (i-00000000) did not boot: fetch: denied; x")
    job.after()
    assert job.coordination.outcome is None
    job.coordination.boot_failed(FIRST, Role.WORKER, "worker (i-00000003) did not boot: mount: refused; x")
    job.after()
    assert job.cause == "worker (i-00000003) did not boot: mount: refused; x"


def test_a_replacement_that_did_not_boot_ends_the_job_after_the_first_cause() -> None:
    job = running()
    job.alive.discard(FIRST)
    job.coordination.lose(FIRST, "not heard of")
    job.after()
    job.acknowledge({SCHEDULER, SERVER, SECOND})
    job.coordination.boot_failed(SPARE, Role.WORKER, "worker (i-00000000) did not boot: mount: refused; x")
    job.after()
    assert job.cause == "worker 0 (i-00000003): not heard of; then worker (i-00000000) did not boot: mount: refused; x"
