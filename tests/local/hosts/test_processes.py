"""Families of processes, where no process namespace holds them together."""

import subprocess
import sys

from tests.local.hosts.lab import until

from holdfast_local.hosts.processes import children, kill_family
from holdfast_node.processes import processes

#: A process in its own session whose child has lost its parent, and whose other child leads another session.
FAMILY = """
import subprocess, time
orphan = subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, text=True)
other = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(orphan.stdout.strip(), other.pid, flush=True)
time.sleep(600)
"""


def alive(*pids: int) -> set[int]:
    return {process.pid for process in processes() if process.state != "Z"} & set(pids)


def test_a_family_is_killed_with_its_orphans_and_sessions() -> None:
    argv = [sys.executable, "-c", FAMILY]
    bystander = subprocess.Popen(["sleep", "600"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        try:
            assert parent.stdout is not None
            orphan, other = map(int, parent.stdout.readline().split())
            assert other in children(parent.pid)
            assert orphan not in children(parent.pid)
            kill_family(parent.pid)
            until(lambda: not alive(parent.pid, orphan, other), "the family is gone", 5)
            assert alive(bystander.pid)
        finally:
            parent.kill()
            bystander.kill()
            bystander.wait()


def test_a_process_in_the_callers_session_does_not_take_the_caller_along() -> None:
    child = subprocess.Popen(["sleep", "600"])
    sibling = subprocess.Popen(["sleep", "600"])
    kill_family(child.pid)
    assert child.wait(5) == -9
    assert alive(sibling.pid)
    sibling.kill()
    sibling.wait()


def test_the_spared_process_lives_on() -> None:
    parent = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True)
    until(lambda: children(parent.pid), "the child is there", 5)
    (child,) = children(parent.pid)
    kill_family(parent.pid, spare=parent.pid)
    assert not alive(child)
    parent.kill()
    parent.wait()
