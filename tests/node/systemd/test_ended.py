"""Exit records from what systemd says of an end (systemd.exec(5), "Environment Variables Set on Stop")."""

import json
import stat
from pathlib import Path

import pytest

from holdfast_node.systemd import ended

ENDS = {
    "well": ({"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}, 0),
    "with its own status": ({"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "75"}, 75),
    "killed": ({"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}, -9),
    "stopped": ({"SERVICE_RESULT": "success", "EXIT_CODE": "killed", "EXIT_STATUS": "TERM"}, -15),
    "with a dump": ({"SERVICE_RESULT": "core-dump", "EXIT_CODE": "dumped", "EXIT_STATUS": "ABRT"}, -6),
    "by a signal without a name": ({"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "34"}, -34),
    "by a check before it": ({"SERVICE_RESULT": "exit-code"}, 1),
    "while it stays active": ({"SERVICE_RESULT": "success"}, 0),
    "and nothing is said": ({}, 0),
}


@pytest.mark.parametrize(("environment", "status"), ENDS.values(), ids=ENDS)
def test_the_status_is_what_the_contract_says(environment: dict[str, str], status: int) -> None:
    assert ended.exit_status(environment) == status


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"SERVICE_RESULT": "oom-kill", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"},
            "trainer: it needed more memory than there is, or than its unit's MemoryMax= allows; use a larger instance",
        ),
        (
            {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "226"},
            "trainer: systemd could not start it: 226, see systemd.exec(5); root finds more in the journal",
        ),
        ({"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "1"}, ""),
        ({"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}, ""),
    ],
    ids=["out of memory", "never started", "its own status", "well"],
)
def test_what_the_service_could_not_log_is_said(environment: dict[str, str], words: str) -> None:
    assert ended.explanation("trainer", environment) == words


def test_a_record_is_replaced_whole_and_follows_no_link(tmp_path: Path) -> None:
    record, elsewhere = tmp_path / "trainer.json", tmp_path / "elsewhere"
    (tmp_path / ".trainer.json.tmp").symlink_to(elsewhere)
    record.symlink_to(elsewhere)
    ended.write_record(record, -9)
    assert json.loads(record.read_text()) == {"status": -9}
    assert stat.S_IMODE(record.lstat().st_mode) == 0o644
    assert not elsewhere.exists()
