"""How a predictor's agent keeps its service: started again when it ends, given up for a cause."""

from dataclasses import dataclass, field

import pytest

from holdfast_node.contract.layout import NodePaths
from holdfast_node.predict.node import DENIED_SECONDS, MAX_RESTARTS, START_SECONDS, Supervisor, launch


@dataclass
class Node:
    """The edges of supervision, as a test sets them; `events` is what was done."""

    ended: int | None = None
    cause: str | None = None
    listens: bool = False
    events: list[str] = field(default_factory=list)

    def start(self, service: str) -> None:
        self.events.append(f"start {service}")
        self.ended = None

    def stop(self, *services: str) -> bool:
        self.events.append(f"stop {' '.join(services)}")
        return True

    def exit_status(self, service: str) -> int | None:
        return self.ended

    def supervisor(self) -> Supervisor:
        return Supervisor(
            self,
            cause=lambda: self.cause,
            tell=lambda: self.events.append("tell"),
            listens=lambda: self.listens,
            log=lambda: "predictor: net.params is not what was signed",
        )


@pytest.fixture
def node() -> Node:
    return Node()


def test_the_service_is_told_who_is_revoked_before_it_starts_and_every_few_seconds(node: Node) -> None:
    supervisor = node.supervisor()
    for now in (0.0, DENIED_SECONDS / 2, DENIED_SECONDS + 1):
        assert supervisor.step(now) is None
    assert node.events == ["tell", "start trainer", "tell"]


def test_a_service_that_refuses_its_model_is_not_started_again(node: Node) -> None:
    supervisor = node.supervisor()
    assert supervisor.step(0.0) is None
    node.ended = 1
    assert (
        supervisor.step(1.0)
        == "the prediction service ended with status 1: predictor: net.params is not what was signed"
    )
    assert node.events == ["tell", "start trainer"]


def test_a_service_that_a_request_killed_is_started_again_but_not_for_ever(node: Node) -> None:
    supervisor = node.supervisor()
    node.listens = True
    assert supervisor.step(0.0) is None
    for number in range(MAX_RESTARTS):
        node.ended = -11
        assert supervisor.step(number + 1.0) is None
        assert supervisor.step(number + 1.5) is None, "it listens again"
    assert (supervisor.restarts, node.events.count("start trainer")) == (MAX_RESTARTS, MAX_RESTARTS + 1)
    node.ended = -11
    assert str(supervisor.step(99.0)).startswith("the prediction service ended with status -11: ")


def test_a_service_that_never_listens_is_given_up(node: Node) -> None:
    supervisor = node.supervisor()
    assert supervisor.step(0.0) is None
    assert (
        supervisor.step(START_SECONDS + 1.0) == f"the prediction service did not open its port within {START_SECONDS} s"
    )


def test_a_node_without_an_identity_serves_no_longer(node: Node) -> None:
    supervisor = node.supervisor()
    node.listens = True
    assert supervisor.step(0.0) is None
    node.cause = "this node was revoked"
    assert supervisor.step(1.0) == "this node was revoked"


def test_the_service_starts_with_no_credentials_and_no_module_of_its_working_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    started = launch(NodePaths(), "10.77.0.4")
    assert started.argv[1:] == (
        *("-P", "-m", "holdfast_node.predict.service"),
        *("--root", "/", "--listen", "10.77.0.4"),
    )
    assert [name for name in started.env if name.startswith("AWS_")] == []
