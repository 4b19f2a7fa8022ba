"""Jobs that lose processes, nodes and connections, go on, and end with the weights of one that lost nothing."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from tests.e2e.support import Holdfast, skip

from holdfast_local import session
from holdfast_local.hosts import exec_in_host
from holdfast_node.contract.layout import JobsBucket

pytestmark = pytest.mark.e2e

#: Within how long a fault must be noticed: [limits] lost_seconds, and a second for this test's own polls.
NOTICED_SECONDS = 15 + 1
#: Within how long the next checkpoint must be there after a fault that needs no new host.
RECOVERED_SECONDS = 60
#: How many epochs a job has for each fault and for the rest: it must not end before the last fault.
EPOCHS = 40

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
    arguments = parser.parse_args()
    kv = mx.kv.create("dist_sync")
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(16, activation="relu", in_units=8), gluon.nn.Dropout(0.2), gluon.nn.Dense(4, in_units=16))
    net.initialize(mx.init.Xavier())
    net.hybridize()
    trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.01}, kvstore=kv)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    training = Checkpoints().for_gluon(net, trainer)
    done = training.restore()
    print("GENERATION", os.environ["HOLDFAST_GENERATION"], "AFTER", done, flush=True)
    for epoch in range(done + 1, arguments.epochs + 1):
        points = nd.random.normal(shape=(32, 8))
        with autograd.record():
            loss = loss_of(net(points), (points[:, 0] > 0) + 2 * (points[:, 1] > 0))
        loss.backward()
        trainer.step(32 * kv.num_workers)
        training.save(epoch, metrics={"loss": float(loss.mean().asscalar())})
        enough = Path(os.environ["CHECKPOINT_DIR"]) / "enough"
        time.sleep(0 if enough.exists() else arguments.pace)
    if kv.rank == 0:
        Path(os.environ["MODEL_DIR"]).mkdir(parents=True, exist_ok=True)
        net.export(os.environ["MODEL_DIR"] + "/net")

main()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/train.py").write_text(SCRIPT)
    return tmp_path / "job"


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

    def until(self, condition: Callable[[], Any], what: str, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}; the record: {self.record}"
            time.sleep(0.2)
        return found

    def trains(self, generation: int, seconds: float) -> None:
        """Return once this generation has written a checkpoint."""
        self.until(
            lambda: self.record["phase"] == "running" and self.record["generation"] == generation, "it runs", seconds
        )
        before = self.checkpoints
        self.until(lambda: self.checkpoints[-1:] > before[-1:], "a new checkpoint", seconds)

    def finish_quickly(self) -> None:
        (self.state / "efs" / self.job_id / "enough").touch()


Submit = Callable[..., Running]


@pytest.fixture
def submit(cluster: Holdfast, script: Path, state: Path) -> Submit:
    if session.hosts(state)["mode"] != "root":
        skip("faults are put into hosts by this machine's root; run it as root")

    def submit(*, epochs: int, pace: float, max_restarts: int, workers: int = 2) -> Running:
        job = cluster(
            "submit", str(script), "--entry", "train.py", "--workers", str(workers), "--servers", "1", "--seed", "7",
            "--max-restarts", str(max_restarts), "--timeout", "10m", "--output", "json",
            "--", "--epochs", str(epochs), "--pace", str(pace),
        )  # fmt: skip
        assert job.status == 0, job.errors
        return Running(job.json["job_id"], state, Aws(state))

    return submit


PARAMETERS = "net-0000.params"


def weights(cluster: Holdfast, job_id: str, directory: Path) -> str:
    """The SHA-256 of the weights that a job has exported, fetched and verified."""
    fetched = cluster("fetch", job_id, "--to", str(directory / job_id))
    assert fetched.status == 0, fetched.errors
    return hashlib.sha256((directory / job_id / PARAMETERS).read_bytes()).hexdigest()


# The shell that runs a pattern has it in its own command line; with the backslash it does not match itself.
TRAINER = r"$(pgrep -f 'engines\.mxnet\.(worker|server)')"
AGENT = r"$(pgrep -f 'holdfast_node\.agent')"


@dataclass(frozen=True)
class Fault:
    """What is done to a running job, what its record says of it, and whether a new host has to boot first."""

    act: Callable[[Running], None]
    cause: str
    replaced: bool = False


def cut_worker_from_server(job: Running) -> None:
    server = job.address("server", 0)
    add = "nft 'add table inet cut; "
    for hook, side in (("input", "saddr"), ("output", "daddr")):
        add += f"add chain inet cut {hook} {{ type filter hook {hook} priority -9; }}; "
        add += f"add rule inet cut {hook} ip {side} {server} drop; "
    job.on("worker", 0, add + "'")
    # It heals by itself, as networks do: the next generation is already being gathered then.
    job.on("worker", 0, "(sleep 16; nft delete table inet cut) > /dev/null 2>&1 < /dev/null &")


FAULTS = {
    "worker's trainer killed": Fault(lambda job: job.on("worker", 1, f"kill -KILL {TRAINER}"), "killed by signal 9"),
    "server's trainer stopped": Fault(lambda job: job.on("server", 0, f"kill -STOP {TRAINER}"), "nothing of server 0"),
    "scheduler's trainer stopped": Fault(lambda job: job.on("scheduler", 0, f"kill -STOP {TRAINER}"), "nothing of sch"),
    "worker's tunnel killed": Fault(
        lambda job: job.on("worker", 0, "kill -KILL $(pgrep -x stunnel)"), "the tunnel ended"
    ),
    "server's tunnel stopped": Fault(lambda job: job.on("server", 0, "kill -STOP $(pgrep -x stunnel)"), "server 0"),
    "worker cut off from the server": Fault(cut_worker_from_server, "cannot be reached"),
    "scheduler's agent killed": Fault(
        lambda job: job.on("scheduler", 0, f"kill -KILL {AGENT}"),
        "agent was lost and started anew",
    ),
    "worker's agent stopped": Fault(lambda job: job.on("worker", 1, f"kill -STOP {AGENT}"), "agent"),
    "worker's instance terminated": Fault(
        lambda job: job.aws.ec2.terminate_instances(InstanceIds=[job.instance("worker", 1)]), "worker", replaced=True
    ),
}


#: What a normal run does. HOLDFAST_FAULTS=all does all of it in five minutes; names with commas between do some.
USUAL = "worker's trainer killed,server's trainer stopped,scheduler's agent killed"


def chosen() -> dict[str, Fault]:
    names = os.environ.get("HOLDFAST_FAULTS", USUAL)
    return FAULTS if names == "all" else {name: FAULTS[name] for name in names.split(",")}


def test_job_goes_on_after_every_fault_and_ends_with_the_weights_of_one_without(
    cluster: Holdfast, submit: Submit, tmp_path: Path
) -> None:
    faults = chosen()
    epochs = EPOCHS * (len(faults) + 1)
    job = submit(epochs=epochs, pace=0.3, max_restarts=len(faults))
    generation, table = 1, []
    job.trains(generation, 90)
    for name, fault in faults.items():
        before, began = job.checkpoints[-1], time.time()
        fault.act(job)
        ended = job.until(
            lambda n=generation: next(
                (g for g in job.record["generations"] if g["generation"] == n and g["ended_at"]), None
            ),
            f"{name}: noticed",
            60,
        )
        noticed = ended["ended_at"] - began
        generation += 1
        job.trains(generation, 120)
        recovered = time.time() - began
        table.append(f"{name:32} noticed {noticed:5.1f} s, next checkpoint {recovered:5.1f} s: {ended['cause']}")
        print(table[-1], flush=True)
        assert fault.cause in ended["cause"]
        assert noticed < NOTICED_SECONDS, table[-1]
        assert fault.replaced or recovered < RECOVERED_SECONDS, table[-1]
        assert job.checkpoints[-1] > before
    job.finish_quickly()
    ended_job = cluster("status", job.job_id, "--wait")
    assert ended_job.status == 0, ended_job.output + ended_job.errors
    assert f"generation  {len(faults) + 1} of at most {len(faults) + 1}" in ended_job.output
    logs = cluster("logs", job.job_id, "--role", "worker").output
    assert f"trainer/{generation} | GENERATION {generation} AFTER " in logs
    whole = submit(epochs=epochs, pace=0, max_restarts=0)
    assert cluster("status", whole.job_id, "--wait").status == 0
    assert weights(cluster, job.job_id, tmp_path) == weights(cluster, whole.job_id, tmp_path)


def test_job_that_fails_more_often_than_it_may_fails_with_the_first_cause(cluster: Holdfast, submit: Submit) -> None:
    job = submit(epochs=EPOCHS * 3, pace=0.3, max_restarts=1, workers=1)
    for generation in (1, 2):
        job.trains(generation, 90)
        job.on("worker" if generation == 1 else "server", 0, f"kill -KILL {TRAINER}")
    ended = cluster("status", job.job_id, "--wait")
    assert ended.status == 3
    assert f"worker 0 ({job.instance('worker', 0)}): the trainer was killed by signal 9; gave up" in ended.errors
    assert f"gave up after 1 restart, the last cause: server 0 ({job.instance('server', 0)})" in ended.errors
