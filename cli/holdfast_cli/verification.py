"""Does this directory hold exactly the model that was signed, for this job and this cluster?

Format: OpenSSF model signing v1 (a Sigstore bundle v0.3 whose DSSE envelope holds an in-toto statement). The official
`model_signing` library decides; what it leaves open is closed here: it ignores `.git*` paths and whatever paths the
statement tells it to, accepts other serializations, and knows nothing of jobs. So the signed list must name exactly the
files that are there, and the signed `holdfast-model.json` must name the job and the cluster.
"""

import contextlib
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from holdfast_cli.errors import ModelRefused
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


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What the signed `holdfast-model.json` says: the job and cluster that made this model, and more for display."""

    job_id: str
    cluster: str
    details: dict[str, Any]


def signed_files(bundle: bytes, public_key_pem: bytes) -> dict[str, str]:
    """Return the SHA-256 (hex) of every signed file by its path, once the bundle's own signature has been verified.

    Raises:
        ModelRefused: not such a bundle, made with another key, or not a list of plain files.
    """
    try:
        parsed = json.loads(bundle)
        hint = parsed["verificationMaterial"]["publicKey"]["hint"]
        envelope = json.dumps(parsed["dsseEnvelope"]).encode()
    except (ValueError, KeyError, TypeError):
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


def verify_model(directory: Path, signature: Path, public_key_pem: bytes) -> ModelRecord:
    """Return the model's record if `directory` holds exactly what `signature` lists, byte for byte.

    The signature may lie inside the directory; every other file must be signed.

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
    bundle = signature.read_bytes()
    signed = signed_files(bundle, public_key_pem)
    own = _relative(signature, directory)
    present = {name for name in _walk(directory) if name != own}
    compare_names(set(signed), present)
    _verify_officially(directory, bundle, own, public_key_pem, signed)
    return _record(directory, signed)


def compare_names(signed: set[str], present: set[str]) -> None:
    """Raise ModelRefused unless the same files are present as were signed; the message names the first difference."""
    if added := sorted(present - signed):
        raise ModelRefused(
            f"{added[0]} is not part of the signed model{_others(added)}; somebody added it after signing"
        )
    if missing := sorted(signed - present):
        raise ModelRefused(
            f"{missing[0]} is missing: the signature lists it{_others(missing)}; it was removed or renamed"
        )


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
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ModelRefused(f"{where} is not a PEM public key; get it with `holdfast public-key`") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ModelRefused(f"{where} must be an ECDSA key on P-256; models are signed with nothing else")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _check(public_key_pem: bytes, signature: bytes, message: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_public_key(public_key_pem)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise VerificationError("the signature does not match; its content or the key is not what was signed") from None


def _resources(payload: bytes) -> dict[str, str]:
    try:
        statement = json.loads(payload)
        kind = (statement["_type"], statement["predicateType"])
        serialization = statement["predicate"]["serialization"]
        method = (serialization["method"], serialization["hash_type"])
        entries = [(item["name"], item["algorithm"], item["digest"]) for item in statement["predicate"]["resources"]]
    except (ValueError, KeyError, TypeError):
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


def _verify_officially(directory: Path, bundle: bytes, own: str | None, pem: bytes, signed: dict[str, str]) -> None:
    from model_signing import hashing, verifying

    with tempfile.TemporaryDirectory() as scratch:
        # Copies of what was read above, so that the library checks the same bytes.
        signature, key = Path(scratch, SIGNATURE_NAME), Path(scratch, "model.pem")
        signature.write_bytes(bundle)
        key.write_bytes(pem)
        config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)  # type: ignore[no-untyped-call]
        config.set_ignored_paths(paths=[own] if own else [], ignore_git_paths=False)
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(config)  # type: ignore[no-untyped-call]
        try:
            # The library prints its warnings; on standard output they would spoil a JSON document.
            with contextlib.redirect_stdout(io.StringIO()):
                verifier.verify(directory, signature)
        except Exception as error:  # the library raises what its parsers raise: any of it means no
            raise ModelRefused(
                _difference(directory, signed) or f"{SIGNATURE_NAME}: {type(error).__name__}: {error}"
            ) from None


def _difference(directory: Path, signed: dict[str, str]) -> str | None:
    for name, expected in signed.items():
        with (directory / name).open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != expected:
            return content_differs(name, expected, actual)
    return None


def content_differs(name: str, expected: str, actual: str) -> str:
    """Return the message for a file whose bytes are not the signed ones."""
    return f"{name} is not what was signed: its SHA-256 must be {expected}, got {actual}; do not load this model"


def _record(directory: Path, signed: dict[str, str]) -> ModelRecord:
    with (directory / MODEL_RECORD).open("rb") as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    if hashlib.sha256(data).hexdigest() != signed[MODEL_RECORD]:
        raise ModelRefused(f"{MODEL_RECORD} must be at most {MAX_RECORD_BYTES} bytes and what was signed")
    try:
        record = json.loads(data)
        version, job_id, cluster = record["version"], record["job_id"], record["cluster"]
        valid = version == RECORD_VERSION and JOB_ID_PATTERN.fullmatch(job_id) and CLUSTER_PATTERN.fullmatch(cluster)
    except (ValueError, KeyError, TypeError):
        valid = None
    if not valid:
        raise ModelRefused(f"{MODEL_RECORD} is not a version {RECORD_VERSION} record with a job_id and a cluster")
    return ModelRecord(job_id=job_id, cluster=cluster, details=record)


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
