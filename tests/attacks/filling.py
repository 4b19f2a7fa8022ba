"""Attacks on a node's memory by an admitted worker: T4."""

import time
from pathlib import Path

from tests.attacks.arenas import Arena, Job, rogue_peer
from tests.attacks.model import Outcome, Verdict, refused, succeeded

from holdfast_local.lab import Cluster, HoldfastCluster, LabError, Network, Process, VanillaCluster
from holdfast_node.contract.statuses import EXIT_REFUSED

_SECONDS = 60.0
#: How much of a message without an end the worker sends (in_host/rogue_peer.py); more than a guarded server takes.
_MIB = 1024


def filled_in_vanilla(_: Arena) -> Outcome:
    return _fill(VanillaCluster)


def filled_in_holdfast(_: Arena) -> Outcome:
    return _fill(HoldfastCluster)


def _fill(kind: type[Cluster]) -> Outcome:
    """Have worker 1 send the server a message that never ends, and see how much memory the server gives it."""
    with Network() as network:
        job, trigger = Job(kind, network, workers=2, env={"ATTACK_STORE": "dist_async"}), network.directory / "trigger"
        job.cluster.start("scheduler0", "server0", "worker0")
        rogue = rogue_peer(job.cluster, "endless", trigger)
        job.await_steps(3, seconds=60)
        server = job.cluster.processes["server0"]
        before = most = _memory_mib(server)
        trigger.touch()
        deadline = time.monotonic() + _SECONDS
        while server.running and most - before < _MIB * 0.95:
            if time.monotonic() > deadline:
                raise LabError(f"the server neither grew by {_MIB} MiB nor ended: {most - before} MiB\n{rogue.log()}")
            most = max(most, _memory_mib(server))
            time.sleep(0.01)
        if server.running:
            return succeeded(f"the server's memory grew by {most - before} MiB for one message that goes on")
        return _end(server, most - before)


def _end(server: Process, grown: int) -> Outcome:
    status, events = server.wait(10), server.events("command_refused")
    if status != EXIT_REFUSED or not events:
        return Outcome(Verdict.SUCCEEDED, f"the server grew by {grown} MiB and ended with {status}")
    if events[0]["sender"] != "worker 1":
        raise LabError(f"the refusal must name worker 1, got {events[0]}")
    return refused(f"logged as a security event: worker 1: {events[0]['reason']}; the server grew by {grown} MiB first")


def _memory_mib(process: Process) -> int:
    """Return the memory that a process has now, 0 where it has ended."""
    _, _, after = Path(f"/proc/{process.popen.pid}/status").read_text().partition("VmRSS:")
    return int(after.split()[0]) // 1024 if after else 0
