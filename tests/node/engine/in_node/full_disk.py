"""Saves on a disk of 256 KiB until it is full, with MXNet's own function and with ours. Prints JSON."""

import json
import os
import sys
from pathlib import Path

import mxnet as mx
from mxnet.base import _LIB

from holdfast_node import checkpoints
from holdfast_node.checkpointing import Checkpoints
from holdfast_node.engines.mxnet import saving

root = Path(json.load(sys.stdin))
result = {}


def refusal(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "saved"


def readable(path):
    try:
        return len(mx.nd.load(str(path)))
    except Exception as error:
        return type(error).__name__


def fill(free):
    """Leave this many bytes free."""
    with (root / "filler").open("wb", buffering=0) as file:
        file.write(bytes(os.statvfs(root).f_bavail * os.statvfs(root).f_frsize - free))


def saves(folder):
    """Save over a good file of one block, four blocks where three fit: the last one is written by closing the file."""
    folder.mkdir()
    target = str(folder / "net.params")
    mx.nd.save(target, [mx.nd.ones(4)])
    fill(8192)
    outcome = refusal(lambda: mx.nd.save(target, [mx.nd.ones(3 * 4096 // 4 + 16)]))
    (root / "filler").unlink()
    return [outcome, readable(target), sorted(path.name for path in folder.iterdir())]


result["vanilla"] = saves(root / "elsewhere")
(root / "elsewhere/net.params").unlink()
inside = root / "checkpoints"
saving.install(_LIB, inside)
result["installed"] = saves(inside)
(inside / "net.params").unlink()
net = mx.gluon.nn.Dense(64, in_units=150)
net.initialize()
trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
with mx.autograd.record():
    loss = net(mx.nd.ones((1, 150))).sum()
loss.backward()
trainer.step(1)
training = Checkpoints(inside, keep_last=5).for_gluon(net, trainer)
outcomes = [refusal(lambda step=step: training.save(step)) for step in range(1, 9)]
failed = next(number for number, outcome in enumerate(outcomes, 1) if outcome != "saved")
result |= {"failed": failed, "message": outcomes[failed - 1].replace(str(inside), "DIR")}
result["latest"] = checkpoints.latest(inside).name
result["left"] = sorted(path.name for path in inside.iterdir() if path.name.startswith((".tmp-", ".part-")))
training = Checkpoints(inside, keep_last=1).for_gluon(net, trainer)
for old in sorted(inside.glob("step-*"))[:-1]:
    checkpoints._remove(old)
result["room"] = refusal(lambda: training.save(9))
result["afterwards"] = checkpoints.latest(inside).name
print(json.dumps(result), flush=True)
os._exit(0)
