"""`holdfast nodes` and `holdfast status`: how instances booted, as they recorded it."""

import json
import secrets
from collections.abc import Iterator

import pytest
from tests.cli.conftest import Operator
from tests.cli.test_status import start

from holdfast_cli.aws import Cluster
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role

GOOD, BAD = "i-0123456789abcdef0", "i-0fedcba9876543210"


def phase(name: str, seconds: int, **said: object) -> dict[str, object]:
    start, end = "2026-11-24T18:31:00Z", f"2026-11-24T18:31:{seconds:02}Z"
    return {"phase": name, "start": start, "end": end, "status": "ok", "timeout_seconds": 120, **said}


CAUSE, REMEDY = "the bundle s3://b/k must have the SHA-256 0a, got 0b", "deploy again, or find out who changed it"
RECORDS = {
    (Role.SERVER, GOOD): [phase("metadata", 1), phase("fetch", 3), phase("enrol", 20)],
    (Role.WORKER, BAD): [phase("metadata", 1), phase("fetch", 2, status="failed", cause=CAUSE, remedy=REMEDY)],
}


@pytest.fixture
def booted(demo: Cluster) -> Iterator[str]:
    """A running job with a server that booted and a worker that did not."""
    name = start(demo, f"boots-{secrets.token_hex(4)}", 3)
    for (role, instance_id), phases in RECORDS.items():
        record = {"role": role, "instance_id": instance_id, "phases": phases}
        write(demo, JobsBucket.boot(role, instance_id), json.dumps(record).encode())
    yield name
    for role, instance_id in RECORDS:
        demo.client("s3").delete_object(Bucket=demo.jobs_bucket, Key=JobsBucket.boot(role, instance_id))


def write(cluster: Cluster, key: str, body: bytes) -> None:
    cluster.client("s3").put_object(Bucket=cluster.jobs_bucket, Key=key, Body=body)


def test_nodes_shows_each_phase_and_why_one_failed(on_demo: Operator, booted: str) -> None:
    done = on_demo("nodes", booted)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "ROLE    INSTANCE             BOOT          TOOK  PHASES (SECONDS)",
        f"worker  {BAD}  fetch failed  3s    metadata 1, fetch 2",
        f"server  {GOOD}  ok            24s   metadata 1, fetch 3, enrol 20",
        "",
        f"worker ({BAD}) did not boot: fetch failed",
        f"  cause   {CAUSE}",
        f"  remedy  {REMEDY}",
    ]


def test_nodes_as_json_has_every_phase(on_demo: Operator, booted: str) -> None:
    view = json.loads(on_demo("nodes", booted, "--output", "json").stdout)
    worker, server = view["nodes"]
    assert (view["job_id"], worker["status"], worker["cause"], server["status"]) == (booted, "failed", CAUSE, "ok")
    assert [(p["phase"], p["seconds"], p["timeout_seconds"]) for p in server["phases"]] == [
        ("metadata", 1.0, 120),
        ("fetch", 3.0, 120),
        ("enrol", 20.0, 120),
    ]


def test_status_shows_the_instances_that_did_not_boot(on_demo: Operator, booted: str) -> None:
    text = on_demo("status", booted).stdout
    assert f"worker ({BAD}) did not boot: fetch failed\n  cause   {CAUSE}\n  remedy  {REMEDY}\n" in text
    assert GOOD not in text
    boots = json.loads(on_demo("status", booted, "--output", "json").stdout)["boots"]
    assert [(boot["instance_id"], boot["status"]) for boot in boots] == [(BAD, "failed"), (GOOD, "ok")]


def test_boots_of_an_earlier_job_are_not_those_of_this_one(on_demo: Operator, demo: Cluster, booted: str) -> None:
    demo.client("stepfunctions").stop_execution(executionArn=demo.execution_arn(booted))
    listed = demo.client("s3").list_objects_v2(Bucket=demo.jobs_bucket, Prefix=JobsBucket.BOOTS)["Contents"]
    late = max(item["LastModified"] for item in listed)
    # S3 keeps whole seconds: the next job begins more than one later.
    while True:
        name = start(demo, f"later-{secrets.token_hex(4)}", 3)
        arn = demo.execution_arn(name)
        if (demo.client("stepfunctions").describe_execution(executionArn=arn)["startDate"] - late).total_seconds() > 1:
            break
        demo.client("stepfunctions").stop_execution(executionArn=arn)
    assert on_demo("nodes", name).stdout == f"no instance of job {name} has recorded its boot yet\n"


def test_a_record_that_is_none_is_shown_as_that(on_demo: Operator, demo: Cluster, booted: str) -> None:
    write(demo, JobsBucket.boot(Role.WORKER, BAD), b"\x1b[2J")
    text = on_demo("nodes", booted).stdout
    assert f"worker ({BAD}) did not boot: unreadable" in text
    assert f"boot/worker/{BAD}.json is not a record of a boot" in text
    assert "\x1b" not in text


def test_what_a_node_wrote_is_escaped(on_demo: Operator, demo: Cluster, booted: str) -> None:
    phases = [phase("fetch\x1b[2J", 1, status="failed", cause="\x1b]0;x\x07", remedy="")]
    record = json.dumps({"role": "worker", "instance_id": BAD, "phases": phases}).encode()
    write(demo, JobsBucket.boot(Role.WORKER, BAD), record)
    for command in ("nodes", "status"):
        text = on_demo(command, booted).stdout
        assert "\x1b" not in text and "\\x1b" in text
