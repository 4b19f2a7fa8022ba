"""What the function looks up and remembers in the jobs bucket: who was revoked, and which proofs were used."""

import hashlib
from typing import Any

from botocore.exceptions import ClientError
from names import DENIED_PREFIX, PROOFS_PREFIX
from refusal import Reason, Refused

#: S3's answer to a conditional write of an object that is there.
_THERE = frozenset({"PreconditionFailed", "412"})
#: Another conditional write of the same object is under way (S3 user guide, "Conditional writes").
_UNDER_WAY = frozenset({"ConditionalRequestConflict", "409"})


def require_not_denied(s3: Any, bucket: str, instance_id: str) -> None:
    """Return if no operator has revoked the instance.

    The object's existence is the denial, whatever it holds. It is looked for by listing, which says plainly that
    there is none; a read would answer 403 for that and for a missing permission alike.

    Raises:
        Refused: it was revoked.
        ClientError: the denials cannot be listed; the caller refuses, as for every call to AWS that fails.
    """
    key = f"{DENIED_PREFIX}{instance_id}.json"
    answer = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    if answer["KeyCount"]:
        raise Refused(
            Reason.REVOKED,
            f"{instance_id} was revoked by an operator (s3://{bucket}/{key}); that is for ever: replace the instance",
        )


def claim_proof(s3: Any, bucket: str, signature: str) -> None:
    """Remember that a proof was used; only the first of all calls with the same signature returns.

    A presigned request's signature covers every part of it, so it names the proof. Its hash is kept, below a prefix
    that a lifecycle rule empties after a day; a proof is good for a minute.

    Raises:
        Refused: it was used before (`replayed`), or is being used right now (`unavailable`).
        ClientError: it cannot be remembered; the caller refuses.
    """
    key = PROOFS_PREFIX + hashlib.sha256(signature.encode()).hexdigest()
    try:
        s3.put_object(Bucket=bucket, Key=key, Body=b"", ContentType="text/plain", IfNoneMatch="*")
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if code in _THERE:
            raise Refused(
                Reason.REPLAYED, "this proof has been used before; sign a new proof for each request"
            ) from None
        if code in _UNDER_WAY:
            raise Refused(Reason.UNAVAILABLE, "this proof is being used right now; sign a new one") from None
        raise
