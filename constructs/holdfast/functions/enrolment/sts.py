"""Sends a rebuilt proof to this function's own STS endpoint."""

import http.client
import ssl
from urllib.parse import urlsplit

from proof import StsRequest
from refusal import Reason, Refused

TIMEOUT_SECONDS = 5.0
_MAX_ANSWER_BYTES = 65536


def call_sts(endpoint: str, request: StsRequest, *, ca_bundle: str | None = None) -> tuple[int, bytes]:
    """Return the HTTP status and body of STS's answer, over verified TLS, following no redirect.

    Args:
        endpoint: the URL that this function's SDK uses for STS; it never comes from the event.
        request: what `proof.rebuild` made.
        ca_bundle: a file of trusted CAs; default: the platform's.

    Raises:
        Refused: `unavailable`: no answer within five seconds, or no TLS.
    """
    url = urlsplit(endpoint)
    if url.scheme != "https" or not url.hostname:
        raise Refused(Reason.UNAVAILABLE, "the function's STS endpoint must be https; check AWS_ENDPOINT_URL")
    context = ssl.create_default_context(cafile=ca_bundle)
    connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=TIMEOUT_SECONDS, context=context)
    try:
        connection.request("GET", request.path, headers=dict(request.headers))
        answer = connection.getresponse()
        return answer.status, answer.read(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        message = f"the enrolment function could not reach STS ({type(error).__name__}); try again"
        raise Refused(Reason.UNAVAILABLE, message) from None
    finally:
        connection.close()
