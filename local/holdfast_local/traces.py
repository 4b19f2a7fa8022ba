"""What a local cluster leaves on this machine while it runs: its processes and its files, and the end of both.

Files are only ever removed from a directory that holds the marker file, which `claim` writes: a state directory is
named by the user and could be anything.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from holdfast_local.errors import LocalError
from holdfast_local.hosts.processes import family
from holdfast_local.mark import mark

MARKER = ".holdfast-local-cluster"
STOP_SECONDS = 20
KILL_SECONDS = 5


def is_foreign(state: Path) -> bool:
    """Return whether something is in the way at `state` that no local cluster has made."""
    if state.is_dir():
        return not (state / MARKER).is_file() and any(state.iterdir())
    return state.exists()


def require_own(state: Path) -> None:
    """Let pass a directory that a local cluster has made, an empty one, and none at all.

    Raises:
        LocalError: it holds, or is, something else; nothing was touched.
    """
    if is_foreign(state):
        held = sorted(path.name for path in state.iterdir())[:3] if state.is_dir() else ["a file"]
        raise LocalError(
            f"the state directory must be new, empty or made by `holdfast local up`, got {state}, which holds "
            f"{', '.join(held)} and no {MARKER}; nothing was touched; set HOLDFAST_STATE_DIR to another directory"
        )


def claim(state: Path) -> None:
    """Make a directory that only this user can read, and mark it as one whose files are a local cluster's.

    Raises:
        LocalError: see `require_own`.
    """
    require_own(state)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    (state / MARKER).touch(mode=0o600)
    state.chmod(0o700)


def clear(state: Path, *, keep: Iterable[str] = ()) -> None:
    """Remove what a claimed directory holds, but for its marker and the names in `keep`, as far as that is possible.

    Raises:
        LocalError: see `require_own`.
    """
    require_own(state)
    for path in state.iterdir() if state.is_dir() else ():
        if path.name in (MARKER, *keep):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def remove(state: Path) -> None:
    """Remove a claimed directory; the marker goes last, so that whoever is interrupted here can begin again.

    Raises:
        LocalError: see `require_own`.
    """
    clear(state)
    with contextlib.suppress(OSError):
        if [path.name for path in state.iterdir()] == [MARKER]:
            (state / MARKER).unlink()
        state.rmdir()


def processes(state: Path) -> dict[int, str]:
    """Return the command lines of a cluster's processes, by process id.

    They are those with its mark, those that have loaded its overlay library (a trainer on shared loopback has an
    environment of its own), and the descendants of both.
    """
    variable, value = next(iter(mark(state).items()))
    wanted = f"{variable}={value}".encode()
    roots = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended, or is another user's
            marked = wanted in (entry / "environ").read_bytes().split(b"\0")
            if marked or f" {state}/overlay/" in (entry / "maps").read_text(errors="replace"):
                roots.add(int(entry.name))
    found = family(roots) - {os.getpid()}
    return {pid: command(pid) for pid in sorted(found) if is_alive(pid)}


def terminate(pids: Iterable[int]) -> None:
    """End processes: politely all at once, then those that are left by force."""
    remaining = set(pids)
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while (remaining := {pid for pid in remaining if is_alive(pid)}) and time.monotonic() < deadline:
            time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a child of this one that has ended is collected."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command(pid: int) -> str:
    """Return a process's command line, or nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
