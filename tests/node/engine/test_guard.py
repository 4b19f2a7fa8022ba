"""Real clusters, attacked from within by an admitted peer: vanilla MXNet as the control, then the guard."""

import contextlib
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.model import ZEROED_MEMORY

from holdfast_node.contract.statuses import EXIT_REFUSED

PAYLOADS = Path(__file__).resolve().parents[2] / "attacks/payloads"
sys.path.insert(0, str(PAYLOADS))

import peer as attacker  # noqa: E402
from peer import RogueWorker  # noqa: E402

MakeCluster = Callable[..., Any]
PICKLE = "cos\nmkdir\n(S'{marker}'\ntR."
WAITING = """
import os, time
import mxnet as mx
kv = mx.kv.create("dist_async")
kv.init(0, mx.nd.zeros(4))
kv.set_optimizer(mx.optimizer.SGD(learning_rate=1.0))
out = mx.nd.zeros(4)
kv.push(0, mx.nd.ones(4))
kv.pull(0, out=out)
mx.nd.waitall()
print("READY", flush=True)
last = None
while not os.path.exists(os.environ["CHECKPOINT_DIR"] + "/go"):
    time.sleep(0.05)
    kv.pull(0, out=out)
    if out.asnumpy().tolist() != last:
        last = out.asnumpy().tolist()
        print("HELD", last, flush=True)
kv.push(0, mx.nd.ones(4))
kv.pull(0, out=out)
print("WEIGHTS", out.asnumpy().tolist(), flush=True)
"""


def go_on(job: Any) -> None:
    folder = job.root / "checkpoints/test-job"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go").touch()


def assert_refused(job: Any, name: str, sender: str, reason: str) -> None:
    """The launcher has ended, and said who sent what: as an event, and as the cause that the agent reports."""
    assert job.wait(name) == {name: EXIT_REFUSED}, job.logs()
    (event,) = job.events(name, "command_refused")
    assert (event["security"], event["sender"], event["fatal"]) == (True, sender, True)
    assert reason in event["reason"]
    last = [line for line in job.log(name).splitlines() if line.strip() and not line.startswith("{")][-1]
    assert last.startswith(f"RefusedError: {sender}: ")
    assert reason in last


def wait_until(condition: Callable[[], bool], job: Any, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, job.logs()
        time.sleep(0.05)


Join = Callable[[Any, int], RogueWorker]


@pytest.fixture
def join(cluster: MakeCluster) -> Iterator[Join]:
    """Joins a job as the worker of a rank, for the test to speak through; it leaves before the job is ended."""
    with contextlib.ExitStack() as opened:

        def as_worker(job: Any, rank: int) -> RogueWorker:
            rogue = RogueWorker(address(job, "scheduler0"), address(job, f"worker{rank}"), rank)
            opened.callback(rogue.close)
            return rogue

        yield as_worker


#: Arguments of the payload, what it does to vanilla, and what the guard says. {marker} is a path.
COMMANDS: dict[str, tuple[list[str], Callable[[Any, Path], bool], str]] = {
    "0, a pickle": (
        ["0", "cos\nmkdir\n(S'{marker}'\ntR."],
        lambda _, marker: marker.is_dir(),
        "the body of command 0 (controller) must be a JSON object, got",
    ),
    "1, multi-precision": (
        ["1", "", "--dtype", "float16"],
        lambda job, _: died(job, "server0") or trained_wrong(job.log("worker1")),
        "command 1 (multi-precision) needs an optimizer that was set with multi_precision=True",
    ),
    "2, stop": (
        ["2", ""],
        lambda job, _: "ACKNOWLEDGED" in job.log("worker1") and hangs(job),
        "command 2 (stop) is allowed to worker 0",
    ),
    "3, sync mode": (
        ["3", "", "--kvstore", "dist_async"],
        lambda job, _: "ACKNOWLEDGED" in job.log("worker1") and hangs(job),
        "command 3 (sync mode) is allowed to worker 0",
    ),
    "4, compression": (
        ["4", "junk"],
        lambda job, _: died(job, "server0"),
        "command 4 (gradient compression) is allowed to worker 0",
    ),
    "5, the profiler": (
        ["5", "filename:profile.json,profile_all:10", "11", "13"],
        lambda job, _: (job.root / "server0/rank0_profile.json").exists(),
        "command 5 (profiler) is allowed to nobody",
    ),
}


def died(job: Any, name: str) -> bool:
    return job.processes[name].poll() is not None


def trained_wrong(log: str) -> bool:
    """Two workers have pushed a one twice, at a learning rate of 1."""
    return "WEIGHTS" in log and "WEIGHTS [-4.0, -4.0, -4.0, -4.0]" not in log


def hangs(job: Any) -> bool:
    """The gradient of worker 0 is never answered."""
    time.sleep(2)
    return "WEIGHTS" not in job.log("worker0") and job.processes["worker0"].poll() is None


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_that_works_on_vanilla_is_refused_and_names_its_sender(
    cluster: MakeCluster, tmp_path: Path, case: str
) -> None:
    arguments, succeeded, reason = COMMANDS[case]
    jobs = []
    for name in ("vanilla", "guarded"):
        marker = tmp_path / f"{name}-executed"
        args = tuple(argument.format(marker=marker) for argument in arguments)
        jobs.append((cluster(code=PAYLOADS, entry="command.py", args=args, servers=1), marker))
    (vanilla, marker), (guarded, unmade) = jobs
    vanilla.start_vanilla(**ZEROED_MEMORY)
    guarded.start()
    assert_refused(guarded, "server0", "worker 1", reason)
    assert "ACKNOWLEDGED" not in guarded.log("worker1")
    assert not unmade.exists()
    assert list((guarded.root / "server0").iterdir()) == []
    wait_until(lambda: succeeded(vanilla, marker), vanilla)


def address(job: Any, name: str) -> tuple[str, int]:
    env = job.launches[name]["env"]
    return env["DMLC_NODE_HOST"], int(env["PORT"])


ELSEWHERE = attacker.node(role=1, id=9, hostname=b"127.0.0.1", port=1, is_recovery=0, customer_id=0)
REQUEST = {"request": 1, "app_id": 0, "customer_id": 0, "timestamp": 0}
#: Whom a worker attacks, the frames that it sends, what becomes of vanilla, and what the guard says.
MESSAGES: dict[str, tuple[str, tuple[bytes, ...], Callable[[Any], bool], str]] = {
    "the end of a server": (
        "server0",
        (attacker.meta(control=attacker.control(attacker.TERMINATE)),),
        lambda job: hangs(job),
        "control message 1 must come from the node itself",
    ),
    "another address for worker 0": (
        "server0",
        (attacker.meta(control=attacker.control(attacker.ADD_NODE, ELSEWHERE)),),
        lambda job: hangs(job),
        "control message 2 must come from the scheduler",
    ),
    "an answer that nobody asked for": (
        "server0",
        (attacker.meta(**REQUEST | {"request": 0, "timestamp": 1 << 30}),),
        lambda job: died(job, "server0"),
        "a message to a server must be a request of a KVStore, got another kind",
    ),
    "rows that are not there": (
        "server0",
        (attacker.meta(head=1, pull=1, **REQUEST), attacker.keys(0, 1 << 30), b""),
        lambda job: died(job, "server0"),
        "key 0 must be used as it was initialised, got row-sparse messages of type 0",
    ),
    "no protobuf": (
        "scheduler0",
        (b"\xff\xff garbage",),
        lambda job: died(job, "scheduler0"),
        "a message was not ps-lite's: Check failed: pb.ParseFromArray",
    ),
    "an empty frame": (
        "scheduler0",
        (b"",),
        lambda job: died(job, "scheduler0"),
        "the scheduler takes no commands and no data",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message_that_harms_vanilla_ends_the_job_with_the_name_of_its_sender(
    cluster: MakeCluster, join: Join, case: str
) -> None:
    name, frames, harmed, reason = MESSAGES[case]
    vanilla, guarded = (cluster(script=WAITING, servers=1) for _ in range(2))
    vanilla.start_vanilla("scheduler0", "server0", "worker0")
    guarded.start("scheduler0", "server0", "worker0")
    for job in (vanilla, guarded):
        rogue = join(job, 1)
        job.wait_for("worker0", "READY")
        peer = rogue.to_scheduler if name == "scheduler0" else rogue.dial(address(job, name))
        peer.send(*frames)
    assert_refused(guarded, name, "worker 1", reason)
    go_on(vanilla)
    wait_until(lambda: harmed(vanilla), vanilla)


def test_a_workers_requests_are_followed_in_the_order_in_which_they_were_checked(
    cluster: MakeCluster, join: Join
) -> None:
    """A pull that is sent after its key's first push, and says that it is more urgent, aborts vanilla's server."""
    jobs = vanilla, guarded = [cluster(workers=1, servers=1) for _ in range(2)]
    vanilla.start_vanilla("scheduler0", "server0")
    guarded.start("scheduler0", "server0")
    for job in jobs:
        rogue = join(job, 0)
        server = rogue.dial(address(job, "server0"))
        busy = bytes(64 << 20)  # the server still copies these when the next ones are there
        server.send(attacker.meta(push=1, **REQUEST), attacker.keys(0), busy, attacker.lengths(len(busy)))
        one = struct.pack("=f", 1.0)
        server.send(attacker.meta(push=1, **REQUEST), attacker.keys(1), one, attacker.lengths(len(one)))
        server.send(attacker.meta(pull=1, priority=1, **REQUEST), attacker.keys(1), b"")
        server.send(attacker.meta(head=2, simple_app=1, priority=-1, **REQUEST))  # stop
    rogue.await_start()
    barrier = attacker.control(attacker.BARRIER, group=7)  # the one at the end
    rogue.to_scheduler.send(attacker.meta(request=1, app_id=0, customer_id=0, control=barrier))
    # First this one, which has heartbeats: it ends by itself when it misses the rogue's.
    assert set(guarded.wait("server0", "scheduler0").values()) == {0}, guarded.logs()
    assert vanilla.wait("server0") == {"server0": -signal.SIGABRT}
    assert "init 1 first" in vanilla.log("server0")


@pytest.fixture
def waiting(cluster: MakeCluster) -> tuple[Any, Any]:
    """A vanilla and a guarded job that have trained a step and wait to go on."""
    vanilla, guarded = (cluster(script=WAITING, workers=1, servers=1) for _ in range(2))
    vanilla.start_vanilla()
    guarded.start()
    for job in (vanilla, guarded):
        job.wait_for("worker0", "READY")
    return vanilla, guarded


def test_a_second_connection_as_a_connected_worker_is_ignored_and_its_huge_frame_ends_only_itself(
    waiting: tuple[Any, Any],
) -> None:
    for job in waiting:
        second = attacker.Peer(*address(job, "server0"), b"ps9", timeout=30, source=address(job, "worker0")[0])
        try:
            second.send(attacker.meta(control=attacker.control(attacker.TERMINATE)))
            second.send_raw(attacker.HUGE_FRAME)
            with contextlib.suppress(OSError):
                while not died(job, "server0"):
                    second.send_raw(attacker.OVERFLOW)
            if job is waiting[1]:
                assert second.is_closed()
        finally:
            second.close()
    vanilla, guarded = waiting
    (status,) = vanilla.wait("server0").values()  # by writing all over its heap
    assert status in (-signal.SIGSEGV, -signal.SIGABRT), vanilla.logs()
    go_on(guarded)
    assert set(guarded.wait().values()) == {0}, guarded.logs()
    assert "WEIGHTS [-2.0, -2.0, -2.0, -2.0]" in guarded.log("worker0")


def test_another_way_to_write_a_workers_identity_passes_for_it_on_vanilla_and_is_refused(
    waiting: tuple[Any, Any],
) -> None:
    vanilla, guarded = waiting
    peers = []
    for job in waiting:
        alias = attacker.Peer(*address(job, "server0"), b"ps09", source=address(job, "worker0")[0])
        peers.append(alias)
        gradient = struct.pack("=4f", *[5.0] * 4)
        alias.send(attacker.meta(head=0, push=1, **REQUEST), attacker.keys(0), gradient, attacker.lengths(16))
    try:
        assert_refused(
            guarded, "server0", "worker 0", "must carry the identity of worker 0, whose address it comes from, got b'ps"
        )
        vanilla.wait_for("worker0", "HELD [-6.0, -6.0, -6.0, -6.0]")  # -1 by its own gradient
    finally:
        for peer in peers:
            peer.close()


CLAIMED = "a connection must carry the identity of worker 1, whose address it comes from, got "
#: Whom worker 1 dials, under which identity, and what the guard says.
CLAIMS = {
    "worker 0, at a server": ("server0", b"ps9", CLAIMED + "b'ps9' (worker 0)"),
    "the scheduler, at a server": ("server0", b"ps1", CLAIMED + "b'ps1' (the scheduler)"),
    "the server itself": ("server0", b"ps8", CLAIMED + "b'ps8' (server 0)"),
    "worker 0, at the scheduler": ("scheduler0", b"ps9", CLAIMED + "b'ps9' (worker 0)"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_worker_that_claims_another_node_s_identity_before_that_node_connects_is_named(
    cluster: MakeCluster, case: str
) -> None:
    name, identity, reason = CLAIMS[case]
    job = cluster(script=WAITING, servers=1)
    job.start("scheduler0", "server0")
    source = address(job, "worker1")[0]
    claims = attacker.once_it_listens(address(job, name), source, identity=identity)
    try:
        assert_refused(job, name, "worker 1", reason)
    finally:
        claims.close()


@pytest.mark.parametrize(("role", "name"), [(0, "server0"), (1, "worker0")], ids=["server", "worker"])
def test_a_worker_that_joins_as_another_node_is_named(cluster: MakeCluster, role: int, name: str) -> None:
    job = cluster(script=WAITING, servers=1)
    job.start("scheduler0")
    (host, port), source = address(job, name), address(job, "worker1")[0]
    joins = attacker.once_it_listens(address(job, "scheduler0"), source)
    try:
        entry = attacker.node(role=role, hostname=host.encode(), port=port, is_recovery=0, customer_id=0)
        joins.send(attacker.meta(control=attacker.control(attacker.ADD_NODE, entry)))
        reason = f"a node must join from its own address, got {host} from '{source}'"
        assert_refused(job, "scheduler0", "worker 1", reason)
    finally:
        joins.close()


def test_a_connection_from_no_node_s_address_is_refused(cluster: MakeCluster) -> None:
    job = cluster(script=WAITING, servers=1)
    job.start("scheduler0")
    stranger = attacker.once_it_listens(address(job, "scheduler0"), "127.0.0.1")
    try:
        reason = "a connection must come from a node that dials this one, got '127.0.0.1'"
        assert_refused(job, "scheduler0", "a peer without an identity", reason)
    finally:
        stranger.close()


#: Greetings of the protocols that give an identity without a handshake (rfc.zeromq.org/spec/13 and 15), as worker 0.
OLD_PROTOCOLS = {
    "ZMTP 1.0": b"\x04\x00ps9",
    "ZMTP 2.0": b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x03ps9",
}


@pytest.mark.parametrize("greeting", OLD_PROTOCOLS.values(), ids=OLD_PROTOCOLS)
def test_a_protocol_in_which_nobody_is_asked_who_he_is_ends_its_connection(
    waiting: tuple[Any, Any], greeting: bytes
) -> None:
    _, guarded = waiting
    source = (address(guarded, "worker0")[0], 0)
    with socket.create_connection(address(guarded, "server0"), timeout=10, source_address=source) as old:
        old.sendall(greeting)
        with contextlib.suppress(ConnectionError):
            while old.recv(100):
                pass
    go_on(guarded)
    assert set(guarded.wait(timeout=60).values()) == {0}, guarded.logs()


MIB = 1 << 20
ENDLESS_MIB = 400


def memory_mib(job: Any, name: str) -> int:
    """How much memory a node's process has."""
    status = Path(f"/proc/{job.processes[name].pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def grown(job: Any, name: str, mib: int) -> bool:
    return memory_mib(job, name) > mib


@pytest.mark.parametrize(("name", "limit"), [("server0", 256 * MIB + 64), ("scheduler0", 16 * MIB)])
def test_a_message_without_an_end_fills_vanilla_s_memory_and_has_a_limit_here(
    cluster: MakeCluster, join: Join, name: str, limit: int
) -> None:
    vanilla, guarded = (cluster(script=WAITING, servers=1) for _ in range(2))
    vanilla.start_vanilla("scheduler0", "server0", "worker0")
    guarded.start("scheduler0", "server0", "worker0")
    for job in (vanilla, guarded):
        rogue = join(job, 1)
        job.wait_for("worker0", "READY")
        peer = rogue.to_scheduler if name == "scheduler0" else rogue.dial(address(job, name))
        full = memory_mib(job, name) + ENDLESS_MIB - 20
        with contextlib.suppress(ConnectionError):  # the guarded node ends
            for _ in range(ENDLESS_MIB):
                peer.send_part(bytes(MIB))
        if job is vanilla:
            wait_until(partial(grown, vanilla, name, full), vanilla)
    assert_refused(guarded, name, "worker 1", f"at most {limit} bytes may be under way that are no whole message")


NUMBERS = 1 << 20


def test_allowed_pushes_faster_than_a_server_works_fill_vanilla_and_have_a_limit_here(
    cluster: MakeCluster, join: Join
) -> None:
    script = WAITING.replace("(4)", f"({NUMBERS})").replace(".tolist()", ".tolist()[:1]")
    vanilla, guarded = (cluster(script=script, servers=1) for _ in range(2))
    vanilla.start_vanilla("scheduler0", "server0", "worker0")
    guarded.start("scheduler0", "server0", "worker0")
    for job in (vanilla, guarded):
        rogue = join(job, 1)
        job.wait_for("worker0", "READY")
        peer, full = rogue.dial(address(job, "server0")), memory_mib(job, "server0") + ENDLESS_MIB
        head, gradient = attacker.meta(head=0, push=1, **REQUEST), bytes(4 * NUMBERS)
        deadline = time.monotonic() + 60
        with contextlib.suppress(ConnectionError):  # the guarded server ends
            while job is guarded or not grown(job, "server0", full):
                assert time.monotonic() < deadline, job.logs()
                peer.send(head, attacker.keys(0), gradient, attacker.lengths(len(gradient)))
    limit = 256 * MIB + 4 * 4 * NUMBERS
    assert_refused(guarded, "server0", "worker 1", f"at most {limit} bytes may be under way that are no whole message")
