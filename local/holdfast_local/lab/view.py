"""What a lab host sees of the machine's files: all of them, but of closed directories only what it is to have.

A host's users are not the machine's, so an interpreter below `/root`, say, must be shown to them; what else is in
there must not.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from holdfast_local.hosts.rootfs import bind, mount

_MS_REC, _MS_PRIVATE = 16384, 1 << 18  # <sys/mount.h>


def narrow(visible: Iterable[Path]) -> None:
    """In this thread's mount namespace, hide every closed directory but for the interpreter's and `visible` ones.

    A directory is closed if others may not enter it. `visible` directories keep their modes and can be written by
    whom these let.
    """
    mount("none", Path("/"), flags=_MS_REC | _MS_PRIVATE)
    wanted = dict.fromkeys([Path(sys.base_prefix), Path(sys.base_prefix).resolve(), *visible])
    hidden: dict[Path, dict[Path, int]] = {}
    for path in wanted:
        if (top := _closed(path)) is not None:
            # Held open: the path will lead elsewhere once something lies over it.
            hidden.setdefault(top, {})[path] = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for top, paths in hidden.items():
        mount("tmpfs", top, kind="tmpfs", options="mode=755")
        for path, descriptor in paths.items():
            bind(Path(f"/proc/self/fd/{descriptor}"), path, writable=True)
            os.close(descriptor)


def _closed(path: Path) -> Path | None:
    """Return the topmost parent of `path` that others may not enter."""
    return next((parent for parent in [*path.parents][::-1] if not parent.stat().st_mode & 0o001), None)
