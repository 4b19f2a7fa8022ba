"""docs/verify.md says what the command does."""

import json
import re

import pytest
from tests.cli.conftest import ROOT

from holdfast_cli.posture.calls import CALLS, policy
from holdfast_cli.posture.checks import CHECKS
from holdfast_cli.posture.report import ROWS, Check

TEXT = (ROOT / "docs/verify.md").read_text()


def section(row: str) -> str:
    found = re.search(rf"^### {row}: {re.escape(ROWS[row])}\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S)
    assert found, f"docs/verify.md has no section {row}"
    return found[1]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_each_check_is_in_its_rows_table_with_its_remedy(check: Check) -> None:
    (line,) = [line for line in section(check.row).splitlines() if line.startswith(f"| `{check.name}` |")]
    _, _, claim, reads, remedy, _ = (cell.strip() for cell in line.split("|"))
    assert (claim, remedy) == (check.claim, check.remedy)
    assert reads


def test_every_action_of_the_tables_is_one_that_is_called() -> None:
    said = {
        f"{service}:{name}"
        for line in TEXT.splitlines()
        if line.startswith("| `")
        for part in line.split("|")[3].split(";")
        if ": " in part
        for service, names in [part.strip().split(": ")]
        for name in names.split(", ")
    }
    assert said == {action for action in CALLS if not action.startswith("cloudformation:")}


def test_the_policy_is_the_one_that_is_printed() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", TEXT, re.S)
    assert json.loads(text) == policy()


def test_no_check_is_said_that_there_is_not() -> None:
    assert set(re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| [^|]+ \| ", TEXT, re.M)) == {check.name for check in CHECKS}
