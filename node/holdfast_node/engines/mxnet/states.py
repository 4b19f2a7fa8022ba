"""Optimizer states on the servers, in NumPy's format with a JSON manifest. Never a pickle.

MXNet's own `save_optimizer_states` refuses to work for distributed training, and pickles elsewhere. Each server
writes what it holds to `<name>.server<rank>.npz` beside the worker's small index at `<name>`.
"""

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast_node.checkpoints import atomic_write
from holdfast_node.contract.documents import RELATIVE_PATH_PATTERN, require
from holdfast_node.contract.errors import DocumentError
from holdfast_node.engines.errors import SpecError, StateError
from holdfast_node.engines.mxnet import schedulers
from holdfast_node.engines.mxnet.optimizer import OPTIMIZERS
from holdfast_node.engines.mxnet.spec import VERSION, Kind, require_keys, require_kind, serialise

_MANIFEST = "manifest"
_KEYS = ("op", "path", "token")
#: Numbers of an optimizer that change while it trains, besides those of its scheduler.
_PROGRESS = ("lr", "num_update", "m_schedule", "last_lr", "cur_lr", "skip")
#: What every MXNet optimizer holds besides numbers (optimizer.py, Optimizer.__init__), saved elsewhere or constant.
_CONTAINERS = (
    *("lr_scheduler", "lr_mult", "wd_mult", "idx2name", "sym_info", "param_dict"),
    *("_all_index_update_counts", "_index_update_count"),
)


@dataclass(frozen=True)
class StateCommand:
    """A worker's request to save or load: a path below the checkpoint directory and the save's token."""

    op: str
    path: str
    token: str

    def serialise(self) -> str:
        """Return the command for the servers."""
        return serialise({"op": self.op, "path": self.path, "token": self.token})

    @classmethod
    def parse(cls, command: dict[str, Any]) -> "StateCommand":
        """Return a parsed command, or raise SpecError; the path is relative and has no `..`."""
        require_keys(command, _KEYS, command["op"])
        try:
            path = require(RELATIVE_PATH_PATTERN, require_kind(command["path"], Kind.TEXT, "path"), "path")
        except DocumentError as error:
            raise SpecError(str(error)) from None
        return cls(command["op"], path, require_kind(command["token"], Kind.TEXT, "token"))


def server_file(path: Path, rank: int) -> Path:
    """Return where the server of this rank keeps its part of the states at `path`."""
    return path.with_name(f"{path.name}.server{rank}.npz")


def below_checkpoints(relative: str) -> Path:
    """Return the path below `$CHECKPOINT_DIR`, or raise StateError where a link leads out of it."""
    base = Path(os.environ["CHECKPOINT_DIR"]).resolve()
    path = base / relative
    if not path.parent.resolve().is_relative_to(base) or path.is_symlink():
        raise StateError(f"optimizer states must stay in the checkpoint directory, but {relative} leads out of it")
    return path


def save(path: Path, updater: Any, token: str) -> None:
    """Write the updater's states to `path`, atomically. `token` names this save, for the worker to find in it.

    Raises:
        StateError: the optimizer or its scheduler has a state of a kind that is not known here.
    """
    import numpy as np

    arrays: dict[str, Any] = {}
    optimizer = updater.optimizer
    scheduler = optimizer.lr_scheduler
    _require_known(optimizer)
    manifest = {
        "version": VERSION,
        "token": token,
        "optimizer": type(optimizer).__name__,
        "states": [[_key(key), _flatten(state, f"{key}", arrays)] for key, state in updater.states.items()],
        "counts": [
            [device, _key(key), count]
            for device, counts in optimizer._all_index_update_counts.items()
            for key, count in counts.items()
        ],
        "progress": {name: getattr(optimizer, name) for name in _changing(optimizer)},
        "attributes": [
            [name, _flatten(getattr(optimizer, name), f"attribute {name}", arrays)] for name in _collections(optimizer)
        ],
        "scheduler": None if scheduler is None else {"name": type(scheduler).__name__, "state": vars(scheduler)},
    }
    arrays[_MANIFEST] = np.frombuffer(json.dumps(manifest).encode(), dtype=np.uint8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    atomic_write(path, write)


def load(path: Path, updater: Any, token: str, mx: Any) -> None:
    """Replace the updater's states by those in `path`; `mx` is the mxnet module.

    Raises:
        StateError: the file is missing, damaged, of another save or of another optimizer.
        SpecError: its scheduler's state is not valid.
    """
    optimizer = updater.optimizer
    arrays, manifest = _read(path)
    try:
        for key, expected in (("version", VERSION), ("token", token), ("optimizer", type(optimizer).__name__)):
            if manifest[key] != expected:
                raise StateError(f"{path.name}: {key} must be {expected!r}, got {manifest[key]!r}")
        saved, current = manifest["scheduler"], optimizer.lr_scheduler
        kinds = [None if saved is None else saved["name"], None if current is None else type(current).__name__]
        if kinds[0] != kinds[1]:
            raise StateError(f"{path.name}: lr_scheduler must be {kinds[0]}, as when it was saved, got {kinds[1]}")
        progress = {name: manifest["progress"][name] for name in _changing(optimizer)}
        for name, value in progress.items():
            require_kind(value, Kind.OPTIONAL_NUMBER, f"progress.{name}")
        num_update = require_kind(progress["num_update"], Kind.COUNT, "progress.num_update")
        counts = [
            (require_kind(device, Kind.COUNT, "counts"), _key(key), require_kind(count, Kind.COUNT, "counts"))
            for device, key, count in manifest["counts"]
        ]
        scheduler = None if saved is None else schedulers.decode(saved, num_update, mx.lr_scheduler)
        attributes = {name: _unflatten(value, arrays, mx) for name, value in manifest["attributes"]}
        if sorted(attributes) != sorted(_collections(optimizer)):
            raise StateError(
                f"{path.name}: the optimizer must have the attributes {sorted(attributes)} besides numbers"
            )
        loaded = {_key(key): _unflatten(state, arrays, mx) for key, state in manifest["states"]}
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"{path.name} has a damaged manifest ({type(error).__name__})") from None
    updater.states, updater.states_synced = loaded, dict.fromkeys(loaded, False)
    for counted in optimizer._all_index_update_counts.values():  # the current device's is one of them
        counted.clear()
    for device, index, count in counts:
        optimizer._all_index_update_counts.setdefault(device, {})[index] = count
    vars(optimizer).update(progress | attributes)
    optimizer.lr_scheduler = scheduler


def token_of(path: Path) -> str | None:
    """Return the token in a server's file, or None where the file is missing or damaged."""
    try:
        token = _read(path)[1].get("token")
    except StateError:
        return None
    return token if isinstance(token, str) else None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        manifest = json.loads(bytes(arrays.pop(_MANIFEST)))
    except FileNotFoundError:
        raise StateError(f"optimizer states {path.name} are missing from the checkpoint directory") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StateError(f"optimizer states {path.name} cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(manifest, dict):
        raise StateError(f"optimizer states {path.name} have no manifest")
    return arrays, manifest


def _is_plain(optimizer: Any) -> bool:
    """Whether all that changes of an optimizer is what `_PROGRESS` names: not so of LBSGD's, and of a job's own."""
    name = type(optimizer).__name__.lower()
    return name in OPTIMIZERS and name != "lbsgd"


def _changing(optimizer: Any) -> list[str]:
    """Return the names of an optimizer's numbers that may change while it trains; all there are, unless it is plain."""
    names = [name for name in _PROGRESS if hasattr(optimizer, name)]
    if not _is_plain(optimizer):
        numbers = [name for name, value in vars(optimizer).items() if type(value) in (int, float)]
        names += [name for name in numbers if name not in names]
    return names


def _collections(optimizer: Any) -> list[str]:
    """Return the names of what else may change of an optimizer that is not plain."""
    constant = bool | int | float | str | None
    attributes = {} if _is_plain(optimizer) else vars(optimizer)
    return [name for name, value in attributes.items() if name not in _CONTAINERS and not isinstance(value, constant)]


def _require_known(optimizer: Any) -> None:
    """Raise StateError for a scheduler with a state of a kind that would be lost."""
    scheduler = optimizer.lr_scheduler
    if scheduler is not None and type(scheduler).__name__ not in schedulers.STATES:
        raise StateError(
            f"lr_scheduler must be one of {sorted(schedulers.STATES)} for its state to be saved, got "
            f"{type(scheduler).__name__}; call trainer.set_learning_rate(…) from the script instead"
        )


def _key(key: Any) -> int | str:
    """Return a state's key: a number on a server, a number or a parameter's name where a worker updates by itself."""
    return str(require_kind(key, Kind.TEXT, "key")) if isinstance(key, str) else int(key)


def _flatten(state: Any, name: str, arrays: dict[str, Any]) -> Any:
    """Move the arrays of a nested state into `arrays` and return its shape as JSON."""
    if state is None or isinstance(state, int | float):
        return {"value": state}
    if isinstance(state, tuple | list):
        kind = "tuple" if isinstance(state, tuple) else "list"
        return {kind: [_flatten(item, f"{name}.{index}", arrays) for index, item in enumerate(state)]}
    if isinstance(state, dict):
        return {"dict": [[_key(key), _flatten(item, f"{name}.{key}", arrays)] for key, item in state.items()]}
    if not hasattr(state, "asnumpy"):
        raise StateError(
            f"optimizer {name if name.startswith('attribute') else f'state {name}'} must hold arrays and numbers, in "
            f"lists, tuples or dicts, for it to be saved; got {type(state).__name__}"
        )
    arrays[name] = state.asnumpy()
    return {"array": name}


def _unflatten(shape: dict[str, Any], arrays: dict[str, Any], mx: Any) -> Any:
    ((kind, value),) = shape.items()
    if kind == "array":
        return mx.nd.array(arrays[value], dtype=arrays[value].dtype)
    if kind == "tuple":
        return tuple(_unflatten(item, arrays, mx) for item in value)
    if kind == "dict":
        return {_key(key): _unflatten(item, arrays, mx) for key, item in value}
    if kind == "list":
        return [_unflatten(item, arrays, mx) for item in value]
    return require_kind(value, Kind.OPTIONAL_NUMBER, "state")
