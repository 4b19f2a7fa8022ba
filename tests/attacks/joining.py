"""Attacks by who one is: T1, no authentication of cluster nodes."""

from datetime import UTC, datetime, timedelta

from tests.attacks.arenas import GRADIENT, NO_COMPLAINT, OUTSIDER, Arena, HoldfastJob, join_as, tell, vanilla
from tests.attacks.model import Outcome, Verdict, refused, succeeded

from holdfast_local.lab import CLUSTER, Authority, Host, LabError
from holdfast_node.contract.roles import Role

POISON = 1000.0


def rogue_worker_joins_vanilla(arena: Arena) -> Outcome:
    return arena.once("rogue worker", _rogue_worker_joins_vanilla)


def _rogue_worker_joins_vanilla() -> Outcome:
    with vanilla(workers=2) as (job, outsider):
        job.cluster.start("scheduler0", "server0", "worker0")
        rogue = join_as(job, outsider, Role.WORKER, OUTSIDER, "job", ATTACK_GRADIENT=str(POISON))
        rogue.await_text("STEP 3 ")
        job.await_steps(3)
        rank = rogue.log().partition("RANK ")[2].split()[0]
        step, weight = job.steps()[-1]
    honest = -2 * GRADIENT * step
    if abs(weight) < POISON:
        return Outcome(Verdict.UNHARMED, f"weights are {weight:g}")
    return succeeded(f"joined as rank {rank}; the weight is {weight:g} after {step} steps, not {honest:.4g}")


def no_identity_in_vanilla(arena: Arena) -> Outcome:
    """MXNet asks nobody who they are, so whatever is wrong with a certificate is no obstacle: nobody needs one."""
    joined = rogue_worker_joins_vanilla(arena)
    return Outcome(joined.verdict, f"no identity is asked for: a node without any {joined.evidence}")


def rogue_server_joins_vanilla(arena: Arena) -> Outcome:
    return arena.once("rogue server", _rogue_server_joins_vanilla)


def _rogue_server_joins_vanilla() -> Outcome:
    with vanilla(workers=1) as (job, outsider):
        job.cluster.start("scheduler0")
        rogue = join_as(job, outsider, Role.SERVER, OUTSIDER, "rogue_server")
        job.cluster.start("worker0")
        rogue.await_text("STOLEN ")
        stolen = rogue.log().partition("STOLEN ")[2].split()[0]
    return succeeded(f"it became the job's server and holds the worker's gradient {stolen}")


def nobody_joins_holdfast(arena: Arena) -> Outcome:
    job = arena.holdfast
    tries = [job.dial(job.intruder, name) for name in ("scheduler0", "server0")]
    tries += [job.dial(_compromised(job), name, how) for name in ("scheduler0", "server0") for how in ("", "none")]
    return _judge([*_outsider(arena), *tries], arena)


def _outsider(arena: Arena) -> list[tuple[bool, str]]:
    job = arena.holdfast
    before = job.network.drops().refused
    told = tell(job.outsider, "dial", job.cluster.peers["scheduler0"].address, "9091")
    dropped = job.network.drops().refused - before
    return [(bool(told["admitted"]), f"an outsider: {told['why']}, the security groups dropped {dropped} packets")]


def rogue_server_at_holdfast(arena: Arena) -> Outcome:
    """The rogue has a server's role in a certificate of a CA of its own; without any it is the row above."""
    job = arena.holdfast
    rogue = job.credentials("rogue-server", authority=Authority(CLUSTER), role=Role.SERVER, instance_id=job.instance_id)
    tries = [job.dial(job.intruder, name, rogue) for name in ("scheduler0", "worker0")]
    return _judge([*tries, job.dial(_compromised(job), "scheduler0", rogue)], arena)


def wrong_role_at_holdfast(arena: Arena) -> Outcome:
    """Roles that never dial each other, and a name of the job's with another role, all signed by the cluster's CA."""
    job = arena.holdfast
    worker = job.credentials("peer-worker", instance_id=job.cluster.peers["worker1"].instance_id)
    server = job.credentials("peer-server", role=Role.SERVER, instance_id=job.cluster.peers["server0"].instance_id)
    swapped = job.credentials("swapped", role=Role.SCHEDULER)
    tries = [job.dial(job.intruder, "worker0", worker), job.dial(job.intruder, "server0", server)]
    return _judge([*tries, job.dial(_compromised(job), "server0", swapped)], arena)


def foreign_ca_at_holdfast(arena: Arena) -> Outcome:
    """Worker 1's exact names, from another CA of the cluster's name, and at worker 1's own address."""
    job = arena.holdfast
    forged = job.credentials("foreign", authority=Authority(CLUSTER))
    return _judge([job.dial(_compromised(job), name, forged) for name in ("scheduler0", "server0")], arena)


def expired_at_holdfast(arena: Arena) -> Outcome:
    """Worker 1's own names from the cluster's CA, a day over, at worker 1's own address."""
    job = arena.holdfast
    old = job.credentials("expired", at=datetime.now(UTC) - timedelta(hours=48))
    return _judge([job.dial(_compromised(job), name, old) for name in ("scheduler0", "server0")], arena)


def unlisted_at_holdfast(arena: Arena) -> Outcome:
    """A valid certificate of the right role whose node has no part in the job."""
    job = arena.holdfast
    spare = job.credentials("spare", instance_id=job.instance_id)
    tries = [job.dial(job.intruder, name, spare) for name in ("scheduler0", "server0")]
    return _judge([*tries, job.dial(_compromised(job), "server0", spare)], arena)


def stolen_at_holdfast(arena: Arena) -> Outcome:
    """Worker 1's own key and certificate, on an instance in the cluster's groups, and on another node of the job."""
    job = arena.holdfast
    stolen = job.cluster.paths["worker1"].tls
    tries = [job.dial(job.intruder, name, stolen) for name in ("scheduler0", "server0")]
    elsewhere = [job.dial(job.cluster.host("worker0"), name, stolen) for name in ("scheduler0", "server0")]
    return _judge([*tries, *elsewhere], arena)


def _compromised(job: HoldfastJob) -> Host:
    """Return the host that the attacker has as root: worker 1, whose address the job knows."""
    return job.cluster.host("worker1")


def _judge(tries: list[tuple[bool, str]], arena: Arena) -> Outcome:
    """Refused if none was admitted and the job steps on; the evidence is the last refusal's, which is the tunnel's."""
    admitted = [why for ok, why in tries if ok]
    if admitted:
        return Outcome(Verdict.SUCCEEDED, f"{len(admitted)} of {len(tries)} connections were admitted: {admitted[0]}")
    if tries[-1][1].endswith(NO_COMPLAINT):
        raise LabError(f"the last attempt must be refused by the tunnel, or no certificate was judged: {tries[-1][1]}")
    step = arena.holdfast.await_steps()
    return refused(f"0 of {len(tries)} connections admitted ({tries[-1][1]}); the job goes on to step {step}")
