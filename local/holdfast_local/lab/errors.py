"""Errors of the lab.

HoldfastError
└── LabError  the lab cannot do what was asked; the message says what is in the way
"""

from holdfast_node.contract.errors import HoldfastError


class LabError(HoldfastError):
    """The lab cannot do what was asked."""
