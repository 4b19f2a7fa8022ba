"""The declarative optimizer: what a worker may ask of the servers, as data.

`encode` runs on the worker and refuses whatever it cannot express exactly: it decodes its own result and compares
every attribute. `decode` runs on the server, accepts only the schema below, and calls nothing but the constructors
of MXNet's own optimizers and of those that the signed job ships (shipped.py).
"""

from collections.abc import Mapping
from typing import Any

from holdfast_node.engines.errors import SpecError
from holdfast_node.engines.mxnet import schedulers, shipped
from holdfast_node.engines.mxnet.spec import (
    MAX_COUNT,
    VERSION,
    Kind,
    parse,
    plain,
    require_keys,
    require_kind,
    require_list,
    serialise,
)

_N, _O, _B = Kind.NUMBER, Kind.OPTIONAL_NUMBER, Kind.BOOLEAN
_COMMON = {
    "learning_rate": _O,
    "wd": _N,
    "rescale_grad": _N,
    "clip_gradient": _O,
    "begin_num_update": Kind.COUNT,
    "multi_precision": _B,
}
#: The allow-list: constructor arguments of all of MXNet 1.9.1's optimizers (optimizer.py), besides the common ones.
OPTIMIZERS: dict[str, dict[str, Kind]] = {
    name: _COMMON | arguments
    for name, arguments in {
        "sgd": {"momentum": _N, "lazy_update": _B},
        "nag": {"momentum": _N},
        "signum": {"momentum": _N, "wd_lh": _N},
        "ftml": {"beta1": _N, "beta2": _N, "epsilon": _N},
        "lars": {"momentum": _N, "lazy_update": _B, "eta": _N, "eps": _N, "momentum_correction": _B},
        "lamb": {
            "beta1": _N,
            "beta2": _N,
            "epsilon": _N,
            "lower_bound": _O,
            "upper_bound": _O,
            "bias_correction": _B,
        },
        "dcasgd": {"momentum": _N, "lamda": _N},
        "sgld": {},
        "adam": {"beta1": _N, "beta2": _N, "epsilon": _N, "lazy_update": _B},
        "adagrad": {"eps": _N},
        "rmsprop": {"gamma1": _N, "gamma2": _N, "epsilon": _N, "centered": _B, "clip_weights": _O},
        "adadelta": {"rho": _N, "epsilon": _N},
        "ftrl": {"lamda1": _N, "beta": _N},
        "adamax": {"beta1": _N, "beta2": _N},
        "nadam": {"beta1": _N, "beta2": _N, "epsilon": _N, "schedule_decay": _N},
        "lbsgd": {
            "momentum": _N,
            "warmup_strategy": Kind.TEXT,
            "warmup_epochs": Kind.COUNT,
            "batch_scale": _N,
            "updates_per_epoch": Kind.COUNT,
            "begin_epoch": Kind.COUNT,
            "num_epochs": Kind.COUNT,
        },
        "groupadagrad": {"eps": _N},
        "ccsgd": {"momentum": _N, "lazy_update": _B},
        "test": {},
    }.items()
}
_ATTRIBUTES = {
    ("learning_rate", None): "lr",
    ("eps", "adagrad"): "float_stable_eps",
    ("eps", "groupadagrad"): "float_stable_eps",
}
#: What may be changed once training has begun: Gluon's Trainer changes the factor with the batch size.
CHANGEABLE = {"learning_rate": "lr", "rescale_grad": "rescale_grad"}
_KEYS = ("op", "version", "name", "arguments", "scheduler", "names", "lr_mult", "wd_mult", "parameters", "num_update")
#: Not compared: rebuilt from other fields, compared on their own, or of no effect on a server.
_UNCOMPARED = frozenset({"param_dict", "lr_scheduler", "sym_info", "aggregate_num", "allow_np_array"})


class Multipliers:
    """What an optimizer reads of a Gluon parameter: its own factors for learning rate and weight decay."""

    __slots__ = ("lr_mult", "wd_mult")

    def __init__(self, lr_mult: float, wd_mult: float) -> None:
        """Hold the two factors."""
        self.lr_mult, self.wd_mult = lr_mult, wd_mult


def encode(optimizer: Any, mx: Any) -> str:
    """Return the optimizer as the JSON command that sets it on every server; `mx` is the mxnet module.

    Gluon parameters' `lr_mult` and `wd_mult` are part of it (MXNet's pickle drops them).

    Raises:
        SpecError: it is not on the allow-list, or holds something that the command cannot say exactly.
    """
    cls = type(optimizer)
    own = shipped.name_of(cls, mx)
    name = own or cls.__name__.lower()
    if own is None and (name not in OPTIMIZERS or mx.optimizer.Optimizer.opt_registry[name] is not cls):
        raise SpecError(
            f"optimizer must be one of {sorted(OPTIMIZERS)}, got {cls.__module__}.{cls.__name__}; servers execute no "
            f"code that the job does not ship: use one of these, define it in {shipped.MODULE}.py at the root of the "
            "job's directory, or use gluon.Trainer(…, update_on_kvstore=False) to update on the workers"
        )
    classes = {cls.__name__: cls}
    _, kinds = _known(name, mx, classes)
    scheduler = optimizer.lr_scheduler
    text = serialise(
        {
            "op": "set_optimizer",
            "version": VERSION,
            "name": name,
            "arguments": {key: plain(_read(optimizer, key, name), key) for key in kinds},
            "scheduler": None if scheduler is None else schedulers.encode(scheduler, mx.lr_scheduler),
            "names": [[int(index), plain(text, "param_idx2name")] for index, text in optimizer.idx2name.items()],
            "lr_mult": [[plain(key, "lr_mult"), plain(value, "lr_mult")] for key, value in optimizer.lr_mult.items()],
            "wd_mult": [[plain(key, "wd_mult"), plain(value, "wd_mult")] for key, value in optimizer.wd_mult.items()],
            "parameters": [
                [int(index), plain(parameter.lr_mult, "lr_mult"), plain(parameter.wd_mult, "wd_mult")]
                for index, parameter in optimizer.param_dict.items()
            ],
            "num_update": int(optimizer.num_update),
        }
    )
    _compare(optimizer, decode(parse(text.encode()), mx, classes))
    return text


def decode(command: dict[str, Any], mx: Any, own: Mapping[str, Any]) -> Any:
    """Return the optimizer that a parsed `set_optimizer` command describes.

    Args:
        command: the parsed command.
        mx: the mxnet module.
        own: the optimizers that the job ships, by the names of their classes.

    Raises:
        SpecError: the command is not of the schema, or names something that is not on the allow-list.
    """
    command = require_keys(command, _KEYS, "set_optimizer")
    if command["op"] != "set_optimizer" or command["version"] != VERSION:
        raise SpecError(f"version must be {VERSION} of set_optimizer, got {str(command['version'])[:80]!r}")
    name = command["name"]
    cls, kinds = _known(name, mx, own)
    arguments = require_keys(command["arguments"], kinds, "arguments")
    for key, kind in kinds.items():
        require_kind(arguments[key], kind, f"arguments.{key}")
    num_update = require_kind(command["num_update"], Kind.COUNT, "num_update")
    names = dict(_pair(item, "names", Kind.COUNT, Kind.TEXT) for item in require_list(command["names"], "names"))
    learning_rate = arguments["learning_rate"]
    scheduler = command["scheduler"]
    if learning_rate is None and scheduler is None:
        raise SpecError("arguments.learning_rate must be a number where there is no scheduler")
    given = {key: value for key, value in arguments.items() if key != "learning_rate" or value is not None}
    optimizer = cls(param_idx2name=names, **given)
    # Set after construction: the constructor would overwrite the scheduler's base rate, or default the rate.
    optimizer.lr = learning_rate
    if scheduler is not None:
        optimizer.lr_scheduler = schedulers.decode(scheduler, num_update, mx.lr_scheduler)
    optimizer.lr_mult = _multipliers(command["lr_mult"], "lr_mult")
    optimizer.wd_mult = _multipliers(command["wd_mult"], "wd_mult")
    optimizer.param_dict = _parameters(command["parameters"])
    optimizer.num_update = num_update
    return optimizer


def snapshot(optimizer: Any) -> dict[str, Any]:
    """Return what a script may have changed on an optimizer since it was sent: compare two of these."""
    values: dict[str, Any] = {
        key: value
        for key, value in vars(optimizer).items()
        if value is None or isinstance(value, bool | int | float | str)
    }
    values["lr_scheduler"] = id(optimizer.lr_scheduler)
    values["lr_mult"], values["wd_mult"] = dict(optimizer.lr_mult), dict(optimizer.wd_mult)
    values["param_dict"] = [(parameter.lr_mult, parameter.wd_mult) for parameter in optimizer.param_dict.values()]
    return values


def change_command(sequence: int, name: str, value: float) -> str:
    """Return the command for the `sequence`-th change (from 1) in this job of one of `CHANGEABLE`."""
    number = require_kind(plain(value, name), Kind.NUMBER, name)
    return serialise({"op": "change", "sequence": sequence, "name": name, "value": number})


def parse_change(command: dict[str, Any]) -> tuple[int, str, float]:
    """Return sequence number, name and value of a parsed `change` command, or raise SpecError."""
    require_keys(command, ("op", "sequence", "name", "value"), "change")
    sequence = require_kind(command["sequence"], Kind.COUNT, "sequence")
    name = command["name"]
    if not isinstance(name, str) or name not in CHANGEABLE:
        raise SpecError(f"name must be one of {sorted(CHANGEABLE)}, got {str(name)[:80]!r}")
    return sequence, name, require_kind(command["value"], Kind.NUMBER, "value")


def _known(name: Any, mx: Any, own: Mapping[str, Any]) -> tuple[Any, dict[str, Kind]]:
    """Return the class of this name with the kinds of its constructor's arguments, or raise SpecError."""
    if isinstance(name, str):
        if name in OPTIMIZERS:
            return mx.optimizer.Optimizer.opt_registry[name], OPTIMIZERS[name]
        if name.startswith(shipped.PREFIX) and (cls := own.get(name.removeprefix(shipped.PREFIX))) is not None:
            return cls, shipped.arguments_of(cls, _COMMON)
    ships = f"; this job ships {sorted(own)} in {shipped.MODULE}.py" if own else ""
    raise SpecError(f"optimizer must be one of {sorted(OPTIMIZERS)}, got {str(name)[:80]!r}{ships}")


def _read(optimizer: Any, argument: str, name: str) -> Any:
    """Return what a constructor's argument has become."""
    if (argument, name) == ("begin_epoch", "lbsgd"):
        return optimizer.init_updates // max(1, optimizer.updates_per_epoch)
    attribute = _ATTRIBUTES.get((argument, name)) or _ATTRIBUTES.get((argument, None)) or argument
    return getattr(optimizer, attribute)


def _pair(item: Any, where: str, first: Kind, second: Kind) -> tuple[Any, Any]:
    if not isinstance(item, list) or len(item) != 2:
        raise SpecError(f"{where} must hold pairs, got {repr(item)[:80]}")
    return require_kind(item[0], first, where), require_kind(item[1], second, where)


def _multipliers(value: Any, where: str) -> dict[int | str, float]:
    result: dict[int | str, float] = {}
    for item in require_list(value, where):
        kind = Kind.TEXT if isinstance(item, list) and item and isinstance(item[0], str) else Kind.COUNT
        key, factor = _pair(item, where, kind, Kind.NUMBER)
        result[key] = factor
    return result


def _parameters(value: Any) -> dict[int, Multipliers]:
    result = {}
    for item in require_list(value, "parameters"):
        if not isinstance(item, list) or len(item) != 3:
            raise SpecError(f"parameters must hold triples, got {repr(item)[:80]}")
        index = require_kind(item[0], Kind.COUNT, "parameters")
        result[index] = Multipliers(*(require_kind(factor, Kind.NUMBER, "parameters") for factor in item[1:]))
    return result


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays have no single answer
        return False


def _compare(original: Any, rebuilt: Any) -> None:
    """Raise SpecError unless every attribute survived: training with something else would go unnoticed."""
    missing = object()
    for key, value in vars(original).items():
        if key not in _UNCOMPARED and not _same(getattr(rebuilt, key, missing), value):
            raise SpecError(
                f"optimizer attribute {key}={repr(value)[:80]} cannot be sent to the servers "
                f"(at most {MAX_COUNT} updates, plain numbers, no attributes of your own); set it through the "
                "optimizer's constructor, before any update"
            )
    if original.lr_scheduler is not None and vars(original.lr_scheduler) != vars(rebuilt.lr_scheduler):
        raise SpecError("lr_scheduler holds something that cannot be sent to the servers; use plain numbers and lists")
