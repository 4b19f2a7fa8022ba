"""Checkpoints of a Module that `fit` trains."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast_node.engines.mxnet import saving, states
from holdfast_node.engines.mxnet.checkpointing import Checkpoints
from holdfast_node.engines.mxnet.trained import PARAMETERS, STATES, Restored, Workers, save_on_servers
from holdfast_node.manifests import CheckpointError


class ModuleTraining:
    """A Module, saved at the end of every epoch: `module.fit(data, num_epoch=…, **training.fit_arguments())`.

    `metrics` and `extra` are those of the checkpoint that was restored.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        module: Any,
        kvstore: Any = "local",
        metrics: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        """Take over nothing yet; a distributed `kvstore` is created now.

        Raises:
            CheckpointError: it is not exactly a `mx.mod.Module`; bucketing and sequential modules have several.
        """
        import mxnet as mx  # type: ignore[import-not-found]

        if not isinstance(module, mx.mod.Module):
            raise CheckpointError(f"module must be a mx.mod.Module, got {type(module).__name__}")
        if isinstance(kvstore, str) and "dist" in kvstore:
            kvstore = mx.kv.create(kvstore)
        self._checkpoints, self._module, self._kvstore, self._mx = checkpoints, module, kvstore, mx
        self._ask = metrics
        self._arrays: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self.workers = Workers(None if isinstance(kvstore, str) else kvstore, mx)
        self.metrics: dict[str, float | None] = {}
        self.extra: Any = None

    def fit_arguments(self, epoch_end_callback: Callable[..., None] | None = None) -> dict[str, Any]:
        """Return `fit`'s arguments that start or resume this training: pass them on with `**`.

        They are `kvstore`, `begin_epoch`, `arg_params`, `aux_params` and `epoch_end_callback`: first yours, if you give
        one, then the one that saves. Every worker calls it, just before `fit`.

        Raises:
            CheckpointError: the checkpoint is of another size of job, or is not a Module's.
        """
        callbacks = [self] if epoch_end_callback is None else [epoch_end_callback, self]
        arguments = {"kvstore": self._kvstore, "begin_epoch": 0, "epoch_end_callback": callbacks}
        found = self._checkpoints.find(self.workers)
        if found is None:
            return arguments
        arrays = found.arrays(PARAMETERS, self._mx) | found.arrays(f"worker{self.workers.rank}.params", self._mx)
        parts: dict[str, dict[str, Any]] = {"arg": {}, "aux": {}}
        for name, value in arrays.items():
            kind, _, rest = name.partition(":")
            if kind not in parts:
                raise CheckpointError(f"{found.path.name} is not a Module's checkpoint: it has a parameter {name}")
            parts[kind][rest] = value
        self.metrics, self.extra = found.metrics, found.extra
        self._load_states_when_ready(found)
        return arguments | {"begin_epoch": found.step, "arg_params": parts["arg"], "aux_params": parts["aux"]}

    def __call__(self, epoch: int, symbol: Any, arg_params: dict[str, Any], aux_params: dict[str, Any]) -> None:
        """Save a checkpoint at the end of an epoch: an `epoch_end_callback`."""
        self._arrays = (arg_params, aux_params)
        self._checkpoints.save(self, epoch + 1, self._mx, metrics=self._ask() if self._ask else None)

    def parameters(self) -> dict[str, Any]:
        """Return all parameters by the names that `Module.save_checkpoint` writes."""
        return {f"arg:{name}": value for name, value in self._arrays[0].items()} | self.own_parameters()

    def own_parameters(self) -> dict[str, Any]:
        """Return the auxiliary ones: running means and variances."""
        return {f"aux:{name}": value for name, value in self._arrays[1].items()}

    def save_states(self, path: Path, token: str) -> None:
        """Write the optimizer's states: each server its own, or this process the one for all its devices."""
        if self._on_servers:
            save_on_servers(self._module._kvstore, path)
        else:
            states.save(path.with_name(f"{path.name}.npz"), self._updater, token)

    def settings(self) -> dict[str, Any]:
        """Return the learning rate that the Module's optimizer holds."""
        return {"learning_rate": self._module._optimizer.lr}

    @property
    def _on_servers(self) -> bool:
        store = self._module._kvstore
        return bool(store and self._module._update_on_kvstore and "dist" in store.type)

    @property
    def _updater(self) -> Any:
        return self._module._kvstore._updater if self._module._update_on_kvstore else self._module._updater

    def _load_states_when_ready(self, found: Restored) -> None:
        """Have the Module load the states where it would load its own: at the end of `init_optimizer`, within `fit`."""
        module = self._module

        def load(_: str) -> None:
            del module.load_optimizer_states
            if self._on_servers:
                if self.workers.rank == 0:
                    module._kvstore.load_optimizer_states(str(found.path / STATES))
                self.workers.meet()
            else:
                with saving.in_memory(found.read(f"{STATES}.npz")) as name:
                    states.load(Path(name), self._updater, found.path.name, self._mx)
            module._optimizer.lr = found.settings["learning_rate"]
            self._checkpoints.resume(found, self.workers, self._mx)

        module._preload_opt_states = str(found.path)
        module.load_optimizer_states = load
