"""One embedded AWS for all tests of this folder."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.local.hosts.lab import REGION, ROOT, Lab, Machine, machine_of

from holdfast_local.emulator.process import Emulator


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    emulator = Emulator(tmp_path_factory.mktemp("emulator"), ROOT / ".venv-aws/bin/python", port=0, region=REGION)
    emulator.start()
    with tempfile.TemporaryDirectory(prefix="holdfast-lab-") as public:
        Path(public).chmod(0o755)
        yield Lab(emulator, Path(public))
    emulator.stop()


@pytest.fixture(scope="module")
def root_machine(lab: Lab) -> Iterator[Machine]:
    """A hypervisor with the strongest isolation."""
    with machine_of("root", lab) as running:
        yield running


@pytest.fixture(scope="module", params=["root", "userns-ids", "userns"])
def any_machine(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Machine]:
    """A hypervisor whose hosts have namespaces: as root, and as a user with and without subordinate ids."""
    with machine_of(request.param, lab) as running:
        yield running


@pytest.fixture
def own_machine(lab: Lab) -> Iterator[Machine]:
    """A hypervisor of this test alone, that it may end."""
    with machine_of("root", lab) as running:
        yield running


@pytest.fixture(scope="module")
def loopback_machine(lab: Lab) -> Iterator[Machine]:
    """A hypervisor whose hosts share this machine's loopback interface."""
    with machine_of("loopback", lab) as running:
        yield running
