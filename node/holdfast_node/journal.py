"""What this node has begun and how it ended, on its own disk: an agent that is started anew must not begin it twice."""

from dataclasses import dataclass
from pathlib import Path

from holdfast_node.contract.documents import Document, NodeResult, Rendezvous
from holdfast_node.tunnel import write_private


@dataclass(frozen=True, kw_only=True)
class _Entry(Document):
    job_id: str = ""
    generation: int = 0
    result: NodeResult | None = None


class Journal:
    """The newest part that an agent of this node has begun."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, rendezvous: Rendezvous) -> None:
        """Note that this node's part in a generation was begun."""
        self._write(_Entry(job_id=rendezvous.job_id, generation=rendezvous.generation))

    def end(self, rendezvous: Rendezvous, result: NodeResult) -> None:
        """Note how it ended."""
        self._write(_Entry(job_id=rendezvous.job_id, generation=rendezvous.generation, result=result))

    def begun(self, rendezvous: Rendezvous) -> bool:
        """Return whether this generation, or a later one of its job, was begun."""
        entry = self._read()
        return entry.job_id == rendezvous.job_id and entry.generation >= rendezvous.generation

    def result(self, rendezvous: Rendezvous) -> NodeResult | None:
        """Return how the part in this generation ended, or None if it was never begun or was cut off."""
        entry = self._read()
        return entry.result if (entry.job_id, entry.generation) == (rendezvous.job_id, rendezvous.generation) else None

    def _read(self) -> _Entry:
        return _Entry.parse(self._path.read_bytes()) if self._path.exists() else _Entry()

    def _write(self, entry: _Entry) -> None:
        write_private(self._path, entry.to_json().decode())
