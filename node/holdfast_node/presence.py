"""Says that a node lives, for as long as its agent does."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from holdfast_node.contract.documents import Registration
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.services import AGENT_WATCHDOG_SECONDS
from holdfast_node.store import Store
from holdfast_node.systemd.notify import notify

_LOG = logging.getLogger("holdfast")


class Pulse(threading.Thread):
    """Tells the node's service manager that the agent runs, for as long as it does."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="pulse", daemon=True)
        self._path = path

    def run(self) -> None:
        """Touch the file, and tell systemd, for as long as the process lives."""
        self._path.parent.mkdir(exist_ok=True)
        # systemd's watchdog counts from readiness on; until then this sign of life holds off TimeoutStartSec=.
        signs = ("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={AGENT_WATCHDOG_SECONDS * 1_000_000}")
        while True:
            self._path.touch()
            notify(*signs)
            time.sleep(AGENT_WATCHDOG_SECONDS / 10)


class Presence(threading.Thread):
    """Renews the node's registration while the agent lives; the scheduler notices when that ends.

    Its store should have short time-outs: a renewal that hangs is worth less than the next one.
    """

    def __init__(self, store: Store, registration: Callable[[], Registration], every_seconds: float) -> None:
        super().__init__(name="presence", daemon=True)
        self._store = store
        self._every_seconds = every_seconds
        self._registration = registration  # asked each time: a renewed certificate has another serial

    def run(self) -> None:
        """Register every few seconds, for as long as the process lives."""
        while True:
            try:
                registration = self._registration()
                self._store.save(JobsBucket.node(registration.role, registration.instance_id), registration)
            except (BotoCoreError, ClientError) as error:
                _LOG.warning("the registration was not renewed: %s", error)
            time.sleep(self._every_seconds)
