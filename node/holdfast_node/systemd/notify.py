"""Tells systemd how a service is doing (sd_notify(3)); says nothing where no service manager listens."""

import os
import socket


def notify(*states: str) -> None:
    """Send states such as `READY=1` to whoever started this process, as one message.

    Raises:
        OSError: there is a service manager, and it cannot be told.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract address, unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.send("\n".join(states).encode())
