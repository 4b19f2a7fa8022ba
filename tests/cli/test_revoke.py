"""`holdfast revoke`: what it writes, what it says, what it refuses."""

import json
from collections.abc import Iterator

import pytest
from tests.cli.conftest import Operator

from holdfast_cli.aws import Cluster
from holdfast_node.contract.documents import Denial
from holdfast_node.contract.layout import JobsBucket

INSTANCE, OTHER = "i-0123456789abcdef0", "i-0fedcba9876543210"


@pytest.fixture
def demo_bucket(demo: Cluster) -> Iterator[Cluster]:
    """The cluster `demo`; denials that a test made are gone afterwards, as no command can do."""
    yield demo
    for key in denials(demo):
        demo.client("s3").delete_object(Bucket=demo.jobs_bucket, Key=key)


def denials(cluster: Cluster) -> list[str]:
    answer = cluster.client("s3").list_objects_v2(Bucket=cluster.jobs_bucket, Prefix=JobsBucket.DENIED)
    return [item["Key"] for item in answer.get("Contents", ())]


def read(cluster: Cluster, key: str) -> bytes:
    return bytes(cluster.client("s3").get_object(Bucket=cluster.jobs_bucket, Key=key)["Body"].read())


def test_revoking_writes_one_denial_and_says_what_follows(demo_bucket: Cluster, on_demo: Operator) -> None:
    done = on_demo("revoke", INSTANCE, "--reason", "its key was seen elsewhere")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"revoked: {INSTANCE} of cluster demo",
        "now:     it gets no certificate any more",
        "soon:    its peers end their connections to it, within a minute; the job goes on without it, or fails",
        "next:    terminate the instance: until then its AWS credentials still work",
    ]
    assert denials(demo_bucket) == [JobsBucket.denial(INSTANCE)]
    denial = Denial.parse(read(demo_bucket, JobsBucket.denial(INSTANCE)))
    assert (denial.instance_id, denial.reason) == (INSTANCE, "its key was seen elsewhere")


def test_revoking_again_keeps_the_first_reason(demo_bucket: Cluster, on_demo: Operator) -> None:
    on_demo("revoke", INSTANCE, "--reason", "first")
    before = read(demo_bucket, JobsBucket.denial(INSTANCE))
    again = on_demo("revoke", INSTANCE, "--reason", "second")
    assert again.exit_code == 0
    assert again.stdout.startswith(f"{INSTANCE} was revoked already, at 20")
    assert again.stdout.endswith(": first\n")
    assert read(demo_bucket, JobsBucket.denial(INSTANCE)) == before


def test_json_output_says_whether_it_was_new(demo_bucket: Cluster, on_demo: Operator) -> None:
    first, second = (json.loads(on_demo("revoke", INSTANCE, "--output", "json").stdout) for _ in range(2))
    assert (first["instance_id"], first["new"], second["new"]) == (INSTANCE, True, False)
    assert first["revoked_at"] == second["revoked_at"]


def test_list_shows_who_is_revoked(demo_bucket: Cluster, on_demo: Operator) -> None:
    assert on_demo("revoke", "--list").stdout == "cluster demo has revoked no instance\n"
    on_demo("revoke", INSTANCE, "--reason", "stolen")
    on_demo("revoke", OTHER)
    lines = on_demo("revoke", "--list").stdout.splitlines()
    assert lines[0].split() == ["INSTANCE", "REVOKED", "REASON"]
    assert {line.split()[0] for line in lines[1:]} == {INSTANCE, OTHER}
    listed = json.loads(on_demo("revoke", "--list", "--output", "json").stdout)["revoked"]
    assert {(one["instance_id"], one["reason"]) for one in listed} == {(INSTANCE, "stolen"), (OTHER, "")}


def test_a_denial_that_is_no_document_is_listed_all_the_same(demo_bucket: Cluster, on_demo: Operator) -> None:
    key = JobsBucket.denial(INSTANCE)
    demo_bucket.client("s3").put_object(Bucket=demo_bucket.jobs_bucket, Key=key, Body=b"\x1b[2J")
    shown = on_demo("revoke", "--list").stdout
    assert f"(s3 object {key} is not a denial document)" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["worker-1", "i-", "i-XYZ", "i-0123456789abcdef0/../x", "", "I-0123456789ABCDEF0"])
def test_what_is_no_instance_id_is_refused_before_aws_is_asked(holdfast: Operator, name: str) -> None:
    refused = holdfast("revoke", name)
    assert refused.exit_code == 1
    text = f"instance_id must match i-[0-9a-f]{{8,17}}, got {name!r}; `holdfast status JOB` shows a job's instances"
    assert refused.stderr == f"error: {text}\n"


def test_a_reason_of_two_lines_is_refused(holdfast: Operator) -> None:
    refused = holdfast("revoke", INSTANCE, "--reason", "a\nb")
    assert refused.exit_code == 1
    assert refused.stderr == "error: reason must be one printable line of at most 200 characters, got 'a\\nb'\n"


@pytest.mark.parametrize("arguments", [(), (INSTANCE, "--list")], ids=["neither", "both"])
def test_either_an_instance_or_the_list(holdfast: Operator, arguments: tuple[str, ...]) -> None:
    refused = holdfast("revoke", *arguments)
    assert refused.exit_code == 2
    assert "name one instance to revoke, or use --list to see which are" in refused.stderr


def test_there_is_no_way_back(holdfast: Operator) -> None:
    text = holdfast("revoke", "--help").stdout
    assert "There is no way back: replace the instance." in " ".join(text.split())
