"""A process stands for a request: it ends with it, and knows a new one from the old."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_node.systemd.requested import await_end


def rewrite(request: Path) -> None:
    request.unlink()
    request.touch()


def touch_again(request: Path) -> None:
    status = request.stat()
    os.utime(request, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [Path.unlink, rewrite, touch_again], ids=["taken back", "made anew", "touched"])
def test_it_ends_when_the_request_is(change: Callable[[Path], object], tmp_path: Path) -> None:
    request, steps = tmp_path / "trainer", []
    request.touch()

    def sleep(_: float) -> None:
        steps.append("looked")
        if len(steps) == 3:
            change(request)

    assert await_end(request, lambda: steps.append("ready"), sleep)
    assert steps == ["ready", "looked", "looked"]


def test_without_a_request_nothing_is_ready(tmp_path: Path) -> None:
    assert not await_end(tmp_path / "trainer", lambda: pytest.fail("told systemd that there is one"))
