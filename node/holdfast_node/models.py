"""A signed model: verified before a byte of it is used, on a node as on an operator's machine.

Format: OpenSSF model signing v1 (a Sigstore bundle v0.3 whose DSSE envelope holds an in-toto statement), as
`holdfast_node.signing` writes it. A node needs nothing but `cryptography` for this; the operator's commands have the
official library judge the same directory besides. What that library leaves open is closed here: it ignores `.git*`
paths and whatever paths the statement tells it to, accepts other serializations, and knows nothing of jobs. So the
signed list must name exactly the files that are there, and the signed `holdfast-model.json` must name the job and the
cluster (docs/adr/0010-verified-models.md).
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from holdfast_node.contract import dsse
from holdfast_node.contract.documents import JOB_ID_PATTERN, RELATIVE_PATH_PATTERN, SHA256_PATTERN
from holdfast_node.contract.errors import HoldfastError, VerificationError
from holdfast_node.contract.layout import MODEL_RECORD
from holdfast_node.contract.roles import CLUSTER_PATTERN

SIGNATURE_NAME = "model.sig"
STATEMENT_PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
RECORD_VERSION = 1
MAX_RECORD_BYTES = 1 << 16
#: A bundle is its envelope and a few hundred bytes around it.
MAX_BUNDLE_BYTES = 2 * dsse.MAX_ENVELOPE_BYTES
#: The most that is read of a model's file at once, to be loaded.
MAX_FILE_BYTES = 4 << 30


class ModelRefused(VerificationError):  # noqa: N818 - a verdict, not a malfunction
    """A model does not match its signature, its job or its cluster; none of it may be used."""


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What the signed `holdfast-model.json` says: the job and cluster that made this model, and more for display."""

    job_id: str
    cluster: str
    details: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class VerifiedModel:
    """A directory that held exactly what was signed.

    `files` are the SHA-256 (hex) of its files by relative path, `bundle` is the signature that lists them.
    """

    directory: Path
    record: ModelRecord
    files: dict[str, str]
    bundle: bytes

    def read(self, name: str) -> bytes:
        """Return a file's bytes, which are the signed ones whatever has happened to the directory since.

        Load a model from these bytes and not from the path: what is checked is then what is used.

        Raises:
            ModelRefused: the model has no such file, or its bytes are not the signed ones.
        """
        if name not in self.files:
            raise ModelRefused(f"the model has no file {name[:200]!r}, it has {sorted(self.files)[:20]}")
        with _open(self.directory, name) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if (digest := hashlib.sha256(data).hexdigest()) != self.files[name]:
            raise ModelRefused(content_differs(name, self.files[name], digest))
        return data


def verify_model(directory: Path, signature: Path, public_key_pem: bytes) -> VerifiedModel:
    """Return the model in `directory` if it holds exactly what `signature` lists, byte for byte.

    The signature may lie inside the directory; every other file must be signed. No link is followed.

    Args:
        directory: the model.
        signature: its bundle, at most 2 MiB.
        public_key_pem: the cluster's model signing key, as `load_public_key` or `signing.public_key_pem` give it.

    Raises:
        ModelRefused: any difference, a link or special file, or no valid record; the message names the file.
    """
    if not directory.is_dir():
        raise ModelRefused(f"no directory {directory}; give the directory that `holdfast fetch` wrote")
    if not signature.is_file():
        raise ModelRefused(
            f"no signature at {signature}; a model without its signature cannot be trusted: fetch it again, or name "
            "the signature with --signature FILE"
        )
    with signature.open("rb") as file:
        bundle = file.read(MAX_BUNDLE_BYTES + 1)
    signed = signed_files(bundle, public_key_pem)
    own = _relative(signature, directory)
    compare_names(set(signed), {name for name in _walk(directory) if name != own})
    for name in record_first(signed):
        with _open(directory, name) as file:
            check_content(name, signed[name], hashlib.file_digest(file, "sha256").hexdigest())
    return VerifiedModel(directory=directory, record=_record(directory, signed), files=signed, bundle=bundle)


def load_verified(
    directory: Path, signature: Path, public_key_pem: bytes, *, job_id: str, cluster: str
) -> VerifiedModel:
    """Return the model of this job of this cluster, verified.

    Raises:
        ModelRefused: see `verify_model` and `check_record`.
    """
    model = verify_model(directory, signature, public_key_pem)
    check_record(model.record, job_id=job_id, cluster=cluster)
    return model


def check_record(record: ModelRecord, *, job_id: str | None = None, cluster: str | None = None) -> None:
    """Raise ModelRefused unless the signed record names this job and this cluster (where given)."""
    if cluster is not None and record.cluster != cluster:
        raise ModelRefused(f"this model was made by cluster {record.cluster}, not by {cluster}; do not load it as such")
    if job_id is not None and record.job_id != job_id:
        raise ModelRefused(f"this model was made by job {record.job_id}, not by {job_id}; somebody swapped the models")


def signed_files(bundle: bytes, public_key_pem: bytes) -> dict[str, str]:
    """Return the SHA-256 (hex) of every signed file by its path, once the bundle's own signature has been verified.

    Raises:
        ModelRefused: not such a bundle, made with another key, or not a list of plain files.
    """
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise ModelRefused(f"{SIGNATURE_NAME} must be at most {MAX_BUNDLE_BYTES} bytes; this is no signature")
    try:
        parsed = json.loads(bundle)
        hint = parsed["verificationMaterial"]["publicKey"]["hint"]
        envelope = json.dumps(parsed["dsseEnvelope"]).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelRefused(
            f"{SIGNATURE_NAME} is not an OpenSSF model signature (a Sigstore bundle); it is damaged or something else"
        ) from None
    if hint != hashlib.sha256(public_key_pem).hexdigest():
        raise ModelRefused(
            f"{SIGNATURE_NAME} was not made with this cluster's model signing key: it names the key {str(hint)[:64]}"
        )
    try:
        payload = dsse.unseal(
            STATEMENT_PAYLOAD_TYPE, envelope, lambda sig, message: _check(public_key_pem, sig, message)
        )
    except HoldfastError as error:
        raise ModelRefused(f"{SIGNATURE_NAME}: {error}") from None
    return _resources(payload)


def compare_names(signed: set[str], present: set[str]) -> None:
    """Raise ModelRefused unless the same files are present as were signed; the message names the first difference."""
    added, missing = sorted(present - signed), sorted(signed - present)
    if added and missing:
        raise ModelRefused(
            f"{added[0]} is not part of the signed model{_others(added)}, and {missing[0]}, which is, is missing"
            f"{_others(missing)}; files were renamed or exchanged after signing"
        )
    if added:
        raise ModelRefused(
            f"{added[0]} is not part of the signed model{_others(added)}; somebody added it after signing"
        )
    if missing:
        raise ModelRefused(f"{missing[0]} is missing: the signature lists it{_others(missing)}; it was removed")


def record_first(names: Iterable[str]) -> list[str]:
    """Return the files' names in the order in which they are to be checked: the record says which model it is."""
    return sorted(names, key=lambda name: (name != MODEL_RECORD, name))


def check_content(name: str, expected: str, actual: str) -> None:
    """Raise ModelRefused unless a file's SHA-256 (hex) is the signed one."""
    if actual == expected:
        return
    if name == MODEL_RECORD:
        raise ModelRefused(
            f"{name} is not what was signed: {SIGNATURE_NAME} is another model's signature, or the record was "
            f"changed (its SHA-256 must be {expected}, got {actual}); do not load this model"
        )
    raise ModelRefused(content_differs(name, expected, actual))


def content_differs(name: str, expected: str, actual: str) -> str:
    """Return the message for a file whose bytes are not the signed ones."""
    return f"{name} is not what was signed: its SHA-256 must be {expected}, got {actual}; do not load this model"


def check_model_path(name: str) -> str:
    """Return the relative path of a model's file if it is safe to create below a directory.

    Raises:
        ModelRefused: absolute, with `..`, not in normal form, or with characters outside letters, digits and `._-/`.
    """
    if not RELATIVE_PATH_PATTERN.fullmatch(name) or str(PurePosixPath(name)) != name:
        raise ModelRefused(f"the file name {name[:200]!r} is not a plain relative path; it could leave the directory")
    if name == SIGNATURE_NAME:
        raise ModelRefused(f"the model holds a file named {SIGNATURE_NAME}, which is reserved for the signature")
    return name


def load_public_key(pem: bytes, where: str) -> bytes:
    """Return the P-256 public key in `pem` in the one form that signatures name it by.

    Raises:
        ModelRefused: no such key; `where` names the place for the message.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ModelRefused(f"{where} is not a PEM public key; get it with `holdfast public-key`") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ModelRefused(f"{where} must be an ECDSA key on P-256; models are signed with nothing else")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _check(public_key_pem: bytes, signature: bytes, message: bytes) -> None:
    key = load_pem_public_key(public_key_pem)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise VerificationError("the signature does not match; its content or the key is not what was signed") from None


def _resources(payload: bytes) -> dict[str, str]:
    try:
        statement = json.loads(payload)
        kind = (statement["_type"], statement["predicateType"])
        serialization = statement["predicate"]["serialization"]
        method = (serialization["method"], serialization["hash_type"])
        entries = [(item["name"], item["algorithm"], item["digest"]) for item in statement["predicate"]["resources"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelRefused(f"{SIGNATURE_NAME} does not hold a model signing statement") from None
    if kind != (STATEMENT_TYPE, PREDICATE_TYPE) or method != ("files", "sha256"):
        raise ModelRefused(
            f"{SIGNATURE_NAME} must be a {PREDICATE_TYPE} statement over files with sha256, "
            f"got {kind[1]!r} over {method}"
        )
    files: dict[str, str] = {}
    for name, algorithm, digest in entries:
        if not all(isinstance(part, str) for part in (name, algorithm, digest)):
            raise ModelRefused(f"{SIGNATURE_NAME} lists a file whose name or digest is not text")
        check_model_path(name)
        if algorithm != "sha256" or not SHA256_PATTERN.fullmatch(digest) or name in files:
            raise ModelRefused(f"{SIGNATURE_NAME} lists {name} twice or without a SHA-256 digest")
        files[name] = digest
    if MODEL_RECORD not in files:
        raise ModelRefused(f"{SIGNATURE_NAME} does not cover {MODEL_RECORD}, so nothing binds this model to a job")
    return files


def _record(directory: Path, signed: dict[str, str]) -> ModelRecord:
    with _open(directory, MODEL_RECORD) as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    if hashlib.sha256(data).hexdigest() != signed[MODEL_RECORD]:
        raise ModelRefused(f"{MODEL_RECORD} must be at most {MAX_RECORD_BYTES} bytes and what was signed")
    try:
        record = json.loads(data)
        version, job_id, cluster = record["version"], record["job_id"], record["cluster"]
        valid = version == RECORD_VERSION and JOB_ID_PATTERN.fullmatch(job_id) and CLUSTER_PATTERN.fullmatch(cluster)
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = None
    if not valid:
        raise ModelRefused(f"{MODEL_RECORD} is not a version {RECORD_VERSION} record with a job_id and a cluster")
    return ModelRecord(job_id=job_id, cluster=cluster, details=record)


def _open(directory: Path, name: str) -> BufferedReader:
    """Open a file of the model that is itself no link; never waits for a pipe."""
    try:
        descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelRefused(f"{name} cannot be read: {error.strerror}; do not load this model") from None
    return os.fdopen(descriptor, "rb")


def _walk(directory: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(directory, onerror=_raise):
        for name in [*subfolders, *names]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ModelRefused(
                    f"{path.relative_to(directory)} is a link or a special file; a signed model has none"
                )
            if stat.S_ISREG(mode):
                yield path.relative_to(directory).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _relative(signature: Path, directory: Path) -> str | None:
    resolved, root = signature.resolve(), directory.resolve()
    return resolved.relative_to(root).as_posix() if resolved.is_relative_to(root) else None


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
