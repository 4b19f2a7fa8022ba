"""Whatever ends the writer, what is there afterwards is a whole checkpoint: the one before, or the new one."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.engine.conftest import PYTHON, node_environment

SCRIPTS = Path(__file__).parent / "in_node"


def run(name: str, argument: object, *prefix: str) -> dict[str, Any]:
    done = subprocess.run(
        [*prefix, str(PYTHON), str(SCRIPTS / name)],
        input=json.dumps(argument),
        env=node_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder where flushing takes no time: no power is cut here, only processes are killed."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_writer_killed_at_any_byte_or_step_leaves_the_checkpoint_before_or_the_new_one(in_memory: Path) -> None:
    result = run("killing.py", {"root": str(in_memory), "kind": "plain", "bytes": 430, "stride": 1})
    assert result["cut"] == result["manifest"]  # every byte of the largest file, so of every file
    assert result["steps"] > 30
    assert result["kept"] > result["cut"] and result["moved"] > 5
    assert result["left"] == []  # the next writer removes what the dead have left


def test_a_killed_training_script_leaves_the_checkpoint_before_or_the_new_one(in_memory: Path) -> None:
    result = run("killing.py", {"root": str(in_memory), "kind": "gluon", "bytes": 16_000, "stride": 1000})
    assert result["cut"] > 10 and result["steps"] > 40
    assert result["kept"] > result["cut"] and result["moved"] > 5
    assert result["left"] == []


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happens on a file system of 256 KiB, mounted for that process alone."""
    disk = tmp_path_factory.mktemp("disk")
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True, timeout=30, check=False).returncode:
        pytest.skip("needs root or unprivileged user namespaces to mount a small file system")
    mount = ["sh", "-c", 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"', str(disk)]
    return run("full_disk.py", str(disk), *unshare, *mount)


def test_vanilla_mxnet_calls_a_cut_file_saved_and_has_overwritten_the_good_one(full_disk: dict[str, Any]) -> None:
    assert full_disk["vanilla"] == ["saved", "MXNetError", ["net.params"]]


def test_on_a_full_disk_an_unchanged_script_gets_an_error_and_keeps_its_file(full_disk: dict[str, Any]) -> None:
    message, arrays, files = full_disk["installed"]
    assert message.startswith("CheckpointError: net.params does not fit in ")
    assert "No space left on device, 8,192 bytes are free; make room, or keep fewer checkpoints" in message
    assert (arrays, files) == (1, ["net.params"])


def test_on_a_full_disk_a_checkpoint_fails_with_a_remedy_and_the_one_before_survives(full_disk: dict[str, Any]) -> None:
    assert full_disk["failed"] > 2
    assert f"CheckpointError: checkpoint step-{full_disk['failed']:08d} was not written: " in full_disk["message"]
    assert "No space left on device" in full_disk["message"]
    assert "([checkpoints] keep_last): there must be room for one more than are kept" in full_disk["message"]
    assert full_disk["latest"] == f"step-{full_disk['failed'] - 1:08d}"
    assert full_disk["left"] == []
    assert (full_disk["room"], full_disk["afterwards"]) == ("saved", "step-00000009")
