"""Jobs that lose processes, nodes and connections, go on, and end with the weights of one that lost nothing."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tests.e2e.running import SCRIPT, Aws, Running
from tests.e2e.support import Holdfast, skip

from holdfast_local import session

pytestmark = pytest.mark.e2e

#: Within how long a fault must be noticed: [limits] lost_seconds, and a second for this test's own polls.
NOTICED_SECONDS = 15 + 1
#: Within how long the next checkpoint must be there after a fault that needs no new host.
RECOVERED_SECONDS = 60
#: How many epochs a job has for each fault and for the rest: it must not end before the last fault.
EPOCHS = 40


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/train.py").write_text(SCRIPT)
    return tmp_path / "job"


Submit = Callable[..., Running]


@pytest.fixture
def submit(cluster: Holdfast, script: Path, state: Path) -> Submit:
    if session.hosts(state)["mode"] != "root":
        skip("faults are put into hosts by this machine's root; run it as root")

    def submit(*more: str, epochs: int, pace: float, max_restarts: int, workers: int = 2) -> Running:
        job = cluster(
            "submit", str(script), "--entry", "train.py", "--workers", str(workers), "--servers", "1", "--seed", "7",
            "--max-restarts", str(max_restarts), "--timeout", "10m", "--output", "json",
            "--", "--epochs", str(epochs), "--pace", str(pace), *more,
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


# What pgrep(1) finds them by. A shell that runs a pattern has it in its own command line; with the backslash it does
# not match itself.
TRAINER, TUNNEL, AGENT = r"-f engines\.mxnet\.(worker|server)", "-x stunnel", r"-f holdfast_node\.agent"


def send(name: str, role: str, rank: int, pattern: str, job: Running) -> None:
    """Send a signal to the processes of a node that pgrep(1) finds so."""
    option, text = pattern.split()
    job.on(role, rank, f"kill -{name} $(pgrep {option} '{text}')")


SCHEDULER = ("scheduler", 0)


@dataclass(frozen=True)
class Fault:
    """What is done to a running job, what its record says of it, and whose host has to be replaced by a new one."""

    act: Callable[[Running], None]
    cause: str
    replaced: tuple[str, int] | None = None


def terminate(role: str, rank: int, job: Running) -> None:
    job.aws.ec2.terminate_instances(InstanceIds=[job.instance(role, rank)])


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
    "worker's trainer killed": Fault(partial(send, "KILL", "worker", 1, TRAINER), "killed by signal 9"),
    "server's trainer stopped": Fault(partial(send, "STOP", "server", 0, TRAINER), "the trainer is stopped"),
    "scheduler's trainer stopped": Fault(partial(send, "STOP", "scheduler", 0, TRAINER), "the trainer is stopped"),
    "worker's tunnel killed": Fault(partial(send, "KILL", "worker", 0, TUNNEL), "the tunnel ended"),
    "server's tunnel stopped": Fault(partial(send, "STOP", "server", 0, TUNNEL), "the tunnel is stopped"),
    "worker cut off from the server": Fault(cut_worker_from_server, "cannot be reached"),
    "scheduler's agent killed": Fault(partial(send, "KILL", "scheduler", 0, AGENT), "agent was lost and started anew"),
    "worker's agent stopped": Fault(partial(send, "STOP", "worker", 1, AGENT), "agent"),
    "worker's instance terminated": Fault(partial(terminate, "worker", 1), "worker", replaced=("worker", 1)),
    "scheduler's instance terminated": Fault(partial(terminate, "scheduler", 0), "scheduler", replaced=SCHEDULER),
}
#: Done while a worker's script has not made its KVStore yet, so that no process has joined the others.
EARLY = {
    "worker's trainer stopped early": Fault(partial(send, "STOP", "worker", 1, TRAINER), "the trainer is stopped"),
    "server's trainer stopped early": Fault(partial(send, "STOP", "server", 0, TRAINER), "the trainer is stopped"),
    "scheduler's trainer stopped early": Fault(
        partial(send, "STOP", "scheduler", 0, TRAINER), "the trainer is stopped"
    ),
    "worker's tunnel stopped early": Fault(partial(send, "STOP", "worker", 0, TUNNEL), "the tunnel is stopped"),
    "server's agent stopped early": Fault(partial(send, "STOP", "server", 0, AGENT), "agent"),
    "scheduler's agent stopped early": Fault(partial(send, "STOP", "scheduler", 0, AGENT), "agent"),
}

#: What a normal run does. HOLDFAST_FAULTS=all does all of it in seven minutes; names with commas between do some.
USUAL = "worker's trainer killed,server's trainer stopped,scheduler's agent killed,worker's trainer stopped early"


def chosen() -> tuple[dict[str, Fault], dict[str, Fault]]:
    """The faults to do while a generation is held, and those to do while one trains."""
    names = os.environ.get("HOLDFAST_FAULTS", USUAL)
    wanted = {*EARLY, *FAULTS} if names == "all" else set(names.split(","))
    if unknown := wanted - {*EARLY, *FAULTS}:
        pytest.fail(f"HOLDFAST_FAULTS must be all or names of faults, got {sorted(unknown)}", pytrace=False)
    early, late = ({name: table[name] for name in table if name in wanted} for table in (EARLY, FAULTS))
    return early, late


def await_start(job: Running, generation: int) -> None:
    """Return once every node of this generation has its trainer and its tunnel."""
    job.starts(generation, 120)
    for role, rank in (("scheduler", 0), ("server", 0), ("worker", 0), ("worker", 1)):
        for pattern in (TRAINER, TUNNEL):
            job.until(partial(job.runs, role, rank, pattern), f"{role} {rank} has {pattern}", 30)


def do(name: str, fault: Fault, job: Running, generation: int) -> None:
    """Do a fault to a generation of a job; return once it was noticed, in time and with the right cause."""
    began = time.time()
    fault.act(job)
    ended = job.until(
        lambda: next((g for g in job.record["generations"] if g["generation"] == generation and g["ended_at"]), None),
        f"{name}: noticed",
        60,
    )
    noticed = ended["ended_at"] - began
    print(f"{name:32} noticed {noticed:5.1f} s: {ended['cause']}", flush=True)
    assert fault.cause in ended["cause"]
    # A lost scheduler's replacement is the first that can say so in the record: it has to boot.
    assert noticed < (RECOVERED_SECONDS if fault.replaced == SCHEDULER else NOTICED_SECONDS)


def test_job_goes_on_after_every_fault_and_ends_with_the_weights_of_one_without(
    cluster: Holdfast, submit: Submit, tmp_path: Path
) -> None:
    early, late = chosen()
    faults, epochs = len(early) + len(late), EPOCHS * (len(late) + 1)
    job = submit("--hold", epochs=epochs, pace=0.3, max_restarts=faults)
    for generation, (name, fault) in enumerate(early.items(), start=1):
        await_start(job, generation)
        do(name, fault, job, generation)
    generation = len(early) + 1
    job.trains(generation, 120)
    for name, fault in late.items():
        before, began = job.checkpoints[-1], time.time()
        lost = job.instance(*fault.replaced) if fault.replaced else None
        do(name, fault, job, generation)
        generation += 1
        job.trains(generation, 120)
        recovered = time.time() - began
        print(f"{name:32} next checkpoint {recovered:5.1f} s", flush=True)
        assert fault.replaced or recovered < RECOVERED_SECONDS
        assert job.checkpoints[-1] > before
        assert not fault.replaced or job.instance(*fault.replaced) != lost
    job.tell("enough")
    ended_job = cluster("status", job.job_id, "--wait")
    assert ended_job.status == 0, ended_job.output + ended_job.errors
    assert f"generation  {faults + 1} of at most {faults + 1}" in ended_job.output
    logs = cluster("logs", job.job_id).output.splitlines()
    assert any(f"trainer/{generation} | GENERATION {generation} AFTER " in line for line in logs)
    # What bounds the wait for a script that never joins must see every one that has, or it ends jobs that are well.
    assert sum(f"agent/{generation} | " in line and "all nodes have joined" in line for line in logs) == 4
    whole = submit(epochs=epochs, pace=0, max_restarts=0)
    assert cluster("status", whole.job_id, "--wait").status == 0
    assert weights(cluster, job.job_id, tmp_path) == weights(cluster, whole.job_id, tmp_path)


def test_job_that_fails_more_often_than_it_may_fails_with_the_first_cause(cluster: Holdfast, submit: Submit) -> None:
    job = submit(epochs=EPOCHS * 3, pace=0.3, max_restarts=1, workers=1)
    for generation in (1, 2):
        job.trains(generation, 90)
        send("KILL", "worker" if generation == 1 else "server", 0, TRAINER, job)
    ended = cluster("status", job.job_id, "--wait")
    assert ended.status == 3
    assert f"worker 0 ({job.instance('worker', 0)}): the trainer was killed by signal 9; gave up" in ended.errors
    assert f"gave up after 1 restart, the last cause: server 0 ({job.instance('server', 0)})" in ended.errors
