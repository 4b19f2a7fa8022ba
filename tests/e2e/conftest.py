"""The real thing, end to end: the embedded AWS, the real CDK CLI, hosts, real MXNet. Minutes, not seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.support import Holdfast, run_holdfast


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local") / "state"


@pytest.fixture(scope="module")
def cluster(state: Path) -> Iterator[Holdfast]:
    """A deployed local cluster; yields `holdfast --local …` as a function."""
    up = run_holdfast(state, "local", "up", "--hosts", "process")
    assert up.status == 0, up.errors
    try:
        yield lambda *arguments: run_holdfast(state, "--local", *arguments)
    finally:
        down = run_holdfast(state, "local", "down")
        assert down.status == 0, down.errors
        assert not state.exists()
