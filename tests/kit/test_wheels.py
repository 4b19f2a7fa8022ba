"""Wheels that are packed when they are published: by a recorded digest, or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import aws_cdk as cdk
import pytest
from tests.kit.support import ROOT, Deployment

from holdfast import ClusterFoundation, PropertyError
from holdfast.bundle import GPU_LOCK
from holdfast.errors import BundleError
from holdfast.packing import file_digest
from holdfast.wheels import recorded

LOCK = ROOT / "node" / GPU_LOCK


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A lock file of one small package."""
    lines = (ROOT / "node/requirements.txt").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("six=="))
    end = next(index for index in range(start, len(lines)) if lines[index].lstrip().startswith("#"))
    lock = tmp_path / "small.txt"
    lock.write_text("\n".join(lines[start:end]).rstrip("\\ ") + "\n")
    return lock


def pack(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'constructs'}{os.pathsep}{ROOT / 'node'}"}
    return subprocess.run(
        [sys.executable, "-m", "holdfast.wheels", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_gpu_lock_has_a_record_of_its_wheels() -> None:
    assert len(recorded(LOCK)) == 64


def test_the_recorded_digest_is_that_of_the_packed_wheels() -> None:
    packed = [path for path in (ROOT / ".build").glob("wheelhouse-*.zip") if path.stat().st_size > 1 << 30]
    if not packed:
        pytest.skip("the wheels (1.9 GB) were never packed here: python -m holdfast.wheels packs and compares them")
    assert recorded(LOCK) in {file_digest(path) for path in packed}


def test_a_lock_that_was_renewed_without_its_record_is_refused(small: Path) -> None:
    with pytest.raises(
        BundleError, match=r"small\.sha256 must record the SHA-256 of small\.txt as it is.*got \[\]; run"
    ):
        recorded(small)
    small.with_suffix(".sha256").write_text(f"{'0' * 64}  small.txt\n{'1' * 64}  small.zip\n")
    with pytest.raises(BundleError, match=r"got \['small\.txt', 'small\.zip'\]"):
        recorded(small)


def test_wheels_are_packed_as_recorded_and_no_others(small: Path, tmp_path: Path) -> None:
    made = pack(small, tmp_path / "cache", "--record")
    assert made.returncode == 0, made.stderr
    packed = Path(made.stdout.strip())
    assert recorded(small) == file_digest(packed)
    again = pack(small, tmp_path / "another", recorded(small))
    assert again.returncode == 0, again.stderr
    assert file_digest(Path(again.stdout.strip())) == recorded(small)
    refused = pack(small, tmp_path / "cache", "0" * 64)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"must pack to the SHA-256 {'0' * 64}, got {recorded(small)}; the lock and its record" in refused.stderr


def test_the_command_that_packs_them_is_in_the_manifest_and_nothing_is_downloaded_at_synthesis(dev: Deployment) -> None:
    manifest = json.loads((dev.directory / "Holdfast-dev-Foundation.assets.json").read_text())
    (asset,) = [file for file in manifest["files"].values() if "executable" in file["source"]]
    command = asset["source"]["executable"]
    assert command[-1] == recorded(LOCK)
    assert "holdfast.wheels" in command
    result = subprocess.run([*command[:-1], "--help"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (destination,) = asset["destinations"].values()
    assert destination["objectKey"] == recorded(LOCK)


def test_clusters_without_gpus_publish_no_cuda(local: Deployment) -> None:
    assert "executable" not in (local.directory / "Holdfast-local-Foundation.assets.json").read_text()


def test_a_gpu_fleet_needs_wheels_that_are_published(tmp_path: Path) -> None:
    context = json.loads((ROOT / "cdk.json").read_text())["context"]
    stack = cdk.Stack(cdk.App(outdir=str(tmp_path), analytics_reporting=False, context=context), "Vision")
    foundation = ClusterFoundation(
        stack, "Foundation", cluster_name="vision", cache_directory=ROOT / ".build", node_source=ROOT / "node"
    )
    with pytest.raises(PropertyError, match=r"a fleet with gpu=True needs ClusterFoundation\(gpu=True\)"):
        foundation.wheels(gpu=True)
    assert foundation.wheels() is foundation.wheelhouse
