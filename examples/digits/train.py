"""Train a small convolutional network on handwritten digits with MXNet's distributed parameter server.

An ordinary MXNet Gluon script: it runs wherever MXNet's DMLC_* variables say who the scheduler, the servers and the
workers are. Every worker trains on its own share of the digits; the servers hold the weights and apply Adam.
"""

import argparse
import json
import os
from pathlib import Path

import mxnet as mx
import numpy as np
from digits import training_part
from mxnet import autograd, gluon, nd


def build_network():
    nn = gluon.nn
    net = nn.HybridSequential()
    net.add(
        nn.HybridLambda(lambda op, pixels: op.reshape(pixels, (-1, 1, 8, 8))),
        nn.Conv2D(16, 3, padding=1, activation="relu"),
        nn.Conv2D(32, 3, padding=1, activation="relu"),
        nn.MaxPool2D(2),
        nn.Dropout(0.2),
        nn.Dense(64, activation="relu"),
        nn.Dropout(0.2),
        nn.Dense(10),
    )
    net.initialize(mx.init.Xavier())
    net.hybridize()
    return net


def shift(batch):
    """Return the digits, half of them moved by at most one pixel: other people write elsewhere in the box."""
    images = np.pad(batch.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    down, right = np.where(np.random.rand(len(images)) < 0.5, np.random.randint(0, 3, (2, len(images))), 1)
    moved = [image[y : y + 8, x : x + 8] for image, y, x in zip(images, down, right, strict=True)]
    return np.stack(moved).reshape(-1, 64)


def batches(pixels, labels, size):
    """Yield one epoch: all digits in a new order, in whole batches."""
    order = np.random.permutation(len(pixels))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        yield nd.array(shift(pixels[chosen])), nd.array(labels[chosen])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64, help="digits per worker and step")
    parser.add_argument("--lr", type=float, default=0.004)
    arguments = parser.parse_args()

    kv = mx.kv.create("dist_sync")
    pixels, labels = training_part()
    # Equal shares: in synchronous training every worker makes the same number of steps.
    share = len(pixels) // kv.num_workers
    mine = slice(kv.rank, share * kv.num_workers, kv.num_workers)
    pixels, labels = pixels[mine], labels[mine]

    net = build_network()
    net(nd.array(pixels[:1]))  # makes the parameters, whose shapes follow from the first input
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    steps = arguments.epochs * (share // arguments.batch_size)
    schedule = mx.lr_scheduler.MultiFactorScheduler([max(1, steps * 3 // 4)], factor=0.25, base_lr=arguments.lr)
    adam = {"learning_rate": arguments.lr, "lr_scheduler": schedule}
    trainer = gluon.Trainer(net.collect_params(), "adam", adam, kvstore=kv)

    checkpoints = Path(os.environ.get("CHECKPOINT_DIR", "checkpoints"))
    checkpoints.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, arguments.epochs + 1):
        losses = []
        for batch, target in batches(pixels, labels, arguments.batch_size):
            with autograd.record():
                loss = loss_of(net(batch), target)
            loss.backward()
            trainer.step(arguments.batch_size * kv.num_workers)
            losses.append(loss.mean().asscalar())
        print(f"worker {kv.rank} epoch {epoch}/{arguments.epochs} loss {np.mean(losses):.4f}", flush=True)
        if kv.rank == 0:
            net.save_parameters(str(checkpoints / f"epoch-{epoch:03d}.params"))

    if kv.rank == 0:
        model = Path(os.environ.get("MODEL_DIR", "model"))
        model.mkdir(parents=True, exist_ok=True)
        net.export(str(model / "digits"))
        # How the model is used, for whoever serves it; signed with the rest.
        serving = {"version": 1, "symbol": "digits-symbol.json", "parameters": "digits-0000.params", "input": "data"}
        serving |= {"shape": [64], "activation": "softmax", "labels": [str(digit) for digit in range(10)]}
        (model / "serving.json").write_text(json.dumps(serving, indent=2) + "\n")
        print(f"model exported to {model}", flush=True)


if __name__ == "__main__":
    main()
