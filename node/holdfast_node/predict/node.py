"""A predictor's agent: enrol, fetch the model that the configuration names, verify it, have it served, renew.

It runs as `holdfast-agent` and never looks into a model or at a client's request: the service does, as the trainer's
user, which has no credentials. Whatever fails ends the agent with its cause in the node's log.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import boto3
from botocore.config import Config

from holdfast_node import identity, metadata, signing
from holdfast_node.contract.documents import NodeConfig, Predictions
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.control import ServiceControl
from holdfast_node.denials import Denials
from holdfast_node.engines.base import Launch
from holdfast_node.engines.mxnet.engine import python_environment
from holdfast_node.fetching import fetch_model
from holdfast_node.listeners import is_listening, require_free
from holdfast_node.log_reading import last_line, one_line, read_tail
from holdfast_node.logship import LogShipper
from holdfast_node.predict.places import Places
from holdfast_node.renewal import Renewal
from holdfast_node.store import Store
from holdfast_node.systemd.notify import notify
from holdfast_node.tunnel import write_private

_LOG = logging.getLogger("holdfast")
_AWS = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 5})
#: The service manager's name for what runs as the trainer's user: here the prediction service.
SERVICE = "trainer"
START_SECONDS = 120
#: A request that ends the service must not end the predictor; one that ends it every time must be seen.
MAX_RESTARTS = 10
#: How often the service is told who is revoked; it refuses everybody once it has not been for a minute.
DENIED_SECONDS = 5.0
_POLL_SECONDS = 0.5


class PredictorAgent:
    """One predictor's life."""

    def __init__(self, paths: NodePaths, config: NodeConfig) -> None:
        if config.predictions is None:
            raise HoldfastError(f"this node is a {config.role} and no predictor")
        self._paths, self._config, self._predictions = paths, config, config.predictions
        self._places = Places(paths.job)
        self._session = boto3.Session(region_name=config.region)
        self._instance = metadata.instance()
        self._s3 = self._session.client("s3", config=_AWS)
        self._kms = self._session.client("kms", config=_AWS)
        self._logs = self._session.client("logs", config=_AWS)
        self._control = ServiceControl(paths)
        self._denials = Denials(Store(self._s3, config.jobs_bucket))

    def run(self) -> int:
        """Serve until the service or the node's identity ends; return 1, with the cause in the log."""
        prefix = f"nodes/{self._config.role}/{self._instance.instance_id}"
        files = {service: self._paths.log(service) for service in ("agent", SERVICE)}
        shipper = LogShipper(self._logs, self._config.log_group, prefix, files)
        shipper.start()
        try:
            self._control.stop(SERVICE)  # an agent before this one may have left it, and it holds the port
            cause = self._serve()
            _LOG.error("%s", one_line(cause))
            return 1
        except Exception as error:
            _LOG.error("%s", one_line(f"{type(error).__name__}: {error}"))
            raise
        finally:
            self._control.stop(SERVICE)
            shipper.finish()

    def _serve(self) -> str:
        renewal = self._enrol()
        self._denials.start()
        prepare(self._places, self._predictions)
        model = fetch_model(
            self._s3,
            self._config.models_bucket,
            job_id=self._predictions.job_id,
            cluster=self._config.cluster,
            directory=self._places.model,
            signature=self._places.signature,
            public_key_pem=self._model_key(),
        )
        _LOG.info("verified the model of job %s, %d files", model.record.job_id, len(model.files))
        address, port = self._instance.address, self._predictions.port
        require_free(address, port, "the prediction service")
        write_private(self._paths.launch, json.dumps(asdict(launch(self._paths, address)), default=str))
        return self._supervise(renewal, address)

    def _supervise(self, renewal: Renewal, address: str) -> str:
        """Keep the service running, and tell it who is revoked; return why it can go on no longer."""
        port, own = self._predictions.port, [self._instance.instance_id]
        supervisor = Supervisor(
            self._control,
            cause=lambda: renewal.cause() or self._denials.cause(own),
            tell=lambda: write_private(self._places.denied, json.dumps(sorted(self._denials.denied()))),
            listens=lambda: is_listening(address, port),
            log=lambda: read_tail(self._paths.log(SERVICE)),
        )
        while (cause := supervisor.step(time.monotonic())) is None:
            time.sleep(_POLL_SECONDS)
        return cause

    def _enrol(self) -> Renewal:
        self._places.tls.mkdir(mode=0o750, exist_ok=True)
        granted = self._ask_for_certificate()
        _LOG.info("enrolled as %s", granted.spiffe_id)
        notify("READY=1")
        renewal = Renewal(granted, self._ask_for_certificate, lambda: None)  # the service notices new files by itself
        renewal.start()
        return renewal

    def _ask_for_certificate(self) -> identity.Identity:
        return identity.enrol(
            self._config, self._session, instance_id=self._instance.instance_id, tls_dir=self._places.tls
        )

    def _model_key(self) -> bytes:
        pem = signing.public_key_pem(signing.public_key(self._kms, self._config.model_signing_key))
        self._places.key.write_bytes(pem)
        return pem


class Services(Protocol):
    """The part of `ServiceControl` that supervision needs."""

    def start(self, service: str) -> None:
        """Have the service started."""

    def stop(self, *services: str) -> bool:
        """End these services."""

    def exit_status(self, service: str) -> int | None:
        """Return how the service ended since it was last asked for, or None."""


class Supervisor:
    """Starts the service, starts it again when it ends, and gives up for a cause. Sans-IO: `step` takes the time."""

    def __init__(
        self,
        services: Services,
        *,
        cause: Callable[[], str | None],
        tell: Callable[[], None],
        listens: Callable[[], bool],
        log: Callable[[], str],
    ) -> None:
        """Supervise through these edges.

        Args:
            services: starts and ends the service.
            cause: why this node can serve no longer (its identity ended, it was revoked), or None.
            tell: tells the service who is revoked.
            listens: whether the endpoint's port is open.
            log: the end of the service's log.
        """
        self._services, self._cause, self._tell = services, cause, tell
        self._listens, self._log = listens, log
        self._started: float | None = None
        self._told = 0.0
        self._serving = False
        self.restarts = 0

    def step(self, now: float) -> str | None:
        """Do what is due at `now` (monotonic seconds); return why it is over, or None."""
        if self._started is None or now - self._told > DENIED_SECONDS:
            self._tell()
            self._told = now
        if self._started is None:
            self._start(now)
        if (cause := self._cause()) is not None:
            return cause
        if (status := self._services.exit_status(SERVICE)) is not None:
            ended = f"the prediction service ended with status {status}: {last_line(self._log())}"
            if not self._serving or self.restarts == MAX_RESTARTS:
                return ended  # it refuses the model, or it ends again and again
            _LOG.warning("%s; started again", one_line(ended))
            self.restarts += 1
            self._services.stop(SERVICE)
            self._start(now)
        elif not self._serving and self._listens():
            _LOG.info("serving predictions on the endpoint's port")
            self._serving = True
        elif not self._serving and self._started is not None and now - self._started > START_SECONDS:
            return f"the prediction service did not open its port within {START_SECONDS} s"
        return None

    def _start(self, now: float) -> None:
        self._started, self._serving = now, False
        self._services.start(SERVICE)


def prepare(places: Places, predictions: Predictions) -> None:
    """Write the clients' own authority, if they have one, and drop a model of an earlier start."""
    if predictions.client_ca:
        places.client_ca.write_text(predictions.client_ca)
    shutil.rmtree(places.model, ignore_errors=True)


def launch(paths: NodePaths, address: str) -> Launch:
    """Return how the service is started: the node's interpreter, a minimal environment, the address to listen on."""
    # -P: the working directory, which the service's user can write, is not where modules come from.
    argv = (sys.executable, "-P", "-m", "holdfast_node.predict.service")
    return Launch(
        argv=(*argv, "--root", str(paths.root), "--listen", address),
        env=python_environment() | {"HOME": str(paths.work), "TMPDIR": str(paths.work)},
        cwd=Path(paths.work),
    )
