"""The scheduler's part beside training: gather the nodes, publish the rendezvous, report how the job ended.

`Coordination` decides from what it is told and holds no socket; `coordinate` feeds it from the jobs bucket and
speaks to the state machine.
"""

import json
import math
import time
from collections.abc import Callable
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
#: How long it waits for scheduler and servers to end once every worker's part has ended.
DRAIN_SECONDS = 60
#: How often a node renews its registration, and after how long a silence it counts as lost.
PRESENCE_SECONDS = 5
LOST_SECONDS = 30
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

    def running(self) -> list[Peer]:
        """Return the nodes whose part has not ended."""
        return [peer for peer in self._peers() if peer.instance_id not in self.results]

    def complete(self) -> bool:
        """Return whether every node's part has ended."""
        return bool(self._peers()) and not self.running()

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
            "seed": self.job.seed,
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


def await_control(store: Store) -> Control:
    """Return the job that the state machine has handed to this scheduler."""
    deadline = time.monotonic() + GATHER_SECONDS
    while (control := store.load(Control, JobsBucket.CONTROL)) is None:
        if time.monotonic() > deadline:
            raise HoldfastError(f"the state machine handed out no job within {GATHER_SECONDS} s{store.denial}")
        time.sleep(POLL_SECONDS)
    return control


def coordinate(store: Store, reporter: Reporter, control: Control, job: JobDocument) -> None:
    """Gather the nodes, publish the rendezvous, wait for the results, and report the outcome.

    Raises:
        JobCancelledError: the state machine gave up on the job.
    """
    coordination, presence = Coordination(job), PresenceWatch()
    # S3 keeps whole seconds. What was registered before this execution belongs to instances that are gone.
    started = datetime.fromisoformat(control.started_at) - timedelta(seconds=1)

    def look() -> None:
        reporter.beat()
        for role in Role:
            for key, changed in store.changed_since(JobsBucket.node_prefix(role), started):
                presence.seen(key, changed)

    status = JobsBucket.status(job.job_id)
    store.save(status, coordination.record("gathering"))
    rendezvous = _gather(store, coordination, presence, look)
    if rendezvous is None:
        lacking = ", ".join(f"{count} {role}" for role, count in coordination.missing().items())
        cause: str | None = f"nodes did not register within {GATHER_SECONDS} s: {lacking}"
    else:
        store.save(JobsBucket.RENDEZVOUS, rendezvous)
        store.save(status, coordination.record("running"))
        cause = _supervise(store, coordination, presence, look)
    record = coordination.record("failed" if cause else "succeeded", cause)
    store.save(status, record)
    if cause:
        reporter.fail(cause)
    else:
        # Step Functions takes 262,144 characters of output; the whole record is in the bucket.
        reporter.succeed(json.dumps({"job_id": job.job_id, "phase": "succeeded"}).encode())


def _gather(
    store: Store, coordination: Coordination, presence: "PresenceWatch", look: Callable[[], None]
) -> Rendezvous | None:
    deadline = time.monotonic() + GATHER_SECONDS
    while time.monotonic() < deadline:
        look()
        for key in presence.registrations():
            registration = store.load(Registration, key)
            # A role may write below its own prefix only, so the key says what the registration may claim.
            if registration and key == JobsBucket.node(registration.role, registration.instance_id):
                coordination.register(registration)
        if coordination.rendezvous is not None:
            return coordination.rendezvous
        time.sleep(POLL_SECONDS)
    return None


def _supervise(
    store: Store, coordination: Coordination, presence: "PresenceWatch", look: Callable[[], None]
) -> str | None:
    """Wait until every node's part has ended or one has failed; return the cause of the failure, if any."""
    job_id, drain_until = coordination.job.job_id, math.inf
    while not coordination.complete() and coordination.failure() is None:
        look()
        for peer in coordination.running():
            result = store.load(NodeResult, JobsBucket.result(job_id, peer.role, peer.instance_id))
            if result is None and presence.lost(JobsBucket.node(peer.role, peer.instance_id)):
                cause = f"not heard of for {LOST_SECONDS} s: the node was lost, or its agent died"
                result = NodeResult(status=1, cause=cause, rank=peer.rank, tls_connections=0, tls_peers=())
            if result is not None:
                coordination.results[peer.instance_id] = result
                store.save(JobsBucket.status(job_id), coordination.record("running"))
        if not any(peer.role is Role.WORKER for peer in coordination.running()):
            drain_until = min(drain_until, time.monotonic() + DRAIN_SECONDS)
        if time.monotonic() > drain_until:
            return f"workers ended, but scheduler or servers did not within {DRAIN_SECONDS} s"
        time.sleep(POLL_SECONDS)
    return coordination.failure()


class PresenceWatch:
    """Knows which registrations are still renewed. It compares S3's times with each other, never with this clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[datetime, float]] = {}

    def seen(self, key: str, changed: datetime) -> None:
        """Note that a registration was last written at `changed`."""
        if key not in self._last or self._last[key][0] != changed:
            self._last[key] = (changed, self._clock())

    def registrations(self) -> list[str]:
        """Return the keys of all registrations that were seen."""
        return list(self._last)

    def lost(self, key: str) -> bool:
        """Return whether a registration was seen once, and then not renewed for 30 s."""
        return key in self._last and self._clock() - self._last[key][1] > LOST_SECONDS
