"""Control groups for machines: systemd needs one of its own in every hierarchy that it uses.

A group outlives the processes in it, so whoever starts machines removes the groups of those that were killed.
"""

import contextlib
import hashlib
import os
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "holdfast-"


def hierarchies(root: Path = _ROOT) -> list[Path]:
    """Return the hierarchies that systemd uses: the unified one, or in hybrid mode both; none if there is none."""
    if (root / "cgroup.controllers").is_file():
        return [root]
    return [root / name for name in ("systemd", "unified") if (root / name / "cgroup.procs").is_file()]


def prefix(state_dir: Path) -> str:
    """Return how the groups of the machines below a state directory are called."""
    return f"{_PREFIX}{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:8]}-"


def join(name: str) -> None:
    """Move this process into the group `name` of every hierarchy, making it."""
    for hierarchy in hierarchies():
        (hierarchy / name).mkdir(exist_ok=True)
        (hierarchy / name / "cgroup.procs").write_text("0")


def remove(name: str) -> None:
    """Remove a group with the groups below it; those that hold a process stay."""
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def of(state_dir: Path) -> list[Path]:
    """Return the groups of machines below a state directory, those of killed ones included."""
    return [found for hierarchy in hierarchies() for found in sorted(hierarchy.glob(f"{prefix(state_dir)}*"))]
