"""This server is STS under AWS's own name too: a presigned request that was made for that name holds here.

The enrolment function replays a node's request at its own STS endpoint, which is an address here. Its signature covers
the name that the node knows STS by (`host`), which an address in the request does not repeat.
"""

import dataclasses
from ipaddress import ip_address
from typing import Any

from holdfast_local.emulator.extension.seams import seam


def install() -> None:
    """Check a presigned request to STS at an address for the region's name of STS as well."""
    evaluator = seam("ministack.core.iam_evaluator", "AuthError", "_signed_request", "authenticate")
    region = seam("ministack.core.responses", "get_region").get_region
    stock = evaluator.authenticate

    def authenticate(access_key_id: str, account_id: str) -> Any:
        request = evaluator._signed_request.get()
        answer = stock(access_key_id, account_id)
        if isinstance(answer, evaluator.AuthError) and request is not None and _is_for_sts_by_address(request):
            named = {**request.headers, "host": f"sts.{region()}.amazonaws.com"}
            evaluator._signed_request.set(dataclasses.replace(request, headers=named))
            second = stock(access_key_id, account_id)
            return answer if isinstance(second, evaluator.AuthError) else second
        return answer

    evaluator.authenticate = authenticate


def _is_for_sts_by_address(request: Any) -> bool:
    credential = (request.query_params.get("X-Amz-Credential") or [""])[0]
    if not request.presigned or not credential.endswith("/sts/aws4_request"):
        return False
    try:
        ip_address(request.headers.get("host", "").rpartition(":")[0])
    except ValueError:
        return False
    return True
