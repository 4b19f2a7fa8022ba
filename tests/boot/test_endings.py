"""What is left of a machine when who runs it is killed: nothing that runs, and nothing that the next start keeps."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.support import cannot_boot
from tests.local.hosts.lab import REGION, ROOT, Lab, Machine, machine, until

from holdfast_local.emulator.process import Emulator
from holdfast_local.hosts import purge
from holdfast_local.hosts.machines import cgroups
from holdfast_local.hosts.machines.image import Image
from holdfast_local.hosts.machines.trial import refusal
from holdfast_node.contract.roles import Role

pytestmark = pytest.mark.e2e


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    if reason := refusal():
        cannot_boot(f"hosts cannot be booted here: {reason}")
    Image().make(print)
    emulator = Emulator(tmp_path / "emulator", ROOT / ".venv-aws/bin/python", port=0, region=REGION)
    emulator.start()
    with tempfile.TemporaryDirectory(prefix="holdfast-lab-") as public:
        yield Lab(emulator, Path(public))
    emulator.stop()


def boot(lab: Lab, running: Machine) -> int:
    """Boot a machine whose user data does nothing; return its process 1."""
    instance_id = lab.launch(Role.WORKER, "#!/bin/bash\ntrue\n")
    pid: int = running.await_phase(instance_id)["pid"]
    assert Path(f"/proc/{pid}/comm").read_text() == "systemd\n"
    return pid


def mounts(state: Path) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(state) in line]


def test_a_killed_hypervisor_takes_its_machines_along(lab: Lab, tmp_path: Path) -> None:
    state = tmp_path / "hosts" / "state"
    state.parent.mkdir()
    with machine(lab, state, "boot") as running:
        pid = boot(lab, running)
        assert cgroups.of(state)
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(10)
        until(lambda: not Path(f"/proc/{pid}").exists(), "the machine is off", 20)
    assert mounts(state) == []
    # Files and empty control groups outlive a process: the next start removes them, as `holdfast local down` does.
    purge(state)
    assert cgroups.of(state) == []
    assert not (state / "hosts").exists()


def test_a_machine_that_ends_in_order_leaves_nothing_but_its_console(lab: Lab, tmp_path: Path) -> None:
    state = tmp_path / "hosts" / "state"
    state.parent.mkdir()
    with machine(lab, state, "boot") as running:
        pid = boot(lab, running)
        (host,) = running.state()["hosts"]
        lab.terminate(host["instance_id"])
        until(lambda: not running.state()["hosts"], "the host is gone")
        assert not Path(f"/proc/{pid}").exists()
        assert (cgroups.of(state), mounts(state)) == ([], [])
        left = {path.name for path in Path(host["directory"]).iterdir()}
        assert left <= {"console.log", "hypervisor-uuid", "logs", "mount-target", "setup.json"}
