"""Verified before loading: what a node, the operator's commands' library and the public tool say of the same model."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from holdfast_node.contract.layout import MODEL_RECORD
from holdfast_node.models import MAX_BUNDLE_BYTES, ModelRefused, load_public_key, load_verified, verify_model
from holdfast_node.signing import public_key_pem, sign_model

ROOT = Path(__file__).resolve().parents[2]
NODE_PYTHON = ROOT / ".venv-node/bin/python"
PUBLIC_TOOL = Path(sys.executable).with_name("model_signing")
KEY = ec.generate_private_key(ec.SECP256R1())
PEM = public_key_pem(KEY.public_key())
STRANGER = ec.generate_private_key(ec.SECP256R1())

#: What MXNet itself writes and, unverified, reads again.
EXPORT = """
import sys, mxnet as mx
net = mx.gluon.nn.Dense(3, in_units=4); net.initialize(mx.init.Constant(0.5)); net.hybridize(); net(mx.nd.ones((1, 4)))
net.export(sys.argv[1])
"""
LOAD = """
import sys, mxnet as mx
net = mx.gluon.SymbolBlock.imports(sys.argv[1] + '-symbol.json', ['data'], sys.argv[1] + '-0000.params')
print(net(mx.nd.ones((1, 4))).asnumpy().tolist(), sorted(mx.nd.load(sys.argv[1] + '-0000.params')))
"""


def in_node(script: str, *arguments: object) -> str:
    result = subprocess.run(
        [NODE_PYTHON, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def sign(directory: Path, *, key: ec.EllipticCurvePrivateKey = KEY, pem: bytes = PEM) -> bytes:
    return sign_model(directory, "digits-1", lambda message: key.sign(message, ec.ECDSA(SHA256())), pem)


@dataclass
class Published:
    """A real exported model, its record and its signature beside it."""

    directory: Path

    @property
    def signature(self) -> Path:
        return self.directory / "model.sig"

    @property
    def params(self) -> Path:
        return self.directory / "net-0000.params"

    def resign(self, **record: object) -> None:
        self.signature.unlink(missing_ok=True)
        value = {"version": 1, "job_id": "digits-1", "cluster": "demo"} | record
        (self.directory / MODEL_RECORD).write_text(json.dumps(value))
        self.signature.write_bytes(sign(self.directory))

    def verify(self) -> None:
        load_verified(self.directory, self.signature, PEM, job_id="digits-1", cluster="demo")

    def ask_the_public_tool(self, tmp_path: Path) -> subprocess.CompletedProcess[str]:
        (tmp_path / "key.pem").write_bytes(PEM)
        argv = ["verify", "key", "--public_key", tmp_path / "key.pem", "--signature", self.signature]
        argv += ["--ignore-paths", self.signature, "--no-ignore-git-paths", self.directory]
        return subprocess.run([PUBLIC_TOOL, *argv], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    in_node(EXPORT, directory / "net")
    return directory


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Published:
    shutil.copytree(exported, tmp_path / "model")
    published = Published(tmp_path / "model")
    published.resign()
    return published


def flip(path: Path, offset: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def another_models_bundle(m: Published) -> None:
    other = m.directory.parent / "other"
    shutil.copytree(m.directory, other)
    flip(other / "net-0000.params")
    Published(other).resign(job_id="digits-2")
    shutil.copyfile(other / "model.sig", m.signature)


def wrong_key(m: Published) -> None:
    m.signature.unlink()
    m.signature.write_bytes(sign(m.directory, key=STRANGER, pem=public_key_pem(STRANGER.public_key())))


def wrong_key_under_our_name(m: Published) -> None:
    m.signature.unlink()
    m.signature.write_bytes(sign(m.directory, key=STRANGER))


def flipped_signature(m: Published) -> None:
    bundle = json.loads(m.signature.read_bytes())
    signature = bundle["dsseEnvelope"]["signatures"][0]
    raw = bytearray(base64.b64decode(signature["sig"]))
    raw[-1] ^= 1
    signature["sig"] = base64.b64encode(raw).decode()
    m.signature.write_text(json.dumps(bundle))


def link(m: Published) -> None:
    m.params.rename(m.directory.parent / "moved")
    m.params.symlink_to(m.directory.parent / "moved")


def linked_directory(m: Published) -> None:
    (m.directory / "more").symlink_to(m.directory.parent)


REFUSALS: dict[str, tuple[Callable[[Published], object], str]] = {
    "wrong key": (wrong_key, "model.sig was not made with this cluster's model signing key: it names the key "),
    "wrong key under our key's name": (wrong_key_under_our_name, "model.sig: the signature does not match; its "),
    "flipped bit in a file": (lambda m: flip(m.params), "net-0000.params is not what was signed: its SHA-256 must be "),
    "flipped bit in the signature": (flipped_signature, "model.sig: the signature does not match; its content or "),
    "added file": (
        lambda m: (m.directory / "extra.py").touch(),
        "extra.py is not part of the signed model; somebody added it after signing",
    ),
    "added file that verifiers ignore": (
        lambda m: (m.directory / ".gitignore").touch(),
        ".gitignore is not part of the signed model; somebody added it after signing",
    ),
    "missing file": (
        lambda m: m.params.unlink(),
        "net-0000.params is missing: the signature lists it; it was removed",
    ),
    "renamed file": (
        lambda m: m.params.rename(m.directory / "net-0001.params"),
        "net-0001.params is not part of the signed model, and net-0000.params, which is, is missing; files were ",
    ),
    "truncated bundle": (
        lambda m: os.truncate(m.signature, m.signature.stat().st_size // 2),
        "model.sig is not an OpenSSF model signature (a Sigstore bundle); it is damaged or something else",
    ),
    "empty bundle": (
        lambda m: os.truncate(m.signature, 0),
        "model.sig is not an OpenSSF model signature (a Sigstore bundle); it is damaged or something else",
    ),
    "endless bundle": (
        lambda m: os.truncate(m.signature, MAX_BUNDLE_BYTES + 1),
        f"model.sig must be at most {MAX_BUNDLE_BYTES} bytes; this is no signature",
    ),
    "deeply nested bundle": (
        lambda m: m.signature.write_text("[" * 200_000),
        "model.sig is not an OpenSSF model signature (a Sigstore bundle); it is damaged or something else",
    ),
    "bundle of another model": (
        another_models_bundle,
        "holdfast-model.json is not what was signed: model.sig is another model's signature, or the record was changed",
    ),
    "no bundle": (lambda m: m.signature.unlink(), "no signature at "),
    "link": (link, "net-0000.params is a link or a special file; a signed model has none"),
    "linked directory": (linked_directory, "more is a link or a special file; a signed model has none"),
    "pipe": (lambda m: os.mkfifo(m.directory / "pipe"), "pipe is a link or a special file; a signed model has none"),
    "another job": (
        lambda m: m.resign(job_id="digits-2"),
        "this model was made by job digits-2, not by digits-1; somebody swapped the models",
    ),
    "another cluster": (
        lambda m: m.resign(cluster="other"),
        "this model was made by cluster other, not by demo; do not load it as such",
    ),
    "a record of another version": (
        lambda m: m.resign(version=2),
        "holdfast-model.json is not a version 1 record with a job_id and a cluster",
    ),
}
#: What only Holdfast knows (jobs and clusters), so that the public tool accepts it.
HOLDFASTS_OWN = {"another job", "another cluster", "a record of another version"}


def test_a_signed_model_is_verified_and_read(model: Published) -> None:
    verified = load_verified(model.directory, model.signature, PEM, job_id="digits-1", cluster="demo")
    assert set(verified.files) == {"net-symbol.json", "net-0000.params", MODEL_RECORD}
    assert verified.read("net-0000.params") == model.params.read_bytes()
    assert verified.record.details["job_id"] == "digits-1"


@pytest.mark.parametrize("case", REFUSALS)
def test_a_node_refuses(case: str, model: Published) -> None:
    tamper, message = REFUSALS[case]
    tamper(model)
    with pytest.raises(ModelRefused) as refusal:
        model.verify()
    assert str(refusal.value).startswith(message)


def test_every_refusal_says_something_of_its_own() -> None:
    told = [message for case, (_, message) in REFUSALS.items() if "bundle" not in case and "signature" not in case]
    assert len({message.split(" ", 1)[1] for message in told}) >= len(told) - 4  # links and added files share theirs


def test_a_file_changed_after_the_check_is_not_read(model: Published) -> None:
    verified = verify_model(model.directory, model.signature, PEM)
    flip(model.params)
    with pytest.raises(ModelRefused, match=r"net-0000\.params is not what was signed: its SHA-256 must be "):
        verified.read("net-0000.params")


def test_a_file_replaced_by_a_link_after_the_check_is_not_followed(model: Published) -> None:
    verified = verify_model(model.directory, model.signature, PEM)
    link(model)
    with pytest.raises(ModelRefused, match=r"net-0000\.params cannot be read: Too many levels of symbolic links"):
        verified.read("net-0000.params")


def test_a_file_that_was_never_signed_is_not_read(model: Published) -> None:
    verified = verify_model(model.directory, model.signature, PEM)
    (model.directory / "late").touch()
    for name in ("late", "../key.pem", "/etc/passwd"):
        with pytest.raises(ModelRefused, match="the model has no file"):
            verified.read(name)


def test_a_key_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelRefused, match=r"the file key\.pem must be an ECDSA key on P-256"):
        load_public_key(public_key_pem(ec.generate_private_key(ec.SECP384R1()).public_key()), "the file key.pem")
    with pytest.raises(ModelRefused, match=r"the file key\.pem is not a PEM public key"):
        load_public_key(b"hello", "the file key.pem")


def test_verification_needs_no_more_than_the_nodes_packages(model: Published) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'node')!r})\n"
        "from pathlib import Path; from holdfast_node.models import load_verified\n"
        "d = Path(sys.argv[1])\n"
        "m = load_verified(d, d / 'model.sig', Path(sys.argv[2]).read_bytes(), job_id='digits-1', cluster='demo')\n"
        "print(len(m.files), 'model_signing' in sys.modules)"
    )
    (model.directory.parent / "key.pem").write_bytes(PEM)
    assert in_node(script, model.directory, model.directory.parent / "key.pem") == "3 False\n"


# --- the public tool ---


def test_the_public_tool_accepts_a_published_model(model: Published, tmp_path: Path) -> None:
    result = model.ask_the_public_tool(tmp_path)
    assert (result.returncode, "Verification succeeded" in result.stdout) == (0, True), result.stderr


#: One start of the tool costs two seconds: each kind of tampering once.
PUBLIC = ("wrong key", "flipped bit in a file", "added file", "missing file", "renamed file", "truncated bundle")


@pytest.mark.parametrize("case", [*PUBLIC, "bundle of another model", "link"])
def test_the_public_tool_refuses(case: str, model: Published, tmp_path: Path) -> None:
    REFUSALS[case][0](model)
    result = model.ask_the_public_tool(tmp_path)
    assert result.returncode != 0
    assert "Verification failed" in result.stderr, result.stderr


def test_only_the_record_tells_models_of_one_key_apart(model: Published, tmp_path: Path) -> None:
    REFUSALS["another job"][0](model)
    assert model.ask_the_public_tool(tmp_path).returncode == 0  # why the record is there (docs/adr/0004)
    with pytest.raises(ModelRefused, match="this model was made by job digits-2"):
        model.verify()


# --- vanilla ---


def test_mxnet_itself_loads_a_tampered_model_without_a_word(model: Published) -> None:
    before = in_node(LOAD, model.directory / "net")
    weights = model.params.read_bytes()
    half, one = b"\x00\x00\x00\x3f", b"\x00\x00\x80\x3f"  # one bit apart, IEEE 754
    model.params.write_bytes(weights.replace(half, one, 1))
    after = in_node(LOAD, model.directory / "net")
    assert (before.split("]]")[0], after.split("]]")[0]) == ("[[2.0, 2.0, 2.0", "[[2.5, 2.0, 2.0")
    with pytest.raises(ModelRefused, match=r"net-0000\.params is not what was signed"):
        model.verify()
