"""Checkpoints of a Gluon network and its Trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast_node.engines.mxnet import saving, states
from holdfast_node.engines.mxnet.checkpointing import Checkpoints
from holdfast_node.engines.mxnet.trained import PARAMETERS, STATES, Restored, Workers, save_on_servers
from holdfast_node.manifests import CheckpointError


class GluonTraining:
    """A network and its Trainer, with the optimizer on the servers, in a local store, or in this process.

    `metrics` and `extra` are those of the checkpoint that was restored.
    """

    def __init__(self, checkpoints: Checkpoints, net: Any, trainer: Any) -> None:
        """Take over nothing yet; a distributed store that the Trainer would create later is created now."""
        import mxnet as mx  # type: ignore[import-not-found]

        self._checkpoints, self._net, self._trainer, self._mx = checkpoints, net, trainer, mx
        kvstore = trainer._kvstore_params["kvstore"]
        if isinstance(kvstore, str) and "dist" in kvstore:
            kvstore = trainer._kvstore_params["kvstore"] = mx.kv.create(kvstore)
        self.workers = Workers(None if isinstance(kvstore, str) else kvstore, mx)
        self.metrics: dict[str, float | None] = {}
        self.extra: Any = None

    def restore(self) -> int:
        """Go on from the newest whole checkpoint, and return its step: how many are done; 0 where there is none.

        Every worker calls it, after the network is initialised and before the first step.

        Raises:
            CheckpointError: it comes too late, or the checkpoint is of another network, optimizer or size of job.
        """
        trainer = self._trainer
        if trainer._kv_initialized:
            raise CheckpointError("restore() must come before the first trainer.step(…), which fixes the weights")
        found = self._checkpoints.find(self.workers)
        if found is None:
            return 0
        # The servers get the optimizer once: with the rate and the scale that it had.
        trainer._optimizer.lr = found.settings["learning_rate"]
        trainer._optimizer.rescale_grad = found.settings["rescale_grad"]
        self._load_parameters(found)
        if self._on_servers:
            if self.workers.rank == 0:
                trainer._kvstore.load_optimizer_states(str(found.path / STATES))
            self.workers.meet()
        else:
            for updater in self._updaters:
                with saving.in_memory(found.read(f"{STATES}.npz")) as name:
                    states.load(Path(name), updater, found.path.name, self._mx)
        self._checkpoints.resume(found, self.workers, self._mx)
        self.metrics, self.extra = found.metrics, found.extra
        return found.step

    def save(self, step: int, *, metrics: Mapping[str, float] | None = None, extra: Any = None) -> Path:
        """Return the path of a new checkpoint after `step` (how many are done, from 1); every worker calls it.

        Args:
            step: what `restore` will return: count epochs, or steps, as your loop does.
            metrics: what the best checkpoints are chosen by; worker 0's count.
            extra: any JSON of yours; worker 0's counts.

        Raises:
            CheckpointError: on every worker, where it could not be written; the earlier ones are untouched.
        """
        if not self._trainer._kv_initialized:
            raise CheckpointError("save() must come after the first trainer.step(…): there is nothing to save before")
        return self._checkpoints.save(self, step, self._mx, metrics=metrics, extra=extra)

    def parameters(self) -> dict[str, Any]:
        """Return all parameters by their names in the network, as `net.save_parameters` writes them."""
        trainer = self._trainer
        if self._on_servers and "async" in trainer._kvstore.type:  # what this worker holds is not the servers' newest
            for index, parameter in enumerate(trainer._params):
                if parameter.grad_req != "null" and parameter._stype == "default":
                    trainer._kvstore.pull(index, out=parameter.list_data())
        return {name: parameter._reduce() for name, parameter in self._named().items()}

    def own_parameters(self) -> dict[str, Any]:
        """Return those that no gradient changes: running means and variances."""
        return {name: p._reduce() for name, p in self._named().items() if p.grad_req == "null"}

    def save_states(self, path: Path, token: str) -> None:
        """Write the optimizer's states: each server its own, or this process the one for all its devices."""
        if self._on_servers:
            save_on_servers(self._trainer._kvstore, path)
        else:
            states.save(path.with_name(f"{path.name}.npz"), self._updaters[0], token)

    def settings(self) -> dict[str, Any]:
        """Return the learning rate and the scale of gradients, which the Trainer holds."""
        optimizer = self._trainer._optimizer
        return {"learning_rate": optimizer.lr, "rescale_grad": optimizer.rescale_grad}

    @property
    def _on_servers(self) -> bool:
        trainer = self._trainer
        return bool(trainer._kvstore and trainer._update_on_kvstore and trainer._distributed)

    @property
    def _updaters(self) -> list[Any]:
        trainer = self._trainer
        return [trainer._kvstore._updater] if trainer._kvstore and trainer._update_on_kvstore else trainer._updaters

    def _named(self) -> dict[str, Any]:
        return dict(self._net._collect_params_with_prefix())

    def _load_parameters(self, found: Restored) -> None:
        """Load worker 0's parameters, give them to the store, and then load this worker's own.

        The store's first broadcast overwrites what a worker has with what worker 0 has, running means included.
        """
        trainer = self._trainer
        try:
            with saving.in_memory(found.read(PARAMETERS)) as name:
                self._net.load_parameters(name)
            trainer._init_kvstore()
            trainer._init_params()
            for name, value in found.arrays(f"worker{self.workers.rank}.params", self._mx).items():
                for array in self._named()[name].list_data():  # set_data would reset the store
                    value.copyto(array)
        except (AssertionError, KeyError, self._mx.MXNetError) as error:
            raise CheckpointError(
                f"{found.path.name} does not fit this network: {str(error).splitlines()[0][:300]}; use the network "
                "that it was written by, or another directory"
            ) from None
