"""A node's part in one generation of a job: verify, bring up the tunnel, have the trainer run, say how it ended.

Whatever fails ends in a result with a cause; when it is returned, the trainer has ended.
"""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from holdfast_node import signing
from holdfast_node.admission import admit_peers
from holdfast_node.contract.documents import JobDocument, NodeConfig, NodeResult, Peer, Rendezvous
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.roles import Role
from holdfast_node.contract.statuses import EXIT_LOST
from holdfast_node.control import ServiceControl
from holdfast_node.detection import Detection
from holdfast_node.engines import get_engine
from holdfast_node.jobs import load_job, unpack_code
from holdfast_node.joining import Joining
from holdfast_node.listeners import await_listener, require_free
from holdfast_node.log_reading import exit_cause, first_step_ms, last_line, late_peers, one_line, read_head, read_tail
from holdfast_node.logship import LogShipper
from holdfast_node.processes import Liveness, processes
from holdfast_node.publish import publish_model, snapshot_model
from holdfast_node.reachability import Reachability
from holdfast_node.store import Store
from holdfast_node.tunnel import accepted_peers, listeners, stunnel_config, write_private

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_s3 import S3Client

_LOG = logging.getLogger("holdfast")
TUNNEL_SECONDS = 15
_POLL_SECONDS = 0.5
_TABLE = Path("/proc/self/net/tcp")

#: Says why a part must end, or None; called twice a second while the trainer runs, and it must not block.
Watch = Callable[[], str | None]


@dataclass(frozen=True, kw_only=True)
class Node:
    """What the agent has: the node's directories and constants, its services, and its clients."""

    paths: NodePaths
    config: NodeConfig
    instance_id: str
    services: ServiceControl
    store: Store
    s3: "S3Client"
    kms: Any
    logs: "CloudWatchLogsClient"

    @property
    def detection(self) -> Detection:
        """Within how long losses are to be noticed here."""
        return Detection(self.config.lost_seconds)

    def ship(self, prefix: str, *services: str, generation: int = 1) -> LogShipper:
        """Start shipping these services' logs to streams below `prefix`, from what the generation writes on.

        The first generation's streams are `<prefix>/<service>`, a later one's `<prefix>/<service>/<generation>`.
        """
        paths = {service: self.paths.log(service) for service in services}
        starts = {service: self.log_size(service) if generation > 1 else 0 for service in services}
        suffix = f"/{generation}" if generation > 1 else ""
        shipper = LogShipper(self.logs, self.config.log_group, prefix, paths, starts=starts, suffix=suffix)
        shipper.start()
        return shipper

    def log_size(self, service: str) -> int:
        """Return how much a service has logged so far, in bytes."""
        try:
            return self.paths.log(service).stat().st_size
        except FileNotFoundError:
            return 0

    def load_job(self, job_id: str) -> JobDocument:
        """Return the job's document, verified."""
        verify = signing.kms_verifier(self.kms, self.config.job_signing_key)
        return load_job(self.store, job_id, cluster=self.config.cluster, verify=verify)


class Part:
    """One node's part in one generation."""

    def __init__(self, node: Node, rendezvous: Rendezvous, me: Peer, *, tls_files: threading.Lock) -> None:
        """Make the part; `tls_files` is held by whoever replaces the node's key and certificate."""
        self._node, self._rendezvous, self._me = node, rendezvous, me
        self._tls_files = tls_files
        # Before `run` starts anything too: what the logs hold is an earlier generation's.
        self._starts = {service: node.log_size(service) for service in ("trainer", "tunnel")}

    def run(self, over: Callable[[], bool], identity_lost: Watch) -> NodeResult:
        """Do the part and return how it ended.

        It ends early once the generation is `over`, or while `identity_lost` says why nodes of it may not speak.
        """
        node, rendezvous, me = self._node, self._rendezvous, self._me
        prefix = f"{rendezvous.job_id}/{me.role}/{me.instance_id}"
        shipper = node.ship(prefix, "trainer", "agent", "tunnel", generation=rendezvous.generation)
        result = NodeResult(status=1, cause="", rank=me.rank, tls_connections=0, tls_peers=())
        try:
            job = node.load_job(rendezvous.job_id)
            status, cause = self._train(job, over, identity_lost)
            if not node.services.stop("trainer"):
                _LOG.warning("the trainer has not ended; its service manager does not answer")
            exports = status == 0 and me.role is Role.WORKER and me.rank == 0
            result = replace(result, status=status, cause=cause, model_sha256=self._publish(job) if exports else None)
        except Exception as error:  # whatever it is, it must reach the scheduler, or the others wait for this node
            _LOG.exception("this node's part failed")
            node.services.stop("trainer")
            # What AWS did not do now, it may do in the next generation; all else would fail again.
            status = EXIT_LOST if isinstance(error, BotoCoreError | ClientError) else 1
            result = replace(result, status=status, cause=one_line(f"{type(error).__name__}: {error}"))
        accepted = accepted_peers(self._log("tunnel", read_head))
        result = replace(result, tls_connections=sum(accepted.values()), tls_peers=tuple(sorted(accepted)))
        if me.role is Role.WORKER:
            result = replace(result, first_step_ms=first_step_ms(self._log("trainer", read_head)))
        _LOG.info(
            "part in generation %d ended with status %d%s",
            rendezvous.generation,
            result.status,
            f": {result.cause}" if result.cause else "",
        )
        shipper.finish()
        return result

    def late(self) -> frozenset[tuple[str, int]]:
        """Return role and rank of those whose heartbeats reach this node's trainer late; a scheduler's gets all."""
        return late_peers(self._log("trainer", read_tail))

    def _log(self, service: str, read: Callable[[Path, int], str]) -> str:
        return read(self._node.paths.log(service), self._starts[service])

    def _train(self, job: JobDocument, over: Callable[[], bool], identity_lost: Watch) -> tuple[int, str]:
        node, me, paths, ports = self._node, self._me, self._node.paths, self._node.config.ports
        node.services.stop("trainer", "tunnel")  # what an earlier generation has left
        unpack_code(node.store, job, paths.code)
        for address, port in listeners(me=me, rendezvous=self._rendezvous, ports=ports):
            require_free(address, port, "the tunnel")
        config = stunnel_config(
            cluster=node.config.cluster, me=me, rendezvous=self._rendezvous, ports=ports, paths=paths
        )
        write_private(paths.stunnel_config, config)
        if cause := identity_lost():
            return EXIT_LOST, cause
        admit_peers(node.services, paths, self._rendezvous)
        with self._tls_files:  # until it listens it may still be reading them
            node.services.start("tunnel")
            await_listener(me.address, ports[me.role], "the tunnel", TUNNEL_SECONDS)
        launch = get_engine(job.engine).launch(
            job=job,
            rendezvous=self._rendezvous,
            me=me,
            ports=ports,
            code=paths.code,
            work=paths.work,
            checkpoints=paths.checkpoints,
            retention=node.config.retention,
            heartbeat_seconds=node.detection.heartbeat_seconds,
        )
        write_private(paths.launch, json.dumps(asdict(launch), default=str))
        node.services.start("trainer")
        _LOG.info("training as %s %d in generation %d of %s", me.role, me.rank, self._rendezvous.generation, job.job_id)
        return self._await_trainer(over, (identity_lost, self._stopped(), self._cut_off()))

    def _cut_off(self) -> Watch:
        """Return what says that peers cannot be reached, or have not joined in time."""
        me, ports, detection = self._me, self._node.config.ports, self._node.detection
        peers = self._rendezvous.dialled_by(me.role)
        reachability = Reachability(me, peers, ports, detection.unreachable_seconds)
        joining = Joining(peers, ports, self._node.config.join_seconds)

        def watch() -> str | None:
            table, now = _TABLE.read_text(), time.monotonic()
            return reachability.look(table, now) or joining.look(table, now)

        return watch

    def _stopped(self) -> Watch:
        """Return what says that a process of the trainer or the tunnel is stopped."""
        services = self._node.services
        liveness = Liveness(("trainer", "tunnel"), services.main_pid, self._node.detection.stopped_seconds)

        def watch() -> str | None:
            if services.main_pid("trainer") is None:
                return None  # not started yet: what must be true before may take its time (systemd.gate)
            return liveness.look(processes(), time.monotonic())

        return watch

    def _await_trainer(self, over: Callable[[], bool], watches: Sequence[Watch]) -> tuple[int, str]:
        # The trainer's own end comes first; a tunnel that ends before it has cut the trainer off.
        services = self._node.services
        while True:
            status = services.exit_status("trainer")
            if status is not None:
                return status, "" if status == 0 else exit_cause(status, self._log("trainer", read_tail))
            tunnel = services.exit_status("tunnel")
            if tunnel is not None:
                log = self._log("tunnel", read_tail)
                return EXIT_LOST, one_line(f"the tunnel ended with status {tunnel}: {last_line(log)}")
            if over():
                services.stop("tunnel", "trainer")  # the next generation may be long in coming, and not for every peer
                return -signal.SIGTERM, "stopped with its generation"
            for watch in watches:
                if cause := watch():
                    # With the tunnel gone the established connections are gone too: TLS would never ask them again.
                    services.stop("tunnel", "trainer")
                    return EXIT_LOST, one_line(cause)
            time.sleep(_POLL_SECONDS)

    def _publish(self, job: JobDocument) -> str:
        node = self._node
        snapshot = node.paths.state / "model"
        snapshot_model(job, node.paths.work, snapshot, node.instance_id)
        key = node.config.model_signing_key
        sign = signing.kms_signer(node.kms, key)
        public_key = signing.public_key_pem(signing.public_key(node.kms, key))
        digest = publish_model(
            node.s3,
            node.config.models_bucket,
            job,
            snapshot,
            lambda directory, name: signing.sign_model(directory, name, sign, public_key),
        )
        _LOG.info("published the signed model of job %s", job.job_id)
        return digest
