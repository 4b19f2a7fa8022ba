import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.node.support import JOB

from holdfast_node import coordinator
from holdfast_node.contract.documents import Control, JobDocument, NodeResult, Registration, Rendezvous
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role
from holdfast_node.coordinator import Coordination, PresenceWatch, Reporter, coordinate

NODES = {
    "i-000000001": Role.SCHEDULER,
    "i-000000002": Role.SERVER,
    "i-000000004": Role.WORKER,
    "i-000000003": Role.WORKER,
}


def registration(instance_id: str, role: Role) -> Registration:
    return Registration(role=role, instance_id=instance_id, address="10.0.0.1", spiffe_id="spiffe://x", serial="0a")


class Bucket(dict[str, bytes]):
    """The jobs bucket: what is written stays, and `touched` says when (a day after the job's start)."""

    denial = ""

    def load(self, kind: type[Any], key: str) -> Any:
        return kind.parse(self[key]) if key in self else None

    def save(self, key: str, document: Any) -> None:
        self[key] = document if isinstance(document, bytes) else document.to_json()

    def changed_since(self, prefix: str, since: datetime) -> list[tuple[str, datetime]]:
        return [(key, since + timedelta(days=1)) for key in self if key.startswith(prefix)]


class States:
    """The state machine's side: what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def send_task_heartbeat(self, **request: str) -> None:
        assert request == {"taskToken": "token"}

    def send_task_success(self, **request: str) -> None:
        self.told.append(("success", request["output"]))

    def send_task_failure(self, **request: str) -> None:
        self.told.append((request["error"], request["cause"]))


CONTROL = Control(job_id="digits-1", started_at="2026-11-22T00:00:00Z", task_token="token")


def coordinated(bucket: Bucket, job: JobDocument) -> list[tuple[str, str]]:
    states = States()
    coordinate(bucket, Reporter(states, "token"), CONTROL, job)  # type: ignore[arg-type]
    return states.told


def full_bucket(job: JobDocument) -> Bucket:
    bucket = Bucket()
    for instance_id, role in NODES.items():
        bucket.save(JobsBucket.node(role, instance_id), registration(instance_id, role))
        bucket.save(JobsBucket.result(job.job_id, role, instance_id), ended(0))
    return bucket


def gathered() -> Coordination:
    coordination = Coordination(JOB)
    for instance_id, role in NODES.items():
        coordination.register(registration(instance_id, role))
    return coordination


def ended(status: int, cause: str = "") -> NodeResult:
    return NodeResult(status=status, cause=cause, rank=0, tls_connections=1, tls_peers=("x",))


def test_rendezvous_waits_until_every_role_is_complete() -> None:
    coordination = Coordination(JOB)
    for instance_id, role in list(NODES.items())[:-1]:
        coordination.register(registration(instance_id, role))
    assert coordination.rendezvous is None
    assert coordination.missing() == {Role.WORKER: 1}


def test_ranks_follow_instance_ids_whatever_the_order_of_registration() -> None:
    rendezvous = gathered().rendezvous
    assert rendezvous is not None
    workers = [(peer.rank, peer.instance_id) for peer in rendezvous.peers if peer.role is Role.WORKER]
    assert workers == [(0, "i-000000003"), (1, "i-000000004")]


def test_a_late_node_does_not_change_the_rendezvous() -> None:
    coordination = gathered()
    before = coordination.rendezvous
    coordination.register(registration("i-000000000", Role.WORKER))
    assert coordination.rendezvous == before


def test_job_is_complete_only_with_every_result() -> None:
    coordination = gathered()
    for instance_id in list(NODES)[:-1]:
        coordination.results[instance_id] = ended(0)
    assert not coordination.complete()
    coordination.results["i-000000003"] = ended(0)
    assert coordination.complete()
    assert coordination.failure() is None


def test_a_worker_s_own_error_is_the_cause_not_the_losses_that_followed() -> None:
    coordination = gathered()
    coordination.results["i-000000002"] = ended(-15, "the trainer was killed by signal 15")
    coordination.results["i-000000004"] = ended(1, "the trainer exited with status 1: ValueError: boom")
    assert coordination.failure() == ("worker 1 (i-000000004): the trainer exited with status 1: ValueError: boom")


@pytest.mark.parametrize("phase", ["gathering", "running", "failed"])
def test_record_names_nodes_and_identities(phase: str) -> None:
    record = json.loads(gathered().record(phase, None))
    assert record["phase"] == phase
    assert {node["instance_id"]: node["role"] for node in record["nodes"]} == {
        instance_id: str(role) for instance_id, role in NODES.items()
    }
    assert all(node["spiffe_id"] for node in record["nodes"])


def test_record_holds_the_seed_that_repeats_the_job() -> None:
    seeded = Coordination(replace(JOB, seed="0f" * 32))
    assert json.loads(seeded.record("gathering"))["seed"] == "0f" * 32


def test_job_whose_nodes_all_succeed_is_reported_with_a_short_output() -> None:
    bucket = full_bucket(JOB)
    assert coordinated(bucket, JOB) == [("success", '{"job_id": "digits-1", "phase": "succeeded"}')]
    assert json.loads(bucket[JobsBucket.status("digits-1")])["phase"] == "succeeded"
    assert Rendezvous.parse(bucket[JobsBucket.RENDEZVOUS]).job_id == "digits-1"


def test_lost_node_fails_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "LOST_SECONDS", 0)
    bucket = full_bucket(JOB)
    del bucket[JobsBucket.result("digits-1", Role.WORKER, "i-000000004")]
    ((error, cause),) = coordinated(bucket, JOB)
    assert error == "Holdfast.JobFailed"
    assert cause == "worker 1 (i-000000004): not heard of for 0 s: the node was lost, or its agent died"


def test_missing_nodes_fail_the_job_by_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "GATHER_SECONDS", 0.1)
    bucket = full_bucket(JOB)
    del bucket[JobsBucket.node(Role.WORKER, "i-000000004")]
    assert coordinated(bucket, JOB) == [("Holdfast.JobFailed", "nodes did not register within 0.1 s: 1 worker")]


def test_registration_below_another_role_s_prefix_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "GATHER_SECONDS", 0.1)
    bucket = full_bucket(JOB)
    bucket["nodes/worker/i-000000001.json"] = bucket.pop(JobsBucket.node(Role.SCHEDULER, "i-000000001"))
    ((_, cause),) = coordinated(bucket, JOB)
    assert cause == "nodes did not register within 0.1 s: 1 scheduler"


def test_servers_that_do_not_end_after_the_workers_fail_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "DRAIN_SECONDS", 0)
    bucket = full_bucket(JOB)
    del bucket[JobsBucket.result("digits-1", Role.SERVER, "i-000000002")]
    ((_, cause),) = coordinated(bucket, JOB)
    assert cause == "workers ended, but scheduler or servers did not within 0 s"


def test_presence_is_judged_by_change_and_never_by_the_other_clock() -> None:
    now = 100.0
    watch = PresenceWatch(clock=lambda: now)
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    watch.seen("nodes/worker/a", moment)
    now += 20
    watch.seen("nodes/worker/a", moment + timedelta(seconds=5))
    now += 20
    assert not watch.lost("nodes/worker/a")
    watch.seen("nodes/worker/a", moment + timedelta(seconds=5))
    now += 11
    assert watch.lost("nodes/worker/a")
    assert not watch.lost("nodes/worker/never-seen")
