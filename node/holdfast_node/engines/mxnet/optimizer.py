"""The declarative optimizer: what a worker may ask of the servers, as data.

`encode` runs on the worker and refuses whatever it cannot express exactly: it decodes its own result and compares
every attribute. `decode` runs on the server, accepts only the schema below, and calls nothing but the constructors
of MXNet's own optimizers.
"""

from typing import Any

from holdfast_node.engines.errors import SpecError
from holdfast_node.engines.mxnet import schedulers
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
#: The allow-list: constructor arguments of MXNet 1.9.1's optimizers (optimizer.py), besides the common ones.
#: Left out: LBSGD (its state depends on a private schedule), GroupAdaGrad (contrib, for row-sparse embeddings), Test
#: and ccSGD (not for use).
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
    }.items()
}
_ATTRIBUTES = {("learning_rate", None): "lr", ("eps", "adagrad"): "float_stable_eps"}
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
    name = cls.__name__.lower()
    if name not in OPTIMIZERS or _class(name, mx) is not cls:
        raise SpecError(
            f"optimizer must be one of {sorted(OPTIMIZERS)}, got {cls.__module__}.{cls.__name__}; servers execute no "
            "code: use one of these, or gluon.Trainer(…, update_on_kvstore=False) to update on the workers"
        )
    scheduler = optimizer.lr_scheduler
    text = serialise(
        {
            "op": "set_optimizer",
            "version": VERSION,
            "name": name,
            "arguments": {key: plain(getattr(optimizer, _attribute(key, name)), key) for key in OPTIMIZERS[name]},
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
    _compare(optimizer, decode(parse(text.encode()), mx))
    return text


def decode(command: dict[str, Any], mx: Any) -> Any:
    """Return the optimizer that a parsed `set_optimizer` command describes; `mx` is the mxnet module.

    Raises:
        SpecError: the command is not of the schema, or names something that is not on the allow-list.
    """
    command = require_keys(command, _KEYS, "set_optimizer")
    if command["op"] != "set_optimizer" or command["version"] != VERSION:
        raise SpecError(f"version must be {VERSION} of set_optimizer, got {str(command['version'])[:80]!r}")
    name = command["name"]
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise SpecError(f"optimizer must be one of {sorted(OPTIMIZERS)}, got {str(name)[:80]!r}")
    arguments = require_keys(command["arguments"], OPTIMIZERS[name], "arguments")
    for key, kind in OPTIMIZERS[name].items():
        require_kind(arguments[key], kind, f"arguments.{key}")
    num_update = require_kind(command["num_update"], Kind.COUNT, "num_update")
    names = dict(_pair(item, "names", Kind.COUNT, Kind.TEXT) for item in require_list(command["names"], "names"))
    learning_rate = arguments["learning_rate"]
    scheduler = command["scheduler"]
    if learning_rate is None and scheduler is None:
        raise SpecError("arguments.learning_rate must be a number where there is no scheduler")
    given = {key: value for key, value in arguments.items() if key != "learning_rate" or value is not None}
    optimizer = _class(name, mx)(param_idx2name=names, **given)
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


def set_learning_rate_command(sequence: int, learning_rate: float) -> str:
    """Return the command for the `sequence`-th change (from 1) of the learning rate in this job."""
    rate = require_kind(plain(learning_rate, "learning_rate"), Kind.NUMBER, "learning_rate")
    return serialise({"op": "set_learning_rate", "sequence": sequence, "learning_rate": rate})


def parse_set_learning_rate(command: dict[str, Any]) -> tuple[int, float]:
    """Return sequence number and rate of a parsed `set_learning_rate` command, or raise SpecError."""
    require_keys(command, ("op", "sequence", "learning_rate"), "set_learning_rate")
    sequence = require_kind(command["sequence"], Kind.COUNT, "sequence")
    return sequence, require_kind(command["learning_rate"], Kind.NUMBER, "learning_rate")


def _class(name: str, mx: Any) -> Any:
    return mx.optimizer.Optimizer.opt_registry[name]


def _attribute(argument: str, optimizer: str) -> str:
    return _ATTRIBUTES.get((argument, optimizer)) or _ATTRIBUTES.get((argument, None)) or argument


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


def _compare(original: Any, rebuilt: Any) -> None:
    """Raise SpecError unless every attribute survived: training with something else would go unnoticed."""
    missing = object()
    for key, value in vars(original).items():
        if key not in _UNCOMPARED and getattr(rebuilt, key, missing) != value:
            raise SpecError(
                f"optimizer attribute {key}={repr(value)[:80]} cannot be sent to the servers "
                f"(at most {MAX_COUNT} updates, plain numbers, no attributes of your own); set it through the "
                "optimizer's constructor, before any update"
            )
    if original.lr_scheduler is not None and vars(original.lr_scheduler) != vars(rebuilt.lr_scheduler):
        raise SpecError("lr_scheduler holds something that cannot be sent to the servers; use plain numbers and lists")
