"""Signatures by KMS keys, and model signatures that the reference verifier checks."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from identity_support import Kms
from model_signing import verifying

from holdfast_node.contract.dsse import JOB_PAYLOAD_TYPE, seal, unseal
from holdfast_node.contract.errors import VerificationError
from holdfast_node.signing import SigningError, kms_signer, kms_verifier, public_key, public_key_pem, sign_model

# --- jobs ---


def test_what_the_key_signed_verifies_offline() -> None:
    kms = Kms()
    verify = kms_verifier(kms, "job-key")
    envelope = seal(JOB_PAYLOAD_TYPE, b"{}" * 5000, kms_signer(kms, "job-key"))
    calls = kms.calls
    assert unseal(JOB_PAYLOAD_TYPE, envelope, verify) == b"{}" * 5000
    assert kms.calls == calls, "the public key is fetched once"


def test_a_flipped_bit_or_another_key_does_not_verify() -> None:
    kms = Kms()
    signature = kms_signer(kms, "job-key")(b"message")
    kms_verifier(kms, "job-key")(signature, b"message")
    text = (
        "signature does not match key job-key: the document was changed after it was signed, or another key signed it"
    )
    for key, sig, message in (
        (kms, signature, b"messagE"),
        (kms, signature[:-1] + bytes([signature[-1] ^ 1]), b"message"),
        (kms, b"", b"message"),
        (kms, b"junk", b"message"),
        (Kms(), signature, b"message"),
    ):
        with pytest.raises(VerificationError, match=text):
            kms_verifier(key, "job-key")(sig, message)


@pytest.mark.parametrize(("spec", "usage"), [("ECC_NIST_P384", "SIGN_VERIFY"), ("ECC_NIST_P256", "KEY_AGREEMENT")])
def test_a_key_of_another_kind_is_refused(spec: str, usage: str) -> None:
    with pytest.raises(SigningError, match=f"must be ECC_NIST_P256 for SIGN_VERIFY, got {spec} for {usage}; check"):
        kms_verifier(Kms(spec, usage), "job-key")


# --- models ---


class Signed:
    """A model, its signature and its key, on disk."""

    def __init__(self, directory: Path) -> None:
        self.model, self.signature, self.key = directory / "model", directory / "model.sig", directory / "key.pem"
        (self.model / "params/deep").mkdir(parents=True)
        (self.model / "params/a.params").write_bytes(b"\0" * (3 << 20))
        (self.model / "params/deep/b.params").write_bytes(b"b")
        (self.model / "params-2.json").write_text("{}")  # sorts differently as text than as path
        (self.model / "holdfast-model.json").write_text("{}")
        (self.model / "empty").touch()
        self.kms = Kms()
        self.sign()

    def sign(self) -> None:
        key = public_key(self.kms, "model-key")
        self.key.write_bytes(public_key_pem(key))
        self.signature.write_bytes(
            sign_model(self.model, "job-1", kms_signer(self.kms, "model-key"), self.key.read_bytes())
        )

    def verify(self) -> None:
        verifying.Config().use_elliptic_key_verifier(public_key=self.key).verify(self.model, self.signature)

    def edit(self, change: Callable[[dict[str, object]], None]) -> None:
        """Change the signed statement without signing it again."""
        bundle = json.loads(self.signature.read_text())
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(statement)
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        self.signature.write_text(json.dumps(bundle))


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def test_the_reference_verifier_accepts_a_signed_model(signed: Signed) -> None:
    signed.verify()


def test_the_statement_lists_every_file_in_path_order(signed: Signed) -> None:
    statement = json.loads(base64.b64decode(json.loads(signed.signature.read_text())["dsseEnvelope"]["payload"]))
    names = [resource["name"] for resource in statement["predicate"]["resources"]]
    assert names == ["empty", "holdfast-model.json", "params/a.params", "params/deep/b.params", "params-2.json"]
    assert statement["subject"][0]["name"] == "job-1"


def _flip(signed: Signed) -> None:
    data = bytearray((signed.model / "params/a.params").read_bytes())
    data[2 << 20] ^= 1
    (signed.model / "params/a.params").write_bytes(data)


def _wrong_key(signed: Signed) -> None:
    other = Kms()
    signed.key.write_bytes(public_key_pem(public_key(other, "x")))


def _hide_file(signed: Signed) -> None:
    (signed.model / "empty").unlink()
    signed.edit(lambda statement: statement["predicate"]["resources"].pop(0))  # type: ignore[index]


TAMPERED: dict[str, tuple[Callable[[Signed], object], str]] = {
    "flipped bit": (_flip, "Hash mismatch for 'params/a.params'"),
    "added": (lambda s: (s.model / "params/evil").touch(), "Extra files found in model 'model': params/evil"),
    "missing": (lambda s: (s.model / "empty").unlink(), "Missing files in model 'model': empty"),
    "renamed": (lambda s: (s.model / "empty").rename(s.model / "full"), "Extra files found in model 'model': full"),
    "swapped": (
        lambda s: (s.model / "params-2.json").write_bytes((s.model / "empty").read_bytes()),
        "Hash mismatch for 'params-2.json'",
    ),
    "wrong key": (_wrong_key, "Key mismatch"),
    "statement edited": (_hide_file, ""),
    "link added": (lambda s: (s.model / "link").symlink_to(s.model / "empty"), "symlink"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_the_reference_verifier_refuses(signed: Signed, case: str) -> None:
    tamper, text = TAMPERED[case]
    tamper(signed)
    with pytest.raises((ValueError, InvalidSignature)) as refusal:
        signed.verify()
    assert text in str(refusal.value).replace("\\'", "'")


def test_a_signature_by_another_key_with_this_keys_hint_is_refused(signed: Signed) -> None:
    impostor = ec.generate_private_key(ec.SECP256R1())
    kms = Kms()
    kms.key = impostor
    forged = sign_model(signed.model, "job-1", kms_signer(kms, "x"), signed.key.read_bytes())
    signed.signature.write_bytes(forged)
    with pytest.raises(InvalidSignature):
        signed.verify()


UNSIGNABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda m: (m / "link").symlink_to("/etc/passwd"), "only files and directories, 'link' is neither"),
    "directory link": (lambda m: (m / "link").symlink_to("/etc"), "only files and directories, 'link' is neither"),
    "pipe": (lambda m: os.mkfifo(m / "pipe"), "only files and directories, 'pipe' is neither"),
    "unchecked file": (lambda m: (m / ".gitignore").touch(), "may not hold '.gitignore': verifiers skip it; remove it"),
    "unchecked folder": (lambda m: (m / ".git").mkdir(), "may not hold '.git': verifiers skip it"),
    "space in name": (lambda m: (m / "a b").touch(), "model file names must match "),
    "line break in name": (lambda m: (m / "a\nb").touch(), r"got 'a\nb'"),
    "not UTF-8": (lambda m: (m / "a\udcff").touch(), "model file names must match "),
}


@pytest.mark.parametrize("case", UNSIGNABLE)
def test_what_cannot_be_published_or_verified_is_not_signed(signed: Signed, case: str) -> None:
    change, text = UNSIGNABLE[case]
    change(signed.model)
    with pytest.raises(SigningError) as error:
        signed.sign()
    assert text in str(error.value)


def test_an_empty_or_missing_model_is_not_signed(signed: Signed, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(signed.model)
    for name, text in (
        ("empty", "model must hold at least one file, .* the script exported nothing"),
        ("none", "model must be a directory, got .*/none; the script must export into model_dir"),
        ("link", "model must be a directory, got .*/link"),
    ):
        with pytest.raises(SigningError, match=text):
            sign_model(tmp_path / name, "job-1", kms_signer(signed.kms, "k"), b"")
