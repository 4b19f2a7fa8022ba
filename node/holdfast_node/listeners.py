"""Who listens where on this node, from /proc/self/net/tcp (proc(5)), which `ProcSubset=pid` leaves; IPv4 only."""

import struct
import time
from ipaddress import IPv4Address
from pathlib import Path

from holdfast_node.contract.errors import HoldfastError

_LISTEN = "0A"


def listening(table: str, address: str, port: int) -> bool:
    """Return whether `table` (the text of /proc/net/tcp) holds a listener on this address, or on all of them.

    Addresses are hex in host byte order, as the kernel prints them.
    """
    wanted = {f"{struct.unpack('=I', IPv4Address(a).packed)[0]:08X}:{port:04X}" for a in (address, "0.0.0.0")}  # noqa: S104
    rows = (line.split() for line in table.splitlines()[1:])
    return any(row[1] in wanted and row[3] == _LISTEN for row in rows if len(row) > 3)


def ports(table: str) -> set[int]:
    """Return the ports that `table` (the text of /proc/net/tcp or tcp6) holds listeners on, at any address."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == _LISTEN}


def is_listening(address: str, port: int) -> bool:
    """Return whether something listens on this address and port in this network namespace, now."""
    return listening(Path("/proc/self/net/tcp").read_text(), address, port)


def require_free(address: str, port: int, what: str) -> None:
    """Raise HoldfastError if the pinned port is taken; ps-lite would move to a random one without a word."""
    if is_listening(address, port):
        raise HoldfastError(f"{what} must listen on {address}:{port}, and the port is taken; stop what listens there")


def await_listener(address: str, port: int, what: str, timeout_seconds: float) -> None:
    """Return once something listens there; raise HoldfastError after `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while not is_listening(address, port):
        if time.monotonic() > deadline:
            raise HoldfastError(f"{what} did not listen on {address}:{port} within {timeout_seconds:g} s; see its log")
        time.sleep(0.05)
