"""Errors of the prediction path.

HoldfastError
├── PredictorError    a model cannot be served (its description or its output does not fit); nothing is served
└── RequestRefused    a client's request is refused, with an HTTP status and a message for the client
"""

from holdfast_node.contract.errors import HoldfastError


class PredictorError(HoldfastError):
    """A verified model cannot be served as it is."""


class RequestRefused(HoldfastError):  # noqa: N818 - an answer, not a malfunction
    """A request is refused. `status` is HTTP's (RFC 9110, section 15); `retry_seconds` when to come again, if ever."""

    def __init__(self, status: int, message: str, *, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_seconds = retry_seconds
