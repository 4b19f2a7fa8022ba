"""The role's pinned port: free before the start, and the trainer's own after it.

ps-lite moves to a random port when `PORT` is taken (van.cc, `Van::Start`: up to 40 attempts) and says nothing; the
security groups and the tunnel know only the pinned one, so a moved node is a hang. Sockets are asked through libc,
not read from /proc/net, so that hosts which map the overlay by a preloaded library give the same answer.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from holdfast_node.engines.errors import PortError

Address = tuple[str, int]
T = TypeVar("T")


def own_address() -> Address:
    """Return the address and port that this process must bind, from its environment."""
    return os.environ["DMLC_NODE_HOST"], int(os.environ["PORT"])


def require_free(address: Address) -> None:
    """Return if nobody listens on this address and port.

    Raises:
        PortError: it is taken, or it is not an address of this machine.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ZeroMQ does; TIME_WAIT is no obstacle
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            host, port = address
            if error.errno == errno.EADDRINUSE:
                raise PortError(
                    f"port {port} on {host} must be free for the trainer, but another process listens on it; "
                    f"stop that process (ss -ltnp 'sport = :{port}') or pin another port in the settings"
                ) from None
            raise PortError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from None


def listeners() -> set[Address]:
    """Return the IPv4 addresses and ports that this process listens on."""
    return set(each_socket(_listens_at))


def each_socket(look: Callable[[socket.socket], T | None]) -> Iterator[T]:
    """Yield what `look` returns of each IPv4 socket that this process has open, unless it returns None."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # a descriptor may be closed meanwhile, or be no socket
            copy = os.dup(int(entry.name))
            try:
                opened = socket.socket(fileno=copy)
            except OSError:
                os.close(copy)
                continue
            with opened:
                if opened.family == socket.AF_INET and (found := look(opened)) is not None:
                    yield found


def _listens_at(opened: socket.socket) -> Address | None:
    return opened.getsockname() if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else None


def require_listener(address: Address, found: set[Address]) -> None:
    """Return if the pinned address is among the sockets found.

    Raises:
        PortError: the trainer listens elsewhere, where no peer can reach it.
    """
    if address not in found:
        host, port = address
        where = ", ".join(f"{h}:{p}" for h, p in sorted(found)) or "nothing"
        raise PortError(f"the trainer must listen on {host}:{port}, got {where}; another process took the port")
