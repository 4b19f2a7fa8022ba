"""Why a node is refused: one exception, with a stable reason for metrics and a sentence for the operator."""

from enum import StrEnum


class Reason(StrEnum):
    """The stable codes of refusals: log metrics and the node's retry depend on them."""

    BAD_REQUEST = "bad_request"
    BAD_CSR = "bad_csr"
    BAD_PROOF = "bad_proof"
    WRONG_CLUSTER = "wrong_cluster"
    WRONG_CSR = "wrong_csr"
    EXPIRED = "expired"
    STS_REFUSED = "sts_refused"
    WRONG_ACCOUNT = "wrong_account"
    NOT_AN_INSTANCE = "not_an_instance"
    UNKNOWN_ROLE = "unknown_role"
    NOT_IN_GROUP = "not_in_group"
    NOT_RUNNING = "not_running"
    REVOKED = "revoked"
    REPLAYED = "replayed"  # a node retries it with another proof: two of one second are one and the same
    CA_MISMATCH = "ca_mismatch"
    UNAVAILABLE = "unavailable"  # a node retries it: AWS did not answer, nothing was decided


class Refused(Exception):  # noqa: N818 - a refusal is an answer of the protocol, not a fault of the function
    """The request gets no certificate. `str()` is safe to show and to log: it holds no secret."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
