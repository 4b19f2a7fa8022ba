"""`holdfast verify` where no AWS is needed: its policy, its words, and what an answer that cannot be read means."""

import json
import re
from typing import Any

import pytest
from tests.cli.conftest import Operator
from tests.cli.posture.conftest import made_cluster

from holdfast_cli.posture import checks, storage
from holdfast_cli.posture.calls import CALLS
from holdfast_cli.posture.report import NOT_SHOWN, ROWS, Check, Finding, Outcome, Report, Status
from holdfast_cli.posture.views import show_report


def test_the_policy_is_printed_without_a_cluster(holdfast: Operator) -> None:
    printed = holdfast("verify", "--policy")
    assert printed.exit_code == 0
    (statement,) = json.loads(printed.stdout)["Statement"]
    assert (statement["Effect"], statement["Action"]) == ("Allow", sorted(CALLS))


@pytest.mark.parametrize("action", sorted(CALLS))
def test_the_policy_holds_actions_that_read_configuration_only(action: str) -> None:
    name = action.partition(":")[2]
    assert re.fullmatch(r"(Describe|Get|List)[A-Za-z]+", name)
    assert action not in {"s3:GetObject", "logs:GetLogEvents", "lambda:GetFunction", "states:GetExecutionHistory"}


def test_every_row_is_proved_by_a_check_or_said_not_to_be() -> None:
    assert {check.row for check in checks.CHECKS} | set(NOT_SHOWN) == set(ROWS)
    assert not {check.row for check in checks.CHECKS} & set(NOT_SHOWN)


def test_checks_have_names_of_their_own_and_a_remedy() -> None:
    assert len({check.name for check in checks.CHECKS}) == len(checks.CHECKS)
    assert all(check.claim and check.remedy for check in checks.CHECKS)


def answering(answer: Any) -> Any:
    class Clients:
        meta = None

        def client(self, service: str) -> Any:
            return self

        def can_paginate(self, method: str) -> bool:
            return False

        def __getattr__(self, method: str) -> Any:
            return lambda **arguments: answer

    return Clients()


def test_an_answer_without_what_the_api_promises_makes_every_check_unknown() -> None:
    cluster = type(made_cluster())(**{**vars(made_cluster()), "aws": answering({})})
    report = checks.verify(cluster)
    assert {finding.status for finding in report.findings} == {Status.UNKNOWN}
    assert all(finding.problems for finding in report.findings)


def test_an_aws_that_cannot_be_reached_makes_every_check_unknown(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",  # discard: nobody listens
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("holdfast_cli.aws.MAX_ATTEMPTS", 1)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(checks, "CHECKS", storage.CHECKS[:1])
    (finding,) = checks.verify(made_cluster()).findings
    assert finding.status is Status.UNKNOWN
    assert "cannot reach http://127.0.0.1:9" in finding.problems[0]


def finding(status: Status, *problems: str) -> Finding:
    check = Check(name="a-check", row="B2", claim="it holds", remedy="mend it", look=lambda inventory: Outcome(""))
    return Finding(check=check, status=status, seen="what was read", problems=problems)


def shown(capsys: pytest.CaptureFixture[str], *findings: Finding) -> list[str]:
    show_report(Report(cluster="demo", region="us-east-1", findings=findings))
    return capsys.readouterr().out.splitlines()


def test_a_finding_is_shown_with_its_claim_evidence_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, finding(Status.FAIL, "one is open", "another is"), finding(Status.PASS))
    assert lines == [
        "B2  private VPC, only the connections needed",
        "    fail     a-check  one is open (and 1 more)",
        "    pass     a-check  what was read",
        "B6  no static seeds for security",
        f"    not shown: {NOT_SHOWN['B6']}",
        "",
        "a-check (B2): fail",
        "  must hold: it holds",
        "  found:     one is open",
        "  found:     another is",
        "  remedy:    mend it",
        "",
        "1 of 2 checks of cluster demo (us-east-1) passed",
    ]


def test_what_aws_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in "\n".join(shown(capsys, finding(Status.UNKNOWN, "named \x1b[2J")))


def test_json_has_the_remedy_of_what_did_not_pass_only() -> None:
    report = Report(cluster="demo", region="us-east-1", findings=(finding(Status.PASS), finding(Status.UNKNOWN, "x")))
    document = report.to_dict()
    assert document["passed"] is False
    assert [(item["status"], item["evidence"], item["remedy"]) for item in document["checks"]] == [
        ("pass", ["what was read"], None),
        ("unknown", ["what was read", "x"], "mend it"),
    ]
