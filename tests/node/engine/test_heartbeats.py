"""Processes that stop without ending: noticed by their heartbeats, named, and never mistaken for slow ones."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from holdfast_node.contract.roles import Role
from holdfast_node.contract.statuses import EXIT_LOST
from holdfast_node.engines.mxnet.heartbeats import Watch, Watched, watched_by
from holdfast_node.log_reading import late_peers

MakeCluster = Callable[..., Any]
LIMIT_SECONDS = 4
#: Trains until the test says that it is enough.
ENDLESS = """
import os, time
import mxnet as mx
kv = mx.kv.create("dist_sync")
kv.init(0, mx.nd.zeros(4))
kv.set_optimizer(mx.optimizer.SGD(learning_rate=1.0))
out, steps, enough = mx.nd.zeros(4), 0, mx.nd.zeros(1)
kv.init(1, mx.nd.zeros(1))
while enough.asscalar() == 0:
    kv.push(0, mx.nd.ones(4))
    kv.pull(0, out=out)
    stop = kv.rank == 0 and os.path.exists(os.environ["CHECKPOINT_DIR"] + "/enough")
    kv.push(1, mx.nd.array([-1 if stop else 0]))
    kv.pull(1, out=enough)
    steps += 1
    if steps == 5:
        print("TRAINING", flush=True)
    time.sleep(0.02)
print("STEPS", steps, flush=True)
"""


class Silence:
    """Seconds since each node was heard of, as ps-lite would have them."""

    def __init__(self) -> None:
        self.seconds: dict[int, int] = {}
        self.told: list[tuple[str, str, int]] = []

    def is_silent(self, node: int, seconds: int) -> bool:
        return self.seconds.get(node, 0) > seconds

    def report(self, event: str, role: Role, rank: int, seconds: int) -> None:
        self.told.append((event, f"{role} {rank}", seconds))


def watch_of(silence: Silence, servers: int = 2, workers: int = 2) -> Watch:
    return Watch(watched_by(Role.SCHEDULER, servers, workers), 9, silence.is_silent, silence.report)


def test_the_scheduler_watches_everybody_and_everybody_the_scheduler() -> None:
    ids = {str(peer): peer.node for peer in watched_by(Role.SCHEDULER, 2, 3)}
    assert ids == {"server 0": 8, "server 1": 10, "worker 0": 9, "worker 1": 11, "worker 2": 13}
    assert watched_by(Role.SERVER, 2, 3) == (Watched(Role.SCHEDULER, 0),)
    assert Watched(Role.SCHEDULER, 0).node == 1


def test_a_late_peer_is_reported_once_and_not_lost() -> None:
    silence = Silence()
    watch = watch_of(silence)
    for second, silent in enumerate((0, 4, 5, 9, 9, 0, 0)):
        silence.seconds[11] = silent
        assert watch.look(float(second)) is None
    assert silence.told == [("peer_late", "worker 1", 3), ("peer_back", "worker 1", 6)]


def test_a_silence_of_one_moment_is_none() -> None:
    silence = Silence()
    watch = watch_of(silence)
    for second in range(10):
        silence.seconds = {8: 99, 9: 99, 10: 99, 11: 99} if second % 2 else {}
        assert watch.look(float(second)) is None
    assert silence.told == []


LOST = {
    "one server": ({10: 10}, "nothing of server 1 was heard of for 9 s: stopped, hung or cut off"),
    "two": ({8: 10, 9: 99}, "nothing of server 0, worker 0 was heard of for 9 s: stopped, hung or cut off"),
    "all": ({8: 10, 9: 10, 10: 10, 11: 10}, "nobody was heard of for 9 s: stopped, hung or cut off"),
}


@pytest.mark.parametrize(("seconds", "words"), LOST.values(), ids=LOST)
def test_a_lost_peer_is_named(seconds: dict[int, int], words: str) -> None:
    silence = Silence()
    silence.seconds = seconds
    watch = watch_of(silence)
    assert watch.look(0.0) is None
    assert watch.look(1.0) == words
    assert [told for told in silence.told if told[0] == "peer_lost"]


def test_who_was_suspended_itself_accuses_nobody_before_it_has_caught_up() -> None:
    silence = Silence()
    watch = watch_of(silence)
    assert watch.look(0.0) is None
    silence.seconds[9] = 60
    assert watch.look(60.0) is None
    assert watch.look(62.0) is None
    assert watch.look(63.5) is None
    assert watch.look(65.0) is not None


@pytest.fixture
def training(cluster: MakeCluster, request: pytest.FixtureRequest) -> Any:
    """A job of one server and two workers that trains until told; its limit may be a parameter."""
    job = cluster(script=ENDLESS, servers=1)
    for launch in job.launches.values():
        launch["env"]["HOLDFAST_HEARTBEAT_SECONDS"] = str(getattr(request, "param", LIMIT_SECONDS))
    job.start()
    for name in ("worker0", "worker1"):
        job.wait_for(name, "TRAINING")
    return job


STOPPED = {"worker1": ("scheduler0", "worker 1"), "scheduler0": ("server0", "")}


@pytest.mark.parametrize(("name", "seen"), STOPPED.items(), ids=STOPPED)
def test_a_stopped_process_is_noticed_by_its_peer_which_ends_and_names_it(
    training: Any, name: str, seen: tuple[str, str]
) -> None:
    witness, words = seen
    began = time.monotonic()
    os.kill(training.processes[name].pid, signal.SIGSTOP)
    assert training.wait(witness) == {witness: EXIT_LOST}, training.logs()
    took = time.monotonic() - began
    print(f"{name} stopped: {witness} noticed after {took:.1f} s")
    assert LIMIT_SECONDS / 2 < took < 3 * LIMIT_SECONDS  # a busy machine is late on both sides
    (event,) = training.events(witness, "peer_lost")
    assert f"{event['role']} {event['rank']}".startswith(words or "scheduler 0")
    assert training.log(witness).splitlines()[-1] == (
        f"PeerLostError: nothing of {words or 'scheduler'} was heard of for {LIMIT_SECONDS} s: stopped, hung or cut off"
    )


@pytest.mark.parametrize("training", [3 * LIMIT_SECONDS], indirect=True)  # late after a third, and then time to go on
def test_a_slow_process_is_reported_and_the_job_ends_well(training: Any) -> None:
    for name, role in {"worker1": "worker", "server0": "server"}.items():
        os.kill(training.processes[name].pid, signal.SIGSTOP)
        training.wait_for("scheduler0", f'"event": "peer_late", "role": "{role}"')
        assert (role, int(name[-1])) in late_peers(training.log("scheduler0"))
        os.kill(training.processes[name].pid, signal.SIGCONT)
    training.wait_for("scheduler0", '"event": "peer_back", "role": "server"')
    assert not late_peers(training.log("scheduler0"))
    (training.root / "checkpoints/test-job/enough").touch()
    assert set(training.wait().values()) == {0}, training.logs()
    assert not training.events("scheduler0", "peer_lost")
