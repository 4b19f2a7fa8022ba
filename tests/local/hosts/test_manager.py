"""The service manager alone, in a process of its own: it reaps every child of its process."""

import contextlib
import os
import signal
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
import signal, sys, time
from dataclasses import replace
from pathlib import Path
from holdfast_local.hosts import manager as manager_module
from holdfast_local.hosts.manager import ServiceManager
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.services import services

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup(1) has it ignored, and a shell cannot trap what it inherits so
paths = NodePaths(Path(sys.argv[1]))
table = [s for s in services(paths, stunnel=sys.argv[2]) if s.name == "tunnel"]
if len(sys.argv) > 3:
    table = [replace(s, argv=(sys.argv[3],), watchdog_seconds=1) for s in services(paths) if s.name == "agent"]
    manager_module.WATCHDOG_START_SECONDS = 3
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

    def end(self) -> None:
        self.paths.start_request("tunnel").unlink()
        until(self.paths.exit_record("tunnel").exists)
        self.paths.log("tunnel").unlink()

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


def test_a_started_service_s_process_id_can_be_read_and_is_its_session_s(managed: Managed) -> None:
    for _ in range(2):
        managed.start()
        until(lambda: managed.paths.main_pid("tunnel").exists())
        pid = int(managed.paths.main_pid("tunnel").read_text())
        assert str(managed.program) in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        assert os.getsid(pid) == pid
        assert managed.paths.main_pid("tunnel").stat().st_mode & 0o777 == 0o644
        managed.end()


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


#: Says that it lives for as long as it is told to, and then does what it is told, or nothing more.
AGENT = """\
#!/bin/sh
echo started $$
[ ! -e "$(dirname "$0")/mute" ] || exec sleep 600
while [ ! -e "$(dirname "$0")/order" ]; do touch "$(dirname "$0")/run/holdfast/alive/agent"; sleep 0.1; done
order="$(cat "$(dirname "$0")/order")"; rm "$(dirname "$0")/order"
$order
sleep 600
"""


class ManagedAgent:
    def __init__(self, root: Path) -> None:
        self.root, self.paths = root, NodePaths(root)
        make_directories(self.paths, None)
        self.program = root / "agent.sh"
        self.program.write_text(AGENT)
        self.program.chmod(0o755)

    def starts(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            words = self.paths.log("agent").read_text().split()
            return [int(word) for word in words if word.isdecimal()]
        return []

    def order(self, text: str) -> None:
        (self.root / ".order").write_text(text)
        (self.root / ".order").rename(self.root / "order")


@pytest.fixture
def managed_agent(tmp_path: Path) -> Iterator[ManagedAgent]:
    agent = ManagedAgent(tmp_path)
    argv = [sys.executable, "-c", MANAGER, str(tmp_path), "unused", str(agent.program)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until(lambda: len(agent.starts()) == 1)
        yield agent
    finally:
        (tmp_path / "end").touch()
        process.wait(timeout=20)


def test_an_agent_that_was_killed_is_started_again(managed_agent: ManagedAgent) -> None:
    os.kill(managed_agent.starts()[0], signal.SIGKILL)
    until(lambda: len(managed_agent.starts()) == 2)


def test_an_agent_that_was_stopped_is_killed_and_started_again(managed_agent: ManagedAgent) -> None:
    until(lambda: managed_agent.paths.alive("agent").exists())
    os.kill(managed_agent.starts()[0], signal.SIGSTOP)
    until(lambda: len(managed_agent.starts()) == 2)
    assert not Path(f"/proc/{managed_agent.starts()[0]}").exists()


def test_an_agent_that_never_says_that_it_lives_is_killed_and_started_again(managed_agent: ManagedAgent) -> None:
    (managed_agent.root / "mute").touch()
    os.kill(managed_agent.starts()[0], signal.SIGKILL)
    until(lambda: len(managed_agent.starts()) == 3)
    assert not Path(f"/proc/{managed_agent.starts()[1]}").exists()


def test_an_agent_that_ends_with_a_status_of_its_own_has_ended(managed_agent: ManagedAgent) -> None:
    managed_agent.order("exit 1")
    until(lambda: managed_agent.paths.exit_record("agent").exists())
    time.sleep(1.5)  # half a second more than it would be started again after
    assert len(managed_agent.starts()) == 1


def test_only_the_agent_is_started_again() -> None:
    assert [service.name for service in services(NodePaths()) if service.restarts] == ["agent"]


def test_only_the_tunnel_reloads() -> None:
    assert [service.name for service in services(NodePaths()) if service.reloads] == ["tunnel"]
