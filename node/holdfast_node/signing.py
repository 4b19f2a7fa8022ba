"""Signatures by keys in KMS: verifying jobs, signing models.

Private keys never leave KMS. Verification is offline, with a public key that is fetched once. A model's signature
is an OpenSSF model-signing v1.0 bundle, so that anyone can check it with the public `model_signing` tool.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from holdfast_node.contract.documents import RELATIVE_PATH_PATTERN
from holdfast_node.contract.dsse import pae
from holdfast_node.contract.errors import HoldfastError, VerificationError

_IN_TOTO = "application/vnd.in-toto+json"
_CHUNK_BYTES = 1 << 20
#: Names at a model's root that the reference verifier leaves out of its check (model_signing 1.1.1, hashing.Config).
_UNCHECKED_NAMES = frozenset({".git", ".gitattributes", ".github", ".gitignore"})


class SigningError(HoldfastError):
    """Something cannot be signed: the key is of the wrong kind, or a directory holds what a model may not."""


def public_key(kms: Any, key_id: str) -> ec.EllipticCurvePublicKey:
    """Return the public half of an EC P-256 signing key in KMS.

    Raises:
        SigningError: the key has another kind or use.
    """
    answer = kms.get_public_key(KeyId=key_id)
    key = load_der_public_key(answer["PublicKey"])
    kind = (answer.get("KeySpec"), answer.get("KeyUsage"))
    if kind != ("ECC_NIST_P256", "SIGN_VERIFY") or not isinstance(key, ec.EllipticCurvePublicKey):
        raise SigningError(
            f"key {key_id} must be ECC_NIST_P256 for SIGN_VERIFY, got {kind[0]} for {kind[1]}; "
            "check which key the stack's outputs name"
        )
    return key


def public_key_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as PEM (SubjectPublicKeyInfo): what a verifier is given."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def kms_verifier(kms: Any, key_id: str) -> Callable[[bytes, bytes], None]:
    """Return `verify(signature, message)` for a KMS key; it fetches the public key now, and verifies offline.

    `verify` raises VerificationError if the DER-encoded ECDSA-SHA256 signature is not this key's over the message.

    Raises:
        SigningError: the key is not an EC P-256 signing key.
    """
    key = public_key(kms, key_id)

    def verify(signature: bytes, message: bytes) -> None:
        try:
            key.verify(signature, message, ec.ECDSA(SHA256()))
        except InvalidSignature:
            raise VerificationError(
                f"signature does not match key {key_id}: the document was changed after it was signed, or another "
                "key signed it; submit the job again"
            ) from None

    return verify


def kms_signer(kms: Any, key_id: str) -> Callable[[bytes], bytes]:
    """Return `sign(message)`, which gives KMS's DER-encoded ECDSA-SHA256 signature of a message of any length.

    Only the digest is sent: KMS takes at most 4,096 bytes of a message itself.
    """

    def sign(message: bytes) -> bytes:
        signature: bytes = kms.sign(
            KeyId=key_id,
            Message=hashlib.sha256(message).digest(),
            MessageType="DIGEST",
            SigningAlgorithm="ECDSA_SHA_256",
        )["Signature"]
        return signature

    return sign


def sign_model(directory: Path, name: str, sign: Callable[[bytes], bytes], public_key_pem: bytes) -> bytes:
    """Return the signature of every file below `directory`, as an OpenSSF model-signing v1.0 bundle in JSON.

    Format: https://github.com/sigstore/model-transparency (signing._Payload), a Sigstore bundle v0.3 with a DSSE
    envelope over an in-toto statement. A verifier detects a changed, added, missing or renamed file.

    Args:
        directory: the model; it may hold only files and directories.
        name: the model's name in the statement; informative, a verifier does not compare it.
        sign: maps bytes to a DER-encoded ECDSA-SHA256 signature (`kms_signer`).
        public_key_pem: the signer's public key as PEM; its hash is the bundle's hint.

    Raises:
        SigningError: no file, a link or special file, or a name that cannot be published or would not be verified.
    """
    resources = [
        {"name": path, "algorithm": "sha256", "digest": digest.hex()} for path, digest in model_digests(directory)
    ]
    root = hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources)).hexdigest()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": resources,
        },
    }
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(public_key_pem).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _IN_TOTO,
            "signatures": [{"sig": base64.b64encode(sign(pae(_IN_TOTO, payload))).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, sort_keys=True).encode()


def model_digests(directory: Path) -> list[tuple[str, bytes]]:
    """Return the relative POSIX path and SHA-256 of every file below `directory`, in the format's order.

    Raises:
        SigningError: see `sign_model`.
    """
    if directory.is_symlink() or not directory.is_dir():
        raise SigningError(f"model must be a directory, got {directory}; the script must export into model_dir")
    digests = []
    for path in sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory)):
        relative = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise SigningError(f"model may hold only files and directories, {relative!r} is neither; remove it")
        if relative.partition("/")[0] in _UNCHECKED_NAMES:
            raise SigningError(f"model may not hold {relative!r}: verifiers skip it; remove it")
        if not RELATIVE_PATH_PATTERN.fullmatch(relative):
            raise SigningError(f"model file names must match {RELATIVE_PATH_PATTERN.pattern}, got {relative!r}")
        if path.is_file():
            digests.append((relative, _sha256(path)))
    if not digests:
        raise SigningError(f"model must hold at least one file, {directory} is empty; the script exported nothing")
    return digests


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()
