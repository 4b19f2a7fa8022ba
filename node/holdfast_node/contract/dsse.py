"""DSSE envelopes: a payload, its type and its signature, with no canonical JSON needed.

Format: https://github.com/secure-systems-lab/dsse/blob/v1.0.2/envelope.md and protocol.md. This module builds and
parses; the signature itself is made and checked by functions that the caller passes in.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

from holdfast_node.contract.errors import DocumentError, VerificationError

JOB_PAYLOAD_TYPE = "application/vnd.holdfast.job+json"
MAX_ENVELOPE_BYTES = 1 << 20


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """Return the JSON envelope of `payload`; `sign` maps the bytes to be signed to a signature."""
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": "", "sig": base64.b64encode(sign(pae(payload_type, payload))).decode()}],
    }
    return json.dumps(envelope, sort_keys=True).encode()


def unseal(payload_type: str, envelope: bytes, verify: Callable[[bytes, bytes], None]) -> bytes:
    """Return the payload of an envelope of this type, verified.

    Args:
        payload_type: the only accepted type, so that no other signed document can stand in for this one.
        envelope: the JSON envelope, at most 1 MiB, with exactly one signature.
        verify: called with (signature, signed bytes); raises if they do not match.

    Raises:
        DocumentError: not an envelope of this type.
        VerificationError: what `verify` raises, or its cause.
    """
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise DocumentError(f"envelope must be at most {MAX_ENVELOPE_BYTES} bytes, got {len(envelope)}")
    try:
        parsed: Any = json.loads(envelope)
        kind = parsed["payloadType"]
        payload = base64.b64decode(parsed["payload"], validate=True)
        (signature,) = parsed["signatures"]
        raw_signature = base64.b64decode(signature["sig"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DocumentError(f"not a DSSE envelope with one signature: {type(error).__name__}") from None
    if kind != payload_type:
        raise VerificationError(f"payload type must be {payload_type}, got {kind!r}; this document is something else")
    verify(raw_signature, pae(payload_type, payload))
    return payload
