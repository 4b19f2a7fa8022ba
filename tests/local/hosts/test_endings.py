"""Hosts end with their instance, and everything ends with the hypervisor, however it ends."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.local.hosts.lab import Lab, Machine, bundle, hypervisor_argv, hypervisor_environment, machine_of, until

from holdfast_local.hosts import HostNotFoundError, HostsError, exec_in_host, purge, status
from holdfast_node.contract.layout import User
from holdfast_node.contract.roles import Role
from holdfast_node.processes import processes

#: A trainer whose child has left its session: the hardest to find.
TRAINER = """
import subprocess, time
subprocess.Popen(["sleep", "600"], start_new_session=True)
subprocess.Popen(["sleep", "600"])
time.sleep(600)
"""


class Traces:
    """What there is of a machine's hosts on this machine: processes, namespaces, mounts, network links."""

    def __init__(self, machine: Machine) -> None:
        self._state_dir = str(machine.state_dir)
        self._hypervisor = machine.process.pid
        self._own = self._namespaces_of(os.getpid())
        self.pids = self._family(self._hypervisor)
        self.namespaces = {name for pid in self.pids for name in self._namespaces_of(pid)} - self._own
        self.namespaces |= {name for name in self._thread_namespaces() if name not in self._own}

    def left(self) -> list[str]:
        table = {process.pid for process in processes() if process.state != "Z"}
        found = [f"process {pid}" for pid in self.pids & table]
        found += [f"namespace {name} of {pid}" for pid in table for name in self._namespaces_of(pid) & self.namespaces]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount {line}" for line in mounts if self._state_dir in line]
        links = [link.name for link in Path("/sys/class/net").iterdir()]
        return found + [f"link {name}" for name in links if name.startswith(("sw", "veth", "eth0@"))]

    def _family(self, pid: int) -> set[int]:
        table, members = processes(), {pid}
        while found := {p.pid for p in table if p.parent in members} - members:
            members |= found
        return members

    def _thread_namespaces(self) -> Iterator[str]:
        for task in Path(f"/proc/{self._hypervisor}/task").iterdir():
            yield f"net:{(task / 'ns/net').readlink()}"

    def _namespaces_of(self, pid: int) -> set[str]:
        names = set()
        for kind in ("net", "mnt", "pid"):
            try:
                names.add(f"{kind}:{Path(f'/proc/{pid}/ns/{kind}').readlink()}")
            except OSError:
                continue
        return names


def launch_pair(lab: Lab, machine: Machine) -> tuple[str, str]:
    data = bundle(trainer=TRAINER)
    first, second = (lab.launch(role, lab.user_data(role, data)) for role in (Role.SERVER, Role.WORKER))
    for instance in (first, second):
        machine.await_phase(instance)
        until(lambda i=instance: machine.host(i)["services"].get("trainer") == "running", "the trainer runs")
    return first, second


KINDS = ["root", "userns", "userns-ids", "loopback"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_nothing_is_left_when_the_hypervisor_ends(lab: Lab, kind: str, number: int) -> None:
    with machine_of(kind, lab) as machine:
        launch_pair(lab, machine)
        traces = Traces(machine)
        assert len(traces.pids) >= 9
        started = time.monotonic()
        machine.end(number)
        until(lambda: not traces.left(), f"nothing is left of {traces.left()}", 5)
        assert time.monotonic() - started < 5
        assert status(machine.state_dir) is None
        if number == signal.SIGTERM:
            assert not (machine.state_dir / "hosts.json").exists()
        purge(machine.state_dir)
        assert list(machine.state_dir.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_terminated_instances_host_ends_and_the_others_stay(lab: Lab, kind: str) -> None:
    with machine_of(kind, lab) as machine:
        first, second = launch_pair(lab, machine)
        init = machine.host(first)["pid"]
        doomed = {p.pid for p in processes() if p.parent == init} | {init}
        lab.terminate(first)
        until(lambda: not machine.host(first), "the host is gone", 10)
        assert not doomed & {p.pid for p in processes() if p.state != "Z"}
        assert machine.host(second)["services"]["trainer"] == "running"
        kept = machine.state_dir / "hosts" / first
        assert (kept / "logs/boot.log").exists()
        assert not (kept / "disk").exists()
        with pytest.raises(HostNotFoundError, match=rf"no host {first} is running, got \['{second}'\]"):
            exec_in_host(machine.state_dir, first, ["true"])


def test_an_instance_that_was_there_before_becomes_a_host_again(lab: Lab) -> None:
    with machine_of("root", lab) as machine:
        instance = lab.launch(Role.WORKER)
        machine.await_phase(instance)
        machine.end()
        argv, environment = hypervisor_argv(machine.state_dir, "root"), hypervisor_environment(lab)
        with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as again:
            second = Machine(machine.state_dir, again, machine.log)
            try:
                until(lambda: status(machine.state_dir), "the state is published")
                second.await_phase(instance)
            finally:
                second.end()


def test_a_second_hypervisor_in_the_same_directory_is_refused(lab: Lab, root_machine: Machine) -> None:
    argv = hypervisor_argv(root_machine.state_dir, "loopback")
    done = subprocess.run(
        argv, env=hypervisor_environment(lab), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "error: a hypervisor runs already in" in done.stderr
    assert "Traceback" not in done.stderr


def test_purge_refuses_while_a_hypervisor_runs(root_machine: Machine) -> None:
    with pytest.raises(HostsError, match=r"a hypervisor \(process \d+\) runs in .*; end it first"):
        purge(root_machine.state_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_ENDPOINT_URL": ""}, "AWS_ENDPOINT_URL must be the embedded AWS's URL with its port, got ''"),
        ({"AWS_ENDPOINT_URL": "https://10.0.0.1:4566"}, "the embedded AWS must listen on 127.0.0.1"),
    ],
    ids=["no-endpoint", "endpoint-elsewhere"],
)
def test_an_endpoint_that_hosts_cannot_use_is_refused(
    lab: Lab, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    environment = hypervisor_environment(lab) | changes
    argv = hypervisor_argv(tmp_path, "process")
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_a_missing_interpreter_is_refused(lab: Lab, tmp_path: Path) -> None:
    argv = [*hypervisor_argv(tmp_path, "process"), "--node-python", "/no/python"]
    environment = hypervisor_environment(lab)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert "--node-python must be a Python interpreter, got /no/python; run make setup" in done.stderr


def test_a_host_whose_init_dies_is_published_as_dead(lab: Lab, own_machine: Machine) -> None:
    instance = lab.launch(Role.WORKER)
    init = own_machine.await_phase(instance)["pid"]
    os.kill(init, signal.SIGKILL)
    host = own_machine.await_phase(instance, "dead")
    assert host["cause"]
    assert own_machine.process.poll() is None


def test_no_command_runs_as_a_user_of_a_host_with_more_than_its_services_have(lab: Lab, root_machine: Machine) -> None:
    instance = lab.launch(Role.WORKER)
    root_machine.await_phase(instance)
    told = root_machine.run(instance, "grep", "-E", "CapEff|NoNewPrivs", "/proc/self/status", user=User.TRAINER).stdout
    assert told.split() == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
