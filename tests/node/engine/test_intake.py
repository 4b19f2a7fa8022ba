"""When a server stops taking messages, and when it goes on."""

import ctypes

import pytest

from holdfast_node.engines.mxnet.intake import Intake, used_bytes

MIB = 1 << 20
ALLOWANCE = 100 * MIB


def closed(at: float = 1.0, used: int = 400 * MIB) -> Intake:
    """An intake that has closed at `at` because of a queue; its base are 200 MiB."""
    made = Intake()
    assert made.look(200 * MIB, ALLOWANCE, at - 0.25, worked=0.0)
    assert not made.look(used, ALLOWANCE, at, worked=0.25)
    return made


def test_a_server_takes_messages_while_its_queue_fits() -> None:
    made = Intake()
    for step, used in enumerate((200, 299, 250, 300)):
        assert made.look(used * MIB, ALLOWANCE, step / 4, worked=step / 4)


def test_a_full_queue_closes_it_until_half_is_followed() -> None:
    made = closed()
    assert not made.look(260 * MIB, ALLOWANCE, 1.25, worked=0.5)
    assert made.look(250 * MIB, ALLOWANCE, 1.5, worked=0.75)
    assert not made.full


def test_heartbeats_get_in_in_time_and_a_queue_that_is_full_then_closes_it_again() -> None:
    made = closed()
    for step in range(1, 8):
        assert not made.look(400 * MIB, ALLOWANCE, 1 + step / 4, worked=0.25 + step / 4)
    assert made.look(400 * MIB, ALLOWANCE, 3.0, worked=2.25)
    assert made.full
    assert not made.look(400 * MIB, ALLOWANCE, 3.25, worked=2.5)


def test_what_stays_when_it_has_nothing_to_do_is_what_it_needs() -> None:
    made = closed()
    assert made.look(400 * MIB, ALLOWANCE, 1.25, worked=0.25)
    assert made.base == 400 * MIB
    assert made.look(500 * MIB, ALLOWANCE, 1.5, worked=0.5)
    assert not made.look(501 * MIB, ALLOWANCE, 1.75, worked=0.75)


def test_a_server_that_works_does_not_get_used_to_its_queue() -> None:
    made = closed()
    for step in range(1, 40):
        made.look(400 * MIB, ALLOWANCE, 1 + step / 4, worked=0.25 + step / 4)
    assert made.base == 200 * MIB


def test_a_server_that_does_nothing_with_far_more_than_a_model_is_stuck() -> None:
    most = 200 * MIB + 4 * ALLOWANCE
    assert closed(used=most).look(most, ALLOWANCE, 1.25, worked=0.25)
    stuck = closed(used=most + 1)
    assert not stuck.look(most + 1, ALLOWANCE, 1.25, worked=0.25)
    assert stuck.base == 200 * MIB


def test_what_it_needs_falls_again() -> None:
    made = Intake()
    for step, used in enumerate((200, 50, 150)):
        assert made.look(used * MIB, ALLOWANCE, step, worked=step)
    assert not made.look(151 * MIB, ALLOWANCE, 3, worked=3)


@pytest.mark.parametrize("size", [100, 64 * MIB])
def test_native_memory_is_counted_until_it_is_freed(size: int) -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    count = max(1, MIB // size)
    before = used_bytes()
    held = [libc.malloc(size) for _ in range(count)]
    grown = used_bytes() - before
    for one in held:
        libc.free(one)
    assert count * size <= grown < 2 * count * size
    assert used_bytes() - before < grown / 2
