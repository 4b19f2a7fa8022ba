"""Attacks on the wire: T2, plaintext between nodes."""

import struct

from tests.attacks.arenas import GRADIENT, GRADIENT_BYTES, Arena, Job, complaint, program, vanilla
from tests.attacks.model import Outcome, Verdict, refused, succeeded

from holdfast_local.lab import (
    CLUSTER,
    NODE_PYTHON,
    OPEN_GROUP,
    Authority,
    Capture,
    HoldfastCluster,
    Host,
    Network,
    Process,
    python_environment,
)
from holdfast_node.contract.roles import Role

SERVER_PORT = 9092
FORGED = 7.654321


def eavesdropping_on_vanilla(arena: Arena) -> Outcome:
    _ = arena.vanilla
    capture: Capture = arena.once("vanilla capture", dict)
    found = capture.count(GRADIENT_BYTES)
    evidence = f"{found} copies of a gradient's 16 bytes in {capture.payload_bytes()} captured bytes"
    return succeeded(evidence) if found else Outcome(Verdict.REFUSED, evidence)


def eavesdropping_on_holdfast(arena: Arena) -> Outcome:
    job = arena.holdfast
    capture: Capture = arena.once("holdfast capture", dict)
    found = capture.count(GRADIENT_BYTES)
    ports = set(job.cluster.ports.values())
    carried = sum(len(s.payload) for s in capture.segments() if {s.source[1], s.target[1]} & ports)
    plain = [
        s for s in capture.segments() if {s.source[1], s.target[1]} & ports and s.payload.startswith(b"\xff\0\0\0")
    ]
    evidence = f"0 copies in {carried} captured bytes of the role ports, no ZMTP greeting"
    if found or plain or carried < 10_000:
        return Outcome(Verdict.SUCCEEDED, f"{found} copies, {len(plain)} greetings in {carried} bytes")
    return refused(evidence)


def middle_of_vanilla(arena: Arena) -> Outcome:
    with vanilla(workers=1) as (job, attacker):
        proxy = _divert(job, attacker)
        job.cluster.start()
        proxy.await_text("CHANGED")
        job.await_steps(3)
        step, weight = job.steps()[-1]
    if abs(weight + FORGED * step) > 0.01 * FORGED * step:
        return Outcome(Verdict.UNHARMED, f"the weight is {weight:g}")
    return succeeded(
        f"every gradient was changed in flight: weight {weight:g} after {step} steps, not {-GRADIENT * step:.4g}"
    )


def middle_of_holdfast(arena: Arena) -> Outcome:
    """It ends TLS itself, with the server's exact name in a certificate of a CA of its own."""
    with Network() as network:
        job = Job(HoldfastCluster, network, workers=1)
        attacker = network.host("attacker", "10.77.9.66", [OPEN_GROUP])
        for name in job.cluster.peers:  # the network itself is the attacker: no security group is in its way
            network.regroup(name, [*job.cluster.groups[job.cluster.peers[name].role], OPEN_GROUP])
        forged = network.directory / "forged"
        server = job.cluster.peers["server0"]
        Authority(CLUSTER).issue(forged, role=server.role, instance_id=server.instance_id, address=server.address)
        proxy = _divert(job, attacker, str(forged))
        job.cluster.start()
        proxy.await_text("REFUSED")
        job.cluster.tunnels["worker0"].await_text("certificate verify failed")
        said = job.cluster.tunnels["worker0"].log()
        passed, made = "ACCEPTED" in proxy.log(), len(job.steps())
        proxy.kill()
        network.restore()
        step = job.await_steps(3, seconds=60)
    if made or passed:
        return Outcome(Verdict.SUCCEEDED, f"{made} steps were made through the attacker")
    return refused(f"no step was made through it ({complaint(said)}); without it the job goes on to step {step}")


def impersonation_in_vanilla(arena: Arena) -> Outcome:
    """A worker's host joins as a server, with what any worker knows."""
    with vanilla(workers=1) as (job, _):
        job.cluster.start("scheduler0")
        host = job.cluster.host("worker0")
        assert hasattr(job.cluster, "environment")
        environment = job.cluster.environment(Role.SERVER, job.cluster.peers["worker0"].address)
        rogue = host.start([NODE_PYTHON, program("rogue_server")], name="rogue", user=65534, env=environment)
        job.cluster.start("worker0")
        rogue.await_text("STOLEN ")
    return succeeded("a worker's host also joined as the server and was sent the gradients")


def impersonation_in_holdfast(arena: Arena) -> Outcome:
    """A worker has the traffic to the server diverted to itself and answers with its own, valid certificate."""
    with Network() as network:
        job = Job(HoldfastCluster, network, workers=2)
        for name in job.cluster.peers:
            network.regroup(name, [*job.cluster.groups[job.cluster.peers[name].role], OPEN_GROUP])
        compromised = job.cluster.host("worker1")
        compromised.run(["nft", "flush", "ruleset"])  # it is root there
        proxy = _divert(job, compromised, str(job.cluster.paths["worker1"].tls))
        job.cluster.start()
        proxy.await_text("REFUSED")
        job.cluster.tunnels["worker0"].await_text("certificate verify failed")
        said = job.cluster.tunnels["worker0"].log()
        passed, made = "ACCEPTED" in proxy.log(), len(job.steps())
    if made or passed:
        return Outcome(Verdict.SUCCEEDED, f"the worker took its peer for the server: {made} steps")
    return refused(f"the worker hung up on its peer ({complaint(said)})")


def _divert(job: Job, attacker: Host, *credentials: str) -> Process:
    old, new = (struct.pack("<f", value) for value in (GRADIENT, FORGED))
    address, target = attacker.address, job.cluster.peers["server0"].address
    argv = [NODE_PYTHON, program("proxy"), address, str(SERVER_PORT), target, old.hex(), new.hex(), *credentials]
    proxy = attacker.start([str(part) for part in argv], name="proxy", env=python_environment(PYTHONUNBUFFERED="1"))
    attacker.await_listener(address, SERVER_PORT)
    job.network.divert(port=SERVER_PORT, to=attacker)
    return proxy
