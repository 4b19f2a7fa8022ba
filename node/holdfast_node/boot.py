"""What a node checks of itself at boot, before any service starts: that its configuration holds and its port is free.

`python -m holdfast_node.boot` ends with status 1 and says why on the lines `cause: …` and `remedy: …`, which the flight
recorder in the user data takes.
"""

import argparse
import sys
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


def main() -> int:
    """Check the node that is configured below `--root`."""
    parser = argparse.ArgumentParser(description="Check a node before its services start.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    paths = NodePaths(parser.parse_args().root)
    try:
        config = NodeConfig.parse(paths.config.read_bytes())
        require_free_port(config.port, tuple(table.read_text() for table in _TABLES if table.exists()))
    except (HoldfastError, OSError) as error:
        print(f"cause: {error}")
        print("remedy: use an image that starts nothing there, or other ports: [ports] in the settings")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
