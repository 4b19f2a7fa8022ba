"""The exported model: hashed, signed and published by the agent, never by the trainer."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast_node.contract.documents import JobDocument
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import MODEL_RECORD, ModelsBucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def snapshot_model(job: JobDocument, exported: Path, snapshot: Path, instance_id: str) -> None:
    """Copy what the trainer exported to a directory that the trainer cannot write, and add the model's record.

    The record binds the model to its job: a model of another job, signed with the same key, is not this one.

    Raises:
        HoldfastError: nothing was exported, or it holds anything but files and directories (a link could name a
            file that only the agent may read).
    """
    if exported.is_symlink():
        raise HoldfastError(f"{job.model_dir} must be a directory, got a link; export the files themselves")
    if (exported / MODEL_RECORD).exists():
        raise HoldfastError(f"{MODEL_RECORD} is written by the agent; the script must not export a file of that name")
    if not exported.is_dir() or not any(exported.iterdir()):
        raise HoldfastError(
            f"worker 0 exported no model; the script must write one to {job.model_dir}/ in its working directory "
            "(MODEL_DIR), or name another directory with `holdfast submit --model-dir`"
        )
    shutil.rmtree(snapshot, ignore_errors=True)
    snapshot.mkdir(parents=True)
    for path in sorted(exported.rglob("*")):
        target = snapshot / path.relative_to(exported)
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise HoldfastError(f"the exported model must hold files only, got {path.relative_to(exported)}")
        if path.is_dir():
            target.mkdir()
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink)
    record = {
        "version": 1,
        "job_id": job.job_id,
        "cluster": job.cluster,
        "engine": job.engine,
        "code_sha256": job.code.sha256,
        "instance_id": instance_id,
    }
    (snapshot / MODEL_RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def publish_model(
    s3: "S3Client", bucket: str, job: JobDocument, snapshot: Path, sign_model: Callable[[Path, str], bytes]
) -> str:
    """Upload the snapshot and, last, its signature; return the SHA-256 (hex) of the signature bundle.

    `sign_model(directory, name)` returns the model-signing bundle of a directory.
    """
    bundle = sign_model(snapshot, job.job_id)
    for path in sorted(path for path in snapshot.rglob("*") if path.is_file()):
        key = ModelsBucket.prefix(job.job_id) + path.relative_to(snapshot).as_posix()
        with path.open("rb") as body:
            s3.put_object(Bucket=bucket, Key=key, Body=body)
    s3.put_object(Bucket=bucket, Key=ModelsBucket.bundle(job.job_id), Body=bundle, ContentType="application/json")
    return hashlib.sha256(bundle).hexdigest()
