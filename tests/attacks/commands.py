"""Attacks by what a worker says to the servers: T3, commands that execute."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.attacks.arenas import Arena, Job, program, rogue_peer
from tests.attacks.model import ZEROED_MEMORY, Outcome, Verdict, refused, succeeded, unharmed

from holdfast_local.lab import (
    Cluster,
    HoldfastCluster,
    LabError,
    Network,
    Process,
    VanillaCluster,
)
from holdfast_node.contract.statuses import EXIT_REFUSED
from holdfast_node.engines.mxnet import messages

_SECONDS = 60.0
#: No answer for so long after an attack is no answer: a step takes milliseconds, on a busy machine a second.
_SILENCE_SECONDS = 5.0
#: The control message that a rogue peer's kind sends (in_host/rogue_peer.py); a frame that is too long is none.
_CONTROLS = {"terminate": messages.TERMINATE, "elsewhere": messages.ADD_NODE}


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the worker sends: heads and bodies; `{marks}` in a body is a directory that anybody can write."""

    sends: tuple[str, ...]
    workers: int = 1
    vanilla_env: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


PICKLE = Command(sends=("0", "pickle:{marks}/executed"))
MULTI_PRECISION = Command(
    sends=("1", ""),
    workers=2,
    env={"ATTACK_MIDWAY": "1", "ATTACK_DTYPE": "float16"},
    vanilla_env=ZEROED_MEMORY,
)
STOP = Command(sends=("2", ""), workers=2, env={"ATTACK_RANK": "1"})
SYNC_MODE = Command(sends=("3", ""), workers=2, env={"ATTACK_RANK": "1", "ATTACK_STORE": "dist_async"})
COMPRESSION = Command(sends=("4", "junk"))
PROFILER = Command(sends=("5", "filename:attack.json,profile_all:10", "5", "11", "5", "13"))
UNKNOWN = Command(sends=("99", "hello"))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was observed on the servers' and the attacker's side."""

    executed: bool
    written: list[str]
    server_status: int | None
    refusals: list[dict[str, object]]
    acknowledged: bool
    went_on: bool


def on_vanilla(command: Command) -> Callable[[Arena], Outcome]:
    return lambda _: _vanilla_outcome(_send(VanillaCluster, command, command.vanilla_env))


def on_holdfast(command: Command) -> Callable[[Arena], Outcome]:
    return lambda _: _holdfast_outcome(_send(HoldfastCluster, command), command)


def _send(kind: type[Cluster], command: Command, env: Mapping[str, str] | None = None) -> Seen:
    with Network() as network:
        marks = network.directory / "marks"
        marks.mkdir()
        marks.chmod(0o777)
        args = tuple(text.format(marks=marks) for text in command.sends)
        script = Path(program("command")).read_text()
        env = command.env | dict(env or {})
        cluster = kind(network, script=script, args=args, workers=command.workers, env=env)
        cluster.start()
        attacker = cluster.processes[f"worker{command.env.get('ATTACK_RANK', '0')}"]
        server = cluster.processes["server0"]
        attacker.await_text("SENDING")
        quiet, said, deadline = time.monotonic(), "", time.monotonic() + _SECONDS
        while time.monotonic() < min(deadline, quiet + _SILENCE_SECONDS) and attacker.running and server.running:
            if attacker.log() != said:
                quiet, said = time.monotonic(), attacker.log()
            time.sleep(0.02)
        went_on = "WEIGHT" in attacker.log().partition("SENDING")[2]
        if went_on:
            attacker.wait()
        server_files = cluster.paths["server0"].root.rglob("rank*")
        return Seen(
            executed=(marks / "executed").exists(),
            written=[path.name for path in server_files],
            server_status=server.popen.poll(),
            refusals=server.events("command_refused") if isinstance(cluster, HoldfastCluster) else [],
            acknowledged="ACKNOWLEDGED" in attacker.log(),
            went_on=went_on,
        )


def _vanilla_outcome(seen: Seen) -> Outcome:
    if seen.executed:
        return succeeded("the server executed the attacker's code: it made a directory")
    if seen.written:
        return succeeded(f"the server wrote the file {seen.written[0]} that the attacker named")
    if (seen.server_status or 0) < 0:
        return succeeded(f"the server died of signal {-(seen.server_status or 0)}")
    if not seen.acknowledged or seen.server_status:
        raise LabError(f"the command was not acknowledged, or the server failed by itself: {seen}")
    if not seen.went_on:
        return succeeded("the command was acknowledged and no worker was answered after it: the job hangs")
    return unharmed("the command was acknowledged, and nothing else happened")


def _holdfast_outcome(seen: Seen, command: Command) -> Outcome:
    harm = [
        *(["code was executed"] if seen.executed else []),
        *([f"a file was written: {seen.written[0]}"] if seen.written else []),
        *([f"the server died of signal {-seen.server_status}"] if (seen.server_status or 0) < 0 else []),
        *([] if seen.went_on or seen.refusals else ["the job hangs without a word"]),
    ]
    if harm or not seen.refusals:
        return Outcome(Verdict.SUCCEEDED, "; ".join(harm) or "the command was acknowledged, not refused")
    event = seen.refusals[0]
    if event.get("head") != int(command.sends[0]) or seen.server_status != EXIT_REFUSED:
        raise LabError(f"the server ended with {seen.server_status}, and not for the attacker's command: {event}")
    end = f"the server ended with status {seen.server_status}"
    return refused(f"logged as a security event: {str(event['reason'])[:120]}; {end}")


def message_to_vanilla(kind: str) -> Callable[[Arena], Outcome]:
    return lambda _: _message(VanillaCluster, kind)


def message_to_holdfast(kind: str) -> Callable[[Arena], Outcome]:
    return lambda _: _message(HoldfastCluster, kind)


def _message(kind: type[Cluster], message: str) -> Outcome:
    """Have worker 1 be a program that joins as a worker does and then sends the server this message."""
    with Network() as network:
        job = Job(kind, network, workers=2, env={"ATTACK_STORE": "dist_async"})
        cluster, trigger = job.cluster, network.directory / "trigger"
        cluster.start("scheduler0", "server0", "worker0")
        rogue = rogue_peer(cluster, message, trigger)
        job.await_steps(3, seconds=60)
        trigger.touch()
        rogue.await_text("SENT")
        server = cluster.processes["server0"]
        training = goes_on(job, server)
        status, refusals = server.popen.poll(), server.events("command_refused")
        if message not in _CONTROLS:  # the connection's end is what is looked for
            rogue.await_text("CLOSED")
        closed = "CLOSED True" in rogue.log()
    if refusals:
        event = refusals[0]
        if (event["sender"], event.get("control"), status) != ("worker 1", _CONTROLS.get(message), EXIT_REFUSED):
            raise LabError(f"the server ended with {status}, and not for the attacker's message: {event}")
        reason = f"{event['sender']}: {event['reason']}"
        return refused(f"logged as a security event: {reason[:120]}; the server ended with status {status}")
    if status is not None and status < 0:
        return succeeded(f"the server died of signal {-status}")
    if status:
        raise LabError(f"the server ended with status {status}, without having refused anything")
    if not training:
        return succeeded("the other worker is not answered any more: the job hangs")
    return refused("the server ended the connection; the job goes on") if closed else unharmed("the job goes on")


def goes_on(job: Job, server: Process) -> bool:
    """Return whether worker 0 makes twenty more steps; it has stopped when it makes none for a while."""
    wanted, made, since = len(job.steps()) + 20, 0, time.monotonic()
    while server.running and time.monotonic() < since + _SILENCE_SECONDS:
        if len(job.steps()) >= wanted:
            return True
        if len(job.steps()) > made:
            made, since = len(job.steps()), time.monotonic()
        time.sleep(0.05)
    return False
