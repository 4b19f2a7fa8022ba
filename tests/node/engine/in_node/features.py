"""A worker's script that uses MXNet's features as users do: each must train as stated, or be refused before it trains.

Prints one JSON line. The code's root has `holdfast_optimizers.py`.
"""

import json
import sys

import holdfast_optimizers
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd


def refusal(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def net_of(dtype="float32", **settings):
    net = gluon.nn.Dense(1, in_units=4, use_bias=False, **settings)
    net.initialize(mx.init.One())
    net.cast(dtype)
    return net


def train(net, trainer, batches, dtype="float32"):
    for seed, size in enumerate(batches):
        data = nd.array(np.random.RandomState(seed).randn(size, 4), dtype=dtype)
        with autograd.record():
            # No dense layer: MXNet has none for float16 on a CPU.
            loss = nd.broadcast_mul(data, net.weight.data()).square().sum()
        loss.backward()
        trainer.step(size)
    return net.weight.data().asnumpy()


def gluon_trainer():
    """The batch size changes, which vanilla's Trainer refuses; the same numbers as without servers come out."""
    batches = (8, 8, 4, 8, 2)
    results = []
    for kvstore in (distributed, None):
        net = net_of()
        results.append(train(net, gluon.Trainer(net.collect_params(), *settings, kvstore=kvstore), batches))
    return {"same": np.array_equal(*results), "finite": bool(np.isfinite(results[0]).all())}


def without_update_on_kvstore():
    """The servers only add gradients up; the same numbers as without servers come out."""
    results = []
    for kvstore in (distributed, None):
        net = net_of()
        trainer = gluon.Trainer(net.collect_params(), *settings, kvstore=kvstore, update_on_kvstore=False)
        results.append(train(net, trainer, (8, 8, 4)))
    return {"same": np.array_equal(*results), "moved": bool((results[0] != 1).any())}


def pulls_before_pushes():
    """What is pulled before a push of the same key is not what was pushed; many keys, since either may come first."""
    kv = mx.kv.create(distributed)
    keys = range(200)
    weights, pulled, gradients = ([nd.full(4, value + key) for key in keys] for value in (1, 0, 1000))
    for key in keys:
        if key % 2:
            kv.broadcast(key, weights[key], pulled[key])
            kv.pushpull(key, gradients[key], priority=-key)
        else:
            kv.init(key, weights[key])
            kv.pull([key], out=[pulled[key]])
            kv.push([key], [gradients[key]])
    overtaken = [key for key in keys if pulled[key][0].asscalar() != 1 + key]
    return {"in order": not overtaken, "pushed": all((gradients[key] == 1000 + key).asnumpy().all() for key in keys)}


def half_precision():
    """16-bit weights with a 32-bit copy on the servers, as without servers."""
    results = []
    for kvstore in (distributed, None):
        net = net_of("float16")
        trainer = gluon.Trainer(net.collect_params(), name, {**values, "multi_precision": True}, kvstore=kvstore)
        results.append(train(net, trainer, (8, 8, 8), "float16"))
    return {"same": np.allclose(*results, rtol=2e-3), "moved": bool((results[0] != 1).any())}


def own_type(dtype):
    """Weights are kept and updated in their own type where no 32-bit copy was asked for."""
    results = []
    for kvstore in (distributed, None):
        net = net_of(dtype)
        results.append(train(net, gluon.Trainer(net.collect_params(), *settings, kvstore=kvstore), (8, 8, 8), dtype))
    return {"same": np.array_equal(*results), "moved": bool((results[0] != 1).any())}


def float16():
    return own_type("float16")


def float64():
    return own_type("float64")


def compression():
    """2bit compression moves every weight by whole thresholds."""
    net = net_of()
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1.0}, kvstore=distributed,
                            compression_params={"type": "2bit", "threshold": 0.5})  # fmt: skip
    thresholds = (train(net, trainer, (8, 8)) - 1) * 8 / 0.5
    whole = np.allclose(thresholds, np.round(thresholds))
    return {"whole thresholds": bool(whole), "moved": bool((thresholds != 0).any())}


def row_sparse():
    """A sparse embedding trains on the servers as it does alone."""
    results = []
    for kvstore in (distributed, None):
        net = gluon.contrib.nn.SparseEmbedding(6, 3)
        net.initialize(mx.init.One())
        trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.5}, kvstore=kvstore or "device")
        for rows in ([0, 2], [5, 2]):
            with autograd.record():
                loss = (net(nd.array(rows)) ** 2).sum()
            loss.backward()
            trainer.step(1)
        results.append(net.weight.row_sparse_data(nd.arange(6)).asnumpy())
    return {"same": np.array_equal(*results), "moved": bool((results[0] != 1).any())}


def own_optimizer():
    results = []
    for kvstore in (distributed, None):
        net = net_of()
        optimizer = holdfast_optimizers.Clipped(learning_rate=0.1, limit=0.25, rescale_grad=1.0)
        results.append(train(net, gluon.Trainer(net.collect_params(), optimizer, kvstore=kvstore), (8, 8)))
    return {"same": np.array_equal(*results), "moved": bool((results[0] != 1).any())}


def refused():
    kv = mx.kv.create("dist_sync")
    net = gluon.nn.Embedding(6, 3, sparse_grad=True)
    net.initialize()
    trainer = gluon.Trainer(net.collect_params(), "sgd", kvstore=kv)

    def step():
        with autograd.record():
            loss = net(nd.array([1])).sum()
        loss.backward()
        trainer.step(1)

    return {
        "sparse gradient of a dense weight": refusal(step),
        "integers": refusal(lambda: kv.init("i", nd.zeros(3, dtype="int32"))),
        "profiler": refusal(lambda: mx.profiler.set_config(profile_process="server", filename="x.json")),
        "second store": refusal(lambda: mx.kv.create("dist_async")),
        "not shipped": refusal(lambda: kv.set_optimizer(type("Mine", (mx.optimizer.SGD,), {})())),
    }


distributed = sys.argv[2]
name, values = settings = ("sgd", {"learning_rate": 0.05, "momentum": 0.9})
print("RESULT " + json.dumps(globals()[sys.argv[1]](), default=bool), flush=True)
