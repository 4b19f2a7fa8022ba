"""Errors that a user may see.

HoldfastError
├── DocumentError      a document does not have its schema (what, got, allowed, remedy)
└── VerificationError  a signature or a digest does not match; nothing may be used
"""


class HoldfastError(Exception):
    """Root of every error that Holdfast reports as one clear message, without a traceback."""


class DocumentError(HoldfastError):
    """A document (job, node configuration, rendezvous) does not have its schema."""


class VerificationError(HoldfastError):
    """A signature or digest does not match. Always fatal: there is no way to ask for the content anyway."""
