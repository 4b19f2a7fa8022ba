"""A run that was killed and went on ends with the parameters of one that was not, bit by bit."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.node.engine.conftest import PYTHON, ROOT

EXAMPLE = ROOT / "examples/resume"
SEED = "5eed" * 16

MakeCluster = Callable[..., Any]


def saved(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("step-*"))


def digests(directory: Path, step: int) -> dict[str, str]:
    """SHA-256 of every parameter file of a checkpoint."""
    files = (directory / f"step-{step:08d}").glob("*.params")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def losses(log: str) -> dict[int, str]:
    return {int(epoch): loss for epoch, loss in re.findall(r"epoch (\d+)/\d+ loss (\S+)", log)}


def start(job: Any) -> list[str]:
    """Start what the job needs: without servers only the worker joins nobody."""
    names = ["worker0"] if "local" in job.args else list(job.launches)
    job.start(*names)
    return names


def finish(job: Any) -> None:
    assert set(job.wait(*start(job), timeout=150).values()) == {0}, job.logs()


def interrupted_and_whole(
    cluster: MakeCluster, arguments: Callable[[int], tuple[str, ...]], **settings: Any
) -> tuple[Any, Any, Any, int]:
    """Run a job, kill all of it after its second epoch, let another job go on for three more; then a whole one."""
    killed = cluster(args=arguments(1000), seed=SEED, **settings)
    start(killed)
    killed.wait_for("worker0", "step-00000002")
    killed.stop()
    kept = killed.root / "checkpoints/test-job"
    last = int(saved(kept)[-1].removeprefix("step-"))
    resumed, whole = (cluster(args=arguments(last + 3), seed=SEED, **settings) for _ in range(2))
    shutil.copytree(kept, resumed.root / "checkpoints/test-job", symlinks=True)
    finish(resumed)
    finish(whole)
    return killed, resumed, whole, last


MODULE = """
import sys
import mxnet as mx, numpy as np
from holdfast_node.checkpointing import Checkpoints
data = mx.sym.BatchNorm(mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=8, name="fc"), name="bn")
net = mx.sym.FullyConnected(mx.sym.Dropout(data, p=0.2), num_hidden=2, name="out")
module = mx.mod.Module(mx.sym.SoftmaxOutput(net, name="softmax"))
points = np.random.RandomState(0).randn(96, 4).astype("float32")
batches = mx.io.NDArrayIter(points, (points[:, 0] > 0).astype("float32"), batch_size=16)
settings = {"learning_rate": 0.1, "momentum": 0.9, "lr_scheduler": mx.lr_scheduler.FactorScheduler(8, 0.9, base_lr=0.1)}
metric = mx.metric.create("ce")
checkpoints = Checkpoints(best_metric="cross-entropy", keep_last=9)
store = mx.kv.create(sys.argv[2])
training = checkpoints.for_module(module, kvstore=store, metrics=lambda: dict([metric.get_global()]))
def report(epoch, *_):
    print(f"epoch {epoch + 1}/0 loss {metric.get_global()[1]!r}", flush=True)
module.fit(batches, num_epoch=int(sys.argv[1]), optimizer="sgd", optimizer_params=settings, eval_metric=metric,
           **training.fit_arguments(report))
"""


RATES = """
import sys
import mxnet as mx, numpy as np
from mxnet import autograd, gluon, nd
from holdfast_node.checkpointing import Checkpoints
net = gluon.nn.Dense(1, in_units=3)
net.initialize(mx.init.Normal(0.1))
trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1, "momentum": 0.9}, kvstore="dist_sync",
                        update_on_kvstore=sys.argv[2] == "servers")
training = Checkpoints(keep_last=9).for_gluon(net, trainer)
done = training.restore()
for epoch in range(done + 1, int(sys.argv[1]) + 1):
    trainer.set_learning_rate((0.1, 0.05, 0.1, 0.02, 0.1)[epoch - 1])
    for _ in range(3):
        data = nd.array(np.random.randn(8, 3))
        with autograd.record():
            loss = ((net(data) - data.sum(axis=1, keepdims=True)) ** 2).mean()
        loss.backward()
        trainer.step(16)
    print(f"epoch {epoch}/0 loss {loss.asscalar()!r}", flush=True)
    training.save(epoch, metrics={"loss": loss.asscalar()})
"""


def whole_and_resumed(cluster: MakeCluster, arguments: Callable[[int], tuple[str, ...]], **settings: Any) -> list[Any]:
    """Run a job for five epochs; then another one from the checkpoint after the second."""
    whole, resumed = (cluster(args=arguments(5), seed=SEED, **settings) for _ in range(2))
    finish(whole)
    directories = [job.root / "checkpoints/test-job" for job in (whole, resumed)]
    shutil.copytree(directories[0] / "step-00000002", directories[1] / "step-00000002")
    finish(resumed)
    assert digests(directories[0], 5) == digests(directories[1], 5) != {}
    first, second = (losses(job.log("worker0")) for job in (whole, resumed))
    assert sorted(second) == [3, 4, 5] and second.items() <= first.items()
    return directories


@pytest.mark.parametrize("kvstore", ["dist_sync", "local"])
def test_a_module_resumes_to_the_same_parameters_and_losses(cluster: MakeCluster, kvstore: str) -> None:
    """SGD with momentum and a schedule, on a server or in the worker's own store (whose states are by name)."""
    directory, _ = whole_and_resumed(
        cluster, lambda epochs: (str(epochs), kvstore), script=MODULE, workers=1, servers=1
    )
    states = {"dist_sync": {"states", "states.server0.npz"}, "local": {"states.npz"}}[kvstore]
    assert states < {path.name for path in (directory / "latest").iterdir()}


@pytest.mark.parametrize("where", ["servers", "workers"])
def test_rates_that_a_script_sets_itself_are_resumed_wherever_updates_are_made(
    cluster: MakeCluster, where: str
) -> None:
    """The rate goes up and down, so that the third epoch's is the one that the optimizer was made with."""
    whole_and_resumed(cluster, lambda epochs: (str(epochs), where), script=RATES, servers=1)


def test_a_killed_job_resumes_to_the_same_parameters_and_losses(cluster: MakeCluster) -> None:
    """The example: Adam on two servers, a schedule; each worker has its own running means, dropout and order."""
    killed, resumed, whole, last = interrupted_and_whole(
        cluster, lambda epochs: ("--epochs", str(epochs)), code=EXAMPLE
    )
    directories = [job.root / "checkpoints/test-job" for job in (resumed, whole)]
    ends = [digests(directory, last + 3) for directory in directories]
    assert ends[0] == ends[1] and set(ends[0]) == {"parameters.params", "worker1.params"}
    for rank in (0, 1):
        first, second, uncut = (losses(job.log(f"worker{rank}")) for job in (killed, resumed, whole))
        assert sorted(second) == [last + 1, last + 2, last + 3]  # nothing was trained twice
        assert {**first, **second}.items() >= uncut.items()
    assert all(losses(whole.log("worker0"))[n] != losses(whole.log("worker1"))[n] for n in (1, 2))


def test_every_optimizer_resumes_to_the_same_bits(in_node: Callable[..., dict[str, object]], tmp_path: Path) -> None:
    outcome = in_node("resuming.py", str(tmp_path))
    assert {name: same for name, same in outcome.items() if same is not True} == {}
    assert len(outcome) >= 20


def test_mxnets_own_servers_are_named_where_they_cannot_save(cluster: MakeCluster) -> None:
    job = cluster(script=RATES, args=("1", "servers"), workers=1, servers=1)
    for name, role in (("scheduler0", "scheduler"), ("server0", "server")):
        job.start_raw(name, [str(PYTHON), "-c", "import mxnet"], DMLC_ROLE=role)
    job.start_raw("worker0", [str(PYTHON), str(job.code / "train.py"), *job.args])
    job.wait_for("worker0", "CheckpointError")
    assert "the optimizer's states are on MXNet's own servers, which cannot save them; run the job with" in (
        job.log("worker0")
    )
