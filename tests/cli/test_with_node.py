"""Command and node agree: what one writes, the other's own code accepts, through the same buckets and keys."""

import json
from pathlib import Path

import pytest

from holdfast_cli.aws import Cluster
from holdfast_node import signing
from holdfast_node.contract.errors import VerificationError
from holdfast_node.jobs import load_job, unpack_code
from holdfast_node.publish import publish_model, snapshot_model
from holdfast_node.store import Store


@pytest.fixture
def submitted(on_demo, project) -> str:
    result = on_demo("--output", "json", "submit", project, "--entry", "train.py", "--servers", 1, "--", "--lr", "0.1")
    return str(json.loads(result.stdout)["job_id"])


@pytest.fixture
def store(demo: Cluster) -> Store:
    return Store(demo.client("s3"), demo.jobs_bucket)


def test_node_verifies_and_unpacks_what_was_submitted(submitted, demo, store, tmp_path) -> None:
    verify = signing.kms_verifier(demo.client("kms"), demo.job_signing_key)
    job = load_job(store, submitted, cluster="demo", verify=verify)
    unpack_code(store, job, tmp_path / "code")
    assert (tmp_path / "code" / job.entry).read_text() == "print('hello')\n"
    assert job.args == ("--lr", "0.1")


def test_node_refuses_a_job_of_another_key_or_cluster(submitted, demo, store) -> None:
    kms = demo.client("kms")
    with pytest.raises(VerificationError, match="signature does not match key"):
        load_job(store, submitted, cluster="demo", verify=signing.kms_verifier(kms, demo.model_signing_key))
    with pytest.raises(VerificationError, match=f"signed for job {submitted} of cluster demo"):
        load_job(store, submitted, cluster="other", verify=signing.kms_verifier(kms, demo.job_signing_key))


def test_fetch_accepts_what_the_node_published(submitted, demo, store, on_demo, tmp_path: Path) -> None:
    kms = demo.client("kms")
    job = load_job(store, submitted, cluster="demo", verify=signing.kms_verifier(kms, demo.job_signing_key))
    (tmp_path / "work/model/sub").mkdir(parents=True)
    (tmp_path / "work/model/model-0000.params").write_bytes(bytes(range(256)))
    (tmp_path / "work/model/sub/labels.json").write_text("[]")
    snapshot_model(job, tmp_path / "work", tmp_path / "snapshot", "i-0123456789abcdef0")
    pem = signing.public_key_pem(signing.public_key(kms, demo.model_signing_key))
    sign = signing.kms_signer(kms, demo.model_signing_key)
    publish_model(
        demo.client("s3"),
        demo.models_bucket,
        job,
        tmp_path / "snapshot",
        lambda directory, name: signing.sign_model(directory, name, sign, pem),
    )
    result = on_demo("fetch", submitted, "--to", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "model/model-0000.params").read_bytes() == bytes(range(256))
    assert on_demo("verify-model", tmp_path / "model", "--job", submitted).exit_code == 0
