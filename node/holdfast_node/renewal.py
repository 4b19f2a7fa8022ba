"""Renews the node's certificate while the agent lives, without dropping a connection.

A certificate is renewed after two thirds of its life and before three quarters of it, each node at a moment of its
own. The files are replaced, and the service manager is asked to reload the tunnel: handshakes from then on use the new
certificate, and connections that are up go on. A renewal that fails is tried again until the certificate ends.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from botocore.exceptions import BotoCoreError, ClientError

from holdfast_node.contract.errors import HoldfastError
from holdfast_node.identity import Identity, IdentityError

_LOG = logging.getLogger("holdfast")
#: Every node of a cluster boots at the same time: renewals are spread over this part of the certificate's life.
SPREAD = 1 / 12
#: After a failure it waits for this part of the life that is left, so it asks more often as the end comes closer.
RETRY_PART = 1 / 8
SHORTEST_RETRY = timedelta(seconds=5)
_TICK_SECONDS = 0.5


class Renewal(threading.Thread):
    """Keeps a node's identity valid.

    Args:
        identity: what the node enrolled with.
        enrol: enrols again and replaces the files; returns the new identity.
        reload: asks the service manager to have the tunnel read them.
        clock: the time, in UTC; default: the system's.
    """

    def __init__(
        self,
        identity: Identity,
        enrol: Callable[[], Identity],
        reload: Callable[[], None],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(name="renewal", daemon=True)
        self._identity, self._enrol, self._reload, self._clock = identity, enrol, reload, clock
        self._random = random.SystemRandom()
        self._due = self._next(identity)
        self._cause: str | None = None
        self._last_failure = ""
        self.renewed = 0
        self.failed = 0
        #: Hold it while the tunnel starts: it must not read a new key with an old certificate.
        self.files = threading.Lock()

    @property
    def identity(self) -> Identity:
        """The identity that the files hold."""
        return self._identity

    @property
    def due(self) -> datetime:
        """When the next attempt is due."""
        return self._due

    def cause(self) -> str | None:
        """Return why this node has no identity any more, or None. It never blocks."""
        if self._cause is None and self._clock() >= self._identity.not_after:
            ended = self._identity.not_after.isoformat(timespec="seconds")
            why = f"; the last of {self.failed} renewals failed: {self._last_failure}" if self.failed else ""
            self._cause = f"this node's certificate ended at {ended} and was not renewed{why}"
        return self._cause

    def step(self) -> None:
        """Renew if it is due; a failure is logged and counted."""
        now = self._clock()
        if now < self._due or self.cause() is not None:
            return
        try:
            with self.files:
                renewed = self._enrol()
            self._reload()
        except (HoldfastError, BotoCoreError, ClientError, OSError) as error:
            self._fail(error, self._clock())
            return
        self._identity, self._due = renewed, self._next(renewed)
        self.renewed += 1
        self._log(logging.INFO, {"event": "renewed", "serial": renewed.serial, "not_after": renewed.not_after})

    def run(self) -> None:
        """Renew for as long as the process lives."""
        while self.cause() is None:
            self.step()
            time.sleep(_TICK_SECONDS)

    def _fail(self, error: Exception, now: datetime) -> None:
        self.failed += 1
        self._last_failure = f"{type(error).__name__}: {error}"
        left = self._identity.not_after - now
        wait = max(SHORTEST_RETRY, left * RETRY_PART * self._random.uniform(0.5, 1))
        self._due = now + wait
        self._log(
            logging.WARNING,
            {"event": "renewal_failed", "failed": self.failed, "cause": self._last_failure, "again_at": self._due},
        )
        if isinstance(error, IdentityError) and error.reason == "revoked":
            self._cause = f"this node was revoked: {error}"  # asking again would not help

    def _next(self, identity: Identity) -> datetime:
        life = identity.not_after - identity.not_before
        return identity.renew_at + life * SPREAD * self._random.random()

    def _log(self, level: int, line: dict[str, object]) -> None:
        _LOG.log(level, "%s", json.dumps(line, default=lambda value: value.isoformat(timespec="seconds")))
