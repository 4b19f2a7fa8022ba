"""Every optimizer, on this process: trains, saves, goes on; another network restores and does the same. Prints JSON."""

import json
import os
import random
import sys
import warnings
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd

from holdfast_node.checkpointing import Checkpoints, apply_seed
from holdfast_node.engines.mxnet.optimizer import OPTIMIZERS

warnings.simplefilter("ignore")  # MXNet's own, about rates and schedulers
root = Path(json.load(sys.stdin))


class Scale(gluon.nn.HybridBlock):
    """A factor per input: a layer that works in fp16 on a CPU."""

    def __init__(self):
        super().__init__()
        self.weight = self.params.get("weight", shape=(1, 3))

    def hybrid_forward(self, F, data, weight):  # noqa: N803 - MXNet's name
        return F.broadcast_mul(data, weight)


@mx.optimizer.Optimizer.register
class Warming(mx.optimizer.SGD):
    """An optimizer of the script's own, with a number that changes as it trains."""

    def __init__(self, **settings):
        super().__init__(momentum=0.9, **settings)
        self.heat, self.past = 0.1, {}

    def update(self, index, weight, grad, state):
        self.heat *= 1.3
        self.past = {number: [each.copy(), self.heat] for number, each in zip(index, grad, strict=True)}
        super().update(index, weight, [each * self.heat + self.past[0][0].mean() for each in grad], state)


class Run:
    """A small network with an optimizer, on one device or two."""

    def __init__(self, name, folder, settings=None, devices=1, dtype="float32", store=None):
        self.devices = [mx.cpu(number) for number in range(devices)]
        self.net = gluon.nn.HybridSequential()
        if dtype == "float16":
            self.net.add(Scale(), gluon.nn.Dropout(0.3))
        else:
            bias = name != "groupadagrad"  # which takes matrices only
            self.net.add(gluon.nn.Dense(4, in_units=3, use_bias=bias), gluon.nn.Dropout(0.3))
            self.net.add(gluon.nn.Dense(1, in_units=4, use_bias=bias))
        self.net.cast(dtype)
        self.net.initialize(mx.init.Normal(0.3), ctx=self.devices)
        self.dtype = dtype
        settings = dict(settings or {})
        if name != "adadelta":
            settings.setdefault("learning_rate", 0.05)
        self.generator = np.random.default_rng(5)
        kvstore = "device" if store is None else mx.kv.create(store)
        self.trainer = gluon.Trainer(self.net.collect_params(), name, settings, kvstore=kvstore)
        checkpoints = Checkpoints(folder, seed="1", generators={"data": self.generator})
        self.training = checkpoints.for_gluon(self.net, self.trainer)

    def steps(self, count):
        for _ in range(count):
            for device in self.devices:
                data = nd.array(self.generator.normal(size=(8, 3)), ctx=device, dtype=self.dtype)
                data = data + float(np.random.rand()) + random.random()
                with autograd.record():
                    loss = (self.net(data) ** 2).mean()
                loss.backward()
            self.trainer.step(8 * len(self.devices))

    def weights(self):
        return [array.asnumpy() for p in self.net.collect_params().values() for array in p.list_data()]


def same(label, name, **options):
    """Return whether a run that restored after three steps has, two steps later, the bits of the one that went on."""
    apply_seed("1")
    whole = Run(name, root / label, **options)
    whole.steps(3)
    whole.training.save(3)
    whole.steps(2)
    apply_seed("2")  # a new process draws something else before it restores
    resumed = Run(name, root / label, **options)
    assert resumed.training.restore() == 3
    resumed.steps(2)
    return all(np.array_equal(one, two) for one, two in zip(whole.weights(), resumed.weights(), strict=True))


def schedule():
    return mx.lr_scheduler.FactorScheduler(2, factor=0.5, base_lr=0.05)


outcome = {name: same(name, name) for name in sorted(OPTIMIZERS)}
outcome["lbsgd between two updates"] = same("between", "lbsgd", settings={"batch_scale": 2, "momentum": 0.9})
outcome["sgd with momentum"] = same("momentum", "sgd", settings={"momentum": 0.9})
outcome["a schedule"] = same("schedule", "adam", settings={"lr_scheduler": schedule()})
outcome["two devices"] = same("devices", "adam", devices=2)
outcome["fp16 with fp32 copies"] = same(
    "fp16", "sgd", dtype="float16", settings={"momentum": 0.9, "multi_precision": True}
)
outcome["one of the script's own"] = same("own", "warming")
outcome["a local store that updates"] = same("store", "adam", store="local")
print(json.dumps(outcome), flush=True)
os._exit(0)
