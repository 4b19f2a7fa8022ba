"""Bringing a published model from its bucket: only files that the signature lists, each checked as it arrives."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from holdfast_node.contract.layout import ModelsBucket
from holdfast_node.models import (
    MAX_BUNDLE_BYTES,
    MAX_FILE_BYTES,
    ModelRefused,
    VerifiedModel,
    check_content,
    load_verified,
    record_first,
    signed_files,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: The largest file that is fetched. What is signed are digests, without sizes: this is as much as MXNet can have had in
#: the memory of a GPU, and less than the disk that somebody with the bucket in hand would like to fill.
MAX_DOWNLOAD_BYTES = 80 << 30
_CHUNK_BYTES = 1 << 20
_MISSING = frozenset({"NoSuchKey", "404", "AccessDenied"})


def download(
    s3: "S3Client",
    bucket: str,
    key: str,
    path: Path,
    *,
    name: str,
    sha256: str,
    limit_bytes: int = MAX_DOWNLOAD_BYTES,
) -> None:
    """Write an object to a new file (0640 at most) if it has this SHA-256 (hex); `name` is the file's, for messages.

    Raises:
        ModelRefused: it has another digest, or is longer than `limit_bytes`, of which no more is read or written. The
            file is left; the directory is the caller's to drop.
    """
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    reply = s3.get_object(Bucket=bucket, Key=key)
    written, longer = (
        0,
        f"{name} must have at most {limit_bytes} bytes, and s3://{bucket}/{key} has more; do not load it",
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    with contextlib.closing(reply["Body"]) as body, os.fdopen(descriptor, "wb") as file:
        if reply["ContentLength"] > limit_bytes:
            raise ModelRefused(longer)
        for chunk in body.iter_chunks(_CHUNK_BYTES):
            written += len(chunk)
            if written > limit_bytes:
                raise ModelRefused(longer)
            digest.update(chunk)
            file.write(chunk)
    check_content(name, sha256, digest.hexdigest())


def fetch_model(
    s3: "S3Client", bucket: str, *, job_id: str, cluster: str, directory: Path, signature: Path, public_key_pem: bytes
) -> VerifiedModel:
    """Download the model of a job into `directory`, which must not exist, and its signature to `signature`; verified.

    Nothing is listed: what the signature names is what is asked for, so a file that was added in the bucket is never
    seen.

    Raises:
        ModelRefused: there is none that this node may read, or anything of it is not what was signed.
    """
    key = ModelsBucket.bundle(job_id)
    try:
        with contextlib.closing(s3.get_object(Bucket=bucket, Key=key)["Body"]) as body:
            bundle = body.read(MAX_BUNDLE_BYTES + 1)
        signed = signed_files(bundle, public_key_pem)
        directory.mkdir(mode=0o750)
        for name in record_first(signed):
            key = ModelsBucket.prefix(job_id) + name
            # A longer file could not be loaded.
            download(s3, bucket, key, directory / name, name=name, sha256=signed[name], limit_bytes=MAX_FILE_BYTES)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        if code not in _MISSING:
            raise
        raise ModelRefused(
            f"the model of job {job_id} cannot be fetched: s3://{bucket}/{key} is missing or not this node's to read "
            f"({code}); name a job that has published its model"
        ) from None
    signature.write_bytes(bundle)
    return load_verified(directory, signature, public_key_pem, job_id=job_id, cluster=cluster)
