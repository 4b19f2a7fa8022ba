"""The guard knows one build of MXNet and says so, judges every message, and has them followed in that order."""

import ctypes
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.node.engine.conftest import ROOT, run_node

from holdfast_node.engines.errors import EngineError
from holdfast_node.engines.mxnet import native

LIBRARY = next((ROOT / ".venv-node/lib").glob("python*/site-packages/mxnet/libmxnet.so"))


def test_the_build_that_is_locked_is_known() -> None:
    assert native.require_known(LIBRARY)["zmq_bind"] == 0x948E220


def test_another_build_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "libmxnet.so"
    other.write_bytes(b"another build")
    with pytest.raises(EngineError, match=r"libmxnet\.so must have SHA-256 b4e7f881.*, got db45.*knows the"):
        native.require_known(other)


@pytest.mark.parametrize("size", [0, 40, -(1 << 31), -2], ids=["nothing", "a few bytes", "2 GiB", "almost 4 GiB"])
def test_a_message_of_any_size_is_judged(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    guard = native.Interposer.__new__(native.Interposer)
    guard._hooks = SimpleNamespace(message=lambda _: False)
    guard._line = SimpleNamespace(join=lambda address: None)
    guard._receive = lambda van, address: size  # ps-lite adds the sizes of the frames up in a C int
    monkeypatch.setattr(native.Interposer, "_look", lambda self, address, check, size: judged.append(address))
    assert (guard._on_message(1, 2), judged) == (size, [2])


def test_each_message_has_a_lower_priority_than_the_one_before_it() -> None:
    line, found = native.Line(), []
    for claimed in (0, 7, (1 << 31) - 1):
        message = (ctypes.c_int32 * 36)(*[claimed] * 36)
        line.join(ctypes.addressof(message))
        assert [index for index, value in enumerate(message) if value != claimed] == [29]
        found.append(message[29])  # the last of `Meta`'s 120 bytes
    assert found == [(1 << 31) - 1 - index for index in range(3)]


def test_a_process_ends_before_a_message_could_overtake_another() -> None:
    done = run_node(
        "import ctypes; from holdfast_node.engines.mxnet import native; line = native.Line(1)\n"
        "message = (ctypes.c_int32 * 36)(); where = ctypes.addressof(message); line.join(where)\n"
        "print(message[29], flush=True); line.join(where)"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGABRT, f"{-(1 << 31)}\n")
    assert "EngineError: a node takes 2^32 messages, and this was one more: it must start anew" in done.stderr
