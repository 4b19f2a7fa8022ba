"""A job that runs on a local cluster, the script that it trains with, and what can be done to its nodes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from holdfast_local import session
from holdfast_local.hosts import exec_in_host
from holdfast_node.contract.layout import JobsBucket

#: Trains for `--epochs` with a checkpoint after each and `--pace` seconds between them, none once it is told `enough`.
#: With `--hold` it makes its KVStore once it is told `go-<generation>`.
SCRIPT = """
import argparse, os, time
from pathlib import Path
import mxnet as mx
from mxnet import autograd, gluon, nd
from holdfast_node.checkpointing import Checkpoints

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--pace", type=float)
    parser.add_argument("--hold", action="store_true")
    arguments = parser.parse_args()
    told, generation = Path(os.environ["CHECKPOINT_DIR"]), os.environ["HOLDFAST_GENERATION"]
    while arguments.hold and not (told / f"go-{generation}").exists():
        time.sleep(0.1)
    kv = mx.kv.create("dist_sync")
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(16, activation="relu", in_units=8), gluon.nn.Dropout(0.2), gluon.nn.Dense(4, in_units=16))
    net.initialize(mx.init.Xavier())
    net.hybridize()
    trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.01}, kvstore=kv)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    training = Checkpoints().for_gluon(net, trainer)
    done = training.restore()
    print("GENERATION", generation, "AFTER", done, flush=True)
    for epoch in range(done + 1, arguments.epochs + 1):
        points = nd.random.normal(shape=(32, 8))
        with autograd.record():
            loss = loss_of(net(points), (points[:, 0] > 0) + 2 * (points[:, 1] > 0))
        loss.backward()
        trainer.step(32 * kv.num_workers)
        training.save(epoch, metrics={"loss": float(loss.mean().asscalar())})
        time.sleep(0 if (told / "enough").exists() else arguments.pace)
    if kv.rank == 0:
        Path(os.environ["MODEL_DIR"]).mkdir(parents=True, exist_ok=True)
        net.export(os.environ["MODEL_DIR"] + "/net")

main()
"""


class Aws:
    """The local cluster as AWS shows it."""

    def __init__(self, state: Path) -> None:
        environment = session.environment(state)
        self._named: dict[str, Any] = {
            "endpoint_url": environment["AWS_ENDPOINT_URL"],
            "verify": environment["AWS_CA_BUNDLE"],
            "region_name": environment["AWS_REGION"],
            "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        }
        self.s3, self.ec2 = self.client("s3"), self.client("ec2")
        (stack,) = self.client("cloudformation").describe_stacks(StackName="Holdfast-local-Training")["Stacks"]
        outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
        self.jobs_bucket = outputs["JobsBucket"]

    def client(self, service: str) -> Any:
        return boto3.client(service, **self._named)


@dataclass
class Running:
    """A job that has been submitted, and what can be done to its nodes."""

    job_id: str
    state: Path
    aws: Aws

    @property
    def record(self) -> dict[str, Any]:
        try:
            answer = self.aws.s3.get_object(Bucket=self.aws.jobs_bucket, Key=JobsBucket.status(self.job_id))
        except self.aws.s3.exceptions.NoSuchKey:
            return {"phase": "", "generation": 0, "generations": [], "nodes": []}
        return dict(json.loads(answer["Body"].read()))

    @property
    def checkpoints(self) -> list[str]:
        """The complete checkpoints, oldest first."""
        found = (self.state / "efs" / self.job_id).glob("step-*/manifest.json")
        return sorted(path.parent.name for path in found)

    def instance(self, role: str, rank: int) -> str:
        return next(n["instance_id"] for n in self.record["nodes"] if (n["role"], n["rank"]) == (role, rank))

    def address(self, role: str, rank: int) -> str:
        return next(n["address"] for n in self.record["nodes"] if (n["role"], n["rank"]) == (role, rank))

    def on(self, role: str, rank: int, command: str) -> None:
        """Run a shell command as root of a node's host, in its own process and network namespaces."""
        done = exec_in_host(self.state, self.instance(role, rank), ["sh", "-c", command])
        assert done.returncode == 0, done.stderr

    def runs(self, role: str, rank: int, pattern: str) -> bool:
        """Whether a node's host has a process that pgrep(1) finds so; a host that does not answer has none."""
        return exec_in_host(self.state, self.instance(role, rank), ["pgrep", *pattern.split()]).returncode == 0

    def until(self, condition: Callable[[], Any], what: str, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}; the record: {self.record}"
            time.sleep(0.2)
        return found

    def starts(self, generation: int, seconds: float) -> None:
        """Return once the nodes are told to train in this generation."""

        def running() -> bool:
            record = self.record
            return (record["phase"], record["generation"]) == ("running", generation)

        self.until(running, f"generation {generation} starts", seconds)

    def trains(self, generation: int, seconds: float) -> None:
        """Let this generation train, and return once it has written a checkpoint."""
        self.starts(generation, seconds)
        self.until((self.state / "efs" / self.job_id).is_dir, "a directory for checkpoints", 30)
        self.tell(f"go-{generation}")
        before = self.checkpoints
        self.until(lambda: self.checkpoints[-1:] > before[-1:], "a new checkpoint", seconds)

    def tell(self, word: str) -> None:
        """Make an empty file of this name in the job's checkpoint directory; the script looks for some."""
        (self.state / "efs" / self.job_id / word).touch()
