"""Errors of the local hosts.

HoldfastError
└── HostsError           the local hosts cannot do what was asked
    ├── IsolationError   the isolation that was asked for cannot be had on this machine
    ├── ImageError       the image that hosts boot cannot be made
    ├── BootError        a host's boot failed; the message names the phase and the cause
    └── HostNotFoundError  no such host is running
"""

from holdfast_node.contract.errors import HoldfastError


class HostsError(HoldfastError):
    """Root of the errors of the local hosts."""


class IsolationError(HostsError):
    """The isolation that was asked for cannot be had on this machine."""


class ImageError(HostsError):
    """The image that hosts boot cannot be made."""


class BootError(HostsError):
    """A host's boot failed."""


class HostNotFoundError(HostsError):
    """No such host is running."""
