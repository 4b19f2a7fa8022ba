"""The agent asks the firewall to admit a job's peers, and goes no further without it."""

from pathlib import Path

import pytest
from tests.node.test_firewall import RENDEZVOUS

from holdfast_node import admission
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.firewall import read_peers


class Services:
    """A service manager that answers at once, with one status."""

    def __init__(self, status: int | None) -> None:
        self.started: list[str] = []
        self._status = status

    def start(self, service: str) -> None:
        self.started.append(service)

    def exit_status(self, service: str) -> int | None:
        return self._status if service in self.started else None


@pytest.fixture
def paths(tmp_path: Path) -> NodePaths:
    made = NodePaths(tmp_path)
    made.state.mkdir(parents=True)
    return made


def test_root_gets_the_whole_rendezvous(paths: NodePaths) -> None:
    services = Services(0)
    admission.admit_peers(services, paths, RENDEZVOUS)
    assert services.started == ["peers"]
    assert read_peers(paths.peers) == RENDEZVOUS


def test_a_firewall_that_refuses_stops_the_node(paths: NodePaths) -> None:
    with pytest.raises(HoldfastError, match=r"did not admit the job's peers: the peers service ended with status 1"):
        admission.admit_peers(Services(1), paths, RENDEZVOUS)


def test_a_firewall_that_does_not_answer_stops_the_node(paths: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "ADMISSION_SECONDS", 0.2)
    with pytest.raises(HoldfastError, match=r"did not admit the job's peers within 0.2 s"):
        admission.admit_peers(Services(None), paths, RENDEZVOUS)
