"""A predictor's model comes from the bucket exactly as it was signed, or not at all. S3 is the embedded AWS's."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from holdfast_local.emulator.process import Emulator
from holdfast_node.contract.documents import Predictions
from holdfast_node.contract.layout import MODEL_RECORD, ModelsBucket
from holdfast_node.fetching import download, fetch_model
from holdfast_node.models import ModelRefused, VerifiedModel
from holdfast_node.predict.node import prepare
from holdfast_node.predict.places import Places
from holdfast_node.signing import public_key_pem, sign_model

ROOT = Path(__file__).resolve().parents[3]
KEY, STRANGER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
PEM = public_key_pem(KEY.public_key())
PARAMS = ModelsBucket.prefix("digits-1") + "deep/net.params"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    emulator = Emulator(tmp_path_factory.mktemp("aws"), ROOT / ".venv-aws/bin/python", port=0)
    emulator.start()
    try:
        environment = emulator.environment()
        client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            verify=environment["AWS_CA_BUNDLE"],
            region_name=environment["AWS_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket="models")
        yield client
    finally:
        emulator.stop()


@dataclass
class Bucket:
    s3: Any
    directory: Path

    def publish(self, job_id: str = "digits-1", key: ec.EllipticCurvePrivateKey = KEY, **record: str) -> None:
        model = self.directory / "published"
        (model / "deep").mkdir(parents=True, exist_ok=True)
        (model / "deep/net.params").write_bytes(b"weights of " + job_id.encode())
        value = {"version": 1, "job_id": job_id, "cluster": "demo"} | record
        (model / MODEL_RECORD).write_text(json.dumps(value))
        pem = public_key_pem(key.public_key())
        bundle = sign_model(model, job_id, lambda message: key.sign(message, ec.ECDSA(SHA256())), pem)
        for path in (path for path in model.rglob("*") if path.is_file()):
            self.put(ModelsBucket.prefix(job_id) + path.relative_to(model).as_posix(), path.read_bytes())
        self.put(ModelsBucket.bundle(job_id), bundle)

    def put(self, key: str, data: bytes) -> None:
        self.s3.put_object(Bucket="models", Key=key, Body=data)

    def copy(self, source: str, target: str) -> None:
        self.put(target, self.s3.get_object(Bucket="models", Key=source)["Body"].read())

    def fetch(self) -> VerifiedModel:
        return fetch_model(
            self.s3,
            "models",
            job_id="digits-1",
            cluster="demo",
            directory=self.directory / "served",
            signature=self.directory / "model.sig",
            public_key_pem=PEM,
        )


@pytest.fixture
def bucket(s3: Any, tmp_path: Path) -> Bucket:
    for item in s3.list_objects_v2(Bucket="models").get("Contents", ()):
        s3.delete_object(Bucket="models", Key=item["Key"])
    bucket = Bucket(s3, tmp_path)
    bucket.publish()
    return bucket


def test_the_signed_files_are_fetched_and_verified(bucket: Bucket, tmp_path: Path) -> None:
    model = bucket.fetch()
    assert set(model.files) == {"deep/net.params", MODEL_RECORD}
    assert model.read("deep/net.params") == b"weights of digits-1"
    assert (tmp_path / "served/deep/net.params").stat().st_mode & 0o007 == 0


def test_a_file_that_was_added_in_the_bucket_never_arrives(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(ModelsBucket.prefix("digits-1") + "extra.py", b"import os")
    bucket.fetch()
    assert not (tmp_path / "served/extra.py").exists()


def swap(bucket: Bucket) -> None:
    bucket.publish("digits-2")
    for name in ("model.sig", "files/deep/net.params", f"files/{MODEL_RECORD}"):
        bucket.copy(f"models/digits-2/{name}", f"models/digits-1/{name}")


def other_bundle(bucket: Bucket) -> None:
    bucket.publish("digits-2")
    bucket.copy("models/digits-2/model.sig", "models/digits-1/model.sig")


REFUSALS: dict[str, tuple[Callable[[Bucket], object], str]] = {
    "a flipped bit": (lambda b: b.put(PARAMS, b"weights of digits-0"), "deep/net.params is not what was signed"),
    "a missing file": (
        lambda b: b.s3.delete_object(Bucket="models", Key=PARAMS),
        f"the model of job digits-1 cannot be fetched: s3://models/{PARAMS} is missing or not this node's to read",
    ),
    "no signature": (
        lambda b: b.s3.delete_object(Bucket="models", Key=ModelsBucket.bundle("digits-1")),
        "the model of job digits-1 cannot be fetched: s3://models/models/digits-1/model.sig is missing or not this",
    ),
    "a truncated bundle": (
        lambda b: b.put(ModelsBucket.bundle("digits-1"), b'{"dsseEnv'),
        "model.sig is not an OpenSSF model signature",
    ),
    "a stranger's key": (lambda b: b.publish(key=STRANGER), "model.sig was not made with this cluster's model signing"),
    "another job's model in its place": (
        swap,
        "this model was made by job digits-2, not by digits-1; somebody swapped",
    ),
    "another model's bundle": (
        other_bundle,
        "holdfast-model.json is not what was signed: model.sig is another model's signature, or the record was changed",
    ),
    "another cluster's": (lambda b: b.publish(cluster="other"), "this model was made by cluster other, not by demo"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_model_is_refused_with(case: str, bucket: Bucket) -> None:
    change, message = REFUSALS[case]
    change(bucket)
    with pytest.raises(ModelRefused) as refusal:
        bucket.fetch()
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("declared", [True, False], ids=["as its length says", "whatever its length says"])
def test_a_file_beyond_the_limit_is_refused_before_it_is_written(
    declared: bool, bucket: Bucket, tmp_path: Path
) -> None:
    data, path = b"x" * 3_000_000, tmp_path / "net.params"
    bucket.put(PARAMS, data)

    class Liar:
        """A bucket that may understate."""

        def get_object(self, **named: Any) -> dict[str, Any]:
            reply = dict(bucket.s3.get_object(**named))
            return reply if declared else reply | {"ContentLength": 1}

    named = {"name": "net.params", "sha256": hashlib.sha256(data).hexdigest()}
    with pytest.raises(ModelRefused) as refusal:
        download(Liar(), "models", PARAMS, path, limit_bytes=2_999_999, **named)  # type: ignore[arg-type]
    assert str(refusal.value) == (
        f"net.params must have at most 2999999 bytes, and s3://models/{PARAMS} has more; do not load it"
    )
    assert path.stat().st_size <= (0 if declared else 2_999_999)
    path.unlink()
    download(Liar(), "models", PARAMS, path, limit_bytes=3_000_000, **named)  # type: ignore[arg-type]
    assert path.read_bytes() == data


def test_a_second_start_fetches_anew(bucket: Bucket, tmp_path: Path) -> None:
    places = Places(tmp_path)
    bucket.fetch()
    (places.model / "left-over").touch()
    prepare(places, Predictions(job_id="digits-1", client_ca="their authority"))
    assert places.client_ca.read_text() == "their authority"
    assert set(bucket.fetch().files) == {"deep/net.params", MODEL_RECORD}
