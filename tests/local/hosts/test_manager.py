"""The service manager alone, in a process of its own: it reaps every child of its process."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_local.hosts.setup import make_directories
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.services import services

#: Runs the contract's table with a program in the tunnel's place that writes down each signal it gets.
MANAGER = """
import sys, time
from pathlib import Path
from holdfast_local.hosts.manager import ServiceManager
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.services import services

paths = NodePaths(Path(sys.argv[1]))
table = [s for s in services(paths, stunnel=sys.argv[2]) if s.name == "tunnel"]
manager = ServiceManager(paths=paths, table=table, uids=None, environment=lambda s: {"PATH": "/usr/bin:/bin"},
                         drop_capabilities=False, report=lambda name, state: print(name, state, flush=True))
manager.start()
try:
    while not Path(sys.argv[1], "end").exists():
        manager.tick()
        time.sleep(0.02)
finally:
    manager.stop()
"""
TUNNEL = """\
#!/bin/sh
trap 'echo HUP' HUP
trap 'echo TERM; exit 0' TERM
sleep 600 &
echo started
while true; do wait; done
"""


class Managed:
    def __init__(self, root: Path) -> None:
        self.paths = NodePaths(root)
        make_directories(self.paths, None)
        self.program = root / "tunnel.sh"
        self.program.write_text(TUNNEL)
        self.program.chmod(0o755)

    def told(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return self.paths.log("tunnel").read_text().split()
        return []

    def start(self) -> None:
        self.paths.start_request("tunnel").touch()
        until(lambda: self.told() == ["started"])

    def reload(self) -> None:
        self.paths.reload_request("tunnel").touch()
        until(lambda: not self.paths.reload_request("tunnel").exists())


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Managed]:
    managed = Managed(tmp_path)
    argv = [sys.executable, "-c", MANAGER, str(tmp_path), str(managed.program)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        yield managed
    finally:
        (tmp_path / "end").touch()
        process.communicate(timeout=20)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_a_reload_request_is_a_sighup_to_the_running_service(managed: Managed) -> None:
    managed.start()
    managed.reload()
    until(lambda: managed.told() == ["started", "HUP"])
    assert not managed.paths.exit_record("tunnel").exists()


def test_each_request_is_one_sighup(managed: Managed) -> None:
    managed.start()
    for count in (1, 2):
        managed.reload()
        until(lambda count=count: managed.told().count("HUP") == count)


def test_a_reload_of_what_does_not_run_starts_nothing(managed: Managed) -> None:
    managed.reload()
    managed.start()
    assert managed.told() == ["started"]


def test_a_link_in_the_requests_place_is_removed_and_not_what_it_leads_to(managed: Managed, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    managed.start()
    managed.paths.reload_request("tunnel").symlink_to(victim)
    until(lambda: "HUP" in managed.told())
    assert victim.exists()


def test_only_the_tunnel_reloads() -> None:
    assert [service.name for service in services(NodePaths()) if service.reloads] == ["tunnel"]
