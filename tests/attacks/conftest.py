"""One arena for all attacks of a module, at the smaller size; it ends with them, so that it slows no other test."""

from collections.abc import Iterator

import pytest
from tests.attacks.arenas import Arena

from holdfast_local.lab import LabError, require


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    try:
        require()
    except LabError as error:
        pytest.skip(str(error))
    with Arena(small=True) as made:
        yield made
