"""The guard knows two builds of MXNet and says so, and judges every message."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.node.engine.conftest import ROOT

from holdfast_node.engines.errors import EngineError
from holdfast_node.engines.mxnet import native

#: By build: its environment, and where it keeps the address of `zmq_bind`.
BUILDS = {"CPU": (".venv-node", 0x948E220), "CUDA": (".venv-gpu", 0x32AFBBC8)}
#: The sixth function of a class's table, behind two words that belong to the type (Itanium C++ ABI, section 2.5.2).
TABLE, ENTRY = "_ZTVN2ps6ZMQVanE", 8 * 8


def library(build: str) -> Path:
    folder, _ = BUILDS[build]
    found = next((ROOT / folder / "lib").glob("python*/site-packages/mxnet/libmxnet.so"), None)
    if found is None:
        pytest.skip(f"{folder} is not installed (make {folder}/.ready, 2 GB): digest and addresses are not compared")
    return found


def readelf(path: Path, *options: str) -> list[list[str]]:
    done = subprocess.run(["readelf", "-W", *options, path], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("build", BUILDS)
def test_the_builds_that_are_locked_are_known(build: str) -> None:
    assert native.require_known(library(build))["zmq_bind"] == BUILDS[build][1]


@pytest.mark.parametrize("build", BUILDS)
def test_slots_are_where_the_linker_keeps_these_functions(build: str) -> None:
    path = library(build)
    slots = native.require_known(path)
    relocated = {int(line[0], 16): line[4] for line in readelf(path, "-r") if len(line) > 4 and "R_X86" in line[2]}
    assert {slot: relocated[slot] for slot in slots.values()} == {slot: symbol for symbol, slot in slots.items()}
    (table,) = [int(line[1], 16) for line in readelf(path, "--dyn-syms") if line[-1:] == [TABLE]]
    assert slots["_ZN2ps6ZMQVan7RecvMsgEPNS_7MessageE"] == table + ENTRY


def test_another_build_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "libmxnet.so"
    other.write_bytes(b"another build")
    with pytest.raises(
        EngineError, match=r"libmxnet\.so must have SHA-256 b4e7f881.* or 0698ea1e.*, got db45.*knows the"
    ):
        native.require_known(other)


@pytest.mark.parametrize("size", [0, 40, -(1 << 31), -2], ids=["nothing", "a few bytes", "2 GiB", "almost 4 GiB"])
def test_a_message_of_any_size_is_judged(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    guard = native.Interposer.__new__(native.Interposer)
    guard._hooks = SimpleNamespace(message=lambda _: False)
    guard.taking = True
    guard._line = SimpleNamespace(join=lambda address: None)
    guard._receive = lambda van, address: size  # ps-lite adds the sizes of the frames up in a C int
    monkeypatch.setattr(native.Interposer, "_look", lambda self, address, check, size: judged.append(address))
    assert (guard._on_message(1, 2), judged) == (size, [2])
