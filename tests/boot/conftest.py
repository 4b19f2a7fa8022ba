"""Nodes with the real systemd, booted once for all tests of this folder."""

from collections.abc import Iterator

import pytest
from tests.boot.systemd_node import SystemdNode, a_node, missing
from tests.e2e.support import skip

from holdfast_node.contract.roles import Role


def boot(factory: pytest.TempPathFactory, role: Role) -> Iterator[SystemdNode]:
    if reason := missing():
        skip(reason)
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
