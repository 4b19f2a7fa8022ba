"""Errors of the local cluster.

HoldfastError
└── LocalError  something on this machine is in the way (a port, a tool, another cluster); the message says what to do
"""

from holdfast_node.contract.errors import HoldfastError


class LocalError(HoldfastError):
    """The local cluster cannot start, or did not end as it should."""
