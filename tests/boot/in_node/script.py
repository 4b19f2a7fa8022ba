"""What an ordinary script does: compiled kernels, data loaders in processes of their own, a checkpoint, a model."""

import subprocess
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

network = gluon.nn.Sequential()
network.add(gluon.nn.Conv2D(4, 3), gluon.nn.Dense(10))
network.initialize()
trainer = gluon.Trainer(network.collect_params(), "adam")
loss = gluon.loss.SoftmaxCrossEntropyLoss()
data = gluon.data.ArrayDataset(np.random.rand(32, 1, 8, 8).astype("float32"), np.arange(32) % 10)
for images, labels in gluon.data.DataLoader(data, 16, num_workers=2):
    with autograd.record():
        value = loss(network(images), labels)
    value.backward()
    trainer.step(16)
network.save_parameters("/mnt/checkpoints/parameters")
Path("model").mkdir()
network.save_parameters("model/parameters")
assert np.isfinite(mx.nd.mean(value).asscalar())
subprocess.run(["/usr/bin/id"], check=True)
print("TRAINED", flush=True)
