"""Keeps the newest rendezvous at hand, so that nobody who watches a trainer waits for S3."""

import logging
import threading
import time

from botocore.exceptions import BotoCoreError, ClientError

from holdfast_node.contract.documents import Rendezvous
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.store import Store

_LOG = logging.getLogger("holdfast")
POLL_SECONDS = 0.7


class RendezvousFollower(threading.Thread):
    """Reads the rendezvous for as long as the agent lives; what cannot be read leaves the last one standing."""

    def __init__(self, store: Store) -> None:
        super().__init__(name="rendezvous", daemon=True)
        self._store = store
        self._current: Rendezvous | None = None
        self._problem = ""

    @property
    def current(self) -> Rendezvous | None:
        """The rendezvous that was read last, of whatever job; None before the first."""
        return self._current

    @property
    def problem(self) -> str:
        """Why nothing newer could be read, to be added to a message; empty if the last read went well."""
        return self._problem or self._store.denial

    def poll(self) -> None:
        """Read it once."""
        try:
            self._current = self._store.load(Rendezvous, JobsBucket.RENDEZVOUS) or self._current
            self._problem = ""
        except (BotoCoreError, ClientError, DocumentError) as error:
            if not self._problem:
                _LOG.warning("the rendezvous could not be read: %s", error)
            self._problem = f" (the rendezvous could not be read: {error})"

    def run(self) -> None:
        """Read it for as long as the process lives."""
        while True:
            self.poll()
            time.sleep(POLL_SECONDS)
