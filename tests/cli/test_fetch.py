"""Fetching: a model that is not exactly what was signed, for this job, never reaches the destination."""

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from holdfast_cli.aws import Cluster
from holdfast_cli.models import public_key
from holdfast_node.contract import dsse
from holdfast_node.contract.layout import MODEL_RECORD, ModelsBucket

JOB = "digits-20260102-030405-ab12"
STATEMENT = "application/vnd.in-toto+json"
Sign = Callable[[bytes], bytes]


def record(**changes: Any) -> bytes:
    return json.dumps({"version": 1, "job_id": JOB, "cluster": "demo", "code_sha256": "0" * 64} | changes).encode()


@dataclass
class Model:
    """What a worker published: files and the parts of their signature, each open to tampering."""

    files: dict[str, bytes] = field(
        default_factory=lambda: {
            "digits-0000.params": b"\x00\x01\x02weights",
            "nested/digits-symbol.json": b"{}",
            MODEL_RECORD: record(),
        }
    )
    serialization: dict[str, Any] = field(
        default_factory=lambda: {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
    )
    predicate_type: str = "https://model_signing/signature/v1.0"
    payload_type: str = STATEMENT

    def bundle(self, sign: Sign, pem: bytes) -> dict[str, Any]:
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.files.items())}
        root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests.values())).hexdigest()
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "model", "digest": {"sha256": root}}],
            "predicateType": self.predicate_type,
            "predicate": {
                "serialization": self.serialization,
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests.items()
                ],
            },
        }
        payload = json.dumps(statement).encode()
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
            "dsseEnvelope": json.loads(dsse.seal(self.payload_type, payload, sign)),
        }


@dataclass
class Bucket:
    """The models bucket, as anybody who can write to it sees it."""

    cluster: Cluster

    def put(self, key: str, data: bytes) -> None:
        self.cluster.client("s3").put_object(Bucket=self.cluster.models_bucket, Key=key, Body=data)

    def put_file(self, name: str, data: bytes, job: str = JOB) -> None:
        self.put(ModelsBucket.prefix(job) + name, data)

    def delete_file(self, name: str) -> None:
        self.cluster.client("s3").delete_object(Bucket=self.cluster.models_bucket, Key=ModelsBucket.prefix(JOB) + name)

    def publish(self, model: Model, bundle: bytes, job: str = JOB) -> None:
        for name, data in model.files.items():
            self.put_file(name, data, job)
        self.put(ModelsBucket.bundle(job), bundle)

    def clear(self) -> None:
        s3 = self.cluster.client("s3")
        for item in s3.list_objects_v2(Bucket=self.cluster.models_bucket).get("Contents", []):
            s3.delete_object(Bucket=self.cluster.models_bucket, Key=item["Key"])


@pytest.fixture
def bucket(demo: Cluster) -> Iterator[Bucket]:
    bucket = Bucket(demo)
    yield bucket
    bucket.clear()


@pytest.fixture
def sign(demo: Cluster, kms_signer) -> Sign:
    return kms_signer(demo.model_signing_key)


@pytest.fixture
def pem(demo: Cluster) -> bytes:
    return public_key(demo)


def signed(model: Model, sign: Sign, pem: bytes) -> bytes:
    return json.dumps(model.bundle(sign, pem)).encode()


@pytest.fixture
def fetched(bucket: Bucket, sign: Sign, pem: bytes, on_demo, tmp_path: Path) -> Path:
    bucket.publish(Model(), signed(Model(), sign, pem))
    destination = tmp_path / "out/model"
    destination.parent.mkdir()
    result = on_demo("fetch", JOB, "--to", destination)
    assert result.exit_code == 0, result.output
    return destination


def test_fetch_writes_exactly_the_signed_files_and_the_signature(fetched: Path) -> None:
    found = {path.relative_to(fetched).as_posix(): path for path in fetched.rglob("*") if path.is_file()}
    assert set(found) == {*Model().files, "model.sig"}
    assert all(found[name].read_bytes() == data for name, data in Model().files.items())
    assert [path.name for path in fetched.parent.iterdir()] == ["model"]
    assert fetched.stat().st_mode & 0o777 == 0o700


def test_fetch_replaces_an_empty_directory(bucket, sign, pem, on_demo, tmp_path) -> None:
    bucket.publish(Model(), signed(Model(), sign, pem))
    (tmp_path / "empty").mkdir()
    result = on_demo("fetch", JOB, "--to", tmp_path / "empty", "--output", "json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["verified"] is True and answer["record"]["job_id"] == JOB
    assert set(answer["files"]) == set(Model().files)


# What an attacker with write access to the bucket, or a stray model, can look like. Each changes a good publication.


def flipped(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put_file("digits-0000.params", b"\x00\x01\x03weights")


def truncated_file(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put_file("digits-0000.params", b"\x00\x01")


def missing(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.delete_file("digits-0000.params")


def added(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put_file("extra.py", b"import os")


def added_git(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put_file(".git/hooks/post-checkout", b"#!/bin/sh")


def renamed(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.delete_file("digits-0000.params")
    b.put_file("digits-0001.params", Model().files["digits-0000.params"])


def swapped(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put_file("digits-0000.params", b"{}")
    b.put_file("nested/digits-symbol.json", Model().files["digits-0000.params"])


def traversal(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put_file("../../../etc/cron.d/x", b"x")


def absolute(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put_file("/etc/cron.d/x", b"x")


def signed_traversal(b: Bucket, sign: Sign, pem: bytes) -> None:
    model = Model()
    model.files["../x"] = b"x"
    b.put(ModelsBucket.bundle(JOB), signed(model, sign, pem))


def control_characters(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put_file("a\x1b[2Jb", b"x")


def no_signature(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.cluster.client("s3").delete_object(Bucket=b.cluster.models_bucket, Key=ModelsBucket.bundle(JOB))


def truncated_bundle(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put(ModelsBucket.bundle(JOB), signed(Model(), sign, pem)[:500])


def empty_bundle(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put(ModelsBucket.bundle(JOB), b"{}")


def huge_bundle(b: Bucket, sign: Sign, pem: bytes) -> None:
    b.put(ModelsBucket.bundle(JOB), b" " * (3 << 20))


def bundle_without_signatures(b: Bucket, sign: Sign, pem: bytes) -> None:
    bundle = Model().bundle(sign, pem)
    bundle["dsseEnvelope"]["signatures"] = []
    b.put(ModelsBucket.bundle(JOB), json.dumps(bundle).encode())


def edited_statement(b: Bucket, sign: Sign, pem: bytes) -> None:
    bundle = Model().bundle(sign, pem)
    model = Model()
    model.files["digits-0000.params"] = b"evil"
    bundle["dsseEnvelope"]["payload"] = model.bundle(sign, pem)["dsseEnvelope"]["payload"]
    b.put(ModelsBucket.bundle(JOB), json.dumps(bundle).encode())
    b.put_file("digits-0000.params", b"evil")


def two_envelopes(b: Bucket, sign: Sign, pem: bytes) -> None:
    """The library also reads the key `dsse_envelope`: what we read and what it reads must be one thing."""
    bundle = Model().bundle(sign, pem)
    evil = Model()
    evil.files["digits-0000.params"] = b"evil"
    bundle = {"dsse_envelope": evil.bundle(sign, pem)["dsseEnvelope"], **bundle}
    b.put(ModelsBucket.bundle(JOB), json.dumps(bundle).encode())
    b.put_file("digits-0000.params", b"evil")


def wrong_key(b: Bucket, sign: Sign, pem: bytes) -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    own = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    b.put(ModelsBucket.bundle(JOB), signed(Model(), lambda m: key.sign(m, ec.ECDSA(hashes.SHA256())), own))


def wrong_key_right_name(b: Bucket, sign: Sign, pem: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    b.put(ModelsBucket.bundle(JOB), signed(Model(), lambda m: key.sign(m, ec.ECDSA(hashes.SHA256())), pem))


def republish(b: Bucket, sign: Sign, pem: bytes, model: Model) -> None:
    b.publish(model, signed(model, sign, pem))


def other_job(b: Bucket, sign: Sign, pem: bytes) -> None:
    republish(b, sign, pem, Model(files=Model().files | {MODEL_RECORD: record(job_id="digits-other")}))


def other_cluster(b: Bucket, sign: Sign, pem: bytes) -> None:
    republish(b, sign, pem, Model(files=Model().files | {MODEL_RECORD: record(cluster="other")}))


def no_record(b: Bucket, sign: Sign, pem: bytes) -> None:
    model = Model()
    del model.files[MODEL_RECORD]
    b.delete_file(MODEL_RECORD)
    republish(b, sign, pem, model)


def bad_record(b: Bucket, sign: Sign, pem: bytes) -> None:
    republish(b, sign, pem, Model(files=Model().files | {MODEL_RECORD: b"[]"}))


def future_record(b: Bucket, sign: Sign, pem: bytes) -> None:
    republish(b, sign, pem, Model(files=Model().files | {MODEL_RECORD: record(version=2)}))


def reserved_name(b: Bucket, sign: Sign, pem: bytes) -> None:
    republish(b, sign, pem, Model(files=Model().files | {"model.sig": b"x"}))


def other_format(b: Bucket, sign: Sign, pem: bytes) -> None:
    republish(b, sign, pem, Model(predicate_type="https://model_signing/Digests/v0.1"))


def other_hash(b: Bucket, sign: Sign, pem: bytes) -> None:
    model = Model()
    model.serialization["hash_type"] = "blake2"
    republish(b, sign, pem, model)


def other_payload(b: Bucket, sign: Sign, pem: bytes) -> None:
    republish(b, sign, pem, Model(payload_type=dsse.JOB_PAYLOAD_TYPE))


def ignored_path(b: Bucket, sign: Sign, pem: bytes) -> None:
    model = Model()
    model.serialization["ignore_paths"] = ["extra.py"]
    republish(b, sign, pem, model)
    b.put_file("extra.py", b"import os")


REFUSALS = {
    "flipped byte": (flipped, "digits-0000.params is not what was signed: its SHA-256 must be "),
    "truncated file": (truncated_file, "digits-0000.params is not what was signed: its SHA-256 must be "),
    "missing file": (missing, "digits-0000.params is missing: the signature lists it"),
    "added file": (added, "extra.py is not part of the signed model; somebody added it after signing"),
    "added file that the library ignores": (added_git, ".git/hooks/post-checkout is not part of the signed model"),
    "added file that the statement ignores": (ignored_path, "extra.py is not part of the signed model"),
    "renamed file": (
        renamed,
        "digits-0001.params is not part of the signed model, and digits-0000.params, which is, is missing; files were "
        "renamed or exchanged after signing",
    ),
    "swapped files": (swapped, "digits-0000.params is not what was signed"),
    "key with ..": (traversal, "the file name '../../../etc/cron.d/x' is not a plain relative path"),
    "absolute key": (absolute, "the file name '/etc/cron.d/x' is not a plain relative path"),
    "signed name with ..": (signed_traversal, "the file name '../x' is not a plain relative path"),
    "control characters": (control_characters, r"the file name 'a\x1b[2Jb' is not a plain relative path"),
    "no signature": (no_signature, f"the model of job {JOB} has no signature; a model that nobody signed"),
    "truncated bundle": (truncated_bundle, "model.sig is not an OpenSSF model signature (a Sigstore bundle)"),
    "empty bundle": (empty_bundle, "model.sig is not an OpenSSF model signature (a Sigstore bundle)"),
    "huge bundle": (huge_bundle, "model.sig must be at most 2097152 bytes; this is no signature"),
    "no signatures": (bundle_without_signatures, "model.sig: not a DSSE envelope with one signature"),
    "edited statement": (edited_statement, "model.sig: the signature does not match"),
    "two envelopes": (two_envelopes, "digits-0000.params is not what was signed"),
    "another key": (wrong_key, "model.sig was not made with this cluster's model signing key"),
    "another key under our key's name": (wrong_key_right_name, "model.sig: the signature does not match"),
    "another job's model": (other_job, f"this model was made by job digits-other, not by {JOB}; somebody swapped"),
    "another cluster's model": (other_cluster, "this model was made by cluster other, not by demo"),
    "no record": (no_record, "model.sig does not cover holdfast-model.json, so nothing binds this model to a job"),
    "bad record": (bad_record, "holdfast-model.json is not a version 1 record with a job_id and a cluster"),
    "future record": (future_record, "holdfast-model.json is not a version 1 record with a job_id and a cluster"),
    "reserved name": (reserved_name, "the model holds a file named model.sig, which is reserved for the signature"),
    "older format": (other_format, "must be a https://model_signing/signature/v1.0 statement over files with sha256"),
    "other hash": (other_hash, "statement over files with sha256, got 'https://model_signing/signature/v1.0' over"),
    "a job's signature": (other_payload, f"model.sig: payload type must be {STATEMENT}, got '{dsse.JOB_PAYLOAD_TYPE}'"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_fetch_refuses_and_writes_nothing(name, bucket, sign, pem, on_demo, tmp_path) -> None:
    tamper, message = REFUSALS[name]
    bucket.publish(Model(), signed(Model(), sign, pem))
    tamper(bucket, sign, pem)
    result = on_demo("fetch", JOB, "--to", tmp_path / "model")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert result.stdout == "" and list(tmp_path.iterdir()) == []


def test_the_public_tool_accepts_what_was_fetched_and_no_flipped_byte_of_it(fetched: Path, pem: bytes) -> None:
    (fetched.parent / "key.pem").write_bytes(pem)
    signature = fetched / "model.sig"
    tool = Path(sys.executable).with_name("model_signing")
    command = [tool, "verify", "key", "--public_key", fetched.parent / "key.pem", "--signature", signature]
    command += ["--ignore-paths", signature, fetched]
    accepted = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (accepted.returncode, accepted.stdout) == (0, "Verification succeeded\n"), accepted.stderr
    tamper_flip(fetched)
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "Hash mismatch for 'digits-0000.params'" in refused.stderr.replace("\\", "")


def test_fetch_without_a_model_says_where_to_look(on_demo, bucket, tmp_path) -> None:
    result = on_demo("fetch", "digits-none", "--to", tmp_path / "model")
    assert result.exit_code == 1
    assert "error: job digits-none has published no model; see `holdfast status digits-none`" in result.stderr


def test_fetch_refuses_an_impossible_job_id(on_demo, tmp_path) -> None:
    result = on_demo("fetch", "../../x", "--to", tmp_path / "model")
    assert (result.exit_code, "error: a job's id matches" in result.stderr) == (1, True)


def test_fetch_refuses_a_destination_that_is_not_empty(fetched: Path, on_demo) -> None:
    result = on_demo("fetch", JOB, "--to", fetched)
    assert result.exit_code == 1
    assert f"error: {fetched} must not exist or be an empty directory; choose another --to" in result.stderr


def test_fetch_refuses_a_destination_without_parent(on_demo, demo, tmp_path) -> None:
    result = on_demo("fetch", JOB, "--to", tmp_path / "no/model")
    assert f"error: the directory {tmp_path / 'no'} does not exist; create it" in result.stderr


def test_fetch_refuses_the_current_directory(on_demo, demo, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is the current directory, which cannot be replaced" in on_demo("fetch", JOB, "--to", ".").stderr


def test_fetch_does_not_follow_a_link_planted_in_the_destination(bucket, sign, pem, on_demo, tmp_path) -> None:
    bucket.publish(Model(), signed(Model(), sign, pem))
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    assert on_demo("fetch", JOB, "--to", tmp_path / "model").exit_code == 0
    assert (tmp_path / "elsewhere/model.sig").is_file()


def test_verify_model_accepts_a_fetched_model_with_the_cluster_s_key(fetched: Path, on_demo) -> None:
    result = on_demo("verify-model", fetched)
    assert result.stdout == f"verified: {fetched} is the model of job {JOB} of cluster demo\n"


def test_verify_model_works_without_aws(fetched: Path, pem: bytes, holdfast, tmp_path, monkeypatch) -> None:
    (tmp_path / "key.pem").write_bytes(pem)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:1")
    result = holdfast("verify-model", fetched, "--public-key", tmp_path / "key.pem", "--job", JOB)
    assert result.exit_code == 0, result.output


def test_public_key_prints_what_verify_model_takes(fetched: Path, on_demo, holdfast, tmp_path) -> None:
    (tmp_path / "key.pem").write_text(on_demo("public-key").stdout)
    assert holdfast("verify-model", fetched, "--public-key", tmp_path / "key.pem").exit_code == 0


def tamper_flip(directory: Path) -> None:
    path = directory / "digits-0000.params"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def tamper_add(directory: Path) -> None:
    (directory / ".gitignore").write_text("*")


def tamper_link(directory: Path) -> None:
    path = directory / "digits-0000.params"
    path.rename(directory.parent / "moved")
    path.symlink_to(directory.parent / "moved")


def tamper_signature(directory: Path) -> None:
    bundle = json.loads((directory / "model.sig").read_bytes())
    signature = bundle["dsseEnvelope"]["signatures"][0]
    raw = bytearray(base64.b64decode(signature["sig"]))
    raw[-1] ^= 1
    signature["sig"] = base64.b64encode(raw).decode()
    (directory / "model.sig").write_text(json.dumps(bundle))


LOCAL_REFUSALS = {
    "flipped byte": (tamper_flip, "digits-0000.params is not what was signed: its SHA-256 must be "),
    "added file": (tamper_add, ".gitignore is not part of the signed model; somebody added it after signing"),
    "removed file": (lambda d: (d / MODEL_RECORD).unlink(), "holdfast-model.json is missing: the signature lists it"),
    "link": (tamper_link, "digits-0000.params is a link or a special file; a signed model has none"),
    "flipped signature": (tamper_signature, "model.sig: the signature does not match"),
    "no signature": (lambda d: (d / "model.sig").unlink(), "no signature at "),
}


@pytest.mark.parametrize("name", LOCAL_REFUSALS)
def test_verify_model_refuses(name, fetched: Path, on_demo) -> None:
    tamper, message = LOCAL_REFUSALS[name]
    tamper(fetched)
    result = on_demo("verify-model", fetched)
    assert result.exit_code == 1
    assert f"error: {message}" in result.stderr


def test_verify_model_refuses_another_job_and_cluster(fetched: Path, on_demo, pem, holdfast, tmp_path) -> None:
    (tmp_path / "key.pem").write_bytes(pem)
    job = on_demo("verify-model", fetched, "--job", "digits-wanted")
    assert f"error: this model was made by job {JOB}, not by digits-wanted" in job.stderr
    arguments = ("verify-model", fetched, "--public-key", tmp_path / "key.pem")
    cluster = holdfast("--cluster", "other", *arguments)
    assert "error: this model was made by cluster demo, not by other" in cluster.stderr


def test_verify_model_refuses_the_other_cluster_s_key(fetched: Path, on_demo, holdfast) -> None:
    result = holdfast("--cluster", "other", "verify-model", fetched)
    assert "error: model.sig was not made with this cluster's model signing key" in result.stderr


KEYS = {
    "no key": (b"hello", "is not a PEM public key; get it with `holdfast public-key`"),
    "another curve": ("P384", "must be an ECDSA key on P-256; models are signed with nothing else"),
}


@pytest.mark.parametrize("name", KEYS)
def test_verify_model_refuses_a_wrong_key_file(name, holdfast, tmp_path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    data, message = KEYS[name]
    if data == "P384":
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        data = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(data)
    result = holdfast("verify-model", tmp_path, "--public-key", tmp_path / "key.pem")
    assert (result.exit_code, result.stderr) == (1, f"error: {tmp_path / 'key.pem'} {message}\n")
