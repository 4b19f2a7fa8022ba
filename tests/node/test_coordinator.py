import json

import pytest

from holdfast_node.contract.documents import CodeArchive, JobDocument, NodeResult, Registration
from holdfast_node.contract.roles import Role
from holdfast_node.coordinator import Coordination

JOB = JobDocument(
    job_id="digits-1",
    cluster="demo",
    engine="mxnet",
    entry="train.py",
    args=(),
    workers=2,
    servers=1,
    model_dir="model",
    timeout_seconds=600,
    code=CodeArchive(sha256="0" * 64, size=10),
)
NODES = {
    "i-000000001": Role.SCHEDULER,
    "i-000000002": Role.SERVER,
    "i-000000004": Role.WORKER,
    "i-000000003": Role.WORKER,
}


def registration(instance_id: str, role: Role) -> Registration:
    return Registration(role=role, instance_id=instance_id, address="10.0.0.1", spiffe_id="spiffe://x", serial="0a")


def gathered() -> Coordination:
    coordination = Coordination(JOB)
    for instance_id, role in NODES.items():
        coordination.register(registration(instance_id, role))
    return coordination


def ended(status: int, cause: str = "") -> NodeResult:
    return NodeResult(status=status, cause=cause, rank=0, tls_connections=1, tls_peers=("x",))


def test_rendezvous_waits_until_every_role_is_complete() -> None:
    coordination = Coordination(JOB)
    for instance_id, role in list(NODES.items())[:-1]:
        coordination.register(registration(instance_id, role))
    assert coordination.rendezvous is None
    assert coordination.missing() == {Role.WORKER: 1}


def test_ranks_follow_instance_ids_whatever_the_order_of_registration() -> None:
    rendezvous = gathered().rendezvous
    assert rendezvous is not None
    workers = [(peer.rank, peer.instance_id) for peer in rendezvous.peers if peer.role is Role.WORKER]
    assert workers == [(0, "i-000000003"), (1, "i-000000004")]


def test_a_late_node_does_not_change_the_rendezvous() -> None:
    coordination = gathered()
    before = coordination.rendezvous
    coordination.register(registration("i-000000000", Role.WORKER))
    assert coordination.rendezvous == before


def test_job_is_complete_only_with_every_result() -> None:
    coordination = gathered()
    for instance_id in list(NODES)[:-1]:
        coordination.results[instance_id] = ended(0)
    assert not coordination.complete()
    coordination.results["i-000000003"] = ended(0)
    assert coordination.complete()
    assert coordination.failure() is None


def test_a_worker_s_own_error_is_the_cause_not_the_losses_that_followed() -> None:
    coordination = gathered()
    coordination.results["i-000000002"] = ended(-15, "the trainer was killed by signal 15")
    coordination.results["i-000000004"] = ended(1, "the trainer exited with status 1: ValueError: boom")
    assert coordination.failure() == ("worker 1 (i-000000004): the trainer exited with status 1: ValueError: boom")


@pytest.mark.parametrize("phase", ["gathering", "running", "failed"])
def test_record_names_nodes_and_identities(phase: str) -> None:
    record = json.loads(gathered().record(phase, None))
    assert record["phase"] == phase
    assert {node["instance_id"]: node["role"] for node in record["nodes"]} == {
        instance_id: str(role) for instance_id, role in NODES.items()
    }
    assert all(node["spiffe_id"] for node in record["nodes"])
