"""Round trips and refusals of the declarative optimizer, with the real MXNet. Prints JSON."""

import inspect
import json
import math
import sys

import mxnet as mx
import numpy as np

from holdfast_node.engines.errors import SpecError
from holdfast_node.engines.mxnet import optimizer as codec
from holdfast_node.engines.mxnet.spec import parse

ls = mx.lr_scheduler
VARIANTS = {
    "sgd": [{"momentum": 0.9, "wd": 1e-4}, {"multi_precision": True, "clip_gradient": 1.0, "lazy_update": False}],
    "nag": [{"momentum": 0.8}],
    "lars": [{"momentum": 0.9, "eta": 0.002}],
    "adam": [{"beta1": 0.8}, {"learning_rate": np.float32(0.1), "rescale_grad": 1 / 3}],
    "adagrad": [{"eps": 1e-6}],
    "rmsprop": [{"centered": True}, {"clip_weights": 0.7}],
    "lamb": [{"lower_bound": 0.1, "upper_bound": 2}],
    "lbsgd": [{"momentum": 0.9, "begin_epoch": 3, "updates_per_epoch": 2, "warmup_strategy": "sqrt", "batch_scale": 4}],
}
SCHEDULERS = {
    "none": lambda: None,
    "factor": lambda: ls.FactorScheduler(3, 0.5),
    "multi-factor": lambda: ls.MultiFactorScheduler([5, 9], 0.1),
    "poly": lambda: ls.PolyScheduler(100, pwr=3),
    "cosine": lambda: ls.CosineScheduler(100, warmup_steps=5, warmup_begin_lr=0.001),
}


def weights_after(optimizer):
    """Twenty updates of two weights; one has a multiplier."""
    updater = mx.optimizer.get_updater(optimizer)
    shapes = ((8, 4), (7, 1)) if isinstance(optimizer, mx.optimizer.contrib.GroupAdaGrad) else ((32,), (7,))
    weights = [mx.nd.array(np.linspace(-1, 1, 32)), mx.nd.array(np.linspace(1, 2, 7))]
    weights = [weight.reshape(shape) for weight, shape in zip(weights, shapes, strict=True)]
    for step in range(20):
        for index, weight in enumerate(weights):
            gradient = mx.nd.array(np.cos(np.arange(weight.size))).reshape(weight.shape)
            updater(index, gradient * (step + 1) / 20, weight)
    return [weight.asnumpy() for weight in weights]


def round_trip(name, arguments, make_scheduler):
    scheduler = make_scheduler()
    given = {"learning_rate": 0.05, "param_idx2name": {0: "fc_weight", 1: "fc_bias"}, **arguments}
    original = mx.optimizer.create(name, lr_scheduler=scheduler, **given)
    original.set_lr_mult({"fc_weight": 0.5, 1: 2.0})
    rebuilt = codec.decode(parse(codec.encode(original, mx).encode()), mx, {})
    assert vars(original)["lr_mult"] == vars(rebuilt)["lr_mult"] == {"fc_weight": 0.5, 1: 2.0}
    if name == "sgld":  # its updates are random
        return rebuilt.lr == original.lr
    pairs = zip(weights_after(original), weights_after(rebuilt), strict=True)
    return all(np.array_equal(a, b) and np.isfinite(a).all() for a, b in pairs)


def refusal(make):
    try:
        make()
    except SpecError as error:
        return str(error)
    return "accepted"


def constructor(cls):
    skipped = {"self", "args", "kwargs", "lr_scheduler", "sym", "param_idx2name", "param_dict"}
    names = set()
    for base in cls.__mro__[:-1]:
        names |= set(inspect.signature(base.__init__).parameters)
    return sorted(names - skipped)


class Mine(mx.optimizer.SGD):
    pass


class MyScheduler(ls.LRScheduler):
    pass


def with_attribute():
    optimizer = mx.optimizer.SGD()
    optimizer.trick = 5
    return optimizer


def used():
    optimizer = mx.optimizer.Adam()
    weights_after(optimizer)
    return optimizer


UNSENDABLE = {
    "own class": lambda: codec.encode(Mine(), mx),
    "not for servers": lambda: codec.encode(mx.optimizer.Optimizer(), mx),
    "own scheduler": lambda: codec.encode(mx.optimizer.SGD(lr_scheduler=MyScheduler()), mx),
    "own attribute": lambda: codec.encode(with_attribute(), mx),
    "already used": lambda: codec.encode(used(), mx),
    "infinite": lambda: codec.encode(mx.optimizer.SGD(learning_rate=math.inf), mx),
    "an array": lambda: codec.encode(mx.optimizer.SGD(learning_rate=mx.nd.ones(2)), mx),
}

base = json.loads(codec.encode(mx.optimizer.SGD(lr_scheduler=ls.FactorScheduler(3, 0.5)), mx))


def decode_changed(changes):
    """Decode the base command with changes at dotted paths, or a raw body."""
    if isinstance(changes, str):
        return codec.decode(parse(changes.encode("latin-1")), mx, {})
    command = json.loads(json.dumps(base))
    for path, value in changes.items():
        *parents, last = path.split(".")
        target = command
        for parent in parents:
            target = target[parent]
        if value == "<removed>":
            del target[last]
        else:
            target[last] = value
    return codec.decode(parse(json.dumps(command).encode()), mx, {})


print(
    json.dumps(
        {
            "round_trips": {
                f"{name} {arguments} {kind}": bool(round_trip(name, arguments, make))
                for name in codec.OPTIMIZERS
                for arguments in [{}, *VARIANTS.get(name, [])]
                for kind, make in SCHEDULERS.items()
            },
            "arguments": {name: sorted(arguments) for name, arguments in codec.OPTIMIZERS.items()},
            "constructors": {name: constructor(mx.optimizer.Optimizer.opt_registry[name]) for name in codec.OPTIMIZERS},
            "registered": sorted(mx.optimizer.Optimizer.opt_registry),
            "unsendable": {name: refusal(make) for name, make in UNSENDABLE.items()},
            "malformed": {
                name: refusal(lambda changes=changes: decode_changed(changes))
                for name, changes in json.load(sys.stdin).items()
            },
            "unchanged": refusal(lambda: decode_changed({})),
        },
        default=str,
    )
)
