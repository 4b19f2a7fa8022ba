"""The exported model: hashed, signed and published by the agent, never by the trainer."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast_node.contract.documents import JobDocument
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import MODEL_RECORD, ModelsBucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def snapshot_model(job: JobDocument, work: Path, snapshot: Path, instance_id: str) -> None:
    """Copy what the trainer exported below `work` to a directory it cannot write, and add the model's record.

    The record binds the model to its job: a model of another job, signed with the same key, is not this one.
    No link is followed, in no part of any path, even if one is put there while this runs: the agent may read what
    the trainer may not.

    Raises:
        HoldfastError: nothing was exported, or it holds anything but files and directories.
    """
    shutil.rmtree(snapshot, ignore_errors=True)
    snapshot.mkdir(parents=True)
    try:
        root = _open_below(work, job.model_dir)
    except FileNotFoundError:
        raise _nothing_exported(job) from None
    except OSError:
        raise HoldfastError(f"{job.model_dir} must be a directory, got something else or a link") from None
    try:
        copied = 0
        for directory, directories, files, descriptor in os.fwalk(".", dir_fd=root, follow_symlinks=False):
            for name in directories:
                _require_kind(descriptor, name, stat.S_ISDIR, Path(directory))
                (snapshot / directory / name).mkdir()
            for name in files:
                _copy(descriptor, name, snapshot / directory / name, Path(directory))
                copied += 1
    finally:
        os.close(root)
    if not copied:
        raise _nothing_exported(job)
    if (snapshot / MODEL_RECORD).exists():
        raise HoldfastError(f"{MODEL_RECORD} is written by the agent; the script must not export a file of that name")
    record = {
        "version": 1,
        "job_id": job.job_id,
        "cluster": job.cluster,
        "engine": job.engine,
        "code_sha256": job.code.sha256,
        "instance_id": instance_id,
    }
    (snapshot / MODEL_RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def _nothing_exported(job: JobDocument) -> HoldfastError:
    return HoldfastError(
        f"worker 0 exported no model; the script must write one to {job.model_dir}/ in its working directory "
        "(MODEL_DIR), or name another directory with `holdfast submit --model-dir`"
    )


def _open_below(base: Path, relative: str) -> int:
    """Open a directory below `base`, refusing a link in any component of `relative`; the caller closes it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(base, flags)
    for part in Path(relative).parts:
        parent = descriptor
        try:
            descriptor = os.open(part, flags, dir_fd=parent)
        finally:
            os.close(parent)
    return descriptor


def _require_kind(directory: int, name: str, is_kind: Callable[[int], bool], where: Path) -> None:
    if not is_kind(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        raise HoldfastError(f"the exported model must hold files and directories only, got {where / name}")


def _copy(directory: int, name: str, target: Path, where: Path) -> None:
    _require_kind(directory, name, stat.S_ISREG, where)
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as source, target.open("xb") as sink:
        shutil.copyfileobj(source, sink)


def publish_model(
    s3: "S3Client", bucket: str, job: JobDocument, snapshot: Path, sign_model: Callable[[Path, str], bytes]
) -> str:
    """Upload the snapshot and, last, its signature; return the SHA-256 (hex) of the signature bundle.

    `sign_model(directory, name)` returns the model-signing bundle of a directory.
    """
    bundle = sign_model(snapshot, job.job_id)
    for path in sorted(path for path in snapshot.rglob("*") if path.is_file()):
        key = ModelsBucket.prefix(job.job_id) + path.relative_to(snapshot).as_posix()
        s3.upload_file(str(path), bucket, key)  # in parts where it is large: a single request ends at 5 GiB
    s3.put_object(Bucket=bucket, Key=ModelsBucket.bundle(job.job_id), Body=bundle, ContentType="application/json")
    return hashlib.sha256(bundle).hexdigest()
