"""What is seen of a machine from outside, from the files that it writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast_local.hosts.machines.following import BOOT_LOG, RESULT, Follower
from holdfast_local.hosts.machines.setup import MachineSetup


class Seen:
    """A machine's disk, and what a follower tells of it."""

    def __init__(self, directory: Path) -> None:
        self.tree, self.told = directory / "tree", list[tuple[str, str]]()
        self.console = directory / "console.log"
        for name in (BOOT_LOG, RESULT):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
        self.setup = MachineSetup(
            instance_id="i-1",
            hostname="one",
            directory=str(directory),
            layers=(),
            resolver="10.0.0.2",
            shared_disk="",
            mount_socket="",
            cgroup="holdfast-test-no-such-group",
            python="python3",
            ca_file="",
        )
        self.follower = self.boot()

    def boot(self) -> Follower:
        self.follower = Follower(
            self.setup, self.tree, lambda event: self.told.append((event["phase"], event["cause"]))
        )
        return self.follower

    def record(self, **record: Any) -> None:
        with (self.tree / BOOT_LOG).open("a") as log:
            log.write(json.dumps(record) + "\n")
        self.follower.tick()

    def result(self, *errors: str) -> None:
        (self.tree / RESULT).unlink(missing_ok=True)
        (self.tree / RESULT).write_text(json.dumps({"v1": {"datasource": "DataSourceEc2", "errors": list(errors)}}))
        self.follower.tick()


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(tmp_path)


def test_phases_are_told_as_they_end_and_then_that_it_runs(seen: Seen) -> None:
    seen.record(phase="fetch", status="ok")
    seen.follower.tick()
    seen.record(phase="enrol", status="ok")
    seen.result()
    assert seen.told == [("fetch", ""), ("enrol", ""), ("running", "")]


def test_a_failed_phase_is_told_with_its_cause_and_remedy(seen: Seen) -> None:
    seen.record(phase="fetch", status="ok")
    seen.record(phase="mount", status="timeout", cause="no answer", remedy="look at port 2049")
    seen.result("scripts_user failed")
    assert seen.told[1:] == [("failed", "mount: no answer; look at port 2049")]


def test_user_data_that_records_nothing_fails_with_its_last_word(seen: Seen) -> None:
    seen.console.write_text("[   OK  ] Started\nholdfast: boot failed: no bundle\nlogin:\n")
    seen.result("('scripts_user', RuntimeError('1 failed'))")
    assert seen.told == [("failed", "boot failed: no bundle")]


def test_a_line_that_is_being_written_waits(seen: Seen) -> None:
    (seen.tree / BOOT_LOG).write_text('{"phase": "fet')
    seen.follower.tick()
    assert seen.told == []


def test_what_an_earlier_boot_left_is_not_told_again(seen: Seen) -> None:
    seen.record(phase="enrol", status="ok")
    seen.result()
    seen.told.clear()
    seen.boot()
    seen.follower.tick()
    assert seen.told == []
    seen.result()  # the same words, of this boot
    assert seen.told == [("running", "")]
