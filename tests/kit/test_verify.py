"""`holdfast verify` on the embedded AWS: a fresh deployment passes, and everything that somebody changes is found."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result
from tests.kit.deployed import CLUSTER, Account, until
from tests.kit.tampering import CASES, Scene

from holdfast_cli.aws import Aws, Cluster, find_cluster
from holdfast_cli.main import cli
from holdfast_cli.posture import checks, permissions
from holdfast_cli.posture.calls import CALLS, policy
from holdfast_cli.posture.inventory import Inventory
from holdfast_cli.posture.report import Report, Status
from holdfast_cli.posture.statements import parse

pytestmark = pytest.mark.e2e

#: The command needs this one to find the cluster, before it can say anything about it.
FINDING = "cloudformation:DescribeStacks"


class AccountsAws(Aws):
    """The commands' AWS, with the embedded account's endpoint; it notes every call that is made."""

    def __init__(self, account: Account, session: boto3.Session | None = None) -> None:
        super().__init__()
        self._account, self._own = account, session
        self.calls: set[tuple[str, str]] = set()

    def client(self, service: str) -> Any:
        if service not in self._clients:
            client = self._clients[service] = self._account.client(service, self._own)
            client.meta.events.register(
                "before-call", lambda model, **more: self.calls.add((service, str(model.name))), unique_id="note"
            )
        return self._clients[service]


@pytest.fixture(scope="module")
def aws(account: Account) -> AccountsAws:
    return AccountsAws(account)


@pytest.fixture(scope="module")
def cluster(aws: AccountsAws) -> Cluster:
    return find_cluster(aws, CLUSTER)


@pytest.fixture(scope="module")
def scene(account: Account, cluster: Cluster) -> Scene:
    parts = Inventory(cluster)
    # Read before anything is changed.
    assert parts.security_groups
    assert parts.profiles
    return Scene(account, parts)


def failed(report: Report) -> dict[str, Status]:
    return {finding.check.name: finding.status for finding in report.failed}


def explained(report: Report) -> str:
    return json.dumps([finding.to_dict() for finding in report.failed], indent=1)


def test_a_fresh_deployment_passes_every_check(cluster: Cluster) -> None:
    report = checks.verify(cluster)
    assert not report.failed, explained(report)
    assert {finding.status for finding in report.findings} == {Status.PASS}


def test_a_cluster_that_trains_passes_too(account: Account, cluster: Cluster) -> None:
    execution = account.start(job_id="sample", workers=2, servers=1, timeout_seconds=300)
    token = until(account.control).task_token
    report = checks.verify(cluster)
    account.client("stepfunctions").send_task_success(taskToken=token, output="{}")
    assert account.ended(execution)["status"] == "SUCCEEDED"
    assert not report.failed, explained(report)
    seen = {finding.check.name: finding.seen for finding in report.findings}
    assert seen["running-nodes"] == "4 nodes run"
    assert seen["at-rest"] == "1 execution of the state machine runs: groups may have instances"


@pytest.mark.parametrize("case", CASES)
def test_what_somebody_changed_is_found_and_nothing_else(case: str, scene: Scene, cluster: Cluster) -> None:
    tampering, expected = CASES[case]
    with contextlib.contextmanager(tampering)(scene):
        report = checks.verify(cluster)
    assert set(failed(report)) == expected, explained(report)
    assert all(finding.problems for finding in report.failed)


def test_what_was_undone_passes_again(cluster: Cluster) -> None:
    report = checks.verify(cluster)
    assert not report.failed, explained(report)


def test_every_check_has_a_tampering_that_it_finds() -> None:
    found = {name for _, expected in CASES.values() for name in expected}
    #: A file system's encryption cannot be changed, and the local deployment has no predictor (tests/cli/posture).
    unchangeable = {"file-system-encryption", "predictions"}
    assert found == {check.name for check in checks.CHECKS} - unchangeable


#: What a deployment with an AWS Private CA grants instead of the use of a key.
PRIVATE_CA = {"acm-pca:IssueCertificate", "acm-pca:GetCertificate", "acm-pca:GetCertificateAuthorityCertificate"}


def test_a_roles_duty_allows_no_action_that_its_policy_does_not(scene: Scene) -> None:
    iam = scene.client("iam")
    for name, duty in permissions.duties_of(scene.parts).items():
        if duty is None:
            continue
        (attached,) = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
        arn = attached["PolicyArn"]
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        document = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
        granted = {action for statement in parse(document, name) for action in statement.actions}
        assert duty.actions - PRIVATE_CA == granted, name


def test_the_policy_holds_the_calls_that_are_made_and_no_other(cluster: Cluster, aws: AccountsAws) -> None:
    aws.calls.clear()
    find_cluster(aws, CLUSTER)
    checks.verify(cluster)
    listed = {
        (call.service, aws.client(call.service).meta.method_to_api_mapping[call.method]) for call in CALLS.values()
    }
    assert aws.calls == listed


@pytest.fixture(scope="module")
def auditor(account: Account) -> str:
    """A role with the printed policy and nothing else; return its ARN."""
    own = account.client("sts").get_caller_identity()["Account"]
    trust = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{own}:root"}, "Action": "sts:AssumeRole"}
    iam = account.client("iam")
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="auditor", AssumeRolePolicyDocument=document)["Role"]
    printed = CliRunner().invoke(cli, ["verify", "--policy"])
    assert printed.exit_code == 0
    iam.put_role_policy(RoleName="auditor", PolicyName="verify", PolicyDocument=printed.stdout)
    return str(role["Arn"])


def test_the_printed_policy_is_enough(account: Account, auditor: str) -> None:
    report = checks.verify(find_cluster(AccountsAws(account, account.assume(auditor, "auditor")), CLUSTER))
    assert not report.failed, explained(report)


def without(account: Account, auditor: str, action: str) -> boto3.Session:
    """A session of the auditor's that may do all but one of its actions."""
    document = policy()
    document["Statement"][0]["Action"].remove(action)
    keys = account.client("sts").assume_role(RoleArn=auditor, RoleSessionName="auditor", Policy=json.dumps(document))[
        "Credentials"
    ]
    return boto3.Session(
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
        region_name=account.session.region_name,
    )


@pytest.mark.parametrize("action", sorted(set(CALLS) - {FINDING}))
def test_without_one_permission_checks_are_unknown_and_name_it(
    account: Account, auditor: str, cluster: Cluster, action: str
) -> None:
    limited = Cluster(**{**vars(cluster), "aws": AccountsAws(account, without(account, auditor, action))})
    report = checks.verify(limited)
    assert report.failed
    assert set(failed(report).values()) == {Status.UNKNOWN}, explained(report)
    assert {problem for finding in report.failed for problem in finding.problems} == {
        f"the permission {action} is missing"
    }


@pytest.fixture
def holdfast(account: Account, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command as root of the embedded account."""
    keys = account.session.get_credentials().get_frozen_credentials()
    environment = {
        **account.endpoint(),
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_REGION": str(account.session.region_name),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--cluster", CLUSTER, "verify", *arguments])

    return run


@pytest.fixture
def opened(scene: Scene) -> Iterator[None]:
    with contextlib.contextmanager(CASES["ssh is opened to everybody"][0])(scene):
        yield


def test_the_command_prints_a_line_for_each_check(holdfast: Any) -> None:
    done = holdfast()
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("    pass ")} == {c.name for c in checks.CHECKS}
    assert lines[-1] == f"{len(checks.CHECKS)} of {len(checks.CHECKS)} checks of cluster local (us-east-1) passed"
    assert "\x1b" not in done.stdout


def test_the_command_ends_with_4_and_says_what_was_found(holdfast: Any, opened: None) -> None:
    done = holdfast()
    assert done.exit_code == 4
    assert "  found:     too much: worker: in, tcp, port 22 from 0.0.0.0/0\n" in done.stdout
    assert "  remedy:    revoke what is too much" in done.stdout
    assert done.stderr == f"error: 1 of {len(checks.CHECKS)} checks did not pass: security-group-rules\n"


def test_the_command_prints_json(holdfast: Any, opened: None) -> None:
    done = holdfast("--output", "json")
    assert done.exit_code == 4
    report = json.loads(done.stdout)
    assert (report["cluster"], report["passed"]) == (CLUSTER, False)
    (bad,) = [item for item in report["checks"] if item["status"] != "pass"]
    assert (bad["check"], bad["row"], bad["status"]) == ("security-group-rules", "T4", "fail")
    assert "too much: worker: in, tcp, port 22 from 0.0.0.0/0" in bad["evidence"]
    assert bad["remedy"]
    assert json.loads(done.stderr)["exit_code"] == 4
