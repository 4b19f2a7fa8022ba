"""Attacks on how a node gets its identity, and on taking it away: T1, with the enrolment function's own code."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.attacks.arenas import Arena, HoldfastJob
from tests.attacks.model import Outcome, Verdict, refused

from holdfast_local.lab import Network
from holdfast_local.lab.hosts import ROOT
from holdfast_node.contract.documents import Rendezvous
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.denials import Denials

#: The function's modules are flat, as on Lambda, and so are the doubles of AWS that its own tests use: KMS with real
#: keys, S3's conditional writes, and an STS that verifies signatures over TLS.
_FLAT = (ROOT / "constructs/holdfast/functions/enrolment", ROOT / "tests/node/identity")


def replayed_enrolment(_: Arena) -> Outcome:
    """The attacker has recorded a node's whole request: sends it again, and with a CSR of its own."""
    with tempfile.TemporaryDirectory() as directory, _sts(directory) as (support, sts):
        world = support.World(sts)
        recorded = world.event()
        first = world.enrolment().respond(recorded)
        if "certificate" not in first:
            raise AssertionError(f"the node's own enrolment must work, or no refusal proves anything: {first}")
        again = world.enrolment().respond(recorded)
        own = world.enrolment().respond(world.event() | {"proof": recorded["proof"]})
    if "certificate" in again or "certificate" in own:
        return Outcome(Verdict.SUCCEEDED, "the function signed a second certificate for the recorded request")
    reasons = [str(answer["refused"]["reason"]) for answer in (again, own)]
    return refused(f"sent again: {reasons[0]}; with the attacker's own key: {reasons[1]}")


def revoked_node(_: Arena) -> Outcome:
    """The operator denies a worker that trains: what its peers' agents then do, and its way back."""
    with tempfile.TemporaryDirectory() as directory, _sts(directory) as (support, sts):
        world = support.World(sts)
        world.bucket.objects[JobsBucket.denial(support.INSTANCE)] = b"{}"
        answer = world.enrolment().respond(world.event())
    if "certificate" in answer:
        return Outcome(Verdict.SUCCEEDED, "the revoked instance enrolled again")
    reason = answer["refused"]["reason"]
    with Network() as network:
        job = HoldfastJob(network)
        cluster, revoked = job.cluster, job.cluster.peers["worker1"]
        cluster.start()
        job.await_steps(3)
        denials = Denials(_Listing(JobsBucket.denial(revoked.instance_id)))
        denials.poll()
        cause = denials.cause(peer.instance_id for peer in cluster.peers.values())
        if cause is None:
            return Outcome(Verdict.SUCCEEDED, "its peers do not notice")
        # What the agents do now (part.py): the tunnels end, and the next generation's do not know the peer.
        for name in ("scheduler0", "server0", "worker0"):
            cluster.tunnels.pop(name).kill()
        made = len(job.steps("worker1"))
        peers = tuple(peer for peer in cluster.peers.values() if peer is not revoked)
        cluster.rendezvous = Rendezvous(job_id=cluster.rendezvous.job_id, generation=2, peers=peers)
        for name in ("scheduler0", "server0"):
            cluster.firewall(name)
            cluster.start_tunnel(name)
        tries = [
            job.dial(cluster.host("worker1"), name, cluster.paths["worker1"].tls) for name in ("scheduler0", "server0")
        ]
        after = len(job.steps("worker1"))
    if any(ok for ok, _ in tries) or after > made + 1:
        return Outcome(Verdict.SUCCEEDED, f"it goes on: {tries}")
    return refused(f"enrolment: {reason}; its peers: {cause}; cut off at step {made}; dials again: {tries[-1][1]}")


class _Listing:
    """The jobs bucket's prefix of denials, as `Store.changed_since` lists it."""

    def __init__(self, *keys: str) -> None:
        self._keys = keys

    def changed_since(self, _: str, since: Any) -> list[tuple[str, Any]]:
        return [(key, since) for key in self._keys]


class _sts:  # noqa: N801 - a context manager that reads as a word
    """The support of the enrolment tests and a running STS."""

    def __init__(self, directory: str) -> None:
        sys.path[:0] = [str(path) for path in _FLAT if str(path) not in sys.path]
        import identity_support
        import sts_server

        self._support, self._server = identity_support, sts_server.StsServer(Path(directory))

    def __enter__(self) -> tuple[Any, Any]:
        # A node's proof is a request to this region's STS, which is this server.
        self._before = {name: os.environ.pop(name, None) for name in ("AWS_ENDPOINT_URL_STS", "AWS_PROFILE")}
        os.environ["AWS_ENDPOINT_URL_STS"] = self._server.url
        return self._support, self._server.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._server.__exit__(*exc)
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
