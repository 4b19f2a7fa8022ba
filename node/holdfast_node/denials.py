"""Which instances the operator has revoked, as this node knows: polled from the jobs bucket.

`holdfast revoke` writes one object for each instance below `denied/`, and its existence is the denial. TLS does not
check a peer again once a connection is up, so whoever has a denied peer ends its tunnel: that cuts the established
connections too, and the next generation's tunnel does not know the peer (docs/revocation.md).
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Protocol

from botocore.exceptions import BotoCoreError, ClientError

from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import INSTANCE_ID_PATTERN

_LOG = logging.getLogger("holdfast")
#: A revoked node is cut off within a minute: one poll, one listing, and the end of a tunnel fit in it three times.
POLL_SECONDS = 10.0
#: How old the last listing may be. A node that cannot know whom it may talk to stops talking.
STALE_SECONDS = 45.0
_DENIAL = re.compile(f"{re.escape(JobsBucket.DENIED)}({INSTANCE_ID_PATTERN.pattern})\\.json")
_EVER = datetime.min.replace(tzinfo=UTC)


class Listing(Protocol):
    """The part of `Store` that denials need."""

    def changed_since(self, prefix: str, since: datetime) -> Iterable[tuple[str, datetime]]:
        """Yield key and time of change of what was written below `prefix` at `since` or later."""


class Denials(threading.Thread):
    """Knows the denied instances while the agent lives. An instance that was denied once stays denied."""

    def __init__(self, store: Listing, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name="denials", daemon=True)
        self._store, self._clock = store, clock
        self._denied: frozenset[str] = frozenset()
        self._read_at = clock()
        self._error = "no answer yet"

    def denied(self) -> frozenset[str]:
        """Return the ids of the instances that are denied."""
        return self._denied

    def cause(self, instance_ids: Iterable[str]) -> str | None:
        """Return why a tunnel between these instances must end now, or None: one is denied, or nobody can know.

        It never blocks: call it as often as the trainer is looked at.
        """
        if denied := sorted(self._denied.intersection(instance_ids)):
            return f"{', '.join(denied)} was revoked by an operator (holdfast revoke)"
        age = self._clock() - self._read_at
        if age > STALE_SECONDS:
            return f"the denials could not be read for {age:.0f} s ({self._error}); a revoked peer would go unnoticed"
        return None

    def poll(self) -> None:
        """Read the denials once; a failure is logged, and counts by making the last listing older."""
        try:
            keys = [key for key, _ in self._store.changed_since(JobsBucket.DENIED, _EVER)]
        except (BotoCoreError, ClientError) as error:
            self._error = type(error).__name__
            if isinstance(error, ClientError):
                self._error = error.response.get("Error", {}).get("Code", self._error)
            _LOG.warning("the denials could not be read: %s", self._error)
            return
        found = frozenset(match[1] for key in keys if (match := _DENIAL.fullmatch(key)))
        for instance_id in sorted(found - self._denied):
            _LOG.warning("%s is denied", instance_id)
        self._denied |= found
        self._read_at = self._clock()

    def run(self) -> None:
        """Poll for as long as the process lives."""
        self._read_at = self._clock()  # an enrolment that took long is no silence of the bucket's
        while True:
            self.poll()
            time.sleep(POLL_SECONDS)
