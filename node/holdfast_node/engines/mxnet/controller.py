"""What a server does with a command: it follows four, all of them data, and refuses everything else.

A refusal is logged as one security event and ends the server: without an optimizer, MXNet's server copies gradients
over the weights (kvstore_dist_server.h, line 358) and acknowledges; with a worker's states not loaded, or two
workers in conflict, the job would train something that nobody asked for; and a peer that sends anything else is not
one to go on with.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from holdfast_node.engines.errors import ConflictError, SpecError, StateError
from holdfast_node.engines.mxnet import optimizer as codec
from holdfast_node.engines.mxnet import states
from holdfast_node.engines.mxnet.spec import parse

#: The only command head that carries an optimizer, and the only one that reaches Python.
CONTROLLER_HEAD = 0


class Store(Protocol):
    """The part of MXNet's KVStore that a controller needs."""

    rank: int

    def _set_updater(self, updater: Callable[[Any, Any, Any], None]) -> None:
        """Call `updater` with key, gradient and weights for every gradient from now on."""


class Controller:
    """Follows the commands of a job's workers on one server."""

    def __init__(
        self,
        store: Store,
        mx: Any,
        *,
        report: Callable[..., None],
        installed: Callable[[str, bool], None],
        end: Callable[[], None],
        own: Mapping[str, Any] | None = None,
    ) -> None:
        """Serve `store`; `report` logs a refusal, `end` ends the process.

        `installed` is told of an accepted optimizer: its name, and whether it wants multi-precision. `own`
        are the optimizers that the job ships, by class name; none by default.
        """
        self._store, self._mx = store, mx
        self._report, self._installed, self._end = report, installed, end
        self._own = own or {}
        self._updater: Any = None
        self._optimizer: str | None = None
        self._changes: list[tuple[str, float]] = []

    def __call__(self, head: int, body: bytes | None) -> None:
        """Follow one command, or report it and end the process. Never raises."""
        body = body or b""
        try:
            self._follow(head, body)
        except BaseException as error:  # ctypes would drop it and MXNet would acknowledge the command
            self._refuse(error, body, head=head, op=_op(body))
            self._end()

    def _follow(self, head: int, body: bytes) -> None:
        if head != CONTROLLER_HEAD:
            raise SpecError(f"command head must be {CONTROLLER_HEAD}, got {head}")
        command = parse(body)
        op = command["op"]
        if op == "set_optimizer":
            self._set_optimizer(command, hashlib.sha256(body).hexdigest())
        elif self._optimizer is None:
            raise SpecError(f"the first command must be set_optimizer, got {op[:80]!r}")
        elif op == "change":
            self._change(*codec.parse_change(command))
        elif op in ("save_states", "load_states"):
            self._states(states.StateCommand.parse(command))
        else:
            raise SpecError(f"op must be set_optimizer, change, save_states or load_states, got {op[:80]!r}")

    def _set_optimizer(self, command: dict[str, Any], digest: str) -> None:
        """Every worker sends its optimizer: the first one counts, equal ones change nothing."""
        optimizer = codec.decode(command, self._mx, self._own)
        if self._optimizer is None:
            self._updater = self._mx.optimizer.get_updater(optimizer)
            self._store._set_updater(self._update)
            self._optimizer = digest
            self._installed(command["name"], optimizer.multi_precision)
        elif digest != self._optimizer:
            raise ConflictError("this job's workers disagree about the optimizer; all of them must set the same one")

    def _change(self, sequence: int, name: str, value: float) -> None:
        """Each change counts once, whichever worker asks first; the others must ask for the same."""
        if sequence == len(self._changes) + 1:
            optimizer = self._updater.optimizer
            if name == "learning_rate":
                optimizer.set_learning_rate(value)  # refuses where a scheduler sets it
            else:
                setattr(optimizer, codec.CHANGEABLE[name], value)
            self._changes.append((name, value))
        elif not 1 <= sequence <= len(self._changes) or self._changes[sequence - 1] != (name, value):
            raise ConflictError(
                f"this job's workers disagree about change {sequence} of the optimizer, {name} to {value}; "
                f"{len(self._changes)} changes were made, and all workers must make the same ones"
            )

    def _states(self, command: states.StateCommand) -> None:
        path = states.server_file(states.below_checkpoints(command.path), self._store.rank)
        if command.op == "save_states":
            try:
                states.save(path, self._updater, command.token)
            except (OSError, StateError) as error:
                # The worker notices: it looks for its token in what was written. A full disk is no reason to end.
                self._refuse(error, command.serialise().encode(), op=command.op, fatal=False)
        else:
            states.load(path, self._updater, command.token, self._mx)

    def _update(self, key: Any, gradient: Any, weights: Any) -> None:
        """Update weights, or end the process: ctypes would drop an error and the weights would stay as they are."""
        try:
            self._updater(key, gradient, weights)
        except BaseException as error:
            self._report(f"update failed: {type(error).__name__}: {error}", fatal=True)
            self._end()

    def _refuse(self, error: BaseException, body: bytes, fatal: bool = True, **facts: object) -> None:
        digest = hashlib.sha256(body).hexdigest()
        self._report(f"{type(error).__name__}: {error}", size=len(body), sha256=digest, fatal=fatal, **facts)


def _op(body: bytes) -> str:
    try:
        return str(parse(body)["op"])[:80]
    except SpecError:
        return "unreadable"
