"""The scheduler's part beside training: gather the nodes, publish the rendezvous, report how the job ended.

`Coordination` decides; `coordinate` feeds it from the jobs bucket and speaks to the state machine.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from holdfast_node.contract.documents import (
    ENDED,
    BootRecord,
    Control,
    JobDocument,
    NodeResult,
    Registration,
    Rendezvous,
)
from holdfast_node.contract.errors import DocumentError, HoldfastError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role
from holdfast_node.coordination import GATHER_SECONDS, MAX_CAUSE, Coordination
from holdfast_node.detection import Detection
from holdfast_node.log_reading import one_line
from holdfast_node.store import Store

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

_LOG = logging.getLogger("holdfast")
HEARTBEAT_SECONDS = 10
POLL_SECONDS = 0.5


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


def coordinate(
    store: Store,
    reporter: Reporter,
    control: Control,
    job: JobDocument,
    detection: Detection,
    denied: Callable[[], Mapping[str, str]] = dict,
    late: Callable[[], frozenset[tuple[str, int]]] = frozenset,
) -> None:
    """Gather the nodes, publish each generation's rendezvous, and report the outcome.

    A scheduler's agent that takes over from one that was lost finds that one's rendezvous and goes on after it.
    `denied` returns the instances that may no longer take part, each with the cause; `late` role and rank of those that
    answer late.

    Raises:
        JobCancelledError: the state machine gave up on the job.
    """
    found = store.load(Rendezvous, JobsBucket.RENDEZVOUS)
    previous = found if found and found.job_id == job.job_id else None
    if previous and previous.phase == ENDED:
        raise JobCancelledError("the job has ended already")
    coordination, presence = Coordination(job, previous), PresenceWatch(detection.silence_seconds)
    # S3 keeps whole seconds. What was registered before this execution belongs to instances that are gone.
    started = datetime.fromisoformat(control.started_at) - timedelta(seconds=1)
    published, recorded, boots = previous, b"", BootWatch(started)
    while True:
        if (record := coordination.record()) != recorded:
            store.save(JobsBucket.status(job.job_id), record)
            recorded = record
        if coordination.outcome is not None:
            break
        reporter.beat()
        presence.listing()
        for role in Role:
            for key, changed in store.changed_since(JobsBucket.node_prefix(role), started):
                presence.seen(key, changed)
        for instance_id, cause in denied().items():
            coordination.exclude(instance_id, cause)
        if coordination.gathering:
            boots.hear(store, coordination)
        _hear(store, coordination, presence)
        coordination.note_late(late())
        coordination.advance(time.monotonic(), presence.alive())
        if coordination.rendezvous != published and coordination.outcome is None:
            assert coordination.rendezvous is not None
            store.save(JobsBucket.RENDEZVOUS, coordination.rendezvous)
            published = coordination.rendezvous
            continue
        time.sleep(POLL_SECONDS)
    if coordination.outcome.cause is not None:
        reporter.fail(coordination.outcome.cause)
    else:
        # Step Functions takes 262,144 characters of output; the whole record is in the bucket.
        reporter.succeed(json.dumps({"job_id": job.job_id, "phase": "succeeded"}).encode())
    if coordination.rendezvous is not None:
        store.save(JobsBucket.RENDEZVOUS, coordination.rendezvous)  # last: an agent that takes over reports again


def _hear(store: Store, coordination: Coordination, presence: "PresenceWatch") -> None:
    """Tell `coordination` of new nodes, of parts that have ended, and of nodes that are silent."""
    if coordination.gathering:
        for key in presence.registrations():
            try:
                registration = store.load(Registration, key)
            except DocumentError as error:  # its writer is one node, and the others go on without it
                if key not in presence.unreadable:
                    presence.unreadable.add(key)
                    _LOG.warning("%s cannot be used: %s", key, one_line(str(error)))
                continue
            # A role may write below its own prefix only, so the key says what the registration may claim.
            if registration and key == JobsBucket.node(registration.role, registration.instance_id):
                coordination.register(registration)
    if coordination.rendezvous is None:
        return
    job_id, generation = coordination.job.job_id, coordination.rendezvous.generation
    for peer in coordination.running():
        try:
            result = store.load(NodeResult, JobsBucket.result(job_id, generation, peer.role, peer.instance_id))
        except DocumentError as error:
            coordination.lose(peer.instance_id, one_line(f"its result cannot be used: {error}"))
            continue
        if result is not None:
            coordination.note(peer.instance_id, result)
        elif presence.lost(JobsBucket.node(peer.role, peer.instance_id)):
            cause = f"not heard of for {presence.silence_seconds:g} s: the node was lost, or its agent died"
            coordination.lose(peer.instance_id, cause)


class BootWatch:
    """Knows how the boots of a job's instances went; reads each record once, and again when it was rewritten."""

    def __init__(self, started: datetime) -> None:
        """Watch what was recorded since `started`: what is older is of instances that are gone."""
        self._started = started
        self._read: dict[str, datetime] = {}

    def hear(self, store: Store, coordination: Coordination) -> None:
        """Tell `coordination` of the instances that did not boot. A record that is none says nothing."""
        for role in Role:
            for key, changed in store.changed_since(JobsBucket.boot_prefix(role), self._started):
                if self._read.get(key) == changed:
                    continue
                self._read[key] = changed
                try:
                    record = store.load(BootRecord, key)
                except DocumentError as error:  # its writer is one node, and the others go on without it
                    _LOG.warning("%s cannot be used: %s", key, one_line(str(error)))
                    continue
                # A role may write below its own prefix only, so the key says of whom the record may speak.
                if record and record.failure and key == JobsBucket.boot(record.role, record.instance_id):
                    coordination.boot_failed(record.instance_id, role, one_line(record.failure, MAX_CAUSE))


class PresenceWatch:
    """Knows which registrations are still renewed. It compares S3's times with each other, never with this clock.

    A silence is measured between two listings: while this node waits for S3, nobody else grows silent.
    """

    def __init__(self, silence_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.silence_seconds = silence_seconds
        self._clock = clock
        self._now = clock()
        self._last: dict[str, tuple[datetime, float]] = {}
        #: The keys of registrations that are no such documents, once they have been said.
        self.unreadable: set[str] = set()

    def listing(self) -> None:
        """Note that all registrations are listed now."""
        self._now = self._clock()

    def seen(self, key: str, changed: datetime) -> None:
        """Note that a registration was last written at `changed`."""
        if key not in self._last or self._last[key][0] != changed:
            self._last[key] = (changed, self._now)

    def registrations(self) -> list[str]:
        """Return the keys of all registrations that were seen."""
        return list(self._last)

    def alive(self) -> set[str]:
        """Return the instances whose registrations are still renewed."""
        return {key.rpartition("/")[2].removesuffix(".json") for key in self._last if not self.lost(key)}

    def lost(self, key: str) -> bool:
        """Return whether a registration was seen once, and then not renewed for too long."""
        return key in self._last and self._now - self._last[key][1] > self.silence_seconds
