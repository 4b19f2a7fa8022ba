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
from dataclasses import asdict
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
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import JobsBucket, NodePaths
from holdfast_node.contract.roles import Role
from holdfast_node.engines import get_engine
from holdfast_node.jobs import load_job, unpack_code
from holdfast_node.listeners import await_listener, require_free
from holdfast_node.logship import LogShipper
from holdfast_node.publish import publish_model, snapshot_model
from holdfast_node.store import Store
from holdfast_node.tunnel import accepted_peers, stunnel_config, write_private

_LOG = logging.getLogger("holdfast")
_AWS = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 5})
RENDEZVOUS_SECONDS = coordinator.GATHER_SECONDS + 60
TUNNEL_SECONDS = 15
_POLL_SECONDS = 0.5
_MAX_CAUSE = 300


class Agent:
    """One node's part in one job."""

    def __init__(self, paths: NodePaths) -> None:
        self._paths = paths
        self._config = NodeConfig.parse(paths.config.read_bytes())
        self._session = boto3.Session(region_name=self._config.region)
        self._instance = metadata.instance()
        self._store = Store(self._session.client("s3", config=_AWS), self._config.jobs_bucket)
        self._kms = self._session.client("kms", config=_AWS)

    def run(self) -> int:
        """Do the node's part; return 0 if it succeeded."""
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
        granted = identity.enrol(
            self._config, self._session, instance_id=self._instance.instance_id, tls_dir=self._paths.tls
        )
        registration = Registration(
            role=self._config.role,
            instance_id=self._instance.instance_id,
            address=self._instance.address,
            spiffe_id=granted.spiffe_id,
            serial=granted.serial,
        )
        _LOG.info("enrolled as %s", granted.spiffe_id)
        self._store.save(JobsBucket.node(self._config.role, self._instance.instance_id), registration)

    def _await_rendezvous(self) -> tuple[Rendezvous, Peer]:
        deadline = time.monotonic() + RENDEZVOUS_SECONDS
        while time.monotonic() < deadline:
            rendezvous = self._store.load(Rendezvous, JobsBucket.RENDEZVOUS)
            if rendezvous and (me := rendezvous.me(self._instance.instance_id)):
                return rendezvous, me
            time.sleep(_POLL_SECONDS)
        raise HoldfastError(f"no rendezvous named this instance within {RENDEZVOUS_SECONDS} s")

    def _load_job(self, job_id: str) -> JobDocument:
        verify = signing.kms_verifier(self._kms, self._config.job_signing_key)
        return load_job(self._store, job_id, cluster=self._config.cluster, verify=verify)

    def _take_part(self, rendezvous: Rendezvous, me: Peer) -> int:
        logs = self._session.client("logs", config=_AWS)
        prefix = f"{rendezvous.job_id}/{me.role}/{me.instance_id}"
        files = {service: self._paths.log(service) for service in ("trainer", "agent", "tunnel")}
        shipper = LogShipper(logs, self._config.log_group, prefix, files)
        shipper.start()
        status, cause, model = 1, "", None
        try:
            job = self._load_job(rendezvous.job_id)
            status, cause = self._train(job, rendezvous, me)
            if status == 0 and me.role is Role.WORKER and me.rank == 0:
                model = self._publish(job)
        except Exception as error:  # whatever it is, it must reach the scheduler, or the others wait for this node
            _LOG.exception("this node's part failed")
            status, cause = 1, one_line(f"{type(error).__name__}: {error}")
        _LOG.info("part ended with status %d%s", status, f": {cause}" if cause else "")
        shipper.finish()
        trainer_log = _text(self._paths.log("trainer"))
        accepted = accepted_peers(_text(self._paths.log("tunnel")))
        result = NodeResult(
            status=status,
            cause=cause,
            rank=me.rank,
            tls_connections=sum(accepted.values()),
            tls_peers=tuple(sorted(accepted)),
            first_step_ms=first_step_ms(trainer_log) if me.role is Role.WORKER else None,
            model_sha256=model,
        )
        self._store.save(JobsBucket.result(rendezvous.job_id, me.role, me.instance_id), result)
        return status

    def _train(self, job: JobDocument, rendezvous: Rendezvous, me: Peer) -> tuple[int, str]:
        paths, ports = self._paths, self._config.ports
        unpack_code(self._store, job, paths.code)
        require_free(me.address, ports[me.role], "the tunnel")
        config = stunnel_config(
            cluster=self._config.cluster, me=me, rendezvous=rendezvous, ports=dict(ports), paths=paths
        )
        write_private(paths.stunnel_config, config)
        self._start("tunnel")
        await_listener(me.address, ports[me.role], "the tunnel", TUNNEL_SECONDS)
        launch = get_engine(job.engine).launch(
            job=job,
            rendezvous=rendezvous,
            me=me,
            ports=dict(ports),
            code=paths.code,
            work=paths.work,
            checkpoints=paths.checkpoints,
        )
        write_private(paths.launch, json.dumps(asdict(launch), default=str))
        self._start("trainer")
        _LOG.info("training as %s %d of job %s", me.role, me.rank, job.job_id)
        return self._await_trainer()

    def _start(self, service: str) -> None:
        request = self._paths.start_request(service)
        request.parent.mkdir(exist_ok=True)
        request.touch()

    def _await_trainer(self) -> tuple[int, str]:
        # The trainer's end decides; a tunnel that ends first has cut the trainer off.
        while True:
            status = self._exit_status("trainer")
            if status is not None:
                return status, "" if status == 0 else exit_cause(status, _text(self._paths.log("trainer")))
            tunnel = self._exit_status("tunnel")
            if tunnel is not None:
                return 1, f"the tunnel ended with status {tunnel}: {last_line(_text(self._paths.log('tunnel')))}"
            time.sleep(_POLL_SECONDS)

    def _exit_status(self, service: str) -> int | None:
        try:
            return int(json.loads(self._paths.exit_record(service).read_text())["status"])
        except FileNotFoundError:
            return None

    def _publish(self, job: JobDocument) -> str:
        snapshot = self._paths.state / "model"
        snapshot_model(job, self._paths.work / job.model_dir, snapshot, self._instance.instance_id)
        key = self._config.model_signing_key
        sign = signing.kms_signer(self._kms, key)
        public_key = signing.public_key_pem(signing.public_key(self._kms, key))
        digest = publish_model(
            self._session.client("s3", config=_AWS),
            self._config.models_bucket,
            job,
            snapshot,
            lambda directory, name: signing.sign_model(directory, name, sign, public_key),
        )
        _LOG.info("published the signed model of job %s", job.job_id)
        return digest


def first_step_ms(trainer_log: str) -> int | None:
    """Return when the trainer says its first training step began (milliseconds since the epoch), or None."""
    for line in trainer_log.splitlines():
        if line.startswith("{") and '"first_step"' in line:
            try:
                return int(float(json.loads(line)["time"]) * 1000)
            except (ValueError, KeyError, TypeError):
                return None
    return None


def exit_cause(status: int, trainer_log: str) -> str:
    """Return one line that says why a trainer ended: its signal, or its status and its log's last line."""
    if status < 0:
        return f"the trainer was killed by signal {-status}"
    return one_line(f"the trainer exited with status {status}: {last_line(trainer_log)}")


def last_line(log: str) -> str:
    """Return the last line of a log that is no event, or "its log is empty"."""
    lines = (line.strip() for line in reversed(log.splitlines()))
    return next((line for line in lines if line and not line.startswith("{")), "its log is empty")


def one_line(text: str) -> str:
    """Return `text` as one printable line of at most 300 characters: logs of user code reach people's terminals."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:_MAX_CAUSE]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def main() -> int:
    """Run the agent of the node below `--root`."""
    parser = argparse.ArgumentParser(description="Run the node's agent.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        return Agent(NodePaths(arguments.root)).run()
    except (HoldfastError, BotoCoreError, ClientError, OSError) as error:
        _LOG.error("%s", one_line(str(error)))
        return 1


if __name__ == "__main__":
    sys.exit(main())
