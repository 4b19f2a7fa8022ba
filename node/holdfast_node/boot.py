"""What a node checks of itself at boot, before any service starts: that its configuration holds and its port is free.

`python -m holdfast_node.boot` ends with status 1 and says why on the lines `cause: …` and `remedy: …`, which the flight
recorder in the user data takes.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.listeners import ports

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def require_free_port(port: int, tables: tuple[str, ...]) -> None:
    """Raise HoldfastError if something listens on the port at any address; `tables` are /proc/net/tcp and its like."""
    if any(port in ports(table) for table in tables):
        raise HoldfastError(f"port {port} must be this node's, and something listens on it already")


def step(check: Callable[[NodeConfig, NodePaths], None], root: Path, remedy: str) -> int:
    """Do a step of the boot with the configuration of the node below `root`; return its status, and say why it failed.

    What the step raises is the line `cause: …`, and `remedy` the one after it: the flight recorder takes both.
    """
    paths = NodePaths(root)
    try:
        check(NodeConfig.parse(paths.config.read_bytes()), paths)
    except (HoldfastError, OSError) as error:
        print(f"cause: {error}")
        print(f"remedy: {remedy}")
        return 1
    return 0


def _require_ports(config: NodeConfig, _paths: NodePaths) -> None:
    require_free_port(config.port, tuple(table.read_text() for table in _TABLES if table.exists()))


def main() -> int:
    """Check the node that is configured below `--root`."""
    parser = argparse.ArgumentParser(description="Check a node before its services start.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    remedy = "use an image that starts nothing there, or other ports: [ports] in the settings"
    return step(_require_ports, parser.parse_args().root, remedy)


if __name__ == "__main__":
    sys.exit(main())
