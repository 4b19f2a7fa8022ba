"""The node's agent: from enrolment to a reported result. It runs as `holdfast-agent` and never runs user code.

One node has one part in one job: enrol, register, wait for the rendezvous, verify the job, bring up the tunnel,
have the trainer started, report. The scheduler's agent also coordinates. Whatever fails ends in a result with a
cause, so that the state machine can lower the groups.
"""

import argparse
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from holdfast_node import coordinator, identity, metadata, signing
from holdfast_node.contract.documents import (
    Control,
    JobDocument,
    NodeConfig,
    NodeResult,
    Peer,
    Registration,
    Rendezvous,
)
from holdfast_node.contract.errors import HoldfastError, VerificationError
from holdfast_node.contract.layout import JobsBucket, NodePaths
from holdfast_node.contract.roles import Role
from holdfast_node.denials import Denials
from holdfast_node.engines import get_engine
from holdfast_node.jobs import load_job, unpack_code
from holdfast_node.listeners import await_listener, require_free
from holdfast_node.log_reading import exit_cause, first_step_ms, last_line, one_line, read_head, read_tail
from holdfast_node.logship import LogShipper
from holdfast_node.publish import publish_model, snapshot_model
from holdfast_node.renewal import Renewal
from holdfast_node.store import Store
from holdfast_node.tunnel import accepted_peers, stunnel_config, write_private

_LOG = logging.getLogger("holdfast")
_AWS = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 5})
RENDEZVOUS_SECONDS = coordinator.GATHER_SECONDS + 60
TUNNEL_SECONDS = 15
_POLL_SECONDS = 0.5


class Agent:
    """One node's part in one job."""

    def __init__(self, paths: NodePaths) -> None:
        self._paths = paths
        self._config = NodeConfig.parse(paths.config.read_bytes())
        self._session = boto3.Session(region_name=self._config.region)
        self._instance = metadata.instance()
        self._s3 = self._session.client("s3", config=_AWS)
        self._logs = self._session.client("logs", config=_AWS)
        self._store = Store(self._s3, self._config.jobs_bucket)
        self._kms = self._session.client("kms", config=_AWS)
        self._denials = Denials(self._store)

    def run(self) -> int:
        """Do the node's part; return 0 if it succeeded."""
        # A node that never gets a job leaves its words below a prefix of its own.
        shipper = self._ship(f"nodes/{self._config.role}/{self._instance.instance_id}", "agent")
        try:
            return self._run()
        except Exception as error:
            _LOG.error("%s", one_line(f"{type(error).__name__}: {error}"))
            raise
        finally:
            shipper.finish()

    def _run(self) -> int:
        self._enrol()
        if self._config.role is not Role.SCHEDULER:
            rendezvous, me = self._await_rendezvous()
            return self._take_part(rendezvous, me)
        control = coordinator.await_control(self._store)
        reporter = coordinator.Reporter(self._session.client("stepfunctions", config=_AWS), control.task_token)
        try:
            return self._schedule(control, reporter)
        except coordinator.JobCancelledError:
            raise
        except Exception as error:
            reporter.fail(f"scheduler ({self._instance.instance_id}): {one_line(str(error))}")
            raise

    def _schedule(self, control: Control, reporter: coordinator.Reporter) -> int:
        job = self._load_job(control.job_id)
        part: list[int] = []

        def take_part() -> None:
            rendezvous, me = self._await_rendezvous()
            part.append(self._take_part(rendezvous, me))

        thread = threading.Thread(target=take_part, name="part", daemon=True)
        thread.start()
        coordinator.coordinate(self._store, reporter, control, job)
        thread.join(timeout=coordinator.DRAIN_SECONDS)
        return part[0] if part else 1

    def _enrol(self) -> None:
        granted = self._ask_for_certificate()
        _LOG.info("enrolled as %s", granted.spiffe_id)
        self._renewal = Renewal(granted, self._ask_for_certificate, lambda: self._reload("tunnel"))
        self._renewal.start()
        self._denials.start()
        # The address is the instance's own word: EC2's where they differ, which is on local hosts that share a
        # loopback interface. Peers check names, so a false address only fails to connect.
        Presence(self._store, lambda: self._renewal.identity.registration(self._instance.address)).start()

    def _ask_for_certificate(self) -> identity.Identity:
        return identity.enrol(
            self._config, self._session, instance_id=self._instance.instance_id, tls_dir=self._paths.tls
        )

    def _await_rendezvous(self) -> tuple[Rendezvous, Peer]:
        deadline = time.monotonic() + RENDEZVOUS_SECONDS
        while time.monotonic() < deadline:
            rendezvous = self._store.load(Rendezvous, JobsBucket.RENDEZVOUS)
            if rendezvous and (me := rendezvous.me(self._instance.instance_id)):
                if me.role is not self._config.role:
                    raise HoldfastError(f"the rendezvous has this {self._config.role} as a {me.role}; it is not used")
                return rendezvous, me
            time.sleep(_POLL_SECONDS)
        raise HoldfastError(f"no rendezvous named this instance in {RENDEZVOUS_SECONDS} s{self._store.denial}")

    def _load_job(self, job_id: str) -> JobDocument:
        verify = signing.kms_verifier(self._kms, self._config.job_signing_key)
        return load_job(self._store, job_id, cluster=self._config.cluster, verify=verify)

    def _take_part(self, rendezvous: Rendezvous, me: Peer) -> int:
        shipper = self._ship(f"{rendezvous.job_id}/{me.role}/{me.instance_id}", "trainer", "agent", "tunnel")
        result = NodeResult(status=1, cause="", rank=me.rank, tls_connections=0, tls_peers=())
        try:
            job = self._load_job(rendezvous.job_id)
            status, cause = self._train(job, rendezvous, me)
            exports = status == 0 and me.role is Role.WORKER and me.rank == 0
            result = replace(result, status=status, cause=cause, model_sha256=self._publish(job) if exports else None)
        except Exception as error:  # whatever it is, it must reach the scheduler, or the others wait for this node
            _LOG.exception("this node's part failed")
            result = replace(result, status=1, cause=one_line(f"{type(error).__name__}: {error}"))
        accepted = accepted_peers(read_head(self._paths.log("tunnel")))
        result = replace(result, tls_connections=sum(accepted.values()), tls_peers=tuple(sorted(accepted)))
        if me.role is Role.WORKER:
            result = replace(result, first_step_ms=first_step_ms(read_head(self._paths.log("trainer"))))
        _LOG.info("part ended with status %d%s", result.status, f": {result.cause}" if result.cause else "")
        shipper.finish()
        self._store.save(JobsBucket.result(rendezvous.job_id, me.role, me.instance_id), result)
        return result.status

    def _ship(self, prefix: str, *services: str) -> LogShipper:
        files = {service: self._paths.log(service) for service in services}
        shipper = LogShipper(self._logs, self._config.log_group, prefix, files)
        shipper.start()
        return shipper

    def _train(self, job: JobDocument, rendezvous: Rendezvous, me: Peer) -> tuple[int, str]:
        paths, ports = self._paths, self._config.ports
        unpack_code(self._store, job, paths.code)
        require_free(me.address, ports[me.role], "the tunnel")
        config = stunnel_config(cluster=self._config.cluster, me=me, rendezvous=rendezvous, ports=ports, paths=paths)
        write_private(paths.stunnel_config, config)
        self._require_identities(rendezvous)
        with self._renewal.files:  # until it listens it may still be reading them
            self._start("tunnel")
            await_listener(me.address, ports[me.role], "the tunnel", TUNNEL_SECONDS)
        launch = get_engine(job.engine).launch(
            job=job,
            rendezvous=rendezvous,
            me=me,
            ports=ports,
            code=paths.code,
            work=paths.work,
            checkpoints=paths.checkpoints,
            retention=self._config.retention,
        )
        write_private(paths.launch, json.dumps(asdict(launch), default=str))
        self._start("trainer")
        _LOG.info("training as %s %d of job %s", me.role, me.rank, job.job_id)
        return self._await_trainer(rendezvous)

    def _start(self, service: str) -> None:
        request = self._paths.start_request(service)
        request.parent.mkdir(exist_ok=True)
        request.touch()

    def _stop(self, service: str) -> None:
        self._paths.start_request(service).unlink(missing_ok=True)

    def _reload(self, service: str) -> None:
        request = self._paths.reload_request(service)
        request.parent.mkdir(exist_ok=True)
        request.touch()

    def _identity_lost(self, rendezvous: Rendezvous) -> str | None:
        """Return why the job's identities don't hold any more: this node's has ended, or a peer was revoked."""
        peers = (peer.instance_id for peer in rendezvous.peers)
        return self._renewal.cause() or self._denials.cause(peers)

    def _require_identities(self, rendezvous: Rendezvous) -> None:
        if cause := self._identity_lost(rendezvous):
            raise VerificationError(cause)

    def _await_trainer(self, rendezvous: Rendezvous) -> tuple[int, str]:
        # The trainer's end decides; a tunnel that ends first has cut the trainer off.
        while True:
            if cause := self._identity_lost(rendezvous):
                # With the tunnel gone the established connections are gone too: TLS would never ask them again.
                self._stop("tunnel")
                self._stop("trainer")
                return 1, cause
            status = self._exit_status("trainer")
            if status is not None:
                return status, "" if status == 0 else exit_cause(status, read_tail(self._paths.log("trainer")))
            tunnel = self._exit_status("tunnel")
            if tunnel is not None:
                log = read_tail(self._paths.log("tunnel"))
                return 1, one_line(f"the tunnel ended with status {tunnel}: {last_line(log)}")
            time.sleep(_POLL_SECONDS)

    def _exit_status(self, service: str) -> int | None:
        try:
            return int(json.loads(self._paths.exit_record(service).read_text())["status"])
        except FileNotFoundError:
            return None

    def _publish(self, job: JobDocument) -> str:
        snapshot = self._paths.state / "model"
        snapshot_model(job, self._paths.work, snapshot, self._instance.instance_id)
        key = self._config.model_signing_key
        sign = signing.kms_signer(self._kms, key)
        public_key = signing.public_key_pem(signing.public_key(self._kms, key))
        digest = publish_model(
            self._s3,
            self._config.models_bucket,
            job,
            snapshot,
            lambda directory, name: signing.sign_model(directory, name, sign, public_key),
        )
        _LOG.info("published the signed model of job %s", job.job_id)
        return digest


class Presence(threading.Thread):
    """Renews the node's registration while the agent lives; the scheduler notices when that ends."""

    def __init__(self, store: Store, registration: Callable[[], Registration]) -> None:
        super().__init__(name="presence", daemon=True)
        self._store = store
        self._registration = registration  # asked each time: a renewed certificate has another serial

    def run(self) -> None:
        """Register every few seconds, for as long as the process lives."""
        while True:
            try:
                current = self._registration()
                self._store.save(JobsBucket.node(current.role, current.instance_id), current)
            except (BotoCoreError, ClientError) as error:
                _LOG.warning("the registration was not renewed: %s", error)
            time.sleep(coordinator.PRESENCE_SECONDS)


def main() -> int:
    """Run the agent of the node below `--root`."""
    parser = argparse.ArgumentParser(description="Run the node's agent.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        agent = Agent(NodePaths(arguments.root))
    except (HoldfastError, BotoCoreError, OSError) as error:
        _LOG.error("%s", one_line(f"{type(error).__name__}: {error}"))
        return 1
    try:
        return agent.run()
    except (HoldfastError, BotoCoreError, ClientError, OSError):
        return 1  # said, and shipped, by `run`


if __name__ == "__main__":
    sys.exit(main())
