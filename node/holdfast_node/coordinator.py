"""The scheduler's part beside training: gather the nodes, publish the rendezvous, report how the job ended.

`Coordination` decides from what it is told and holds no socket; `coordinate` feeds it from the jobs bucket and
speaks to the state machine.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from holdfast_node.contract.documents import (
    Control,
    JobDocument,
    NodeResult,
    Peer,
    Registration,
    Rendezvous,
)
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role
from holdfast_node.store import Store

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

#: How long the scheduler waits for every node to enrol and register.
GATHER_SECONDS = 600
#: How long it waits for the others' results once one node's part has ended.
DRAIN_SECONDS = 60
HEARTBEAT_SECONDS = 10
POLL_SECONDS = 0.5
#: Step Functions limits: error 256, cause 32,768 characters; a cause for a human is shorter.
MAX_CAUSE = 1000


@dataclass
class Coordination:
    """What the scheduler knows about a job. Feed it registrations and results; ask it for the outcome."""

    job: JobDocument
    rendezvous: Rendezvous | None = None
    registrations: dict[str, Registration] = field(default_factory=dict)
    results: dict[str, NodeResult] = field(default_factory=dict)

    @property
    def wanted(self) -> dict[Role, int]:
        """How many nodes of each role the job needs."""
        return {Role.SCHEDULER: 1, Role.SERVER: self.job.servers, Role.WORKER: self.job.workers}

    def register(self, registration: Registration) -> None:
        """Note a node that is ready; once all roles are complete, the rendezvous is fixed for this generation."""
        self.registrations.setdefault(registration.instance_id, registration)
        if self.rendezvous is None and not self.missing():
            peers = [
                Peer(role=node.role, rank=rank, instance_id=node.instance_id, address=node.address)
                for role, count in self.wanted.items()
                for rank, node in enumerate(self._of(role)[:count])
            ]
            self.rendezvous = Rendezvous(job_id=self.job.job_id, generation=1, peers=tuple(peers))

    def _of(self, role: Role) -> list[Registration]:
        return sorted((n for n in self.registrations.values() if n.role is role), key=lambda n: n.instance_id)

    def missing(self) -> dict[Role, int]:
        """How many nodes of each role have not registered yet; empty when complete."""
        lacking = {role: count - len(self._of(role)) for role, count in self.wanted.items()}
        return {role: count for role, count in lacking.items() if count > 0}

    def failure(self) -> str | None:
        """Return the first failed node's cause, or None. A node's own error beats the loss it caused elsewhere."""
        failed = [(peer, self.results[peer.instance_id]) for peer in self._peers() if self._failed(peer)]
        failed.sort(key=lambda item: (item[1].status < 0, item[0].role is not Role.WORKER))
        if not failed:
            return None
        peer, result = failed[0]
        return f"{peer.role} {peer.rank} ({peer.instance_id}): {result.cause}"[:MAX_CAUSE]

    def complete(self) -> bool:
        """Return whether every node's part has ended."""
        return bool(self._peers()) and all(peer.instance_id in self.results for peer in self._peers())

    def _peers(self) -> tuple[Peer, ...]:
        return self.rendezvous.peers if self.rendezvous else ()

    def _failed(self, peer: Peer) -> bool:
        result = self.results.get(peer.instance_id)
        return result is not None and result.status != 0

    def record(self, phase: str, cause: str | None = None) -> bytes:
        """Return the job's record as JSON: its phase, its nodes with their identities, and how each ended.

        `first_step_at` is when the last worker began its first training step (seconds since the epoch), or null.
        """
        ranks = {peer.instance_id: peer.rank for peer in self._peers()}
        nodes = [
            asdict(node) | {"rank": ranks.get(node.instance_id)} | _ending(self.results.get(node.instance_id))
            for role in Role
            for node in self._of(role)
        ]
        steps = [result.first_step_ms for result in self.results.values() if result.first_step_ms]
        document = {
            "job_id": self.job.job_id,
            "phase": phase,
            "cause": cause,
            "nodes": nodes,
            "first_step_at": max(steps) / 1000 if steps else None,
        }
        return json.dumps(document).encode()


def _ending(result: NodeResult | None) -> dict[str, Any]:
    if result is None:
        return {"status": None, "cause": "", "tls_connections": None, "tls_peers": []}
    return {
        "status": result.status,
        "cause": result.cause,
        "tls_connections": result.tls_connections,
        "tls_peers": list(result.tls_peers),
    }


class JobCancelledError(HoldfastError):
    """The state machine no longer waits for this job: it was stopped, or it ran past its deadline."""


class Reporter:
    """Speaks to the state machine with a task token: heartbeats, then one success or failure."""

    def __init__(self, states: "SFNClient", token: str) -> None:
        self._states = states
        self._token = token
        self._beat_due = 0.0

    def beat(self) -> None:
        """Send a heartbeat if one is due; raises JobCancelledError when nobody waits any more."""
        if time.monotonic() < self._beat_due:
            return
        try:
            self._states.send_task_heartbeat(taskToken=self._token)
        except ClientError as error:
            if error.response["Error"]["Code"] in {"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"}:
                raise JobCancelledError("the state machine no longer waits for this job") from None
            raise
        self._beat_due = time.monotonic() + HEARTBEAT_SECONDS

    def succeed(self, output: bytes) -> None:
        """Tell the state machine that the job succeeded; `output` is JSON."""
        self._states.send_task_success(taskToken=self._token, output=output.decode())

    def fail(self, cause: str) -> None:
        """Tell the state machine that the job failed, with its cause."""
        self._states.send_task_failure(taskToken=self._token, error="Holdfast.JobFailed", cause=cause[:MAX_CAUSE])


def await_control(store: Store, poll_seconds: float = POLL_SECONDS, timeout_seconds: float = GATHER_SECONDS) -> Control:
    """Return the job that the state machine has handed to this scheduler."""
    deadline = time.monotonic() + timeout_seconds
    while (control := store.load(Control, JobsBucket.CONTROL)) is None:
        if time.monotonic() > deadline:
            raise HoldfastError(f"the state machine handed out no job within {timeout_seconds:g} s")
        time.sleep(poll_seconds)
    return control


def coordinate(store: Store, reporter: Reporter, control: Control, job: JobDocument) -> None:
    """Gather the nodes, publish the rendezvous, wait for the results, and report the outcome.

    Raises:
        JobCancelledError: the state machine gave up on the job.
    """
    coordination = Coordination(job)
    started = datetime.fromisoformat(control.started_at) - timedelta(seconds=1)  # S3 keeps whole seconds
    status = JobsBucket.status(job.job_id)
    store.save(status, coordination.record("gathering"))
    deadline = time.monotonic() + GATHER_SECONDS
    while coordination.rendezvous is None:
        reporter.beat()
        for role in Role:
            for key in store.changed_since(JobsBucket.node_prefix(role), started):
                registration = store.load(Registration, key)
                if registration is not None and key == JobsBucket.node(role, registration.instance_id):
                    coordination.register(registration)
        if coordination.rendezvous is None:
            if time.monotonic() > deadline:
                lacking = ", ".join(f"{count} {role}" for role, count in coordination.missing().items())
                return _finish(store, reporter, coordination, f"no such nodes after {GATHER_SECONDS} s: {lacking}")
            time.sleep(POLL_SECONDS)
    store.save(JobsBucket.RENDEZVOUS, coordination.rendezvous)
    store.save(status, coordination.record("running"))
    drain_until: float | None = None
    while not coordination.complete():
        reporter.beat()
        for peer in coordination.rendezvous.peers:
            if peer.instance_id in coordination.results:
                continue
            result = store.load(NodeResult, JobsBucket.result(job.job_id, peer.role, peer.instance_id))
            if result is not None:
                coordination.results[peer.instance_id] = result
                store.save(status, coordination.record("running"))
        if coordination.failure():
            break
        if coordination.results and drain_until is None:
            drain_until = time.monotonic() + DRAIN_SECONDS
        if drain_until and time.monotonic() > drain_until and _workers_done(coordination):
            break
        time.sleep(POLL_SECONDS)
    cause = coordination.failure()
    if cause is None and not coordination.complete():
        cause = f"workers ended, but scheduler or servers did not within {DRAIN_SECONDS} s"
    return _finish(store, reporter, coordination, cause)


def _workers_done(coordination: Coordination) -> bool:
    assert coordination.rendezvous is not None
    workers = [peer for peer in coordination.rendezvous.peers if peer.role is Role.WORKER]
    return all(peer.instance_id in coordination.results for peer in workers)


def _finish(store: Store, reporter: Reporter, coordination: Coordination, cause: str | None) -> None:
    record = coordination.record("failed" if cause else "succeeded", cause)
    store.save(JobsBucket.status(coordination.job.job_id), record)
    if cause:
        reporter.fail(cause)
    else:
        reporter.succeed(record)
