"""Nodes with the real systemd, booted once for all tests of this folder; and clusters of nodes that boot."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.booted import Booted
from tests.boot.support import cannot_boot
from tests.boot.systemd_node import SystemdNode, a_node, missing
from tests.e2e.support import run_holdfast

from holdfast_local.hosts.machines.trial import refusal
from holdfast_node.contract.roles import Role


def boot(factory: pytest.TempPathFactory, role: Role) -> Iterator[SystemdNode]:
    if reason := missing():
        cannot_boot(reason)
    with a_node(factory.mktemp(f"node-{role}"), role) as node:
        yield node


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdNode]:
    """A server, whose trainer has the tightest sandbox; schedulers have the same."""
    yield from boot(tmp_path_factory, Role.SERVER)


@pytest.fixture(scope="package")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdNode]:
    """A worker, which runs scripts."""
    yield from boot(tmp_path_factory, Role.WORKER)


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdNode]:
    """A node of this test alone, that it may break."""
    yield from boot(tmp_path_factory, Role.SERVER)


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A deployed local cluster whose instances boot; the image is made first where it is not in the cache."""
    if reason := refusal():
        cannot_boot(f"hosts cannot be booted here: {reason}")
    state: Path = tmp_path_factory.mktemp("booted") / "state"
    up = run_holdfast(state, "local", "up", "--hosts", "boot", seconds=900)
    assert up.status == 0, up.errors
    try:
        yield Booted(state)
    finally:
        down = run_holdfast(state, "local", "down")
        assert down.status == 0, down.errors
        assert not state.exists()
