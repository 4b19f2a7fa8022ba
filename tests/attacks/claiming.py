"""Attacks by an admitted worker that says it is another node of its job: T1, identities that nothing proves."""

from collections.abc import Callable

from tests.attacks.arenas import Arena, Job, program
from tests.attacks.commands import goes_on
from tests.attacks.model import Outcome, Verdict, refused, succeeded

from holdfast_local.lab import (
    NODE_PYTHON,
    Cluster,
    HoldfastCluster,
    LabError,
    Network,
    Process,
    VanillaCluster,
    python_environment,
)
from holdfast_node.contract.layout import User
from holdfast_node.contract.roles import Role
from holdfast_node.contract.statuses import EXIT_REFUSED

#: Whom the worker says it is (in_host/rogue_claim.py), and which node it tells.
_TOLD = {"worker": "server0", "server": "scheduler0", "scheduler": "server0"}


def claimed_in_vanilla(claim: str) -> Callable[[Arena], Outcome]:
    return lambda _: _claim(VanillaCluster, claim)


def claimed_in_holdfast(claim: str) -> Callable[[Arena], Outcome]:
    return lambda _: _claim(HoldfastCluster, claim)


def _claim(kind: type[Cluster], claim: str) -> Outcome:
    """Have worker 1's host say that it is another node, before that node has connected."""
    with Network() as network:
        job = Job(kind, network, workers=2, env={"ATTACK_STORE": "dist_async"})
        cluster = job.cluster
        cluster.start("scheduler0", *([] if claim == "server" else ["server0"]))
        if isinstance(cluster, HoldfastCluster):
            cluster.start_tunnel("worker1")
        rogue = _start(cluster, claim)
        rogue.await_text("CLAIMED")
        told = cluster.processes[_TOLD[claim]]
        if isinstance(cluster, HoldfastCluster):
            return _refusal(told, rogue)
        if names := {"worker": ("worker0",), "server": ("worker0", "worker1")}.get(claim):
            cluster.start(*names)
        return _harm(job, claim, rogue)


def _start(cluster: Cluster, claim: str) -> Process:
    def place(name: str, role: Role) -> str:
        peer = cluster.peers[name]
        return f"{peer.overlay if isinstance(cluster, HoldfastCluster) else peer.address}:{cluster.ports[role]}"

    nodes = (place("scheduler0", Role.SCHEDULER), place("worker1", Role.WORKER), place("server0", Role.SERVER))
    # On vanilla it has the server's data come to itself; on Holdfast only a server's own address can join as one.
    server = place("server0" if isinstance(cluster, HoldfastCluster) else "worker1", Role.SERVER)
    where = server if claim == "server" else nodes[1]
    argv = [NODE_PYTHON, program("rogue_claim"), claim, *nodes, where]
    return cluster.host("worker1").start(argv, name="rogue", user=User.TRAINER, env=python_environment())


def _refusal(told: Process, rogue: Process) -> Outcome:
    status = told.wait(30)
    events = told.events("command_refused")
    if status != EXIT_REFUSED or not events:
        return Outcome(Verdict.SUCCEEDED, f"{told.name} ended with {status} and refused nothing: {rogue.log()[-200:]}")
    (event,) = events
    if event["sender"] != "worker 1":
        raise LabError(f"the refusal must name worker 1, got {event}")
    return refused(f"logged as a security event: worker 1: {event['reason']}; it ended with status {status}")


def _harm(job: Job, claim: str, rogue: Process) -> Outcome:
    if claim == "worker":
        rogue.await_text("JOINED")
        job.cluster.processes["worker0"].await_text("RANK 0")
        if goes_on(job, job.cluster.processes["server0"]):
            return Outcome(Verdict.UNHARMED, "worker 0 trains")
        return succeeded("the server takes the attacker for worker 0 and never answers the real one: the job hangs")
    rogue.await_text("DIALLED ")
    who = rogue.log().partition("DIALLED ")[2].splitlines()[0]
    if claim == "server":
        return succeeded(f"it became the job's only server: the scheduler and both workers dialled it ({who})")
    return succeeded(f"the server took the attacker's list of nodes and now waits at the attacker's barrier ({who})")
