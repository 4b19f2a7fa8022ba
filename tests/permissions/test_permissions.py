"""The evidence is of the permissions that there are, and what finds an unused one finds it."""

import json
import re
from pathlib import Path

import pytest
from tests.kit.support import synthesize
from tests.permissions import granted, report
from tests.permissions.granted import Grant

SERVING = {"predictor": {"job": "digits-20260102-030405-ab12"}}
ROW = re.compile(r"^\| (\S+) \| (\S+) \| `(\S+)` \| (\d+|\S.*?) \|", re.MULTILINE)


@pytest.fixture(scope="module")
def grants(tmp_path_factory: pytest.TempPathFactory) -> list[Grant]:
    return granted.granted(synthesize(tmp_path_factory.mktemp("granted"), SERVING, "local"))


def test_the_evidence_is_of_these_permissions_and_each_was_needed(grants: list[Grant]) -> None:
    text = report.PAGE.read_text().partition("\n## ")[0]
    rows = {Grant(*row.groups()[:3]): row[4] for row in ROW.finditer(text)}
    rows.pop(Grant("role", "statement", "action"), None)
    assert set(rows) == set(grants), "run make permissions"
    excused = {grant for grant, count in rows.items() if not count.isdigit()}
    assert {(grant.role, grant.statement) for grant in excused} == set(report.UNSEEN)
    assert all(int(count) for count in rows.values() if count.isdigit())


def line(role: str, sid: str, action: str, decision: str = "Allow") -> str:
    principal = f"arn:aws:sts::000000000000:assumed-role/local-us-east-1-{role}/i-1"
    return json.dumps(
        {"principal": principal, "action": action, "resource": "*", "keys": [], "decision": decision, "sid": sid}
    )


def test_a_permission_that_nothing_asked_for_is_found(grants: list[Grant], tmp_path: Path) -> None:
    record = tmp_path / "calls.jsonl"
    mine = [grant for grant in grants if grant.role == "worker"]
    lines = [line(grant.role, grant.statement, grant.action) for grant in mine if grant.action != "kms:Sign"]
    refused = line("worker", "", "kms:Sign", "ImplicitDeny")
    of_root = json.dumps({"principal": "arn:aws:iam::000000000000:root", "action": "kms:Sign", "sid": ""})
    record.write_text("\n".join([*lines, refused, of_root]) + "\n")
    calls = list(granted.recorded(record, {"worker"}))
    assert report.unused(granted.uses(mine, calls)) == [Grant("worker", "SignModels", "kms:Sign")]
    assert granted.refused(calls) == {("worker", "kms:Sign"): 1}
    assert "| worker | SignModels | `kms:Sign` | **never** | | |" in report.page(
        granted.uses(mine, calls), granted.refused(calls)
    )


def test_a_call_that_another_statement_allowed_is_no_use_of_this_one(grants: list[Grant], tmp_path: Path) -> None:
    record = tmp_path / "calls.jsonl"
    (grant,) = [grant for grant in grants if grant.role == "worker" and grant.statement == "PublishModels"]
    record.write_text(line("worker", "OwnRecords", grant.action) + "\n")
    calls = list(granted.recorded(record, {"worker"}))
    assert report.unused(granted.uses([grant], calls)) == [grant]
