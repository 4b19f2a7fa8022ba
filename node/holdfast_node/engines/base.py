"""What the rest of Holdfast knows about a training engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from holdfast_node.contract.documents import (
    DEFAULT_LOST_SECONDS,
    DEFAULT_RETENTION,
    JobDocument,
    Peer,
    Rendezvous,
    Retention,
)
from holdfast_node.contract.roles import Role
from holdfast_node.detection import Detection

DEFAULT_HEARTBEAT_SECONDS = Detection(DEFAULT_LOST_SECONDS).heartbeat_seconds


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The process that the trainer service becomes: arguments, whole environment, working directory."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path


class Engine(Protocol):
    """A distributed trainer that needs Holdfast's wire around it."""

    def launch(
        self,
        *,
        job: JobDocument,
        rendezvous: Rendezvous,
        me: Peer,
        ports: dict[Role, int],
        code: Path,
        work: Path,
        checkpoints: Path,
        retention: Retention = DEFAULT_RETENTION,
        heartbeat_seconds: int = DEFAULT_HEARTBEAT_SECONDS,
    ) -> Launch:
        """Return how this node's part of the job is started; it binds and dials overlay addresses only.

        A process that the others have not heard of for `heartbeat_seconds` is lost to them.
        """
        ...
