"""Attacks by too much, too slow or too odd: T4, any peer can crash or flood scheduler and servers."""

import time
from collections.abc import Callable
from pathlib import Path

from tests.attacks.arenas import NO_COMPLAINT, Arena, HoldfastJob, complaint, program, tell, vanilla
from tests.attacks.model import Outcome, Verdict, refused, succeeded, unharmed

from holdfast_local.lab import NODE_PYTHON, OPEN_FILES, Host, LabError, Process, python_environment
from holdfast_node.contract.roles import Role

_NODE = {role: f"{role}0" for role in Role}


def killed_by(kind: str, role: Role) -> Callable[[Arena], Outcome]:
    """Vanilla: what a few connections of this kind do to the process of a role in a running job."""

    def attack(arena: Arena) -> Outcome:
        outcome: Outcome = arena.once(f"killed by {kind}", lambda: _kill(kind))[role]
        return outcome

    return attack


def _kill(kind: str) -> dict[Role, Outcome]:
    """Attack all three roles of one vanilla job, one after the other."""
    outcomes = {}
    with vanilla(workers=1) as (job, outsider):
        job.cluster.start()
        job.await_steps(3)
        for role in Role:
            victim = job.cluster.processes[_NODE[role]]
            address, port = job.cluster.peers[_NODE[role]].address, str(job.cluster.ports[role])
            if not victim.running:
                raise LabError(f"the {role} ended before it was attacked:\n{job.cluster.logs()}")
            tell(outsider, "flood", address, port, kind, "20", "5")
            try:
                status = victim.wait(5)
            except LabError:
                outcomes[role] = unharmed(f"the {role} lives")
                continue
            why = [line for line in victim.log().splitlines() if "Check failed" in line or "libzmq" in line]
            last = why[-1].rpartition("Check failed: ")[2][:90] if why else "without a word"
            outcomes[role] = succeeded(f"the {role} died of signal {-status}: {last}")
    return outcomes


def survives(kind: str, role: Role) -> Callable[[Arena], Outcome]:
    """Holdfast: the same from the host of a peer that may reach the port, without its certificate."""

    def attack(arena: Arena) -> Outcome:
        job = arena.holdfast
        peer = job.cluster.peers[_NODE[role]]
        count = "20" if arena.small else "200"
        log = job.cluster.tunnels[_NODE[role]].log_path
        before = log.stat().st_size
        told = tell(_attacker(job, role), "flood", peer.address, str(job.cluster.ports[role]), kind, count, "5")
        said = complaint(log.read_bytes()[before:].decode(errors="replace"))
        if said in NO_COMPLAINT:
            raise LabError(f"the {kind} must reach the {role}'s tunnel, or nothing was refused: it {said}; {told}")
        _require_running(arena)
        step = job.await_steps(5)
        tried = told["opened"] + told["refused"]
        return refused(f"{tried} connections, ended by the tunnel ({said}); the job is at step {step}")

    return attack


def never_forms(kind: str) -> Callable[[Arena], Outcome]:
    """Vanilla: idle or slow connections to the scheduler take its file descriptors, and nobody can join."""
    return lambda arena: arena.once(f"never forms under {kind}", lambda: _hold_off(kind, 6 if arena.small else 15))


def _hold_off(kind: str, seconds: int) -> Outcome:
    with vanilla(workers=1) as (job, outsider):
        job.cluster.start("scheduler0")
        peer, scheduler = job.cluster.peers["scheduler0"], job.cluster.processes["scheduler0"]
        job.cluster.host("scheduler0").await_listener(peer.address, 9091)
        flood = _flood(outsider, peer.address, 9091, kind, "5000", 120)
        taken = _await_exhausted(scheduler, flood)
        job.cluster.start("server0", "worker0")
        try:
            job.await_steps(1, seconds=seconds)
        except LabError:
            if not scheduler.running:  # libzmq asserts that it can accept, and sometimes comes to it before it is full
                status = scheduler.wait(1)
                return succeeded(f"the scheduler died of signal {-status} with {taken} descriptors taken: no step")
            held = taken >= OPEN_FILES
            evidence = f"all {taken} descriptors of the scheduler are taken: nobody joins, no step in {seconds} s"
            return succeeded(evidence) if held else unharmed(f"no step in {seconds} s, {taken} descriptors taken")
    return unharmed(f"{taken} descriptors of the scheduler are taken, and the job forms")


def goes_on_under(kind: str) -> Callable[[Arena], Outcome]:
    """Holdfast: the same on all three ports at once, from peers' hosts, while another node can still connect."""

    def attack(arena: Arena) -> Outcome:
        job = arena.holdfast
        seconds = 4 if arena.small else 15
        floods = []
        for role in Role:
            address, port = job.cluster.peers[_NODE[role]].address, job.cluster.ports[role]
            floods.append(_flood(_attacker(job, role), address, port, kind, _count(arena), seconds))
        for flood in floods:
            flood.await_text("HOLDING")
        before = job.await_steps(5)
        worker = job.cluster.host("worker0")
        admitted, why = job.dial(worker, "server0", job.cluster.paths["worker0"].tls)
        if not admitted:
            return Outcome(Verdict.SUCCEEDED, f"under the flood the job's own worker cannot connect: {why}")
        for flood in floods:
            flood.wait(60)
        opened = _opened(floods)
        _require_running(arena)
        step = job.await_steps(5)
        tried = 3 * int(_count(arena))
        return unharmed(f"{opened} of {tried} connections opened; the job stepped on from {before} to {step}")

    return attack


def certified_flood(arena: Arena) -> Outcome:
    """A compromised worker opens connections with its own certificate as fast as it can, as root of its host."""
    job = arena.holdfast
    worker, tls = job.cluster.host("worker1"), job.cluster.paths["worker1"].tls
    seconds = 4 if arena.small else 15
    floods = []
    for name in ("scheduler0", "server0"):
        peer = job.cluster.peers[name]
        floods.append(
            _flood(worker, peer.address, job.cluster.ports[peer.role], "certified", "100000", seconds, str(tls))
        )
    step = job.await_steps(10)
    for flood in floods:
        flood.wait(seconds + 30)
    opened = _opened(floods)
    _require_running(arena)
    return unharmed(f"{opened} admitted in {seconds} s; the job goes on from step {step} to {job.await_steps(5)}")


def _attacker(job: HoldfastJob, role: Role) -> Host:
    """Return the host that the attacker has as root: one that the job's firewalls let through to this role's port."""
    return job.cluster.host("server0" if role is Role.WORKER else "worker1")


def _count(arena: Arena) -> str:
    """More than the 1,024 files that a service may have open."""
    return "1500" if arena.small else "10000"


def _flood(host: Host, address: str, port: int, kind: str, count: str, seconds: int, *credentials: str) -> Process:
    argv = [NODE_PYTHON, program("flood"), address, str(port), kind, count, str(seconds), *credentials]
    return host.start(argv, name=f"flood-{kind}-{address}", env=python_environment(PYTHONUNBUFFERED="1"))


def _opened(floods: list[Process]) -> int:
    """Return how many connections these floods had open; one without any would show nothing."""
    opened = [int(flood.log().split('"opened": ')[1].split(",")[0]) for flood in floods]
    if not all(opened):
        raise LabError(f"every flood must open connections, or nothing was withstood: {opened}")
    return sum(opened)


def _await_exhausted(victim: Process, flood: Process) -> int:
    """Return how many descriptors a process has open, once it may open no more or the flood has done what it can."""
    deadline = time.monotonic() + 30
    while (taken := len(list(Path(f"/proc/{victim.popen.pid}/fd").iterdir()))) < OPEN_FILES:
        if time.monotonic() > deadline or not flood.running:
            break
        time.sleep(0.1)
    return taken


def _require_running(arena: Arena) -> None:
    cluster = arena.holdfast.cluster
    everybody = {**cluster.processes, **{f"the tunnel of {n}": t for n, t in cluster.tunnels.items()}}
    if dead := [f"{name} ended with status {p.popen.poll()}" for name, p in everybody.items() if not p.running]:
        raise LabError(f"the attack ended a process of the job: {'; '.join(dead)}")
