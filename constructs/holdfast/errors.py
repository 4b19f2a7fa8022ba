"""Errors of the construct library.

HoldfastError (holdfast_node.contract)
└── KitError                 root of this package
    ├── PropertyError        a construct was given a value that cannot work
    ├── BundleError          code for a function or a node could not be packed
    └── AcknowledgementError a finding was to be excused without a reason
"""

from holdfast_node.contract.errors import HoldfastError


class KitError(HoldfastError):
    """Root of what the construct library refuses; its message says what, got, allowed and remedy."""


class PropertyError(KitError):
    """A construct's property has a value that cannot work."""


class BundleError(KitError):
    """Code for a function or a node could not be packed."""


class AcknowledgementError(KitError):
    """A finding was to be excused without a reason."""
