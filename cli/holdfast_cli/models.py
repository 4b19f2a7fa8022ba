"""Fetching a job's model: verified in a private directory first, moved to its destination only then."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast_cli.aws import Cluster
from holdfast_cli.aws_errors import code_of
from holdfast_cli.errors import CliError, NotFoundError
from holdfast_cli.jobs import check_job_id
from holdfast_cli.verification import verify_model
from holdfast_node.contract.layout import ModelsBucket
from holdfast_node.fetching import download
from holdfast_node.models import (
    MAX_BUNDLE_BYTES,
    SIGNATURE_NAME,
    ModelRecord,
    ModelRefused,
    check_model_path,
    check_record,
    compare_names,
    load_public_key,
    record_first,
    signed_files,
)

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FetchedModel:
    """A verified model on this machine."""

    directory: Path
    record: ModelRecord
    files: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the model for JSON output."""
        return {
            "directory": str(self.directory),
            "signature": str(self.directory / SIGNATURE_NAME),
            "verified": True,
            "record": self.record.details,
            "files": self.files,
        }


def public_key(cluster: Cluster) -> bytes:
    """Return the PEM of the cluster's model signing key, from KMS.

    Raises:
        ModelRefused: the key is not the kind that signs models.
    """
    from cryptography.hazmat.primitives import serialization

    reply = cluster.client("kms").get_public_key(KeyId=cluster.model_signing_key)
    if reply["KeyUsage"] != "SIGN_VERIFY" or reply["KeySpec"] != "ECC_NIST_P256":
        raise ModelRefused(
            f"the model signing key of cluster {cluster.name} must be ECC_NIST_P256 for SIGN_VERIFY, got "
            f"{reply['KeySpec']} for {reply['KeyUsage']}"
        )
    key = serialization.load_der_public_key(reply["PublicKey"])
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return load_public_key(pem, "the cluster's model signing key")


def fetch(cluster: Cluster, job_id: str, destination: Path, report: Callable[[str], None]) -> FetchedModel:
    """Download the model of a job into `destination` and return it; verified before it appears there.

    The destination gets the model's files and, beside them, `model.sig`. It must not exist or be empty. On any
    mismatch nothing is written to it.

    Raises:
        NotFoundError: the job has published no model.
        ModelRefused: the signature, a file, the job or the cluster does not match.
        CliError: the destination cannot be used.
    """
    check_job_id(job_id)
    destination = _usable(destination)
    pem = public_key(cluster)
    report(f"reading the signature of {job_id}")
    bundle = _signature(cluster, job_id)
    signed = signed_files(bundle, pem)
    sizes = {check_model_path(name): size for name, size in _listing(cluster, job_id)}
    compare_names(set(signed), set(sizes))
    with _private_directory(destination) as scratch:
        model = scratch / "model"
        model.mkdir(mode=0o700)
        for index, name in enumerate(record_first(signed), start=1):
            report(f"downloading {name} ({index} of {len(signed)}, {sizes[name] / 1024:,.0f} KiB)")
            key = ModelsBucket.prefix(job_id) + name
            download(cluster.client("s3"), cluster.models_bucket, key, model / name, name=name, sha256=signed[name])
        (model / SIGNATURE_NAME).write_bytes(bundle)
        report("verifying the model")
        record = verify_model(model, model / SIGNATURE_NAME, pem).record
        check_record(record, job_id=job_id, cluster=cluster.name)
        try:
            model.rename(destination)  # replaces an empty directory, atomically
        except OSError as error:
            raise CliError(f"cannot move the model to {destination}: {error.strerror}; choose another --to") from None
    return FetchedModel(directory=destination, record=record, files=signed)


def _usable(destination: Path) -> Path:
    resolved = destination.resolve()
    if resolved.exists() and (not resolved.is_dir() or any(resolved.iterdir())):
        raise CliError(
            f"{destination} must not exist or be an empty directory; choose another --to, or remove it first"
        )
    if resolved == Path.cwd():
        raise CliError(f"{destination} is the current directory, which cannot be replaced; name a new directory in it")
    if not resolved.parent.is_dir():
        raise CliError(f"the directory {resolved.parent} does not exist; create it, or choose another --to")
    return resolved


@contextlib.contextmanager
def _private_directory(destination: Path) -> Iterator[Path]:
    """Yield a new directory (0700) beside the destination, on the same file system; gone afterwards."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise CliError(f"cannot write in {destination.parent}: {error.strerror}; choose another --to") from None
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _signature(cluster: Cluster, job_id: str) -> bytes:
    from botocore.exceptions import ClientError

    try:
        reply = cluster.client("s3").get_object(Bucket=cluster.models_bucket, Key=ModelsBucket.bundle(job_id))
    except ClientError as error:
        if code_of(error) not in {"NoSuchKey", "404"}:
            raise
        if any(True for _ in _listing(cluster, job_id)):
            raise ModelRefused(
                f"the model of job {job_id} has no signature; a model that nobody signed must not be used"
            ) from None
        raise NotFoundError(
            f"job {job_id} has published no model; see `holdfast status {job_id}` (a model appears when the job "
            "has succeeded and its script has written to $MODEL_DIR)"
        ) from None
    with contextlib.closing(reply["Body"]) as body:
        data: bytes = body.read(MAX_BUNDLE_BYTES + 1)
    return data


def _listing(cluster: Cluster, job_id: str) -> Iterator[tuple[str, int]]:
    prefix = ModelsBucket.prefix(job_id)
    pages = cluster.client("s3").get_paginator("list_objects_v2").paginate(Bucket=cluster.models_bucket, Prefix=prefix)
    for page in pages:
        for item in page.get("Contents", []):
            yield item["Key"].removeprefix(prefix), item["Size"]
