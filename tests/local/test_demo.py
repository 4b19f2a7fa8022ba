"""The demo's own promises: bounded commands, and a report that is never better than the teardown."""

import time
from pathlib import Path

import pytest

from holdfast_local import demo, session
from holdfast_local.errors import LocalError


def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a script in the place of the installed `holdfast`."""
    file = tmp_path / ".venv/bin/holdfast"
    file.parent.mkdir(parents=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(session, "checkout", lambda: tmp_path)


def test_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, monkeypatch, "sleep 600 & sleep 600")
    monkeypatch.setattr(demo, "COMMAND_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(LocalError, match="`holdfast status` must end within 0 s and did not"):
        demo._holdfast("status")
    assert time.monotonic() - started < 10


def test_long_answer_before_the_end_of_progress_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, monkeypatch, "printf '\"'; head -c 300000 /dev/zero | tr '\\0' x; printf '\"'; echo done >&2")
    assert demo._holdfast("status") == "x" * 300000


def test_failed_command_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, monkeypatch, """echo '{"error": "no such job"}' >&2; exit 1""")
    with pytest.raises(LocalError, match=r"^no such job$"):
        demo._holdfast("status")


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "up", lambda **_: None)
    monkeypatch.setattr(demo, "_describe_deployment", lambda report: report.claim("deployed", True))
    monkeypatch.setattr(demo, "_train_and_verify", lambda *_: None)


def fail() -> bool:
    raise LocalError("the local cluster left something behind: process 7")


@pytest.mark.usefixtures("no_cluster")
def test_demo_fails_and_reports_when_something_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(session, "down", fail)
    assert demo.run_demo(isolation="process", keep=False, progress=said.append) == 1
    assert "NO   nothing is left: no process, mount, network link or file" in capsys.readouterr().out
    assert said[-1] == "the local cluster left something behind: process 7"


@pytest.mark.usefixtures("no_cluster")
def test_failed_teardown_does_not_hide_why_the_demo_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> None:
        raise LocalError("the job failed")

    monkeypatch.setattr(demo, "_train_and_verify", train)
    monkeypatch.setattr(session, "down", fail)
    with pytest.raises(LocalError, match=r"^the job failed$"):
        demo.run_demo(isolation="process", keep=False, progress=lambda _: None)
