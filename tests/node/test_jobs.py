"""Nodes verify a job before a byte of it is used. The bucket is a dictionary; the signatures are real (P-256)."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.node.support import JOB

from holdfast_node.contract import dsse
from holdfast_node.contract.documents import CodeArchive, JobDocument
from holdfast_node.contract.errors import VerificationError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.jobs import load_job, unpack_code

KEY = ec.generate_private_key(ec.SECP256R1())


class Bucket(dict[str, bytes]):
    denial = ""

    def read(self, key: str, limit_bytes: int = 1 << 20) -> bytes | None:
        return self.get(key)

    download = read


def sign_with(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    return lambda message: key.sign(message, ec.ECDSA(hashes.SHA256()))


def verify(signature: bytes, message: bytes) -> None:
    try:
        KEY.public_key().verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise VerificationError("the signature does not match") from None


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


SCRIPT = (tarfile.TarInfo("train.py"), b"print('hello')\n")
GOOD = archive(SCRIPT)


def job_for(code: bytes) -> JobDocument:
    return replace(JOB, code=CodeArchive(sha256=hashlib.sha256(code).hexdigest(), size=len(code)))


def bucket_with(job: JobDocument, code: bytes = GOOD, key: ec.EllipticCurvePrivateKey = KEY) -> Bucket:
    envelope = dsse.seal(dsse.JOB_PAYLOAD_TYPE, job.to_json(), sign_with(key))
    return Bucket({JobsBucket.job_document("digits-1"): envelope, JobsBucket.job_code("digits-1"): code})


def test_signed_job_is_loaded_and_unpacked(tmp_path: Path) -> None:
    bucket = bucket_with(job_for(GOOD))
    job = load_job(bucket, "digits-1", cluster="demo", verify=verify)  # type: ignore[arg-type]
    unpack_code(bucket, job, tmp_path / "code")  # type: ignore[arg-type]
    assert (tmp_path / "code/train.py").read_bytes() == SCRIPT[1]


REFUSED_DOCUMENTS = {
    "an unsigned job": (Bucket(), "job digits-1 has no signed document"),
    "another key": (
        bucket_with(job_for(GOOD), key=ec.generate_private_key(ec.SECP256R1())),
        "the signature does not match",
    ),
    "another job's document": (bucket_with(replace(job_for(GOOD), job_id="other-1")), "was signed for job other-1"),
    "another cluster's document": (bucket_with(replace(job_for(GOOD), cluster="prod")), "of cluster prod"),
}


@pytest.mark.parametrize(("bucket", "message"), REFUSED_DOCUMENTS.values(), ids=REFUSED_DOCUMENTS)
def test_node_refuses_the_document(bucket: Bucket, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        load_job(bucket, "digits-1", cluster="demo", verify=verify)  # type: ignore[arg-type]


def outside(name: str, **attributes: object) -> bytes:
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return archive(SCRIPT, (info, b""))


UNSAFE = {
    "a path that climbs": outside("../escape"),
    "a path that climbs inside": outside("data/../../escape"),
    "an absolute path": outside("/tmp/escape"),
    "a name with control characters": outside("a\x1b[2Jb"),
    "a file twice": archive(SCRIPT, SCRIPT),
    "a link that leaves": outside("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link that leaves": outside("link", type=tarfile.LNKTYPE, linkname="../../etc/passwd"),
    "a device": outside("null", type=tarfile.CHRTYPE),
    "no archive": b"not a tar",
    "a truncated archive": GOOD[: len(GOOD) // 2],
}


@pytest.mark.parametrize("code", UNSAFE.values(), ids=UNSAFE)
def test_unsafe_archive_is_refused_and_leaves_nothing(code: bytes, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="is not a safe archive"):
        unpack_code(bucket_with(job_for(code), code), job_for(code), tmp_path / "code")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_names_with_spaces_and_letters_of_any_script_are_kept(tmp_path: Path) -> None:
    code = archive(SCRIPT, (tarfile.TarInfo("data/größe 1.csv"), b"1"))
    unpack_code(bucket_with(job_for(code), code), job_for(code), tmp_path / "code")  # type: ignore[arg-type]
    assert (tmp_path / "code/data/größe 1.csv").read_bytes() == b"1"


def test_code_that_changed_after_signing_is_refused(tmp_path: Path) -> None:
    tampered = archive((tarfile.TarInfo("train.py"), b"import os\n"))
    with pytest.raises(VerificationError, match="it was changed after it was signed"):
        unpack_code(bucket_with(job_for(GOOD), tampered), job_for(GOOD), tmp_path / "code")  # type: ignore[arg-type]
    assert not (tmp_path / "code").exists()


def test_missing_entry_is_refused(tmp_path: Path) -> None:
    code = archive((tarfile.TarInfo("other.py"), b""))
    with pytest.raises(VerificationError, match=r"has no file train\.py"):
        unpack_code(bucket_with(job_for(code), code), job_for(code), tmp_path / "code")  # type: ignore[arg-type]
