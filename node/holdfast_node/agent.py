"""The node's agent: from enrolment to the job's end. It runs as `holdfast-agent` and never runs user code.

It enrols, registers, and takes part in each generation of a job that the scheduler names it in (`part`). The
scheduler's agent also coordinates. Whatever fails ends in a result with a cause, so that the job goes on without
this node or fails, and never waits for it.
"""

import argparse
import logging
import sys
import threading
import time
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from holdfast_node import coordinator, identity, metadata
from holdfast_node.contract.documents import (
    ENDED,
    RUNNING,
    Control,
    NodeConfig,
    NodeResult,
    Peer,
    Registration,
    Rendezvous,
)
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import JobsBucket, NodePaths
from holdfast_node.contract.roles import Role, Serving
from holdfast_node.contract.statuses import EXIT_LOST
from holdfast_node.control import ServiceControl
from holdfast_node.coordination import DRAIN_SECONDS, GATHER_SECONDS
from holdfast_node.denials import Denials
from holdfast_node.following import RendezvousFollower
from holdfast_node.journal import Journal
from holdfast_node.log_reading import one_line
from holdfast_node.part import Node, Part
from holdfast_node.predict.node import PredictorAgent
from holdfast_node.presence import Presence, Pulse
from holdfast_node.renewal import Renewal
from holdfast_node.store import Store
from holdfast_node.systemd.notify import notify

_LOG = logging.getLogger("holdfast")
_AWS = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 5})
_SOON = Config(connect_timeout=2, read_timeout=4, retries={"mode": "standard", "max_attempts": 2})
#: How long a node waits for its part in the next generation. The coordinator waits `GATHER_SECONDS` for the others,
#: after as much for a scheduler that is replaced.
RENDEZVOUS_SECONDS = 2 * GATHER_SECONDS + 60
_POLL_SECONDS = 0.3


class Agent:
    """One node's parts in one job."""

    def __init__(self, paths: NodePaths, config: NodeConfig) -> None:
        self._session = boto3.Session(region_name=config.region)
        self._instance = metadata.instance()
        s3 = self._session.client("s3", config=_AWS)
        self._node = Node(
            paths=paths,
            config=config,
            instance_id=self._instance.instance_id,
            services=ServiceControl(paths),
            store=Store(s3, config.jobs_bucket),
            s3=s3,
            kms=self._session.client("kms", config=_AWS),
            logs=self._session.client("logs", config=_AWS),
        )
        # A read or a renewal that hangs is worth less than the next one.
        self._soon = Store(self._session.client("s3", config=_SOON), config.jobs_bucket)
        self._follower = RendezvousFollower(self._soon)
        self._denials = Denials(self._soon)
        self._part: Part | None = None

    def run(self) -> int:
        """Do the node's parts; return 0 if the last one succeeded."""
        # A node that never gets a job leaves its words below a prefix of its own.
        shipper = self._node.ship(f"nodes/{self._node.config.role}/{self._node.instance_id}", "agent")
        try:
            return self._run()
        except Exception as error:
            _LOG.error("%s", one_line(f"{type(error).__name__}: {error}"))
            raise
        finally:
            shipper.finish()

    def _run(self) -> int:
        self._stop_services()  # an agent before this one may have left them, and nobody watches their peers meanwhile
        try:
            return self._do_parts()
        finally:
            self._stop_services()

    def _stop_services(self) -> None:
        if not self._node.services.stop("trainer", "tunnel"):
            _LOG.warning("the trainer or the tunnel has not ended; their service manager does not answer")

    def _do_parts(self) -> int:
        self._enrol()
        self._follower.start()
        if self._node.config.role is not Role.SCHEDULER:
            return self._take_parts()
        control = coordinator.await_control(self._node.store)
        reporter = coordinator.Reporter(self._session.client("stepfunctions", config=_AWS), control.task_token)
        try:
            return self._schedule(control, reporter)
        except coordinator.JobCancelledError:
            raise
        except Exception as error:
            reporter.fail(f"scheduler ({self._node.instance_id}): {one_line(str(error))}")
            raise

    def _schedule(self, control: Control, reporter: coordinator.Reporter) -> int:
        job = self._node.load_job(control.job_id)
        status: list[int] = []
        failures: list[Exception] = []

        def take_parts() -> None:
            try:
                status.append(self._take_parts())
            except Exception as error:
                failures.append(error)

        def denied() -> dict[str, str]:
            if failures:  # nobody else would say so: the registration is still renewed
                raise failures[0]
            return self._denied()

        thread = threading.Thread(target=take_parts, name="part", daemon=True)
        thread.start()
        coordinator.coordinate(self._node.store, reporter, control, job, self._node.detection, denied, self._late)
        thread.join(timeout=DRAIN_SECONDS)
        return status[0] if status else 1

    def _enrol(self) -> None:
        granted = self._ask_for_certificate()
        _LOG.info("enrolled as %s", granted.spiffe_id)
        notify("READY=1")
        self._renewal = Renewal(granted, self._ask_for_certificate, lambda: self._node.services.reload("tunnel"))
        self._renewal.start()
        self._denials.start()

        # The address is the instance's own word: EC2's where they differ, which is on local hosts that share a
        # loopback interface. Peers check names, so a false address only fails to connect; another node's is no seat's.
        def registration() -> Registration:
            return self._renewal.identity.registration(self._instance.address)

        Presence(self._soon, registration, self._node.detection.presence_seconds).start()

    def _ask_for_certificate(self) -> identity.Identity:
        node = self._node
        return identity.enrol(node.config, self._session, instance_id=node.instance_id, tls_dir=node.paths.tls)

    def _denied(self) -> dict[str, str]:
        return dict.fromkeys(self._denials.denied(), "it was revoked by an operator")

    def _late(self) -> frozenset[tuple[str, int]]:
        part = self._part  # its thread may end it meanwhile
        return part.late() if part else frozenset()

    def _take_parts(self) -> int:
        """Take part in every generation that names this node, until the job has ended; return the last status."""
        journal = Journal(self._node.paths.state / "part.json")
        status, last = 1, 0
        while found := self._next(journal, last):
            rendezvous, me = found
            last = rendezvous.generation
            journal.begin(rendezvous)
            result = self._take_part(rendezvous, me)
            status = result.status
            self._report(journal, rendezvous, me, result)
        return status

    def _take_part(self, rendezvous: Rendezvous, me: Peer) -> NodeResult:
        instance_ids = [peer.instance_id for peer in rendezvous.peers]

        def identity_lost() -> str | None:
            return self._renewal.cause() or self._denials.cause(instance_ids)

        self._part = Part(self._node, rendezvous, me, tls_files=self._renewal.files)
        try:
            return self._part.run(lambda: self._is_over(rendezvous.generation), identity_lost)
        finally:
            self._part = None

    def _next(self, journal: Journal, last: int) -> tuple[Rendezvous, Peer] | None:
        """Return the next generation that this node has a part in, or None once the job has ended."""
        deadline = time.monotonic() + RENDEZVOUS_SECONDS
        while time.monotonic() < deadline:
            rendezvous = self._follower.current
            if rendezvous and (me := rendezvous.me(self._node.instance_id)):
                if me.role is not self._node.config.role:
                    raise HoldfastError(
                        f"the rendezvous has this {self._node.config.role} as a {me.role}; it is not used"
                    )
                if rendezvous.phase == ENDED:
                    return None
                if rendezvous.generation > last:
                    begun = journal.begun(rendezvous)
                    if not begun and rendezvous.phase == RUNNING:
                        return rendezvous, me
                    self._take_over(journal, rendezvous, me)
                    last = rendezvous.generation
            time.sleep(_POLL_SECONDS)
        raise HoldfastError(f"no rendezvous named this instance in {RENDEZVOUS_SECONDS} s{self._follower.problem}")

    def _take_over(self, journal: Journal, rendezvous: Rendezvous, me: Peer) -> None:
        """Answer for a part that an agent before this one began and never reported, or that nobody began in time."""
        begun = journal.begun(rendezvous)
        cause = "the node's agent was lost and started anew" if begun else "the generation was over before it began"
        lost = NodeResult(status=EXIT_LOST, cause=cause, rank=me.rank, tls_connections=0, tls_peers=())
        _LOG.warning("generation %d: %s", rendezvous.generation, cause)
        self._stop_services()
        self._report(journal, rendezvous, me, journal.result(rendezvous) or lost)

    def _report(self, journal: Journal, rendezvous: Rendezvous, me: Peer, result: NodeResult) -> None:
        journal.end(rendezvous, result)
        key = JobsBucket.result(rendezvous.job_id, rendezvous.generation, me.role, me.instance_id)
        self._node.store.save(key, result)

    def _is_over(self, generation: int) -> bool:
        rendezvous = self._follower.current
        return rendezvous is not None and (rendezvous.generation > generation or rendezvous.phase != RUNNING)


def main() -> int:
    """Run the agent of the node below `--root`."""
    parser = argparse.ArgumentParser(description="Run the node's agent.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    paths = NodePaths(arguments.root)
    agent: Agent | PredictorAgent
    Pulse(paths.alive("agent")).start()  # first: the watchdog counts from the process's start
    try:
        config = NodeConfig.parse(paths.config.read_bytes())
        agent = PredictorAgent(paths, config) if config.role is Serving.PREDICTOR else Agent(paths, config)
    except (HoldfastError, BotoCoreError, OSError) as error:
        _LOG.error("%s", one_line(f"{type(error).__name__}: {error}"))
        return 1
    try:
        return agent.run()
    except (HoldfastError, BotoCoreError, ClientError, OSError):
        return 1  # said, and shipped, by `run`


if __name__ == "__main__":
    sys.exit(main())
