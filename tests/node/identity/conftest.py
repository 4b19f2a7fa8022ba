"""Fixtures of the identity tests. The function's modules are top-level ones, as on Lambda."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FUNCTION = Path(__file__).parents[3] / "constructs/holdfast/functions/enrolment"
sys.path[:0] = [str(FUNCTION), str(Path(__file__).parent)]

from identity_support import World  # noqa: E402
from sts_server import StsServer  # noqa: E402


@pytest.fixture(scope="session")
def sts_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StsServer]:
    """An STS that verifies signatures, over TLS on loopback."""
    with StsServer(tmp_path_factory.mktemp("sts")) as server:
        yield server


@pytest.fixture
def world(sts_server: StsServer, monkeypatch: pytest.MonkeyPatch) -> World:
    """A cluster "demo" with one running worker, and its enrolment function."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts_server.url)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return World(sts_server)
