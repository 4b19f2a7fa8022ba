"""The local cluster's life on this machine: one at a time, held by a lock, ended without a trace.

`up` starts a keeper process that owns everything else (embedded AWS, hosts); every child dies with its parent, so
ending the keeper, even with SIGKILL, ends the cluster. All files are below one state directory.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from holdfast_local.emulator.errors import DeployError
from holdfast_local.errors import LocalError
from holdfast_local.hosts import purge

Progress = Callable[[str], None]

EMULATOR_PORT = 4566
START_SECONDS = 60
STOP_SECONDS = 20


def checkout() -> Path:
    """Return the project's root: the local cluster deploys what is in it.

    Raises:
        LocalError: the package is not installed from a checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "cdk.json").is_file():
        raise LocalError(f"`holdfast local` needs a checkout of the project, got {root}; clone it and run `make setup`")
    return root


def state_dir() -> Path:
    """Return where the local cluster keeps its files: HOLDFAST_STATE_DIR, else below XDG_STATE_HOME."""
    if configured := os.environ.get("HOLDFAST_STATE_DIR"):
        return Path(configured).absolute()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "holdfast/local"


def environment(state: Path | None = None) -> dict[str, str]:
    """Return the environment variables that point AWS tools at the running local cluster.

    Raises:
        LocalError: none is running.
    """
    state = state or state_dir()
    if not is_running(state):
        raise LocalError("no local cluster is running; start one with `holdfast local up`")
    return _environment(state)


def _environment(state: Path) -> dict[str, str]:
    variables: dict[str, str] = json.loads((state / "environment.json").read_text())
    return variables


def hosts(state: Path | None = None) -> dict[str, Any]:
    """Return what the hosts' process says of itself: isolation mode, what is not enforced, hosts and services."""
    try:
        document: dict[str, Any] = json.loads(((state or state_dir()) / "hosts.json").read_text())
    except FileNotFoundError:
        raise LocalError("the hosts' process has not started; see keeper.log in the state directory") from None
    return document


def is_running(state: Path) -> bool:
    """Return whether a cluster holds the state directory's lock."""
    try:
        with _lock_path(state).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def up(*, isolation: str, settings: str, progress: Progress, state: Path | None = None) -> None:
    """Start the embedded AWS and the hosts, bootstrap and deploy the kit. On any failure nothing is left.

    Raises:
        LocalError: another cluster is running, the port is taken, a tool is missing, or the deploy failed.
    """
    state = state or state_dir()
    root = checkout()
    with _locked(state) as lock:
        try:
            _start_keeper(state, lock, isolation)
            progress("embedded AWS is up")
            # Imported here: only `up` needs it, and every other command should start quickly.
            from holdfast_local.emulator.deploy import bootstrap_and_deploy

            bootstrap_and_deploy(
                root,
                _environment(state),
                settings,
                outputs_file=state / "outputs.json",
                on_progress=progress,
            )
        except DeployError as error:
            kept = _keep_logs(state)
            _end(state)
            raise LocalError(f"{error}\nlogs: {kept}") from None
        except BaseException:
            _end(state)
            raise


def down(state: Path | None = None) -> bool:
    """End the local cluster and remove its files; return whether there was one.

    Raises:
        LocalError: something is left.
    """
    state = state or state_dir()
    if not state.exists():
        return False
    _end(state)
    return True


def leftovers(state: Path | None = None) -> list[str]:
    """Return what is left of a cluster on this machine: processes, mounts, files, network links; none after `down`."""
    state = state or state_dir()
    found = [f"directory {state}"] if state.exists() else []
    found += [f"process {pid}: {command}" for pid, command in _processes(state)]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [f"mount {line.split()[1]}" for line in mounts if str(state) in line]
    links = Path("/sys/class/net")
    found += [f"network link {link.name}" for link in links.iterdir() if link.name.startswith("hf-")]
    return found


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[int]:
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    state.chmod(0o700)
    descriptor = os.open(_lock_path(state), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # An ending cluster removes the file: a lock on a removed file excludes nobody.
            same = os.path.samestat(os.fstat(descriptor), _lock_path(state).stat())
        except FileNotFoundError:
            same = False
        except BlockingIOError:
            raise LocalError(
                f"a local cluster is already running in {state}; end it with `holdfast local down`, "
                "or wait until its demo has ended"
            ) from None
        if not same:
            raise LocalError("another local cluster is just ending; try again")
        yield descriptor
    finally:
        os.close(descriptor)  # the keeper, if it lives, still holds the same lock


def _lock_path(state: Path) -> Path:
    return state / "lock"


def _start_keeper(state: Path, lock: int, isolation: str) -> None:
    purge(state)
    for leftover in state.iterdir():
        if leftover.name != "lock":
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    log = state / "keeper.log"
    with log.open("ab") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "holdfast_local.keeper", "--state-dir", str(state), "--isolation", isolation],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock,),
            cwd=checkout(),
        )
    (state / "keeper.pid").write_text(str(keeper.pid))
    deadline = time.monotonic() + START_SECONDS
    while not ((state / "environment.json").exists() and (state / "hosts.json").exists()):
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise LocalError(_last_error(log.read_text(errors="replace")))
        time.sleep(0.05)


def _keep_logs(state: Path) -> Path:
    """Copy the logs of a start that failed to a directory beside the state directory, which is about to go."""
    kept = state.with_name(f"{state.name}-failed-start")
    shutil.rmtree(kept, ignore_errors=True)
    for log in state.rglob("*.log"):
        target = kept / log.relative_to(state)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(log, target)
    return kept


def _last_error(log: str) -> str:
    """Return the first error that the keeper or one of its children gave; later ones follow from it."""
    errors = [line.removeprefix("error: ") for line in log.splitlines() if line.startswith("error: ")]
    return errors[0] if errors else f"the local cluster did not start; its log ends with: {log[-500:].strip()}"


def _end(state: Path) -> None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int((state / "keeper.pid").read_text())
        if _command(pid).find("holdfast_local.keeper") >= 0:
            _terminate(pid)
    for pid, _ in _processes(state):
        _terminate(pid)
    purge(state)
    shutil.rmtree(state, ignore_errors=True)
    if left := leftovers(state):
        raise LocalError("the local cluster left something behind: " + "; ".join(left))


def _terminate(pid: int) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + seconds
        try:
            os.kill(pid, number)
            while time.monotonic() < deadline and _alive(pid):
                time.sleep(0.05)
        except ProcessLookupError:
            return
        if not _alive(pid):
            return


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _processes(state: Path) -> list[tuple[int, str]]:
    """Return this user's processes that were started for a state directory: it is in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            command = _command(int(entry.name))
            if f"{state}/" in f"{command}/" and "holdfast_local" in command and _alive(int(entry.name)):
                found.append((int(entry.name), command))
    return found
