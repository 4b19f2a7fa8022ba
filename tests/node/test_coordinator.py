"""The coordinator between the jobs bucket and the state machine; what it decides is in test_coordination."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.node.support import JOB

from holdfast_node import coordination
from holdfast_node.contract.documents import ENDED, Control, JobDocument, NodeResult, Registration, Rendezvous
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role
from holdfast_node.coordination import UNTOLD
from holdfast_node.coordinator import JobCancelledError, PresenceWatch, Reporter, coordinate
from holdfast_node.detection import Detection

NODES = {
    "i-000000001": Role.SCHEDULER,
    "i-000000002": Role.SERVER,
    "i-000000004": Role.WORKER,
    "i-000000003": Role.WORKER,
}
DETECTION = Detection(15)


def registration(instance_id: str, role: Role) -> Registration:
    address = f"10.0.0.{int(instance_id[-1], 16)}"
    return Registration(role=role, instance_id=instance_id, address=address, spiffe_id="spiffe://x", serial="0a")


class Bucket(dict[str, bytes]):
    """The jobs bucket: what is written stays, and `changed_since` says when (a day after the job's start)."""

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


def coordinated(bucket: Bucket, job: JobDocument, **named: Any) -> list[tuple[str, str]]:
    states = States()
    coordinate(bucket, Reporter(states, "token"), CONTROL, job, named.pop("detection", DETECTION), **named)  # type: ignore[arg-type]
    return states.told


def full_bucket(job: JobDocument, generation: int = 1) -> Bucket:
    bucket = Bucket()
    for instance_id, role in NODES.items():
        bucket.save(JobsBucket.node(role, instance_id), registration(instance_id, role))
        bucket.save(JobsBucket.result(job.job_id, generation, role, instance_id), ended(0))
    return bucket


def ended(status: int, cause: str = "") -> NodeResult:
    return NodeResult(status=status, cause=cause, rank=0, tls_connections=1, tls_peers=("x",))


def test_job_whose_nodes_all_succeed_is_reported_with_a_short_output() -> None:
    bucket = full_bucket(JOB)
    assert coordinated(bucket, JOB) == [("success", '{"job_id": "digits-1", "phase": "succeeded"}')]
    assert json.loads(bucket[JobsBucket.status("digits-1")])["phase"] == "succeeded"
    rendezvous = Rendezvous.parse(bucket[JobsBucket.RENDEZVOUS])
    assert (rendezvous.job_id, rendezvous.phase) == ("digits-1", ENDED)


def test_a_failed_part_starts_the_next_generation_whose_results_count() -> None:
    bucket = full_bucket(JOB)
    bucket.save(JobsBucket.result("digits-1", 1, Role.WORKER, "i-000000003"), ended(-9, "killed"))
    for instance_id, role in NODES.items():
        bucket.save(JobsBucket.result("digits-1", 2, role, instance_id), ended(0))
    ((told, _),) = coordinated(bucket, JOB)
    assert told == "success"
    assert Rendezvous.parse(bucket[JobsBucket.RENDEZVOUS]).causes == ("worker 0 (i-000000003): killed",)
    record = json.loads(bucket[JobsBucket.status("digits-1")])
    assert [generation["cause"] for generation in record["generations"]] == ["worker 0 (i-000000003): killed", None]


def test_silent_node_is_lost_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = full_bucket(JOB)
    del bucket[JobsBucket.result("digits-1", 1, Role.WORKER, "i-000000004")]
    job = replace(JOB, max_restarts=0)
    monkeypatch.setattr(PresenceWatch, "alive", lambda watch: set(NODES))  # it was, when the generation began
    ((error, cause),) = coordinated(bucket, job, detection=Detection(0))
    assert error == "Holdfast.JobFailed"
    assert cause == "worker 1 (i-000000004): not heard of for 0 s: the node was lost, or its agent died"


def test_denied_node_is_excluded_with_the_cause() -> None:
    bucket = full_bucket(JOB)
    del bucket[JobsBucket.result("digits-1", 1, Role.WORKER, "i-000000004")]
    calls = iter([{}, *[{"i-000000004": "it was revoked by an operator"}] * 9])
    ((_, cause),) = coordinated(bucket, replace(JOB, max_restarts=0), denied=lambda: next(calls))
    assert cause == "worker 1 (i-000000004): it was revoked by an operator"


def test_record_names_who_answers_late_while_the_job_runs() -> None:
    bucket = full_bucket(JOB)
    result = JobsBucket.result("digits-1", 1, Role.WORKER, "i-000000004")
    held, seen = bucket.pop(result), []

    def late() -> frozenset[tuple[str, int]]:
        nodes = json.loads(bucket[JobsBucket.status("digits-1")])["nodes"]
        seen.append({node["instance_id"] for node in nodes if node["late_since"]})
        if seen[-1]:
            bucket[result] = held
        return frozenset({("worker", 1)})

    assert coordinated(bucket, JOB, late=late)[0][0] == "success"
    assert (seen[0], seen[-1]) == (set(), {"i-000000004"})
    nodes = json.loads(bucket[JobsBucket.status("digits-1")])["nodes"]
    assert not any(node["late_since"] for node in nodes)


def test_missing_nodes_fail_the_job_by_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordination, "GATHER_SECONDS", 0.1)
    bucket = full_bucket(JOB)
    del bucket[JobsBucket.node(Role.WORKER, "i-000000004")]
    assert coordinated(bucket, JOB) == [
        ("Holdfast.JobFailed", f"nodes did not register within 0.1 s: 1 worker{UNTOLD}")
    ]


def test_registration_below_another_role_s_prefix_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordination, "GATHER_SECONDS", 0.1)
    bucket = full_bucket(JOB)
    bucket["nodes/worker/i-000000001.json"] = bucket.pop(JobsBucket.node(Role.SCHEDULER, "i-000000001"))
    ((_, cause),) = coordinated(bucket, JOB)
    assert cause == f"nodes did not register within 0.1 s: 1 scheduler{UNTOLD}"


def boot_record(role: str, instance_id: str, status: str = "failed") -> bytes:
    phase = {"phase": "fetch", "start": "2026-11-22T00:00:01Z", "end": "2026-11-22T00:00:02Z", "timeout_seconds": 120}
    said = {"status": status, "cause": "S3 denies\nit", "remedy": "look at the role"}
    return json.dumps({"role": role, "instance_id": instance_id, "phases": [phase | said]}).encode()


def test_a_node_that_does_not_boot_fails_the_job_with_its_cause_at_once() -> None:
    bucket = full_bucket(JOB)
    del bucket[JobsBucket.node(Role.WORKER, "i-000000004")]
    bucket[JobsBucket.boot(Role.WORKER, "i-000000004")] = boot_record("worker", "i-000000004")
    cause = "worker (i-000000004) did not boot: fetch: S3 denies it; look at the role"
    assert coordinated(bucket, JOB) == [("Holdfast.JobFailed", cause)]
    assert json.loads(bucket[JobsBucket.status("digits-1")])["cause"] == cause


#: What is below boot/worker/i-000000004.json while a worker is missing: no reason to fail the job.
NO_FAILURES = {
    "a boot that went well": boot_record("worker", "i-000000004", "ok"),
    "another instance's": boot_record("worker", "i-000000005"),
    "another role's": boot_record("server", "i-000000004"),
    "no document": b"{}",
}


@pytest.mark.parametrize("case", NO_FAILURES)
def test_a_boot_record_that_is_no_failure_of_its_writer_fails_nothing(
    case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(coordination, "GATHER_SECONDS", 0.7)  # more than one poll
    bucket = full_bucket(JOB)
    del bucket[JobsBucket.node(Role.WORKER, "i-000000004")]
    bucket[JobsBucket.boot(Role.WORKER, "i-000000004")] = NO_FAILURES[case]
    ((_, cause),) = coordinated(bucket, JOB)
    assert cause == f"nodes did not register within 0.7 s: 1 worker{UNTOLD}"
    assert len(caplog.messages) == (1 if case == "no document" else 0)


def test_rendezvous_of_another_job_is_nothing_to_take_over() -> None:
    bucket = full_bucket(JOB)
    coordinated(bucket, JOB)
    ended_already = bucket[JobsBucket.RENDEZVOUS]
    bucket[JobsBucket.RENDEZVOUS] = ended_already.replace(b"digits-1", b"digits-0")
    assert coordinated(bucket, JOB)[0][0] == "success"


def test_job_that_has_ended_is_not_begun_again() -> None:
    bucket = full_bucket(JOB)
    coordinated(bucket, JOB)
    with pytest.raises(JobCancelledError, match="the job has ended already"):
        coordinated(bucket, JOB)


@pytest.mark.parametrize("written", [b"no JSON", b"{}", b"[" * 300_000], ids=["no JSON", "no keys", "too deep"])
def test_a_registration_that_is_none_costs_its_node_the_seat_and_nobody_else(
    written: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = full_bucket(JOB)
    bucket["nodes/worker/i-000000000.json"] = written
    assert coordinated(bucket, JOB)[0][0] == "success"
    assert [message.split(":")[0] for message in caplog.messages] == ["nodes/worker/i-000000000.json cannot be used"]


def test_a_result_that_is_none_is_the_loss_of_its_node_by_name() -> None:
    bucket = full_bucket(JOB)
    bucket[JobsBucket.result("digits-1", 1, Role.WORKER, "i-000000004")] = b'{"status": "0"}'
    ((_, cause),) = coordinated(bucket, replace(JOB, max_restarts=0))
    assert cause.startswith("worker 1 (i-000000004): its result cannot be used: NodeResult lacks the keys")


def test_time_that_the_scheduler_waits_for_s3_is_nobody_s_silence() -> None:
    now = 100.0
    watch = PresenceWatch(12, clock=lambda: now)
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    for later in (0, 40):
        watch.listing()
        watch.seen("nodes/worker/a.json", moment + timedelta(seconds=later))
        now += 40  # the next role's listing hangs
        assert not watch.lost("nodes/worker/a.json")


def test_presence_is_judged_by_change_and_never_by_the_other_clock() -> None:
    now = 100.0
    watch = PresenceWatch(12, clock=lambda: now)
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    watch.seen("nodes/worker/a.json", moment)
    now += 10
    watch.listing()
    watch.seen("nodes/worker/a.json", moment + timedelta(seconds=5))
    now += 10
    watch.listing()
    assert not watch.lost("nodes/worker/a.json")
    assert watch.alive() == {"a"}
    watch.seen("nodes/worker/a.json", moment + timedelta(seconds=5))
    now += 3
    watch.listing()
    assert watch.lost("nodes/worker/a.json")
    assert watch.alive() == set()
    assert not watch.lost("nodes/worker/never-seen.json")
