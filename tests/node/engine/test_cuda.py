"""MXNet's CUDA build finds every library that it links, in the locked wheels or in the system."""

import json
import re
from pathlib import Path

import pytest
from tests.node.engine.conftest import ROOT
from tests.node.engine.gpu.record import pins, record

from holdfast_node.engines.mxnet.cuda import link_libraries

RECORD = json.loads((Path(__file__).parent / "gpu/libraries.json").read_text())
#: What else may be linked, and who brings it: Amazon Linux 2023's packages, or NVIDIA's driver.
SYSTEM = {
    **dict.fromkeys(("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"), "glibc"),
    **{"ld-linux-x86-64.so.2": "glibc", "libgcc_s.so.1": "libgcc", "libstdc++.so.6": "libstdc++"},
    **{"libgomp.so.1": "libgomp", "libquadmath.so.0": "libquadmath", "libz.so.1": "zlib"},
    "libcuda.so.1": "the driver",
}


def test_every_linked_library_is_in_a_locked_wheel_or_the_systems() -> None:
    libraries = RECORD["libraries"]
    provided = {library["name"] for library in libraries.values()}
    needed = {need for library in libraries.values() for need in library["needs"]}
    assert needed - provided - set(SYSTEM) == set()
    assert {"libcudnn.so.8", "libcublas.so.11", "libcudart.so.11.0", "libnccl.so.2"} <= provided


def test_a_library_goes_by_its_own_name() -> None:
    """The loader looks for files by the name that a library carries: a link of another name would not be found."""
    for path, library in RECORD["libraries"].items():
        assert Path(path).name == library["name"]


def test_two_wheels_hold_no_library_of_the_same_name() -> None:
    names = [library["name"] for library in RECORD["libraries"].values()]
    assert len(set(names)) == len(names)


def test_the_record_is_of_the_wheels_that_are_locked() -> None:
    assert RECORD["pins"] == pins(), "make .venv-gpu/.ready, and record anew: tests/node/engine/gpu/record.py"


def test_both_locks_hold_the_same_versions_of_everything_else() -> None:
    def versions(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "node" / name).read_text(), re.M))

    cpu, gpu = versions("requirements.txt"), versions("requirements-gpu.txt")
    assert {name: gpu[name] for name in cpu if name != "mxnet"} == {
        name: version for name, version in cpu.items() if name != "mxnet"
    }
    assert gpu["mxnet-cu112"] == cpu["mxnet"]
    # NVIDIA's wheels say that they need setuptools and wheel; nothing imports them.
    assert {name for name in set(gpu) - set(cpu) if not name.startswith(("mxnet", "nvidia"))} == {
        *("packaging", "setuptools", "wheel")
    }


def test_the_record_says_what_is_installed() -> None:
    site = next((ROOT / ".venv-gpu/lib").glob("python*/site-packages"), None)
    if site is None:
        pytest.skip(
            ".venv-gpu is not installed (make .venv-gpu/.ready, 2 GB): the record is not compared with the wheels"
        )
    assert record(site) == RECORD


def test_libraries_are_linked_beside_mxnet(tmp_path: Path) -> None:
    for name in ("mxnet/libmxnet.so", "nvidia/cublas/lib/libcublas.so.11", "nvidia/cudnn/lib/libcudnn.so.8"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for _ in range(2):
        assert link_libraries(tmp_path) == ["libcublas.so.11", "libcudnn.so.8"]
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert (moved / "mxnet/libcublas.so.11").read_text() == "nvidia/cublas/lib/libcublas.so.11"


def test_nothing_is_linked_for_the_build_for_cpus(tmp_path: Path) -> None:
    (tmp_path / "mxnet").mkdir()
    assert link_libraries(tmp_path) == []
    assert list((tmp_path / "mxnet").iterdir()) == []
