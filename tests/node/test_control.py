"""Services started and stopped through files, with a service manager's part played by the test."""

import json
from pathlib import Path

import pytest

from holdfast_node import control
from holdfast_node.contract.layout import NodePaths
from holdfast_node.control import ServiceControl


class Manager:
    """Does what it is asked, each time that the control waits."""

    def __init__(self, root: Path) -> None:
        self.paths = NodePaths(root)
        self.paths.exit_record("any").parent.mkdir(parents=True)
        self.paths.start_request("any").parent.mkdir(parents=True)
        self.obeys = True

    def ended(self, service: str, status: int) -> None:
        temporary = self.paths.exit_record(f".{service}")
        temporary.write_text(json.dumps({"status": status}))
        temporary.replace(self.paths.exit_record(service))

    def follow(self, _seconds: float) -> None:
        for service in ("trainer", "tunnel"):
            if self.obeys and not self.paths.start_request(service).exists():
                self.ended(service, -15)


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    return Manager(tmp_path)


@pytest.fixture
def services(manager: Manager) -> ServiceControl:
    return ServiceControl(manager.paths, sleep=manager.follow)


def test_a_started_service_has_no_status_until_it_ends(manager: Manager, services: ServiceControl) -> None:
    services.start("trainer")
    assert services.requested("trainer")
    assert services.exit_status("trainer") is None
    manager.ended("trainer", -9)
    assert services.exit_status("trainer") == -9


def test_the_record_of_an_earlier_generation_is_not_this_one_s(manager: Manager, services: ServiceControl) -> None:
    services.start("trainer")
    manager.ended("trainer", 0)
    services.start("trainer")
    assert services.exit_status("trainer") is None
    manager.ended("trainer", 0)
    assert services.exit_status("trainer") == 0


def test_stop_returns_once_the_services_have_ended(manager: Manager, services: ServiceControl) -> None:
    services.start("trainer")
    services.start("tunnel")
    assert services.stop("trainer", "tunnel")
    assert (services.exit_status("trainer"), services.exit_status("tunnel")) == (-15, -15)
    assert not services.requested("trainer")


def test_stop_of_what_does_not_run_returns_at_once(manager: Manager, services: ServiceControl) -> None:
    manager.obeys = False
    assert services.stop("trainer", "tunnel")


def test_stop_ends_what_an_agent_before_this_one_has_started(manager: Manager) -> None:
    ServiceControl(manager.paths).start("trainer")
    successor = ServiceControl(manager.paths, sleep=manager.follow)
    assert successor.requested("trainer")
    assert successor.stop("trainer")
    assert successor.exit_status("trainer") == -15


def test_stop_gives_up_on_a_manager_that_does_not_answer(
    manager: Manager, services: ServiceControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "STOP_SECONDS", 0.0)
    manager.obeys = False
    services.start("trainer")
    assert not services.stop("trainer")


def test_a_service_s_process_id_is_what_its_manager_wrote(manager: Manager, services: ServiceControl) -> None:
    record = manager.paths.main_pid("trainer")
    assert services.main_pid("trainer") is None
    record.write_text("")
    assert services.main_pid("trainer") is None
    record.write_text("4711")
    assert services.main_pid("trainer") == 4711


def test_a_service_that_is_started_anew_has_no_process_until_its_manager_says_so(
    manager: Manager, services: ServiceControl
) -> None:
    record = manager.paths.main_pid("trainer")
    record.write_text("4711")
    services.start("trainer")
    assert services.main_pid("trainer") is None
    new = record.with_name("new")
    new.write_text("4712")
    new.replace(record)
    assert services.main_pid("trainer") == 4712
