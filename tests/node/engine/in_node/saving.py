"""Saves with MXNet's own functions while being killed. Prints JSON."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import mxnet as mx
from mxnet.base import _LIB

from holdfast_node.engines.mxnet import saving

root = Path(json.load(sys.stdin))
inside, outside = root / "checkpoints", root / "elsewhere"
inside.mkdir()
outside.mkdir()
saving.install(_LIB, inside)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


net = mx.gluon.nn.HybridSequential()
net.add(mx.gluon.nn.Dense(2, in_units=3))
net.initialize()
net.hybridize()
net(mx.nd.ones((1, 3)))
net.save_parameters(str(inside / "net.params"))
net.export(str(inside / "model"))
mx.nd.save(str(outside / "other.params"), mx.nd.ones(3))
fresh = names(inside)
try:
    mx.nd.save(str(inside / "no/such/folder.params"), mx.nd.ones(3))
    unwritable = "saved"
except Exception as error:
    unwritable = type(error).__name__

arrays = {value: [mx.nd.full((200_000,), value) for _ in range(4)] for value in (1, 2)}
mx.nd.waitall()
target = str(inside / "weights.params")
wrong, loaded = [], 0
for _ in range(20):
    child = os.fork()
    if child == 0:
        while True:
            for value in (1, 2):
                mx.nd.save(target, arrays[value])
    time.sleep(random.uniform(0.02, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if Path(target).exists():
        loaded += 1
        try:
            found = [float(array.mean().asscalar()) for array in mx.nd.load(target)]
        except Exception as error:
            found = [str(error)[:80]]
        if found not in ([1.0] * 4, [2.0] * 4):
            wrong.append(found)
result = {"wrong": wrong, "loaded": loaded, "fresh": fresh, "unwritable": unwritable}
print(json.dumps(result | {"elsewhere": names(outside)}), flush=True)
os._exit(0)
