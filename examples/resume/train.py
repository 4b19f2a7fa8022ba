"""Tell three spirals apart, and go on from the last checkpoint wherever an earlier run was cut off.

The same script runs in a Holdfast job and on a laptop with MXNet and the holdfast_node package:

    holdfast --local submit examples/resume --entry train.py
    python examples/resume/train.py --kvstore local --checkpoints DIR --seed 42
"""

import argparse
import os
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd

from holdfast_node.checkpointing import Checkpoints, apply_seed


def spirals(per_arm=400):
    """Return points (1200 x 2) and labels (1200): three arms that wind around each other, always the same."""
    noise = np.random.default_rng(7)
    radius = np.linspace(0.05, 1, per_arm)
    arms = [radius * 5 + arm * 2 * np.pi / 3 + noise.normal(0, 0.12, per_arm) for arm in range(3)]
    points = np.concatenate([np.stack([radius * np.sin(angle), radius * np.cos(angle)], 1) for angle in arms])
    return points.astype("float32"), np.repeat(np.arange(3, dtype="float32"), per_arm)


def build_network():
    nn = gluon.nn
    net = nn.HybridSequential()
    net.add(nn.Dense(64, activation="relu"), nn.BatchNorm(), nn.Dropout(0.1), nn.Dense(64, activation="relu"))
    net.add(nn.Dense(3))
    net.initialize(mx.init.Xavier())
    net.hybridize()
    return net


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=50, help="points per worker and step")
    parser.add_argument("--kvstore", default="dist_sync")
    parser.add_argument("--checkpoints", help="default: $CHECKPOINT_DIR, which Holdfast sets")
    parser.add_argument("--seed", help="any text; default: $HOLDFAST_SEED, which Holdfast sets and has applied")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        apply_seed(arguments.seed)

    kv = mx.kv.create(arguments.kvstore)
    points, labels = (array[kv.rank :: kv.num_workers] for array in spirals())

    net = build_network()
    net(nd.array(points[:1]))
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    schedule = mx.lr_scheduler.FactorScheduler(20, factor=0.97, base_lr=0.02)
    adam = {"learning_rate": 0.02, "lr_scheduler": schedule}
    trainer = gluon.Trainer(net.collect_params(), "adam", adam, kvstore=kv)

    # These two lines, and the one at the end of the loop, are all that resuming takes.
    training = Checkpoints(arguments.checkpoints, seed=arguments.seed).for_gluon(net, trainer)
    done = training.restore()

    for epoch in range(done + 1, arguments.epochs + 1):
        losses = []
        order = np.random.permutation(len(points))
        for start in range(0, len(order) - arguments.batch_size + 1, arguments.batch_size):
            chosen = order[start : start + arguments.batch_size]
            with autograd.record():
                loss = loss_of(net(nd.array(points[chosen])), nd.array(labels[chosen]))
            loss.backward()
            trainer.step(arguments.batch_size * kv.num_workers)
            losses.append(float(loss.mean().asscalar()))
        print(f"worker {kv.rank} epoch {epoch}/{arguments.epochs} loss {np.mean(losses):.6f}", flush=True)
        training.save(epoch, metrics={"loss": np.mean(losses)})

    if kv.rank == 0:
        model = Path(os.environ.get("MODEL_DIR", "model"))
        model.mkdir(parents=True, exist_ok=True)
        net.export(str(model / "spirals"))
        print(f"model exported to {model}", flush=True)


if __name__ == "__main__":
    main()
