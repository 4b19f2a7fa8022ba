"""One local cluster's life: what is its own, what is found of it, and that its end is complete and never more."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_local import commands, demo, session, traces
from holdfast_local.emulator.deploy import _environment as cdk_environment
from holdfast_local.emulator.errors import DeployError
from holdfast_local.errors import LocalError
from holdfast_local.hosts import HostsError, purge, status
from holdfast_local.mark import mark

SLEEP = ["sleep", "600"]
#: What a user's shell may hold that must not reach the local cluster.
USERS_OWN = {
    "AWS_PROFILE": "nonexistent",
    "AWS_SESSION_TOKEN": "of-a-real-account",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "intranet.example",
}

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with exactly these variables beside PATH; it is ended with the test."""
    started = []

    def begin(argv: list[str] = SLEEP, **variables: str) -> "subprocess.Popen[bytes]":
        environment = {"PATH": os.environ["PATH"], **variables}
        started.append(subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, start_new_session=True))
        return started[-1]

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def snapshot(directory: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.lstat().st_mode, p.lstat().st_mtime_ns) for p in [directory, *directory.rglob("*")])


ACTIONS: dict[str, Callable[[Path], object]] = {
    "up": lambda state: session.up(isolation="process", settings="local", progress=print, state=state),
    "down": session.down,
    "end": session._end,
    "start": lambda state: session._start_keeper(state, 0, "process"),
    "clear": traces.clear,
    "remove": traces.remove,
    "claim": traces.claim,
}


@pytest.mark.parametrize("action", ACTIONS)
def test_directory_of_something_else_is_refused_and_not_touched(action: str, state: Path) -> None:
    state.mkdir(mode=0o755)
    (state / "thesis.tex").write_text("years")
    (state / "hosts").mkdir()
    before = snapshot(state)
    with pytest.raises(LocalError) as refusal:
        ACTIONS[action](state)
    assert str(refusal.value) == (
        f"the state directory must be new, empty or made by `holdfast local up`, got {state}, which holds hosts, "
        "thesis.tex and no .holdfast-local-cluster; nothing was touched; set HOLDFAST_STATE_DIR to another directory"
    )
    assert snapshot(state) == before


def test_claimed_directory_is_private_and_goes_with_all_it_holds(state: Path) -> None:
    traces.claim(state)
    assert state.stat().st_mode & 0o777 == 0o700
    (state / "hosts/i-1").mkdir(parents=True)
    (state / "hosts/i-1/console.log").write_text("x")
    assert session.leftovers(state) == [f"directory {state}"]
    assert session.down(state) is True
    assert not state.exists()
    assert session.leftovers(state) == []


def test_link_in_the_state_directory_is_removed_and_its_target_is_not(state: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("x")
    traces.claim(state)
    (state / "link").symlink_to(tmp_path / "precious")
    session.down(state)
    assert (tmp_path / "precious/file").read_text() == "x"


def test_logs_of_a_failed_start_replace_the_last_ones_but_nothing_else(state: Path) -> None:
    traces.claim(state)
    (state / "cdk").mkdir()
    (state / "cdk/deploy.log").write_text("first")
    kept = state.with_name("state-failed-start")
    assert session._keep_logs(state) == f"\nlogs: {kept}"
    (state / "cdk/deploy.log").write_text("second")
    assert session._keep_logs(state) == f"\nlogs: {kept}"
    assert (kept / "cdk/deploy.log").read_text() == "second"


def test_logs_of_a_failed_start_leave_a_directory_of_that_name_alone(state: Path) -> None:
    traces.claim(state)
    (state / "keeper.log").write_text("error: x")
    taken = state.with_name("state-failed-start")
    taken.mkdir()
    (taken / "notes").write_text("mine")
    before = snapshot(taken)
    kept = Path(session._keep_logs(state).removeprefix("\nlogs: "))
    assert (kept / "keeper.log").read_text() == "error: x"
    assert kept.name.startswith("state-failed-start-")
    assert snapshot(taken) == before


def test_marked_process_is_found_and_ended_without_any_file(state: Path, start: Start) -> None:
    decoy = start(**mark(state))
    assert session.leftovers(state) == [f"process {decoy.pid}: sleep 600"]
    assert session.down(state) is True
    assert not traces.is_alive(decoy.pid)
    assert session.leftovers(state) == []
    assert session.down(state) is False


def test_process_that_ignores_polite_signals_is_ended(
    state: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "STOP_SECONDS", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\n"
    decoy = start([sys.executable, "-c", code + "time.sleep(600)"], **mark(state))
    assert decoy.stdout is not None
    assert decoy.stdout.readline() == b"deaf\n"
    session.down(state)
    assert not traces.is_alive(decoy.pid)


def test_descendant_with_an_environment_of_its_own_is_found_and_ended(state: Path, start: Start) -> None:
    decoy = start(["sh", "-c", "env -i sleep 600 & echo $!; wait"], **mark(state))
    assert decoy.stdout is not None
    child = int(decoy.stdout.readline())
    assert child in traces.processes(state)
    session.down(state)
    assert not traces.is_alive(child)


@pytest.mark.parametrize(
    ("argv", "variables"),
    [
        (["sh", "-c", "sleep 600", "{state}/keeper.log", "holdfast_local"], {}),
        (SLEEP, {"HOLDFAST_STATE_DIR": "{state}"}),
        (SLEEP, mark(Path("{state}-2"))),
    ],
    ids=["reads-its-log", "shell-that-names-the-directory", "another-cluster"],
)
def test_process_that_only_mentions_the_directory_is_left_alone(
    state: Path, start: Start, argv: list[str], variables: dict[str, str]
) -> None:
    bystander = start(
        [word.format(state=state) for word in argv],
        **{name: value.format(state=state) for name, value in variables.items()},
    )
    traces.claim(state)
    session.down(state)
    assert bystander.poll() is None
    assert session.leftovers(state) == []


def test_stale_hosts_file_with_a_used_again_process_id_blocks_nothing(state: Path) -> None:
    traces.claim(state)
    (state / "hosts.json").write_text(json.dumps({"pid": os.getpid(), "hosts": []}))
    (state / "hypervisor.lock").touch()
    assert status(state) is None
    purge(state)
    assert not (state / "hosts.json").exists()
    assert session.down(state) is True


def test_failure_to_purge_does_not_hide_why_the_start_failed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DeployError("the original failure")

    def refuse(state: Path) -> None:
        (state / "left").mkdir(exist_ok=True)
        monkeypatch.setattr(traces, "remove", lambda _: None)
        raise HostsError("a hypervisor runs")

    monkeypatch.setattr(session, "_start_keeper", fail)
    monkeypatch.setattr(session, "purge", refuse)
    with pytest.raises(LocalError) as failure:
        session.up(isolation="process", settings="local", progress=print, state=state)
    assert str(failure.value).splitlines() == [
        "the original failure",
        f"logs: {state}-failed-start",
        f"the local cluster left something behind: directory {state}; a hypervisor runs",
    ]


@pytest.mark.parametrize("number", session.ENDING_SIGNALS)
def test_signal_does_not_break_the_teardown(number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler)
    try:
        with session.undisturbed():
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(5)  # the signal ends it at once
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("first", session.ENDING_SIGNALS)
@pytest.mark.parametrize("second", session.ENDING_SIGNALS)
def test_only_the_first_signal_interrupts(first: signal.Signals, second: signal.Signals) -> None:
    code = (
        "import os, signal; from holdfast_local import session\n"
        # The test run may ignore some: background jobs SIGINT, jobs under nohup(1) SIGHUP.
        "for number in session.ENDING_SIGNALS: signal.signal(number, signal.SIG_DFL)\n"
        "session.interrupt_once()\n"
        f"try: os.kill(os.getpid(), {first:d}); print('not reached')\n"
        f"except KeyboardInterrupt: os.kill(os.getpid(), {second:d}); print('torn down')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "torn down\n", "")


def interrupted(capsys: pytest.CaptureFixture[str]) -> str:
    def action() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        commands._run(action)
    return capsys.readouterr().err.strip()


def test_interrupted_command_says_what_is_left_and_only_that(
    state: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(state))
    assert interrupted(capsys) == "interrupted; nothing was left running"
    decoy = start(**mark(state))
    assert interrupted(capsys) == (
        f"interrupted; this was left: process {decoy.pid}: sleep 600; remove it with `holdfast local down`"
    )
    with session._locked(state):
        assert interrupted(capsys) == "interrupted; the local cluster runs; end it with `holdfast local down`"


@pytest.fixture
def keeper(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real keeper with the real embedded AWS and hypervisor, started from a shell with settings of its own."""
    for name, value in USERS_OWN.items():
        monkeypatch.setenv(name, value)
    with session._locked(state) as lock:
        try:
            process = session._start_keeper(state, lock, "loopback", port=0)
            yield state
        finally:
            session._end(state)
        process.wait(5)


def members(state: Path) -> dict[str, int]:
    """The cluster's processes by the module that each runs."""
    found = traces.processes(state).items()
    return {word: pid for pid, line in found for word in line.split() if word.startswith("holdfast_local.")}


KEEPER, EMULATOR, HYPERVISOR = (f"holdfast_local.{name}" for name in ("keeper", "emulator.server", "hosts.hypervisor"))


def test_users_settings_do_not_reach_the_cluster_and_all_of_it_is_found(keeper: Path) -> None:
    assert set(members(keeper)) == {KEEPER, EMULATOR, HYPERVISOR}
    assert {line.split(":")[0].split()[0] for line in session.leftovers(keeper)} == {"directory", "process"}
    variables = json.loads((keeper / "environment.json").read_text())
    assert variables["no_proxy"] == variables["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"
    assert demo._cloudformation(variables).describe_stacks()["Stacks"] == []
    assert session.hosts(keeper)["error"] == ""
    assert session.down(keeper) is True
    assert session.leftovers(keeper) == []


def test_keeper_ends_with_an_error_when_the_embedded_aws_dies(keeper: Path) -> None:
    pids = members(keeper)
    os.kill(pids[EMULATOR], signal.SIGKILL)
    deadline = time.monotonic() + 15
    while any(map(traces.is_alive, pids.values())):
        assert time.monotonic() < deadline, traces.processes(keeper)
        time.sleep(0.05)
    assert f"error: the embedded AWS ended; the last lines of {keeper}/emulator.log" in (
        (keeper / "keeper.log").read_text()
    )


def test_nothing_survives_a_killed_keeper(keeper: Path) -> None:
    pids = members(keeper)
    os.kill(pids[KEEPER], signal.SIGKILL)
    session.down(keeper)
    assert not any(map(traces.is_alive, pids.values()))
    assert session.leftovers(keeper) == []


def test_unexpected_failure_of_the_keeper_is_one_line(state: Path) -> None:
    traces.claim(state)
    (state / "tmp").write_text("a file where the embedded AWS needs a directory")
    argv = [sys.executable, "-m", KEEPER, "--state-dir", str(state), "--port", "0"]
    done = subprocess.run(argv, cwd=session.checkout(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert session._last_error(done.stderr).startswith("the keeper failed: FileExistsError: ")


def test_log_without_an_error_line_is_shown_by_its_last_line() -> None:
    log = "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'x'\n"
    assert session._last_error(log) == (
        "the local cluster did not start; its log ends with: ModuleNotFoundError: No module named 'x'"
    )


def test_cdk_keeps_the_users_proxy_but_not_for_the_embedded_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in USERS_OWN.items():
        monkeypatch.setenv(name, value)
    variables = cdk_environment(tmp_path, {"no_proxy": "127.0.0.1"} | mark(tmp_path), tmp_path)
    assert not [name for name in variables if name.startswith("AWS_")]
    assert (variables["HTTPS_PROXY"], variables["no_proxy"]) == ("http://127.0.0.1:9", "127.0.0.1")
    assert mark(tmp_path).items() <= variables.items()


def test_missing_tool_is_named_with_its_package_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    node = shutil.which("node")
    assert node is not None
    (tmp_path / "bin/node").symlink_to(node)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(LocalError) as refusal:
        session.up(isolation="process", settings="local", progress=print, state=tmp_path / "state")
    assert str(refusal.value) == (
        "these tools are missing: stunnel (Debian's package stunnel4); install them, or run `make setup` as root"
    )
    assert not (tmp_path / "state").exists()


def test_missing_environment_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session, "checkout", lambda: tmp_path)
    with pytest.raises(LocalError, match=r"not installed in .*: \.venv-aws/bin/python, .*; run `make setup`"):
        session.up(isolation="process", settings="local", progress=print, state=tmp_path / "state")
