import base64
import json

import pytest

from holdfast_node.contract import dsse
from holdfast_node.contract.errors import DocumentError, VerificationError

KIND = "application/vnd.example+json"


def sign(message: bytes) -> bytes:
    return b"signed:" + message


def verify(signature: bytes, message: bytes) -> None:
    if signature != sign(message):
        raise VerificationError("no match")


def test_pae_is_the_specification_s_example() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md#test-vectors
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_sealed_payload_is_unsealed() -> None:
    assert dsse.unseal(KIND, dsse.seal(KIND, b"content", sign), verify) == b"content"


def test_changed_payload_is_refused() -> None:
    envelope = json.loads(dsse.seal(KIND, b"content", sign))
    envelope["payload"] = base64.b64encode(b"other").decode()
    with pytest.raises(VerificationError, match="no match"):
        dsse.unseal(KIND, json.dumps(envelope).encode(), verify)


def test_another_payload_type_is_refused_although_it_is_signed() -> None:
    with pytest.raises(VerificationError, match=r"payload type must be application/vnd\.example"):
        dsse.unseal(KIND, dsse.seal("application/vnd.other+json", b"content", sign), verify)


MALFORMED = {
    "not JSON": b"{",
    "no signatures": json.dumps({"payload": "", "payloadType": KIND, "signatures": []}).encode(),
    "two signatures": json.dumps({"payload": "", "payloadType": KIND, "signatures": [{"sig": ""}] * 2}).encode(),
    "not base64": json.dumps({"payload": "*", "payloadType": KIND, "signatures": [{"sig": ""}]}).encode(),
    "a list": b"[]",
    "too deep": b"[" * 300_000,
}


@pytest.mark.parametrize("envelope", MALFORMED.values(), ids=MALFORMED)
def test_malformed_envelope_is_refused(envelope: bytes) -> None:
    with pytest.raises(DocumentError, match="not a DSSE envelope with one signature"):
        dsse.unseal(KIND, envelope, verify)


def test_oversize_envelope_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(DocumentError, match="at most 1048576 bytes, got 1048577"):
        dsse.unseal(KIND, b"{" * 1048577, verify)
