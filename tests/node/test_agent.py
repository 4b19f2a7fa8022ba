"""The agent around its parts: what it ends, when, and what it says; whole jobs are in tests/e2e."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.node.support import JOB

from holdfast_node import agent, coordinator, metadata
from holdfast_node.agent import Agent
from holdfast_node.contract.documents import Bundle, Control, NodeConfig, Predictions
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.roles import DEFAULT_PORTS, NodeRole, Role, Serving
from holdfast_node.identity import IdentityError
from holdfast_node.part import Node
from holdfast_node.predict import node as predictor


def node_config(role: NodeRole, predictions: Predictions | None = None) -> NodeConfig:
    return NodeConfig(
        cluster="demo",
        role=role,
        region="eu-central-1",
        ports=DEFAULT_PORTS,
        jobs_bucket="jobs",
        models_bucket="models",
        enrolment_function="enrol",
        job_signing_key="jobs",
        model_signing_key="models",
        log_group="/holdfast/demo/nodes",
        file_system_id="fs-1",
        access_point_id="fsap-1",
        bundle=Bundle(bucket="assets", key="node.zip", sha256="0" * 64),
        predictions=predictions,
    )


class Services:
    """What starts and stops the node's services: it notes what it is told among the other events."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def stop(self, *services: str) -> bool:
        self._events.append(f"stop {' '.join(services)}")
        return True


@pytest.fixture
def events() -> list[str]:
    return []


def make_agent(root: Path, role: Role, events: list[str], monkeypatch: pytest.MonkeyPatch) -> Agent:
    """An agent whose AWS is nowhere and whose services are notes."""
    paths = NodePaths(root)
    monkeypatch.setattr(metadata, "instance", lambda: metadata.Instance("i-00000001", "10.0.0.1"))
    monkeypatch.setattr(agent, "ServiceControl", lambda _paths: Services(events))
    monkeypatch.setattr(Node, "ship", lambda *_a, **_k: SimpleNamespace(finish=lambda: events.append("shipped")))
    return Agent(paths, node_config(role))


def refusal(events: list[str]) -> Callable[..., None]:
    """Enrolment as it is for a revoked node."""

    def refuse(*_arguments: Any, **_named: Any) -> None:
        events.append("enrol")
        raise IdentityError("enrolment refused (revoked): i-00000001 was revoked", reason="revoked")

    return refuse


def test_what_an_agent_before_it_left_ends_before_it_asks_for_a_certificate(
    tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent.identity, "enrol", refusal(events))
    with pytest.raises(IdentityError):
        make_agent(tmp_path, Role.WORKER, events, monkeypatch).run()
    assert events == ["stop trainer tunnel", "enrol", "stop trainer tunnel", "shipped"]
    assert caplog.messages == ["IdentityError: enrolment refused (revoked): i-00000001 was revoked"]


def test_a_scheduler_whose_own_part_fails_says_so_at_once(
    tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed = threading.Event()

    def part(_agent: Agent) -> int:
        failed.set()
        raise OSError("the disk is full")

    def coordinate(_store: Any, _reporter: Any, _control: Any, _job: Any, _detection: Any, denied: Any, _: Any) -> None:
        assert failed.wait(10)
        while True:
            denied()

    reported: list[str] = []
    monkeypatch.setattr(Agent, "_enrol", lambda _agent: None)
    monkeypatch.setattr(Agent, "_take_parts", part)
    monkeypatch.setattr(agent.RendezvousFollower, "start", lambda _follower: None)
    monkeypatch.setattr(Node, "load_job", lambda _node, _job_id: JOB)
    monkeypatch.setattr(coordinator, "coordinate", coordinate)
    control = Control(job_id="digits-1", started_at="2026-11-22T00:00:00Z", task_token="token")
    monkeypatch.setattr(coordinator, "await_control", lambda _store: control)
    monkeypatch.setattr(coordinator.Reporter, "fail", lambda _reporter, cause: reported.append(cause))
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="the disk is full"):
        make_agent(tmp_path, Role.SCHEDULER, events, monkeypatch).run()
    assert reported == ["scheduler (i-00000001): the disk is full"]
    assert events[-2:] == ["stop trainer tunnel", "shipped"]


def test_a_predictor_s_agent_ends_the_service_that_one_before_it_left(
    tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor.identity, "enrol", refusal(events))
    monkeypatch.setattr(predictor.metadata, "instance", lambda: metadata.Instance("i-00000001", "10.0.0.1"))
    monkeypatch.setattr(predictor, "ServiceControl", lambda _paths: Services(events))
    shipper = SimpleNamespace(start=lambda: None, finish=lambda: None)
    monkeypatch.setattr(predictor, "LogShipper", lambda *_arguments: shipper)
    paths = NodePaths(tmp_path)
    paths.job.mkdir(parents=True)
    config = node_config(Serving.PREDICTOR, Predictions(job_id="digits-1"))
    with pytest.raises(IdentityError):
        predictor.PredictorAgent(paths, config).run()
    assert events == ["stop trainer", "enrol", "stop trainer"]
