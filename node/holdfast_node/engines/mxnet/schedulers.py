"""Learning-rate schedulers as data: name and state, for the four that MXNet ships.

A scheduler runs on the servers and is stateful, so its whole state travels. Limits keep a hostile state from
spinning: MXNet's loops advance by `step` and end at `num_update`.
"""

import itertools
from collections.abc import Callable
from typing import Any

from holdfast_node.engines.errors import SpecError
from holdfast_node.engines.mxnet.spec import Kind, plain, require_keys, require_kind

_COMMON = {
    "base_lr": Kind.NUMBER,
    "warmup_steps": Kind.COUNT,
    "warmup_final_lr": Kind.NUMBER,
    "warmup_begin_lr": Kind.NUMBER,
    "warmup_mode": Kind.TEXT,
}
_DECAY = {
    "base_lr_orig": Kind.NUMBER,
    "max_update": Kind.COUNT,
    "final_lr": Kind.NUMBER,
    # Derived: max_update - warmup_steps, negative where the warm-up is longer than the schedule.
    "max_steps": Kind.NUMBER,
}
#: The attributes of each allowed scheduler in MXNet 1.9.1 (lr_scheduler.py).
STATES: dict[str, dict[str, Kind]] = {
    "FactorScheduler": _COMMON
    | {"step": Kind.COUNT, "factor": Kind.NUMBER, "stop_factor_lr": Kind.NUMBER, "count": Kind.COUNT},
    "MultiFactorScheduler": _COMMON
    | {"step": Kind.COUNTS, "cur_step_ind": Kind.COUNT, "factor": Kind.NUMBER, "count": Kind.COUNT},
    "PolyScheduler": _COMMON | _DECAY | {"power": Kind.NUMBER},
    "CosineScheduler": _COMMON | _DECAY,
}
#: Arguments that build any instance; its state is then replaced whole.
_SEEDS: dict[str, Any] = {"FactorScheduler": 1, "MultiFactorScheduler": [1], "PolyScheduler": 1, "CosineScheduler": 1}
_MAX_CATCH_UP = 1_000_000


def encode(scheduler: Any, module: Any) -> dict[str, Any]:
    """Return the scheduler as data; `module` is `mxnet.lr_scheduler`.

    Raises:
        SpecError: it is not exactly one of MXNet's four, or carries state that they don't.
    """
    name = type(scheduler).__name__
    if name not in STATES or type(scheduler) is not getattr(module, name):
        raise SpecError(
            f"lr_scheduler must be one of {sorted(STATES)}, got {type(scheduler).__module__}.{name}; "
            "other code cannot run on the servers: call trainer.set_learning_rate(…) from the script instead"
        )
    state = {key: plain(value, f"lr_scheduler.{key}") for key, value in vars(scheduler).items()}
    return {"name": name, "state": state}


def decode(spec: Any, num_update: int, module: Any) -> Any:
    """Return the scheduler that the data describes; `num_update` is where training starts.

    Raises:
        SpecError: unknown name, state that is not exactly the scheduler's, or values that would spin.
    """
    spec = require_keys(spec, ("name", "state"), "scheduler")
    name = spec["name"]
    if not isinstance(name, str) or name not in STATES:
        raise SpecError(f"scheduler.name must be one of {sorted(STATES)}, got {str(name)[:80]!r}")
    state = require_keys(spec["state"], STATES[name], "scheduler.state")
    for key, kind in STATES[name].items():
        require_kind(state[key], kind, f"scheduler.state.{key}")
    if state["warmup_mode"] not in ("linear", "constant"):
        raise SpecError(f"scheduler.state.warmup_mode must be linear or constant, got {state['warmup_mode'][:80]!r}")
    _CHECKS[name](state, num_update)
    scheduler = getattr(module, name)(_SEEDS[name])
    for key, value in state.items():
        setattr(scheduler, key, list(value) if isinstance(value, list) else value)
    return scheduler


def _check_factor(state: dict[str, Any], num_update: int) -> None:
    _check_shrinks(state)
    if state["step"] < 1:
        raise SpecError(f"scheduler.state.step must be at least 1, got {state['step']}")
    if num_update > state["count"] + state["step"] * _MAX_CATCH_UP:
        raise SpecError(f"scheduler.state.count is more than {_MAX_CATCH_UP} steps behind num_update {num_update}")


def _check_multi_factor(state: dict[str, Any], _: int) -> None:
    _check_shrinks(state)
    steps = state["step"]
    if not steps or steps[0] < 1 or any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise SpecError("scheduler.state.step must be a list of increasing numbers that starts at 1 or more")


def _check_decay(state: dict[str, Any], _: int) -> None:
    if state["max_update"] < 1:
        raise SpecError("scheduler.state.max_update must be at least 1, got 0")
    if state["max_steps"] != state["max_update"] - state["warmup_steps"]:
        raise SpecError("scheduler.state.max_steps must be max_update - warmup_steps")


def _check_shrinks(state: dict[str, Any]) -> None:
    if state["factor"] > 1:
        raise SpecError(f"scheduler.state.factor must be at most 1, got {state['factor']}")


_CHECKS: dict[str, Callable[[dict[str, Any], int], None]] = {
    "FactorScheduler": _check_factor,
    "MultiFactorScheduler": _check_multi_factor,
    "PolyScheduler": _check_decay,
    "CosineScheduler": _check_decay,
}
