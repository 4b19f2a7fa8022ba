"""The guard knows one build of MXNet and says so, and judges every message."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.node.engine.conftest import ROOT

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
