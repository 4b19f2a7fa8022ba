"""The agent publishes what worker 0 exported; S3 is a list of uploads, files and links are real."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.node.support import JOB

from holdfast_node.contract.errors import HoldfastError
from holdfast_node.publish import publish_model, snapshot_model


class Uploads:
    def __init__(self) -> None:
        self.keys: list[str] = []

    def upload_file(self, path: str, bucket: str, key: str) -> None:
        assert Path(path).is_file()
        self.keys.append(key)

    def put_object(self, **request: Any) -> None:
        self.keys.append(request["Key"])


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    (tmp_path / "model/deep").mkdir(parents=True)
    (tmp_path / "model/net.params").write_bytes(b"weights")
    (tmp_path / "model/deep/net.json").write_text("{}")
    return tmp_path / "model"


def test_snapshot_holds_the_files_and_a_record_of_the_job(exported: Path, tmp_path: Path) -> None:
    snapshot_model(JOB, exported.parent, tmp_path / "snapshot", "i-0123456789")
    files = {path.relative_to(tmp_path / "snapshot").as_posix() for path in (tmp_path / "snapshot").rglob("*.*")}
    assert files == {"net.params", "deep/net.json", "holdfast-model.json"}
    record = json.loads((tmp_path / "snapshot/holdfast-model.json").read_text())
    assert (record["job_id"], record["cluster"], record["code_sha256"]) == ("digits-1", "demo", "a" * 64)


def test_a_record_that_the_trainer_wrote_does_not_stand(exported: Path, tmp_path: Path) -> None:
    (exported / "holdfast-model.json").write_text('{"job_id": "another"}')
    with pytest.raises(HoldfastError, match=r"holdfast-model\.json is written by the agent"):
        snapshot_model(JOB, exported.parent, tmp_path / "snapshot", "i-0123456789")


@pytest.mark.parametrize("exists", [False, True], ids=["no directory", "an empty directory"])
def test_nothing_exported_is_an_error_that_says_where_to_write(exists: bool, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "model").mkdir()
    with pytest.raises(HoldfastError, match="must write one to model/ in its working directory"):
        snapshot_model(JOB, tmp_path, tmp_path / "snapshot", "i-0123456789")


@pytest.mark.parametrize("target", ["/etc/hostname", "net.params", "/"], ids=["outside", "inside", "a directory"])
def test_links_are_refused_because_the_agent_may_read_more_than_the_trainer(
    target: str, exported: Path, tmp_path: Path
) -> None:
    (exported / "link").symlink_to(target)
    with pytest.raises(HoldfastError, match="must hold files and directories only, got link"):
        snapshot_model(JOB, exported.parent, tmp_path / "snapshot", "i-0123456789")


def test_pipes_are_refused_and_not_waited_for(exported: Path, tmp_path: Path) -> None:
    os.mkfifo(exported / "deep/pipe")
    with pytest.raises(HoldfastError, match="must hold files and directories only, got deep/pipe"):
        snapshot_model(JOB, exported.parent, tmp_path / "snapshot", "i-0123456789")


@pytest.mark.parametrize("model_dir", ["link", "link/deep"], ids=["the directory itself", "a part of its path"])
def test_a_model_directory_behind_a_link_is_refused(model_dir: str, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(exported)
    with pytest.raises(HoldfastError, match=f"{model_dir} must be a directory, got something else or a link"):
        snapshot_model(replace(JOB, model_dir=model_dir), tmp_path, tmp_path / "snapshot", "i-0123456789")


def test_signature_is_uploaded_last_so_that_no_unsigned_model_looks_complete(exported: Path, tmp_path: Path) -> None:
    snapshot_model(JOB, exported.parent, tmp_path / "snapshot", "i-0123456789")
    uploads = Uploads()
    publish_model(uploads, "models", JOB, tmp_path / "snapshot", lambda directory, name: b"bundle")  # type: ignore[arg-type]
    assert uploads.keys == [
        "models/digits-1/files/deep/net.json",
        "models/digits-1/files/holdfast-model.json",
        "models/digits-1/files/net.params",
        "models/digits-1/model.sig",
    ]
