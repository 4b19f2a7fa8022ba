"""Services that are stopped or have no process, from the process table; and real processes that are stopped."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from holdfast_node.processes import Liveness, Process, processes

LIMIT = 6.0
TRAINER, TUNNEL = 40, 50


def process(pid: int, state: str = "S", session: int | None = None, parent: int = 1) -> Process:
    return Process(pid=pid, parent=parent, session=pid if session is None else session, state=state)


WELL = [process(1), process(TRAINER), process(TUNNEL), process(41, session=TRAINER)]


def liveness() -> Liveness:
    return Liveness(("trainer", "tunnel"), {"trainer": TRAINER, "tunnel": TUNNEL}.get, LIMIT)


LOST = {
    "a trainer that was stopped": (
        [process(TRAINER, "T"), process(TUNNEL)],
        "the trainer is stopped (SIGSTOP, or a debugger), for 6 s",
    ),
    "a tunnel that was stopped": (
        [process(TRAINER), process(TUNNEL, "T")],
        "the tunnel is stopped (SIGSTOP, or a debugger), for 6 s",
    ),
    "a trainer that a debugger holds": (
        [process(TRAINER, "t"), process(TUNNEL)],
        "the trainer is stopped (SIGSTOP, or a debugger), for 6 s",
    ),
    "a stopped child of the trainer's": (
        [process(TRAINER), process(TUNNEL), process(44, "T", session=TRAINER, parent=43)],
        "process 44 of the trainer is stopped (SIGSTOP, or a debugger), for 6 s",
    ),
    "a trainer that ended and nobody says so": (
        [process(TRAINER, "Z"), process(TUNNEL)],
        "the trainer has no process that can be seen, and nobody has said that it ended, for 6 s",
    ),
    "a tunnel that never started": (
        [process(TRAINER)],
        "the tunnel has no process that can be seen, and nobody has said that it ended, for 6 s",
    ),
}


@pytest.mark.parametrize(("table", "words"), LOST.values(), ids=LOST)
def test_lost_is(table: list[Process], words: str) -> None:
    watch = liveness()
    assert watch.look(table, 100.0) is None
    assert watch.look(table, 105.9) is None
    assert watch.look(table, 106.0) == words


def test_a_service_that_was_never_asked_for_has_no_process() -> None:
    watch = Liveness(("trainer",), lambda _service: None, LIMIT)
    watch.look(WELL, 0.0)
    assert (
        watch.look(WELL, LIMIT)
        == "the trainer has no process that can be seen, and nobody has said that it ended, for 6 s"
    )


NOT_LOST = {
    "everything runs": WELL,
    "it computes": [process(TRAINER, "R"), process(TUNNEL)],
    "it waits for the disk": [process(TRAINER, "D"), process(TUNNEL)],
    "a child is dead and not collected": [*WELL, process(43, "Z", session=TRAINER)],
    "somebody else's process is stopped": [*WELL, process(60, "T")],
}


@pytest.mark.parametrize("table", NOT_LOST.values(), ids=NOT_LOST)
def test_not_lost_is_a_service_where(table: list[Process]) -> None:
    watch = liveness()
    assert [watch.look(table, float(now)) for now in range(0, 60, 5)] == [None] * 12


def test_a_short_stop_is_logged_and_ends_nothing_however_often(caplog: pytest.LogCaptureFixture) -> None:
    watch, stopped = liveness(), [process(TRAINER, "T"), process(TUNNEL)]
    with caplog.at_level(logging.INFO, logger="holdfast"):
        for now in range(0, 100, 10):
            assert watch.look(stopped, now) is None
            assert watch.look(stopped, now + 1) is None
            assert watch.look(stopped, now + 5) is None
            assert watch.look(WELL, now + 5.5) is None
    assert caplog.messages[:2] == [
        "the trainer is stopped (SIGSTOP, or a debugger), for 5 s",
        "no more: the trainer is stopped (SIGSTOP, or a debugger), for 6 s",
    ]


def test_the_moment_before_a_service_has_its_process_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    watch = liveness()
    with caplog.at_level(logging.INFO, logger="holdfast"):
        assert watch.look([process(TUNNEL)], 0.0) is None
        assert watch.look(WELL, 0.5) is None
    assert not caplog.messages


#: A session's leader with a child, whose id it prints.
FAMILY = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """The ids of a real process and of its child, in a session of their own."""
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("which", [0, 1], ids=["the main one", "its child"])
def test_a_real_process_that_is_stopped_is_seen_until_it_goes_on(family: tuple[int, int], which: int) -> None:
    who = ["the trainer", f"process {family[1]} of the trainer"][which]
    watch = Liveness(("trainer",), lambda _service: family[0], 0.0)  # at the first look

    def look() -> str | None:
        return watch.look(processes(), time.monotonic())

    assert look() is None
    os.kill(family[which], signal.SIGSTOP)
    until(lambda: look() == f"{who} is stopped (SIGSTOP, or a debugger), for 0 s")
    os.kill(family[which], signal.SIGCONT)
    until(lambda: look() is None)
