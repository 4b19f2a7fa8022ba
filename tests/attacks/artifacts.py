"""Attacks on what is stored: B4 and B5, checkpoints and models, and the documents and code that a node starts from."""

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from tests.attacks.arenas import Arena, program
from tests.attacks.model import Outcome, Verdict, refused, succeeded, unharmed
from tests.boot.script import boot

from holdfast_local.lab import NODE_PYTHON, LabError, python_environment
from holdfast_local.lab.hosts import ROOT
from holdfast_node import models, signing
from holdfast_node.contract import dsse
from holdfast_node.contract.documents import CodeArchive, JobDocument
from holdfast_node.contract.errors import HoldfastError, VerificationError
from holdfast_node.contract.layout import MODEL_RECORD, JobsBucket
from holdfast_node.jobs import load_job, unpack_code

KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
HONEST = b"print('honest')\n"
EVIL = "open({!r}, 'w').close()\n"


class Bucket(dict[str, bytes]):
    """The jobs bucket, in memory: what an attacker may write to it, and what a node then reads."""

    denial = ""

    def read(self, key: str, _: int = 1 << 20) -> bytes | None:
        return self.get(key)

    download = read


def _sign(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    return lambda message: key.sign(message, ec.ECDSA(SHA256()))


def _verify(signature: bytes, message: bytes) -> None:
    """As `signing.kms_verifier`, with a key that is not in KMS."""
    try:
        KEY.public_key().verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise VerificationError("signature does not match the cluster's job-signing key") from None


def _archive(script: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("train.py")
        info.size = len(script)
        tar.addfile(info, io.BytesIO(script))
    return buffer.getvalue()


def _bucket() -> tuple[JobDocument, Bucket]:
    archive = _archive(HONEST)
    code = CodeArchive(sha256=hashlib.sha256(archive).hexdigest(), size=len(archive))
    settings: dict[str, Any] = {"workers": 1, "servers": 1, "model_dir": "model", "timeout_seconds": 60}
    job = JobDocument(job_id="lab-job", cluster="lab", engine="mxnet", entry="train.py", args=(), code=code, **settings)
    envelope = dsse.seal(dsse.JOB_PAYLOAD_TYPE, job.to_json(), _sign(KEY))
    return job, Bucket({JobsBucket.job_document("lab-job"): envelope, JobsBucket.job_code("lab-job"): archive})


def _refusals(tries: dict[str, Callable[[], object]], control: Callable[[], object]) -> Outcome:
    """Try the genuine thing, which must be accepted, and then each changed one, which must not."""
    control()
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except HoldfastError as error:
            said[name] = str(error)
        else:
            return Outcome(Verdict.SUCCEEDED, f"{name}: accepted")
    name, message = next(iter(said.items()))
    return refused(f"{', '.join(said)}: each refused; {name}: {message[:110]}")


def job_document_at_holdfast(_: Arena) -> Outcome:
    job, genuine = _bucket()
    key = JobsBucket.job_document("lab-job")

    def load(envelope: bytes, job_id: str = "lab-job", cluster: str = "lab") -> object:
        bucket = Bucket({JobsBucket.job_document(job_id): envelope})
        return load_job(bucket, job_id, cluster=cluster, verify=_verify)  # type: ignore[arg-type]

    changed = json.loads(genuine[key])
    changed["payload"] = base64.b64encode(replace(job, entry="evil.py").to_json()).decode()
    tries: dict[str, Callable[[], object]] = {
        "entry changed": lambda: load(json.dumps(changed).encode()),
        "signed by another key": lambda: load(dsse.seal(dsse.JOB_PAYLOAD_TYPE, job.to_json(), _sign(OTHER_KEY))),
        "of another job": lambda: load(genuine[key], job_id="other-job"),
        "of another cluster": lambda: load(genuine[key], cluster="other"),
    }
    return _refusals(tries, lambda: load(genuine[key]))


def code_archive_at_holdfast(_: Arena) -> Outcome:
    job, genuine = _bucket()
    with tempfile.TemporaryDirectory() as directory:

        def unpack(archive: bytes) -> None:
            bucket = Bucket({JobsBucket.job_code("lab-job"): archive})
            unpack_code(bucket, job, Path(directory) / "code")  # type: ignore[arg-type]

        good = genuine[JobsBucket.job_code("lab-job")]
        tries: dict[str, Callable[[], object]] = {
            "another script": lambda: unpack(_archive(b"print('evil')\n")),
            "a byte changed": lambda: unpack(good[:-1] + bytes([good[-1] ^ 1])),
            "a byte added": lambda: unpack(good + b"\0"),
        }
        return _refusals(tries, lambda: unpack(good))


def code_in_vanilla(_: Arena) -> Outcome:
    """MXNet's launcher copies or mounts a folder to every node and runs the script that is in it."""
    with tempfile.TemporaryDirectory() as directory:
        mark = Path(directory) / "executed"
        shared = Path(directory) / "code.tar.gz"
        shared.write_bytes(_archive(EVIL.format(str(mark)).encode()))
        subprocess.run(["tar", "xzf", shared, "-C", directory], check=True, timeout=30)
        subprocess.run([NODE_PYTHON, f"{directory}/train.py"], check=True, timeout=30)
        ran = mark.exists()
    return (
        succeeded("the changed script ran: nothing compares it with what was submitted")
        if ran
        else unharmed("it did not run")
    )


def command_line_in_vanilla(_: Arena) -> Outcome:
    """MXNet's job is a command line, in a shell script or a tracker's arguments."""
    with tempfile.TemporaryDirectory() as directory:
        mark = Path(directory) / "executed"
        script = Path(directory) / "launch.sh"
        script.write_text(f"exec {NODE_PYTHON} -c \"open('{mark}', 'w').close()\"\n")
        subprocess.run(["sh", script], check=True, timeout=30)
        ran = mark.exists()
    return succeeded("the changed command line ran: nothing signs it") if ran else unharmed("it did not run")


def package_in_vanilla(_: Arena) -> Outcome:
    with tempfile.TemporaryDirectory() as directory:
        mark = Path(directory) / "executed"
        with zipfile.ZipFile(Path(directory) / "site.zip", "w") as archive:
            archive.writestr("trainer_support/__init__.py", EVIL.format(str(mark)))
        environment = python_environment(PYTHONPATH=f"{directory}/site.zip")
        subprocess.run([NODE_PYTHON, "-c", "import trainer_support"], env=environment, check=True, timeout=30)
        ran = mark.exists()
    return succeeded("the changed package ran on import: nothing compares it") if ran else unharmed("it did not run")


def node_bundle_at_holdfast(_: Arena) -> Outcome:
    """The kit's real user data on a copy of this machine, with an `aws` command that delivers the attacker's bundle."""
    genuine, evil = (_bundle(f"touch /given/{name}\n") for name in ("genuine", "evil"))
    code = (
        "import json, sys\nfrom holdfast.training.user_data import node_user_data\n"
        "from holdfast_node.contract.documents import NodeConfig\n"
        "print(node_user_data(NodeConfig.parse(sys.stdin.read())))\n"
    )
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("constructs", "node"))
    script = _run([str(ROOT / ".venv/bin/python"), "-c", code], stdin=_node_config(genuine), PYTHONPATH=paths)[1]
    boots, ran = {}, {}
    for name, data in (("genuine", genuine), ("evil", evil)):
        with tempfile.TemporaryDirectory() as directory:
            boots[name] = boot(Path(directory), script, objects={"k": data})
            ran[name] = (boots[name].folder / name).exists()
    if boots["genuine"].status != 0 or not ran["genuine"]:
        raise LabError(f"the genuine bundle must boot, or the refusal proves nothing: {boots['genuine']}")
    if ran["evil"] or boots["evil"].status == 0:
        return Outcome(Verdict.SUCCEEDED, "the changed bundle was run")
    return refused(f"{boots['evil'].last['cause']}; nothing of it was unpacked")


def _bundle(install: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("install.sh", install)
    return buffer.getvalue()


def _node_config(bundle: bytes) -> str:
    names = ("jobs_bucket", "models_bucket", "enrolment_function", "job_signing_key", "model_signing_key")
    config = {name: name for name in (*names, "log_group", "file_system_id", "access_point_id")}
    where = {"bucket": "b", "key": "k", "sha256": hashlib.sha256(bundle).hexdigest()}
    ports = {"scheduler": 9091, "server": 9092, "worker": 9093}
    return json.dumps(config | {"cluster": "lab", "role": "worker", "region": "r", "ports": ports, "bundle": where})


def _run(argv: list[str], stdin: str = "", **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        argv, input=stdin, env={**os.environ, **environment}, text=True, capture_output=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def model_at_holdfast(_: Arena) -> Outcome:
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        model.mkdir()
        (model / "net.params").write_bytes(b"weights" * 100)
        (model / MODEL_RECORD).write_text(json.dumps({"version": 1, "job_id": "lab-job", "cluster": "lab"}))
        pem = signing.public_key_pem(KEY.public_key())
        bundle = signing.sign_model(model, "lab-job", _sign(KEY), pem)
        foreign = signing.sign_model(model, "lab-job", _sign(OTHER_KEY), signing.public_key_pem(OTHER_KEY.public_key()))

        def load(change: Callable[[Path], object] = lambda _: None, signature: bytes = bundle) -> object:
            copy = Path(tempfile.mkdtemp(dir=directory))
            for file in model.iterdir():
                (copy / file.name).write_bytes(file.read_bytes())
            change(copy)
            signed = copy.with_suffix(".sig")
            signed.write_bytes(signature)
            return models.load_verified(copy, signed, pem, job_id="lab-job", cluster="lab")

        flipped = bytes([b"w"[0] ^ 1]) + (b"weights" * 100)[1:]
        tries: dict[str, Callable[[], object]] = {
            "a flipped bit": lambda: load(lambda path: (path / "net.params").write_bytes(flipped)),
            "an added file": lambda: load(lambda path: (path / "more.params").write_bytes(b"x")),
            "a missing file": lambda: load(lambda path: (path / "net.params").unlink()),
            "a renamed file": lambda: load(lambda path: (path / "net.params").rename(path / "other.params")),
            "another key": lambda: load(signature=foreign),
            "a truncated signature": lambda: load(signature=bundle[:-20]),
        }
        return _refusals(tries, load)


def model_in_vanilla(_: Arena) -> Outcome:
    with tempfile.TemporaryDirectory() as directory:
        loaded = _json([program("model"), directory])
    if loaded == [1.0] * 4:
        return unharmed("the change was not loaded")
    return succeeded(f"one flipped bit: loaded {loaded} for four ones, without a word")


def checkpoint_in_vanilla(_: Arena) -> Outcome:
    with tempfile.TemporaryDirectory() as directory:
        mark = Path(directory) / "executed"
        told = _json([program("checkpoint"), "vanilla", directory, str(mark)])
        ran = mark.exists()
    if not ran:
        return unharmed(f"the pickle was not loaded; {told}")
    return succeeded(
        f"load_states executed the pickle; a flipped bit of the parameters was loaded as {told['loaded'][0]:g}"
    )


def checkpoint_at_holdfast(_: Arena) -> Outcome:
    """A flipped bit, and then what only somebody with the directory's own rights can do: a manifest that fits."""
    with tempfile.TemporaryDirectory() as directory:
        mark = Path(directory) / "executed"
        told = _json([program("checkpoint"), "holdfast", f"{directory}/checkpoints", str(mark)])
        ran = mark.exists()
    if ran or not told.get("flipped") or not told.get("resumed") or not told.get("forged"):
        return Outcome(Verdict.SUCCEEDED, f"executed: {ran}; {told}")
    return refused(
        f"{told['flipped'][:90]}; the one before it is used; a pickle under a manifest that fits: {told['forged'][:90]}"
    )


def _json(arguments: list[str]) -> Any:
    status, out, err = _run([str(NODE_PYTHON), *arguments], **python_environment())
    if status:
        raise LabError(f"{arguments[0]} failed: {err[-2000:]}")
    return json.loads(out.splitlines()[-1])
