"""What is trained and by whom, and what a checkpoint says of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from holdfast_node import checkpoints as store
from holdfast_node.engines.mxnet import saving
from holdfast_node.manifests import CheckpointError, Manifest

PARAMETERS, TRAINING, STATES = "parameters.params", "training.json", "states"
FORMAT = 1


class Workers:
    """The workers of a job: this one's rank, how many there are, and where they meet. One, without a job."""

    def __init__(self, kvstore: Any, mx: Any) -> None:
        """Take part through `kvstore`, an MXNet KVStore or None."""
        self._mx = mx
        self._store = kvstore if kvstore is not None and "dist" in kvstore.type else None
        self.rank = 0 if self._store is None else int(self._store.rank)
        self.count = 1 if self._store is None else int(self._store.num_workers)

    def meet(self) -> None:
        """Return once every worker is here and this one has nothing under way."""
        self._mx.nd.waitall()
        if self._store is not None:
            self._store._barrier()


class Training(Protocol):
    """What is trained: a Gluon network with its trainer, or a Module."""

    workers: Workers

    def parameters(self) -> dict[str, Any]:
        """Return all parameters, by name."""

    def own_parameters(self) -> dict[str, Any]:
        """Return those that each worker has its own values of, such as running means."""

    def save_states(self, path: Path, token: str) -> None:
        """Write the optimizer's states to `path` or beside it; called on rank 0."""

    def settings(self) -> dict[str, Any]:
        """Return, as JSON, what the optimizer was told besides its states."""


@dataclass(frozen=True)
class Restored:
    """A checkpoint that all workers have agreed on. Every byte that it gives was compared with its digest."""

    path: Path
    manifest: Manifest
    step: int
    metrics: dict[str, float | None]
    extra: Any
    settings: dict[str, Any] = field(repr=False)

    def read(self, name: str) -> bytes:
        """Return a file's bytes, or raise CheckpointError."""
        return store.read(self.path, name, self.manifest)

    def arrays(self, name: str, mx: Any) -> dict[str, Any]:
        """Return the arrays of a parameter file; none where there is no such file."""
        return saving.load_arrays(self.read(name), mx) if name in self.manifest.files else {}


def save_on_servers(kvstore: Any, path: Path) -> None:
    """Have every server write its part of the optimizer's states beside `path`.

    Raises:
        CheckpointError: the servers are MXNet's own, which cannot.
    """
    try:
        kvstore.save_optimizer_states(str(path))
    except AssertionError:  # MXNet's own: "Cannot save states for distributed training" (kvstore.py)
        raise CheckpointError(
            "the optimizer's states are on MXNet's own servers, which cannot save them; run the job with Holdfast, or "
            "use gluon.Trainer(…, update_on_kvstore=False)"
        ) from None


def describe(training: Training, step: int, extra: Any) -> bytes:
    """Return `training.json`, or raise CheckpointError where `extra` is no JSON."""
    fields = {
        "format": FORMAT,
        "step": step,
        "workers": training.workers.count,
        "settings": training.settings(),
        "extra": extra,
    }
    try:
        return json.dumps(fields, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"extra must be JSON (text, finite numbers, lists, objects): {error}") from None


def restored(path: Path, manifest: Manifest, workers: Workers) -> Restored:
    """Return the checkpoint at `path`, or raise CheckpointError where this job cannot go on from it."""
    try:
        training = json.loads(store.read(path, TRAINING, manifest))
        version, count, step = training["format"], int(training["workers"]), int(training["step"])
        settings, extra = dict(training["settings"]), training["extra"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name} is no checkpoint of a training script: {error}") from None
    if version != FORMAT:
        raise CheckpointError(f"{path.name} has format {version} of training.json, known is {FORMAT}")
    if count != workers.count:
        raise CheckpointError(
            f"{path.name} was written by {count} workers, but this job has {workers.count}; submit it with "
            f"--workers {count}, or use another directory"
        )
    return Restored(path, manifest, step, manifest.metrics, extra, settings)


def own_file(rank: int) -> str:
    """Return the name of the file that a worker writes last, with its seed and its generators."""
    return f"worker{rank}.json"
