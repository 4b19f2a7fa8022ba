"""MXNet follows messages in the order in which they were checked; its flag is in `test_features.py`."""

import ctypes
import signal

import pytest
from tests.node.engine.conftest import run_node

from holdfast_node.engines.errors import EngineError
from holdfast_node.engines.mxnet import repairs


def test_each_message_has_a_lower_priority_than_the_one_before_it() -> None:
    line, found = repairs.Line(), []
    for claimed in (0, 7, (1 << 31) - 1):
        message = (ctypes.c_int32 * 36)(*[claimed] * 36)
        line.join(ctypes.addressof(message))
        assert [index for index, value in enumerate(message) if value != claimed] == [29]
        found.append(message[29])  # the last of `Meta`'s 120 bytes
    assert found == [(1 << 31) - 1 - index for index in range(3)]


def test_a_process_ends_before_a_message_could_overtake_another() -> None:
    done = run_node(
        "import ctypes; from holdfast_node.engines.mxnet import repairs; line = repairs.Line(1)\n"
        "message = (ctypes.c_int32 * 36)(); where = ctypes.addressof(message); line.join(where)\n"
        "print(message[29], flush=True); line.join(where)"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGABRT, f"{-(1 << 31)}\n")
    assert "EngineError: a node takes 2^32 messages, and this was one more: it must start anew" in done.stderr


def test_a_flag_needs_a_server() -> None:
    store = (ctypes.c_uint64 * 64)()
    with pytest.raises(EngineError, match="the KVStore must have its server before messages are received"):
        repairs.unset_multi_precision(ctypes.addressof(store))
