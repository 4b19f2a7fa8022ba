"""The worker's side of a declarative optimizer: what is sent, once, and what may change afterwards.

With the optimizer on the servers, a script that changes its own copy changes nothing: MXNet ignores it silently.
Here a new learning rate reaches the servers, and any other change is an error at once.
"""

import json
import os
import secrets
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast_node.checkpoints import atomic_write
from holdfast_node.engines.errors import ConflictError, EngineError, StateError
from holdfast_node.engines.mxnet import optimizer as codec
from holdfast_node.engines.mxnet import states
from holdfast_node.engines.mxnet.controller import CONTROLLER_HEAD
from holdfast_node.engines.mxnet.spec import VERSION

_MULTI_PRECISION_HEAD = 1


class ServerUpdates:
    """The optimizer that this process has put on the servers, and its changes."""

    def __init__(self, mx: Any) -> None:
        """Hold nothing yet; `mx` is the mxnet module."""
        self._mx = mx
        self._command: str | None = None
        self._optimizer: Any = None
        self._sent: dict[str, Any] = {}
        self._changes = 0
        self._first_key: Any = None

    def set_optimizer(self, store: Any, optimizer: Any) -> None:
        """Send the optimizer to every server; the same one again is a no-op.

        Raises:
            SpecError: it cannot be expressed as data.
            ConflictError: this job has another one already.
        """
        command = codec.encode(optimizer, self._mx)
        if self._command not in (None, command):
            raise ConflictError(
                "this job's servers hold another optimizer already; a job has one: change the learning rate with "
                "trainer.set_learning_rate(…), or train the next phase in a job of its own"
            )
        if self._command is None:
            store._send_command_to_servers(CONTROLLER_HEAD, command)
            if optimizer.multi_precision:
                store._send_command_to_servers(_MULTI_PRECISION_HEAD, "")
        self._command, self._optimizer = command, optimizer
        self._sent = codec.snapshot(optimizer)

    def before_push(self, store: Any, key: Any) -> None:
        """Bring the servers up to date with the script's optimizer; looks once per step.

        Raises:
            EngineError: something changed that the servers cannot be told.
        """
        first = key[0] if isinstance(key, list | tuple) else key
        if self._first_key is None:
            self._first_key = first
        if self._optimizer is None or first != self._first_key:
            return
        now = codec.snapshot(self._optimizer)
        if now == self._sent:
            return
        changed = sorted(name for name in now.keys() | self._sent.keys() if now.get(name) != self._sent.get(name))
        attributes = {attribute: name for name, attribute in codec.CHANGEABLE.items()}
        if attributes.keys() >= set(changed):
            self._send_changes(store, {attributes[attribute]: now[attribute] for attribute in changed})
            self._sent = now
            return
        name = next(attribute for attribute in changed if attribute not in attributes)
        raise EngineError(
            f"optimizer.{name} must not change after training has begun, got {str(now.get(name))[:60]} instead of "
            f"{str(self._sent.get(name))[:60]}: the servers hold the optimizer, and only its learning rate and "
            "rescale_grad can be changed there; use an lr_scheduler, or gluon.Trainer(…, update_on_kvstore=False)"
        )

    def save_states(self, store: Any, name: str) -> None:
        """Have every server save its part beside `name`, which becomes a small index of them.

        Raises:
            StateError: `name` is not below the checkpoint directory, or a server did not save.
        """
        path, relative = self._locate(name, "save")
        self._mx.nd.waitall()  # the servers have applied this worker's last step when its weights are back
        token = secrets.token_hex(16)
        path.parent.mkdir(parents=True, exist_ok=True)
        store._send_command_to_servers(CONTROLLER_HEAD, states.StateCommand("save_states", relative, token).serialise())
        servers = int(os.environ["DMLC_NUM_SERVER"])
        for rank in range(servers):
            part = states.server_file(path, rank)
            if states.token_of(part) != token:
                raise StateError(f"a server did not save its optimizer states as {part.name}; its log says why")
        index = json.dumps({"version": VERSION, "servers": servers, "token": token}, sort_keys=True)
        atomic_write(path, lambda temporary: _write(temporary, index))

    def load_states(self, store: Any, name: str) -> None:
        """Have every server load its part of the states at `name`.

        Raises:
            StateError: there is no whole save of as many servers as this job has.
        """
        path, relative = self._locate(name, "load")
        try:
            index = json.loads(path.read_bytes())
            servers, token = int(index["servers"]), str(index["token"])
        except OSError as error:
            raise StateError(f"cannot load optimizer states from {name}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise StateError(f"{name} must be an index written by save_states, got something else") from None
        if servers != int(os.environ["DMLC_NUM_SERVER"]):
            raise StateError(
                f"{name} was saved by {servers} servers, but this job has {os.environ['DMLC_NUM_SERVER']}; "
                f"submit it with --servers {servers}"
            )
        for rank in range(servers):
            if states.token_of(states.server_file(path, rank)) != token:
                raise StateError(f"{states.server_file(path, rank).name} is missing or belongs to another save")
        self._mx.nd.waitall()
        store._send_command_to_servers(CONTROLLER_HEAD, states.StateCommand("load_states", relative, token).serialise())
        store._updater = types.SimpleNamespace(optimizer=self._optimizer)  # gluon.Trainer.load_states takes it back

    def _send_changes(self, store: Any, values: dict[str, float]) -> None:
        # In synchronous training the servers apply a step only when all workers have pushed it, and this worker's
        # weights come back only then: after this wait no earlier step can still meet the new values.
        self._mx.nd.waitall()
        for name, value in values.items():
            self._changes += 1
            store._send_command_to_servers(CONTROLLER_HEAD, codec.change_command(self._changes, name, value))

    def _locate(self, name: str, verb: str) -> tuple[Path, str]:
        if self._optimizer is None:
            raise StateError(f"there are no optimizer states to {verb} before the optimizer is set")
        base = Path(os.environ["CHECKPOINT_DIR"]).resolve()
        path = Path(name).absolute()
        resolved = path.parent.resolve() / path.name
        if not resolved.is_relative_to(base):
            raise StateError(
                f"optimizer states must be below $CHECKPOINT_DIR ({base}), which the servers share, got {name}; "
                "use os.path.join(os.environ['CHECKPOINT_DIR'], …)"
            )
        return resolved, resolved.relative_to(base).as_posix()


def install(store_class: Any, mx: Any, joined: Callable[[Any], None], first_step: Callable[[], None]) -> None:
    """Patch MXNet's KVStore class: scripts, `gluon.Trainer` and `Module` then run unchanged.

    Args:
        store_class: `mxnet.kvstore.kvstore.KVStore`.
        mx: the mxnet module.
        joined: called with every distributed store, once it has joined the job.
        first_step: called once, before the first gradient leaves.
    """
    updates = ServerUpdates(mx)
    original = {
        name: getattr(store_class, name)
        for name in ("__init__", "set_optimizer", "save_optimizer_states", "load_optimizer_states")
    }
    stepped = False

    def initialise(self: Any, handle: Any) -> None:
        original["__init__"](self, handle)
        self._is_distributed = "dist" in self.type
        if self._is_distributed:
            joined(self)

    def set_optimizer(self: Any, optimizer: Any) -> None:
        if self._is_distributed:
            updates.set_optimizer(self, optimizer)
        else:
            original["set_optimizer"](self, optimizer)

    def save_states(self: Any, fname: str, dump_optimizer: bool = False) -> None:
        if self._is_distributed:
            updates.save_states(self, fname)
        else:
            original["save_optimizer_states"](self, fname, dump_optimizer)

    def load_states(self: Any, fname: str) -> None:
        if self._is_distributed:
            updates.load_states(self, fname)
        else:
            original["load_optimizer_states"](self, fname)

    def pushing(method: Callable[..., Any]) -> Callable[..., Any]:
        def push(self: Any, key: Any, *arguments: Any, **named: Any) -> Any:
            nonlocal stepped
            if self._is_distributed:
                if not stepped:
                    stepped = True
                    first_step()
                updates.before_push(self, key)
            return method(self, key, *arguments, **named)

        return push

    def initialising(method: Callable[..., Any]) -> Callable[..., Any]:
        def init(self: Any, key: Any, value: Any, *arguments: Any, **named: Any) -> Any:
            return method(self, key, _plain(value, mx) if self._is_distributed else value, *arguments, **named)

        return init

    store_class.__init__ = initialise
    store_class.set_optimizer = set_optimizer
    store_class.save_optimizer_states = save_states
    store_class.load_optimizer_states = load_states
    for name in ("push", "pushpull"):
        setattr(store_class, name, pushing(getattr(store_class, name)))
    for name in ("init", "broadcast"):
        setattr(store_class, name, initialising(getattr(store_class, name)))


def _plain(value: Any, mx: Any) -> Any:
    """Return dense arrays as copies in the default memory layout.

    After any forward pass in inference mode a convolution's weight is in oneDNN's blocked layout, and then rank 0's
    initial push is lost within MXNet 1.9.1 without a word; the servers end with "init K first".
    """
    if isinstance(value, list | tuple):
        return [_plain(item, mx) for item in value]
    if type(value) is mx.nd.NDArray:
        return mx.nd.array(value.asnumpy(), dtype=value.dtype, ctx=value.context)
    if type(value) is mx.np.ndarray:
        return mx.np.array(value.asnumpy(), dtype=value.dtype, ctx=value.context)
    return value


def _write(path: Path, text: str) -> None:
    path.write_text(text)
