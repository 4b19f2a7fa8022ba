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
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from holdfast_local import traces
from holdfast_local.emulator.errors import DeployError
from holdfast_local.emulator.process import without_aws, without_proxies
from holdfast_local.errors import LocalError
from holdfast_local.hosts import HostsError, Mode, purge
from holdfast_local.hosts.isolation import can_boot
from holdfast_local.hosts.machines import cgroups
from holdfast_local.hosts.machines.trial import make_bootable
from holdfast_local.mark import mark
from holdfast_node.contract.errors import HoldfastError

Progress = Callable[[str], None]

EMULATOR_PORT = 4566
START_SECONDS = 60
KEEPER = "holdfast_local.keeper"
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        return Path(configured).resolve()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base).resolve() / "holdfast/local"


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
        with _lock_path(state).open() as lock:
            # Shared, so that two who ask are not in each other's way.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


def up(*, isolation: str, settings: str, progress: Progress, state: Path | None = None) -> None:
    """Start the embedded AWS and the hosts, bootstrap and deploy the kit. On any failure nothing is left.

    Raises:
        LocalError: another cluster is running, the state directory is not a cluster's, the port is taken, a tool is
            missing, or the deploy failed.
    """
    state = state or state_dir()
    root = checkout()
    _require_tools(root)
    with _locked(state) as lock:
        try:
            if isolation == Mode.BOOT:
                make_bootable(_wheels, progress)
            elif isolation == "auto" and can_boot():
                _try_to_make_bootable(progress)
            _start_keeper(state, lock, isolation)
            progress("embedded AWS is up")
            # Imported here: only `up` needs it, and every other command should start quickly.
            from holdfast_local.emulator.deploy import bootstrap_and_deploy

            bootstrap_and_deploy(
                root,
                _environment(state) | mark(state),
                settings,
                outputs_file=state / "outputs.json",
                on_progress=progress,
            )
        except (HoldfastError, OSError) as error:
            kept = _keep_logs(state) if isinstance(error, DeployError) else ""
            raise LocalError(f"{error}{kept}{_end_after_failure(state)}") from None
        except BaseException:
            _end_after_failure(state)
            raise


def _try_to_make_bootable(progress: Progress) -> None:
    """Make what hosts boot from; without it, as on a machine without a network, they are of a kind that needs none."""
    try:
        make_bootable(_wheels, progress)
    except (HoldfastError, OSError) as error:
        progress(f"hosts will not boot: {error}")


def _wheels(lock: Path) -> Path:
    # Imported here: the kit brings the CDK (which judges the version of Node.js), and only making an image needs this.
    os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "18,20")
    from holdfast.packing import pack_wheels

    return pack_wheels(lock, checkout() / ".build")[0]


def _require_tools(root: Path) -> None:
    """Raise LocalError unless what every isolation needs is here; `hosts.detect` judges what only some need."""
    tools = {"stunnel": "stunnel4", "node": "nodejs"}
    if missing := [f"{tool} (Debian's package {package})" for tool, package in tools.items() if not shutil.which(tool)]:
        raise LocalError(f"these tools are missing: {', '.join(missing)}; install them, or run `make setup` as root")
    installed = (".venv-aws/bin/python", ".venv-node/bin/python", "node_modules/.bin/cdk")
    if missing := [name for name in installed if not (root / name).exists()]:
        raise LocalError(f"not installed in {root}: {', '.join(missing)}; run `make setup`")


def down(state: Path | None = None) -> bool:
    """End the local cluster and remove its files; return whether there was one.

    Raises:
        LocalError: the state directory is not a cluster's, or something is left.
    """
    state = state or state_dir()
    traces.require_own(state)
    if not (state / traces.MARKER).exists() and not traces.processes(state):
        return False
    _end(state)
    return True


def leftovers(state: Path | None = None) -> list[str]:
    """Return what is left of a cluster on this machine: processes, mounts, files, network links; none after `down`."""
    state = state or state_dir()
    found = [f"directory {state}"] if state.exists() and not traces.is_foreign(state) else []
    found += [f"process {pid}: {command}" for pid, command in traces.processes(state).items()]
    # proc(5), mounts: a space in a path is written \\040.
    points = [line.split()[1].replace(r"\040", " ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    found += [f"mount {point}" for point in points if Path(point).is_relative_to(state)]
    links = Path("/sys/class/net")
    found += [f"control group {group}" for group in cgroups.of(state)]
    found += [f"network link {link.name}" for link in links.iterdir() if link.name.startswith("hf-")]
    return found


def interrupt_once() -> None:
    """Have the first signal that ends a command raise KeyboardInterrupt, and no other: the teardown runs to its end."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup(1) goes on being obeyed
            signal.signal(number, interrupt)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore the signals that end a command, so that none of them leaves half of a cluster."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's, and so are its handlers
        return
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in ENDING_SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[int]:
    traces.claim(state)
    ending = LocalError("another local cluster is just ending; try again")
    try:
        descriptor = os.open(_lock_path(state), os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        raise ending from None
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
            raise ending
        yield descriptor
    finally:
        os.close(descriptor)  # the keeper, if it lives, still holds the same lock


def _lock_path(state: Path) -> Path:
    return state / "lock"


def _start_keeper(state: Path, lock: int, isolation: str, port: int = EMULATOR_PORT) -> "subprocess.Popen[bytes]":
    traces.require_own(state)
    # The lock was free: what runs has lost its keeper.
    traces.terminate(traces.processes(state))
    purge(state)
    traces.clear(state, keep=["lock"])
    log = state / "keeper.log"
    argv = [sys.executable, "-m", KEEPER, "--state-dir", str(state), "--isolation", isolation, "--port", str(port)]
    with log.open("ab") as output:
        keeper = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock,),
            cwd=checkout(),
            env=_keeper_environment(state),
        )
    deadline = time.monotonic() + START_SECONDS
    while not ((state / "environment.json").exists() and (state / "hosts.json").exists()):
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise LocalError(_last_error(log.read_text(errors="replace")))
        time.sleep(0.05)
    return keeper


def _keeper_environment(state: Path) -> dict[str, str]:
    """Return an environment without the user's AWS settings and proxies: all that the keeper talks to is here."""
    # Without these, the AWS clients would read the user's files, wherever HOME has them.
    files = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    # Debian has nft and ip where only root's PATH looks, and hosts in user namespaces need them too.
    path = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    return without_proxies(without_aws(os.environ)) | files | path | mark(state)


def _keep_logs(state: Path) -> str:
    """Copy the logs of a start that failed to beside the state directory, which is about to go; return where, as text.

    The directory of the last failure is replaced; one of that name that is not ours is left alone.
    """
    kept = state.with_name(f"{state.name}-failed-start")
    try:
        if traces.is_foreign(kept):
            kept = Path(tempfile.mkdtemp(prefix=f"{kept.name}-", dir=kept.parent))
        traces.claim(kept)
        traces.clear(kept)
        for log in state.rglob("*.log"):
            target = kept / log.relative_to(state)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copyfile(log, target)
    except OSError as error:
        return f"\nlogs: could not be kept in {kept}: {error.strerror}"
    return f"\nlogs: {kept}"


def _last_error(log: str) -> str:
    """Return the first error that the keeper or one of its children gave; later ones follow from it."""
    lines = log.strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[0] if errors else f"the local cluster did not start; its log ends with: {lines[-1] if lines else ''}"


def _end_after_failure(state: Path) -> str:
    """End what a failed start has begun; return what to add to its error, which says more than what is left does."""
    try:
        _end(state)
    except LocalError as left:
        return f"\n{left}"
    return ""


def _end(state: Path) -> None:
    with undisturbed():
        traces.require_own(state)
        # The keeper first: it ends the others in order. Then whoever has lost it.
        traces.terminate([pid for pid, command in traces.processes(state).items() if KEEPER in command])
        traces.terminate(traces.processes(state))
        trouble = []
        try:
            purge(state)
        except (HostsError, OSError, subprocess.SubprocessError) as error:
            trouble = [str(error)]
        traces.remove(state)
        if left := leftovers(state):
            raise LocalError("the local cluster left something behind: " + "; ".join([*left, *trouble]))
