"""A job on a node: verified before a byte of it is used."""

import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from holdfast_node.contract import dsse
from holdfast_node.contract.documents import JobDocument
from holdfast_node.contract.errors import VerificationError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.store import Store

#: What `holdfast submit` packs at most, and what it may unpack to.
MAX_ARCHIVE_BYTES = 256 << 20
MAX_UNPACKED_BYTES = 1 << 30


def load_job(store: Store, job_id: str, *, cluster: str, verify: Callable[[bytes, bytes], None]) -> JobDocument:
    """Return the job's document, its signature verified and its names checked.

    Raises:
        VerificationError: missing, not signed by the job-signing key, or of another job or cluster.
        DocumentError: signed, but not a job document.
    """
    envelope = store.read(JobsBucket.job_document(job_id), dsse.MAX_ENVELOPE_BYTES + 1)
    if envelope is None:
        raise VerificationError(f"job {job_id} has no signed document{store.denial}; submit it with `holdfast submit`")
    job = JobDocument.parse(dsse.unseal(dsse.JOB_PAYLOAD_TYPE, envelope, verify))
    if (job.job_id, job.cluster) != (job_id, cluster):
        raise VerificationError(
            f"the document of job {job_id} was signed for job {job.job_id} of cluster {job.cluster}; submit it again"
        )
    return job


def unpack_code(store: Store, job: JobDocument, destination: Path) -> None:
    """Fetch the job's code archive, check it against the signed digest, and unpack it to `destination`.

    Raises:
        VerificationError: missing, another digest or size, or an archive that reaches outside (links, devices,
            absolute paths) or is larger than 1 GiB unpacked. Nothing is left.
    """
    archive = store.download(JobsBucket.job_code(job.job_id), MAX_ARCHIVE_BYTES)
    if archive is None:
        raise VerificationError(f"job {job.job_id} has no code archive{store.denial}; submit it again")
    digest = hashlib.sha256(archive).hexdigest()
    if digest != job.code.sha256 or len(archive) != job.code.size:
        raise VerificationError(
            f"the code of job {job.job_id} must have SHA-256 {job.code.sha256}, got {digest}; "
            "it was changed after it was signed"
        )
    shutil.rmtree(destination, ignore_errors=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            _extract(tar, destination)
    except (tarfile.TarError, OSError, EOFError, zlib.error, VerificationError) as error:
        shutil.rmtree(destination, ignore_errors=True)
        raise VerificationError(f"the code of job {job.job_id} is not a safe archive: {error}") from None
    if not (destination / job.entry).is_file():
        raise VerificationError(f"the code of job {job.job_id} has no file {job.entry}")


def _extract(tar: tarfile.TarFile, destination: Path) -> None:
    """Write the archive's files below `destination`. Only plain files and directories with tame names are known.

    tarfile's own `data` filter (PEP 706) came with Python 3.11.4; Debian 12 has 3.11.2.
    """
    destination.mkdir(parents=True)
    unpacked = 0
    for member in tar:
        if not _is_below(member.name) or not (member.isreg() or member.isdir()):
            raise VerificationError(f"{member.name[:100]!r} is not a file or directory below the archive's root")
        unpacked += member.size
        if unpacked > MAX_UNPACKED_BYTES:
            raise VerificationError(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        target = destination / member.name
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(member)
        assert source is not None  # a regular file
        with source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink)
        if member.mode & 0o100:
            target.chmod(target.stat().st_mode | 0o110)


def _is_below(name: str) -> bool:
    """Whether a member's name is relative, printable, and climbs nowhere."""
    return name.isprintable() and not name.startswith("/") and ".." not in name.split("/")
