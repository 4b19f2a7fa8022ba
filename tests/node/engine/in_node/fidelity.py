"""A worker's script: trains on the servers and alone, from the same weights, and compares. Prints one JSON line."""

import json
import os
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd

kv = mx.kv.create("dist_sync")
folder = Path(os.environ["CHECKPOINT_DIR"])
start = [np.random.RandomState(1).randn(8, 4), np.random.RandomState(2).randn(1, 8)]


def make(kvstore):
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(8, in_units=4, use_bias=False), gluon.nn.Dense(1, in_units=8, use_bias=False))
    net.initialize()
    for parameter, value in zip(net.collect_params().values(), start, strict=True):
        parameter.set_data(nd.array(value))
    net[0].weight.lr_mult = 0.5
    settings = {"learning_rate": 0.05, "momentum": 0.9}
    return net, gluon.Trainer(net.collect_params(), "sgd", settings, kvstore=kvstore)


def step(net, trainer, seed):
    data = nd.array(np.random.RandomState(seed).randn(16, 4))
    with autograd.record():
        loss = (net(data) ** 2).mean()
    loss.backward()
    trainer.step(1)


def weights(net):
    return [parameter.data().asnumpy() for parameter in net.collect_params().values()]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def refusal(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


shared, on_servers = make(kv)
alone, here = make(None)
result = {}
for round_, rate in enumerate((0.05, 0.02, 0.01)):
    for net, trainer in ((shared, on_servers), (alone, here)):
        if round_:
            trainer.set_learning_rate(rate)
        for seed in range(4):
            step(net, trainer, 10 * round_ + seed)
    result[f"same at {rate}"] = same(shared, alone)
path = str(folder / "trainer.states")
on_servers.save_states(path)
result["index"] = sorted(json.loads(Path(path).read_text()))
shared.save_parameters(str(folder / "net.params"))
step(shared, on_servers, 99)
result["moved"] = not same(shared, alone)
result["parts"] = sorted(part.name for part in folder.glob("trainer.states.server*"))
on_servers.load_states(path)
result["outside"] = refusal(lambda: on_servers.save_states("/tmp/elsewhere.states"))
result["absent"] = refusal(lambda: on_servers.load_states(str(folder / "absent")))
result["second optimizer"] = refusal(lambda: kv.set_optimizer(mx.optimizer.Adam()))
result["own optimizer"] = refusal(lambda: kv.set_optimizer(type("Mine", (mx.optimizer.SGD,), {})()))
on_servers._optimizer.momentum = 0.5
result["momentum"] = refusal(lambda: step(shared, on_servers, 100))
print("RESULT " + json.dumps(result), flush=True)
