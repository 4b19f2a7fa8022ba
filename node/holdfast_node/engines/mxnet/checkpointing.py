"""Checkpoints of training: parameters, optimizer states, generators, step, and a script's own words.

A checkpoint holds `parameters.params` (MXNet's own format), the optimizer's states (NumPy's format with a JSON
manifest, from every server or from this process), `training.json`, and for each worker `worker<rank>.json` with its
generators and, where it has parameters of its own, `worker<rank>.params`. Nothing in it is a pickle.

All workers take part in every save and in the restore. Rank 0 decides; the others see what it decided after a barrier,
so that all of them go on from the same checkpoint, or all of them raise.
"""

import dataclasses
import hashlib
import json
import operator
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast_node import checkpoints as store
from holdfast_node.contract.documents import DEFAULT_RETENTION, Retention
from holdfast_node.contract.errors import DocumentError, HoldfastError
from holdfast_node.contract.seeds import derive, new_seed, parse_seed
from holdfast_node.engines.mxnet import events, randomness, saving
from holdfast_node.engines.mxnet.trained import (
    PARAMETERS,
    STATES,
    TRAINING,
    Restored,
    Training,
    Workers,
    describe,
    own_file,
    restored,
)
from holdfast_node.manifests import CheckpointError, Manifest

if TYPE_CHECKING:
    from holdfast_node.engines.mxnet.gluon_training import GluonTraining
    from holdfast_node.engines.mxnet.module_training import ModuleTraining

_DECISION = ".resume.json"


class Checkpoints:
    """The checkpoints of a training script: where they are, what is kept, and what is drawn after each of them."""

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        seed: str | None = None,
        generators: Mapping[str, Any] | None = None,
        keep_last: int | None = None,
        max_age_days: int | None = None,
        keep_best: int | None = None,
        best_metric: str | None = None,
        best: str | None = None,
    ) -> None:
        """Use `directory`; nothing is written before the first save.

        Args:
            directory: Default: `$CHECKPOINT_DIR`, which Holdfast sets. With servers it must be below that one.
            seed: any text; MXNet's generator is seeded from it and the step at every checkpoint, for each worker
                differently. Default: `$HOLDFAST_SEED`, which Holdfast sets; else a fresh one, kept in the checkpoints.
            generators: `numpy.random.Generator`s that the script draws from, by a name of yours; saved and restored
                besides Python's `random` and `numpy.random`.
            keep_last: how many stay. Default of this and the next four: what the cluster's settings say, else 3.
            max_age_days: how many days one stays. Else 30.
            keep_best: how many of the best stay besides. Else 1.
            best_metric: the metric that they are the best by. Else "loss".
            best: "lowest" or "highest". Else "lowest".

        Raises:
            CheckpointError: there is no directory, or a rule is impossible.
        """
        where = directory if directory is not None else os.environ.get("CHECKPOINT_DIR")
        if not where:
            raise CheckpointError("checkpoints need a directory: Checkpoints('DIR'), or set CHECKPOINT_DIR")
        self.directory = Path(where).absolute()
        self.generators = dict(generators or {})
        self.retention = _retention(
            keep_last=keep_last, max_age_days=max_age_days, keep_best=keep_best, best_metric=best_metric, best=best
        )
        self._text = seed
        self._seed: str | None = None

    def for_gluon(self, net: Any, trainer: Any) -> "GluonTraining":
        """Return what saves and restores a Gluon network and its Trainer."""
        from holdfast_node.engines.mxnet.gluon_training import GluonTraining

        return GluonTraining(self, net, trainer)

    def for_module(
        self, module: Any, kvstore: Any = "local", metrics: Callable[[], Mapping[str, float]] | None = None
    ) -> "ModuleTraining":
        """Return what saves and restores a Module that `fit` trains; `metrics` is asked at the end of each epoch."""
        from holdfast_node.engines.mxnet.module_training import ModuleTraining

        return ModuleTraining(self, module, kvstore, metrics)

    def latest(self) -> Path | None:
        """Return the directory of the newest whole checkpoint, or None."""
        return store.latest(self.directory)

    def save(
        self, training: Training, step: int, mx: Any, *, metrics: Mapping[str, float] | None = None, extra: Any = None
    ) -> Path:
        """Return the path of a new, complete checkpoint of `training` after `step`; every worker calls it.

        Raises:
            CheckpointError: on every worker, where one could not write its part, or the checkpoint exists already.
        """
        if not hasattr(step, "__index__") or isinstance(step, bool) or step < 1:
            raise CheckpointError(f"step must be a whole number from 1, how many are done, got {step!r}")
        step = operator.index(step)  # NumPy's numbers are no JSON
        workers, name = training.workers, f"step-{step:08d}"
        draft = f"{name}-{os.environ.get('HOLDFAST_GENERATION', '1')}"
        # Three meetings: the draft is there, every part is written, the checkpoint is complete. Everybody comes to all
        # of them whatever fails in between, because nobody could go on otherwise.
        if workers.rank == 0:
            failed = self._save_as_first(training, step, name, draft, metrics or {}, extra, mx)
        else:
            failed = self._save_as_other(training, name, draft, mx)
        if failed:
            raise CheckpointError(f"checkpoint {name} was not written: {failed}")
        randomness.reseed(self.seed(workers), step, mx)
        return self.directory / name

    def _save_as_first(
        self, training: Training, step: int, name: str, draft: str, metrics: Mapping[str, float], extra: Any, mx: Any
    ) -> str:
        """Do rank 0's part; return why there is no checkpoint, or an empty text."""
        workers, meetings = training.workers, iter([training.workers.meet] * 3)

        def write(folder: Path) -> None:
            next(meetings)()
            saving.save_arrays(folder / PARAMETERS, training.parameters(), mx)
            training.save_states(folder / STATES, name)
            (folder / TRAINING).write_bytes(describe(training, step, extra))
            self._write_own_file(folder, training, mx)
            next(meetings)()
            for rank in range(workers.count):
                if not (folder / own_file(rank)).is_file():
                    raise CheckpointError(f"worker {rank} did not write its part; its log says why")

        failed = ""
        try:
            path = store.save(
                self.directory,
                name,
                write,
                retention=self.retention,
                metrics=metrics,
                draft=draft,
                patience=store.LEASE_SECONDS,
            )
            if "HOLDFAST_RETENTION" in os.environ:  # below the launcher: the job's log keeps what was written when
                events.emit("checkpoint", name=name, step=step, sha256=Manifest.of(path).sha256)
        except HoldfastError as error:
            failed = str(error)
        except Exception:
            for meet in meetings:
                meet()
            raise
        for meet in meetings:
            meet()
        return failed

    def _save_as_other(self, training: Training, name: str, draft: str, mx: Any) -> str:
        """Do another rank's part; return why there is no checkpoint with it, or an empty text."""
        training.workers.meet()
        failed, digest = "", ""
        try:
            digest = self._write_own_file(store.draft_path(self.directory, draft), training, mx)
        except FileNotFoundError:  # worker 0 has given the draft up
            failed = "the log of worker 0 says why"
        except Exception as error:  # whatever it is, the others wait at the next meeting
            failed = f"{type(error).__name__}: {error}"
        training.workers.meet()
        training.workers.meet()
        try:
            entry = Manifest.of(self.directory / name).files.get(own_file(training.workers.rank), {})
        except CheckpointError:
            entry = {}
        if not failed and entry.get("sha256") != digest:
            failed = "the log of worker 0 says why"
        return failed

    def _write_own_file(self, folder: Path, training: Training, mx: Any) -> str:
        """Write what is this worker's alone; its JSON, whose digest is returned, comes last: the rest is there."""
        workers = training.workers
        if workers.rank and (own := training.own_parameters()):
            saving.save_arrays(folder / f"worker{workers.rank}.params", own, mx)
        state = {"seed": self.seed(workers), "state": randomness.capture(self.generators)}
        # The token tells this save from any other one of the same step.
        data = json.dumps(state | {"token": secrets.token_hex(16)}).encode()
        store.atomic_write(folder / own_file(workers.rank), lambda path: _write(path, data))
        return hashlib.sha256(data).hexdigest()

    def find(self, workers: Workers) -> Restored | None:
        """Return the checkpoint that all workers go on from, or None where there is none; every worker calls it.

        Raises:
            CheckpointError: on every worker, where it cannot be used by this job.
        """
        decision = self.directory / _DECISION
        if workers.rank == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            path = self.latest()
            chosen = None if path is None else [path.name, Manifest.of(path).sha256]
            store.atomic_write(decision, lambda file: _write(file, json.dumps(chosen).encode()))
        workers.meet()
        try:
            chosen = json.loads(decision.read_bytes())
            name, digest = chosen or ("", "")
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"worker 0's choice of a checkpoint cannot be read: {error}") from None
        workers.meet()
        if chosen is None:
            return None
        manifest = Manifest.of(self.directory / name)
        if manifest.sha256 != digest:
            raise CheckpointError(f"{name} is not what worker 0 chose: its manifest must have sha256 {digest}")
        return restored(self.directory / name, manifest, workers)

    def resume(self, restored: Restored, workers: Workers, mx: Any) -> None:
        """Set this worker's generators to what they were right after the checkpoint was written."""
        try:
            own = json.loads(restored.read(own_file(workers.rank)))
            randomness.restore(own["state"], self.generators)
            self._seed = str(own["seed"])
            randomness.reseed(self._seed, restored.step, mx)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{restored.path.name}: {own_file(workers.rank)} is damaged: {error}") from None

    def seed(self, workers: Workers) -> str:
        """Return this worker's seed, 64 hex digits."""
        if self._seed is None:
            given = os.environ.get("HOLDFAST_SEED")
            if self._text is not None:
                self._seed = derive(parse_seed(self._text), "worker", workers.rank)
            else:
                self._seed = parse_seed(given) if given else new_seed()
        return self._seed


def _retention(**asked: Any) -> Retention:
    try:
        settings = os.environ.get("HOLDFAST_RETENTION")
        rules = Retention.parse(settings) if settings else DEFAULT_RETENTION
        rules = dataclasses.replace(rules, **{name: value for name, value in asked.items() if value is not None})
        rules.validate()
    except DocumentError as error:
        raise CheckpointError(str(error)) from None
    return rules


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
