"""A small convolutional network on made-up images: much arithmetic for each byte that goes over the wire."""

import argparse

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd

BATCH = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    kv = mx.kv.create("dist_sync")
    mx.random.seed(1)
    nn = gluon.nn
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(64, 3, padding=1, activation="relu", in_channels=3),
        nn.Conv2D(64, 3, padding=1, activation="relu", in_channels=64),
        nn.MaxPool2D(),
        nn.Conv2D(128, 3, padding=1, activation="relu", in_channels=64),
        nn.GlobalAvgPool2D(),
        nn.Dense(10, in_units=128),
    )
    net.initialize(mx.init.Xavier())
    net.hybridize()
    images, labels = nd.random.uniform(shape=(BATCH, 3, 24, 24)), nd.array(np.arange(BATCH) % 10)
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.05}, kvstore=kv)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    for _ in range(steps):
        with autograd.record():
            loss = loss_of(net(images), labels)
        loss.backward()
        trainer.step(BATCH * kv.num_workers)
        loss.mean().asscalar()


if __name__ == "__main__":
    main()
