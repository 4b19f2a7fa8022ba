"""The mark by which a local cluster's processes are known, wherever they end up: a variable in their environment.

It has a name that no user sets, unlike HOLDFAST_STATE_DIR: a shell that chooses the directory is not the cluster.
"""

import os
from pathlib import Path

VARIABLE = "HOLDFAST_LOCAL_CLUSTER"


def mark(state: Path) -> dict[str, str]:
    """Return the environment that marks a process as part of the cluster in `state`."""
    return {VARIABLE: str(state)}


def own_mark() -> dict[str, str]:
    """Return this process's own mark, for a child that is given an environment of its own; empty if there is none."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}
