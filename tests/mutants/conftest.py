"""Synthesizes each deployment once per session, in this process."""

from collections.abc import Callable, Mapping

import pytest
from tests.kit.posture.model import Template
from tests.mutants.deployments import templates_of

Get = Callable[[str], Mapping[str, Template]]


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Get:
    folder = tmp_path_factory.mktemp("deployments")
    cache: dict[str, Mapping[str, Template]] = {}

    def get(name: str) -> Mapping[str, Template]:
        if name not in cache:
            cache[name] = templates_of(name, folder / name)
        return cache[name]

    return get
