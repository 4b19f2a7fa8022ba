"""The guard knows one build of MXNet, and says so."""

from pathlib import Path

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
