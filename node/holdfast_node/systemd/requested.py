"""Stands for the agent's request for a service: this process runs for as long as the request does.

A systemd path unit notices that a file appears, and nothing of systemd notices for certain that one has gone: what
changes while a path unit's service runs is not reported afterwards. So the path unit starts this program, which starts
the service (`Wants=`), and the service is bound to it (`BindsTo=`). A request that is made anew is another one: the
program ends, and the path unit, which sees the new file, starts both again.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from holdfast_node.contract.layout import NodePaths
from holdfast_node.systemd.notify import notify

#: What the service manager of local hosts takes to look again.
POLL_SECONDS = 0.05


def await_end(request: Path, seen: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> bool:
    """Return once this request has been taken back or made anew; False if there was none.

    `seen` is called once the request is known: whatever is made from then on is another one.
    """
    first = _identity(request)
    if first is None:
        return False
    seen()
    while _identity(request) == first:
        sleep(POLL_SECONDS)
    return True


def main() -> int:
    """Wait for the end of the request for one service of the node below `--root`."""
    parser = argparse.ArgumentParser(description="Run for as long as a service is asked for.")
    parser.add_argument("service")
    parser.add_argument("--root", type=Path, default=Path("/"))
    arguments = parser.parse_args()
    asked = await_end(NodePaths(arguments.root).start_request(arguments.service), lambda: notify("READY=1"))
    return 0 if asked else 1


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


if __name__ == "__main__":
    sys.exit(main())
