"""`holdfast revoke`: what it writes, what it says, what it refuses."""

import json
from collections.abc import Iterator

import pytest
from tests.cli.conftest import Operator, connection, session
from tests.local.emulator.test_instances import resources as group

from holdfast_cli.aws import Cluster
from holdfast_node.contract.documents import Denial
from holdfast_node.contract.layout import JobsBucket

INSTANCE, STRANGER = "i-0123456789abcdef0", "i-0fedcba9876543210"


@pytest.fixture(scope="module")
def workers(clusters: dict[str, str]) -> Iterator[list[str]]:
    """The ids of two instances in the cluster's group of workers."""
    aws = session(clusters)
    cloudformation = aws.client("cloudformation", **connection(clusters))
    scaling = aws.client("autoscaling", **connection(clusters))
    template = json.dumps({"Resources": group("demo-worker", DesiredCapacity="2")})
    cloudformation.create_stack(StackName="Fleet", TemplateBody=template, Capabilities=["CAPABILITY_IAM"])
    cloudformation.get_waiter("stack_create_complete").wait(
        StackName="Fleet", WaiterConfig={"Delay": 1, "MaxAttempts": 30}
    )
    (fleet,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=["demo-worker"])["AutoScalingGroups"]
    yield sorted(member["InstanceId"] for member in fleet["Instances"])
    cloudformation.delete_stack(StackName="Fleet")
    cloudformation.get_waiter("stack_delete_complete").wait(
        StackName="Fleet", WaiterConfig={"Delay": 1, "MaxAttempts": 30}
    )


@pytest.fixture
def instance(workers: list[str]) -> str:
    return workers[0]


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


def test_revoking_writes_one_denial_and_says_what_follows(
    demo_bucket: Cluster, on_demo: Operator, instance: str
) -> None:
    done = on_demo("revoke", instance, "--reason", "its key was seen elsewhere")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"revoked: {instance} of cluster demo",
        "now:     it gets no certificate any more",
        "soon:    its peers end their connections to it, within a minute; the job goes on without it, or fails",
        "next:    terminate the instance: until then its AWS credentials still work",
    ]
    assert denials(demo_bucket) == [JobsBucket.denial(instance)]
    denial = Denial.parse(read(demo_bucket, JobsBucket.denial(instance)))
    assert (denial.instance_id, denial.reason) == (instance, "its key was seen elsewhere")


def test_revoking_again_keeps_the_first_reason(demo_bucket: Cluster, on_demo: Operator, instance: str) -> None:
    on_demo("revoke", instance, "--reason", "first")
    before = read(demo_bucket, JobsBucket.denial(instance))
    again = on_demo("revoke", instance, "--reason", "second")
    assert again.exit_code == 0
    assert again.stdout.startswith(f"{instance} was revoked already, at 20")
    assert again.stdout.endswith(": first\n")
    assert read(demo_bucket, JobsBucket.denial(instance)) == before


def test_json_output_says_whether_it_was_new(demo_bucket: Cluster, on_demo: Operator, instance: str) -> None:
    first, second = (json.loads(on_demo("revoke", instance, "--output", "json").stdout) for _ in range(2))
    assert (first["instance_id"], first["new"], second["new"]) == (instance, True, False)
    assert first["revoked_at"] == second["revoked_at"]


def test_list_shows_who_is_revoked(demo_bucket: Cluster, on_demo: Operator, workers: list[str]) -> None:
    instance, other = workers
    assert on_demo("revoke", "--list").stdout == "cluster demo has revoked no instance\n"
    on_demo("revoke", instance, "--reason", "stolen")
    on_demo("revoke", other)
    lines = on_demo("revoke", "--list").stdout.splitlines()
    assert lines[0].split() == ["INSTANCE", "REVOKED", "REASON"]
    assert {line.split()[0] for line in lines[1:]} == {instance, other}
    listed = json.loads(on_demo("revoke", "--list", "--output", "json").stdout)["revoked"]
    assert {(one["instance_id"], one["reason"]) for one in listed} == {(instance, "stolen"), (other, "")}


def test_a_denial_that_is_no_document_is_listed_all_the_same(
    demo_bucket: Cluster, on_demo: Operator, instance: str
) -> None:
    key = JobsBucket.denial(instance)
    demo_bucket.client("s3").put_object(Bucket=demo_bucket.jobs_bucket, Key=key, Body=b"\x1b[2J")
    shown = on_demo("revoke", "--list").stdout
    assert f"(s3 object {key} is not a denial document)" in shown
    assert "\x1b" not in shown


def test_an_id_of_no_instance_of_the_cluster_is_denied_and_said_to_be_none(
    demo_bucket: Cluster, on_demo: Operator, workers: list[str]
) -> None:
    said = on_demo("revoke", STRANGER)
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr == (
        f"error: {STRANGER} is denied from now on, but nobody was cut off: it must be an instance of cluster demo, "
        f"which has {', '.join(workers)}; compare the id with `holdfast status JOB`, and revoke the right one\n"
    )
    assert denials(demo_bucket) == [JobsBucket.denial(STRANGER)]


def test_an_instance_of_another_cluster_is_none_of_this_one(
    demo_bucket: Cluster, holdfast: Operator, instance: str
) -> None:
    said = holdfast("--cluster", "other", "revoke", instance)
    assert said.exit_code == 1
    assert "an instance of cluster other, which has none, because no job runs; compare" in said.stderr


def test_groups_that_cannot_be_read_are_no_reason_not_to_deny(
    demo_bucket: Cluster, on_demo: Operator, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", "https://127.0.0.1:9")  # nobody listens there
    said = on_demo("revoke", instance)
    assert said.exit_code == 1
    assert said.stderr.startswith(
        f"error: {instance} is denied from now on, but whether it is an instance of cluster demo could not be looked "
        "up: "
    )
    assert denials(demo_bucket) == [JobsBucket.denial(instance)]


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
