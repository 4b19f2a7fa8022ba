"""Submitting: everything is validated first, the document is signed, one job runs at a time."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast_cli.aws import Cluster
from holdfast_cli.errors import SubmitError
from holdfast_cli.jobs import new_job_id, parse_timeout
from holdfast_node.contract import dsse
from holdfast_node.contract.documents import JOB_ID_PATTERN, JobDocument
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.seeds import SEED_PATTERN


def read(cluster: Cluster, key: str) -> bytes:
    return bytes(cluster.client("s3").get_object(Bucket=cluster.jobs_bucket, Key=key)["Body"].read())


def uploaded(cluster: Cluster) -> int:
    return int(cluster.client("s3").list_objects_v2(Bucket=cluster.jobs_bucket)["KeyCount"])


def verifier(cluster: Cluster):
    key = serialization.load_der_public_key(
        cluster.client("kms").get_public_key(KeyId=cluster.job_signing_key)["PublicKey"]
    )
    return lambda signature, message: key.verify(signature, message, ec.ECDSA(hashes.SHA256()))


def test_submit_uploads_signed_document_and_code_and_starts_execution(on_demo, demo, project) -> None:
    result = on_demo(
        "--output", "json", "submit", project, "--entry", "lib/../train.py", "--workers", 2, "--servers", 1,
        "--timeout", "30m", "--", "--epochs", "5", "--flag",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    job_id = json.loads(result.stdout)["job_id"]
    assert JOB_ID_PATTERN.fullmatch(job_id) and job_id.startswith("my-project-")
    payload = dsse.unseal(dsse.JOB_PAYLOAD_TYPE, read(demo, JobsBucket.job_document(job_id)), verifier(demo))
    document = JobDocument.parse(payload)
    assert (document.entry, document.args) == ("train.py", ("--epochs", "5", "--flag"))
    assert (document.workers, document.servers, document.timeout_seconds) == (2, 1, 1800)
    assert (document.cluster, document.engine, document.model_dir) == ("demo", "mxnet", "model")
    code = read(demo, JobsBucket.job_code(job_id))
    assert document.code.sha256 == hashlib.sha256(code).hexdigest() and document.code.size == len(code)
    with tarfile.open(fileobj=io.BytesIO(code)) as archive:
        assert archive.getnames() == ["lib/data.py", "train.py"]
    execution = demo.client("stepfunctions").describe_execution(executionArn=demo.execution_arn(job_id))
    expected = {"job_id": job_id, "workers": 2, "servers": 1, "timeout_seconds": 1800}
    assert json.loads(execution["input"]) == expected


def test_signature_of_another_key_is_refused(on_demo, demo, project) -> None:
    """The deny beside the round trip above: what was signed does not verify with the model key."""
    result = on_demo("--output", "json", "submit", project, "--entry", "train.py", "--servers", 1)
    envelope = read(demo, JobsBucket.job_document(json.loads(result.stdout)["job_id"]))
    key = serialization.load_der_public_key(
        demo.client("kms").get_public_key(KeyId=demo.model_signing_key)["PublicKey"]
    )
    with pytest.raises(Exception, match=r"^$"):  # cryptography's InvalidSignature has no text
        dsse.unseal(dsse.JOB_PAYLOAD_TYPE, envelope, lambda sig, m: key.verify(sig, m, ec.ECDSA(hashes.SHA256())))


def test_defaults_take_what_the_cluster_allows(on_demo, demo, project) -> None:
    result = on_demo("--output", "json", "submit", project, "--entry", "train.py")
    document = json.loads(result.stdout)
    assert (document["workers"], document["servers"], document["timeout_seconds"]) == (2, 3, 3600)
    assert document["max_restarts"] == 2


def seed_of(on_demo, project, *arguments: object) -> str:
    """Submit a job that ends at once, wait for that, and return the seed of its document."""
    submitted = json.loads(
        on_demo("--output", "json", "submit", project, "--entry", "train.py", "--servers", 1, *arguments).stdout
    )
    on_demo("status", submitted["job_id"], "--wait")
    return str(submitted["seed"])


def test_every_job_has_a_fresh_seed_unless_one_is_asked_for(on_demo, project) -> None:
    first, second = seed_of(on_demo, project), seed_of(on_demo, project)
    assert SEED_PATTERN.fullmatch(first) and SEED_PATTERN.fullmatch(second) and first != second
    assert seed_of(on_demo, project, "--seed", first) == first
    assert seed_of(on_demo, project, "--seed", "lucky") == hashlib.sha256(b"lucky").hexdigest()


def test_text_output_names_the_job_and_the_next_steps(on_demo, project) -> None:
    result = on_demo("submit", project, "--entry", "train.py", "--servers", 1)
    first, *rest = result.stdout.splitlines()
    job_id = first.removeprefix("job ").removesuffix(" started")
    assert rest == [
        f"next: holdfast status {job_id}",
        f"      holdfast logs {job_id} --follow",
        f"      holdfast fetch {job_id} --to DIR   (when it has succeeded)",
    ]
    assert "signing the job document" in result.stderr


REFUSALS = {
    "too many workers": (
        ["--entry", "train.py", "--workers", "5"],
        "workers must be between 1 and 2, got 5; the limit of cluster demo is [workers] max in its settings file",
    ),
    "no servers": (
        ["--entry", "train.py", "--servers", "0"],
        "servers must be between 1 and 3, got 0; the limit of cluster demo is [servers] max in its settings file",
    ),
    "too long": (
        ["--entry", "train.py", "--timeout", "3h"],
        "timeout must be between 121 and 7200 seconds, got 10800; the limits of cluster demo are [limits] "
        "heartbeat_seconds and max_hours in its settings file",
    ),
    "too short": (
        ["--entry", "train.py", "--timeout", "2m"],
        "timeout must be between 121 and 7200 seconds, got 120; the limits of cluster demo are [limits] ",
    ),
    "too many restarts": (
        ["--entry", "train.py", "--max-restarts", "3"],
        "max-restarts must be between 0 and 2, got 3; the limit of cluster demo is [limits] max_restarts in its "
        "settings file",
    ),
    "wrong entry": (["--entry", "trian.py"], "no file trian.py in {dir}; did you mean train.py?"),
    "entry in another folder": (["--entry", "data.py"], "no file data.py in {dir}; did you mean lib/data.py?"),
    "entry is a folder": (
        ["--entry", "lib"],
        "entry must be a file, but lib in {dir} is a directory; name a script in it",
    ),
    "entry outside": (
        ["--entry", "../train.py"],
        "entry must be inside {dir}, got '../train.py'; name it relative to that directory",
    ),
    "absolute entry": (
        ["--entry", "/etc/passwd"],
        "entry must be inside {dir}, got '/etc/passwd'; name it relative to that directory",
    ),
    "model dir outside": (
        ["--entry", "train.py", "--model-dir", "../x"],
        "model-dir must be a relative path without '..', of letters, digits and ._-/, got '../x'",
    ),
    "timeout without unit": (
        ["--entry", "train.py", "--timeout", "90"],
        "timeout must look like 90s, 30m, 1h30m or 2d, got '90'; say the unit",
    ),
    "huge argument": (
        ["--entry", "train.py", "--", "x" * 900_000],
        "the signed job document must be at most 1048576 bytes, got 1200",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_submit_refuses_before_anything_is_uploaded_or_started(name, on_demo, demo, project) -> None:
    arguments, message = REFUSALS[name]
    before = uploaded(demo)
    result = on_demo("submit", project, *arguments)
    assert result.exit_code == 1
    assert f"error: {message.format(dir=project)}" in result.stderr and result.stdout == ""
    assert uploaded(demo) == before
    running = demo.client("stepfunctions").list_executions(stateMachineArn=demo.state_machine, statusFilter="RUNNING")
    assert running["executions"] == []


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_submit_refuses_a_wrong_directory_without_aws(kind, holdfast, tmp_path: Path) -> None:
    target = tmp_path / "x"
    if kind == "a file":
        target.write_text("")
    result = holdfast("submit", target, "--entry", "train.py")
    start = f"error: no directory {target};" if kind == "missing" else f"error: {target} is not a directory;"
    assert (result.exit_code, result.stderr.startswith(start)) == (1, True)


def test_second_job_is_refused_while_one_runs(on_demo, demo, project) -> None:
    first = json.loads(on_demo("--output", "json", "submit", project, "--entry", "train.py", "--servers", 3).stdout)
    result = on_demo("submit", project, "--entry", "train.py")
    assert result.exit_code == 1
    assert (
        f"error: job {first['job_id']} is still running on cluster demo, which runs one job at a time" in result.stderr
    )


def test_wait_ends_with_zero_when_the_job_succeeds(on_demo, project) -> None:
    result = on_demo("submit", project, "--entry", "train.py", "--servers", 1, "--wait")
    assert result.exit_code == 0, result.output
    assert "state    succeeded" in result.stdout


def test_wait_ends_with_three_and_the_cause_when_the_job_fails(on_demo, project) -> None:
    result = on_demo("submit", project, "--entry", "train.py", "--servers", 2, "--wait")
    assert result.exit_code == 3
    assert "failed: JobFailed: worker 0: ValueError: no data; see `holdfast logs my-project-" in result.stderr


def test_wait_with_json_is_one_document_even_when_the_job_fails(on_demo, project) -> None:
    result = on_demo("submit", project, "--entry", "train.py", "--servers", 2, "--wait", "--output", "json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["execution"] == "FAILED"
    error = json.loads(result.stderr.splitlines()[-1])
    assert (error["kind"], error["exit_code"]) == ("JobFailed", 3)
    assert "failed: JobFailed: worker 0: ValueError: no data" in error["error"]


TIMEOUTS = {"90s": 90, "30m": 1800, "1h30m": 5400, "2d": 172800, " 1H ": 3600}


@pytest.mark.parametrize("text", TIMEOUTS)
def test_timeout_is_read(text: str) -> None:
    assert parse_timeout(text) == TIMEOUTS[text]


@pytest.mark.parametrize("text", ["", "10", "m", "1m1h", "-1h", "1.5h", "\u0661h"])
def test_timeout_is_refused(text: str) -> None:
    with pytest.raises(SubmitError, match="timeout must look like 90s, 30m, 1h30m or 2d"):
        parse_timeout(text)


@pytest.mark.parametrize("name", ["My Project", "___", "x" * 200, "été", "42"])
def test_job_ids_have_the_contract_s_form(name: str, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    assert JOB_ID_PATTERN.fullmatch(new_job_id(tmp_path / name, datetime(2026, 1, 2, tzinfo=UTC), "ab12"))
