"""The instance metadata service, version 2 only.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html; the address can be changed by
`AWS_EC2_METADATA_SERVICE_ENDPOINT`, as in the AWS SDKs.
"""

import os
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

from holdfast_node.contract.documents import require
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.roles import INSTANCE_ID_PATTERN

_TIMEOUT_SECONDS = 5
_TOKEN_TTL_SECONDS = 60
#: The service is link-local: a proxy of the environment must never see its tokens.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Instance:
    """Who this machine is: its EC2 instance id and its private IPv4 address."""

    instance_id: str
    address: str


def instance() -> Instance:
    """Return this machine's identity from its metadata service.

    Raises:
        HoldfastError: the service does not answer, or answers nonsense.
    """
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    token = _request(
        f"{endpoint}/latest/api/token",
        method="PUT",
        headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_SECONDS)},
    )
    headers = {"X-aws-ec2-metadata-token": token}
    return Instance(
        instance_id=require(
            INSTANCE_ID_PATTERN, _request(f"{endpoint}/latest/meta-data/instance-id", headers=headers), "instance-id"
        ),
        address=_request(f"{endpoint}/latest/meta-data/local-ipv4", headers=headers),
    )


def _request(url: str, *, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310 - fixed scheme and address
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as response:
            return str(response.read(4096).decode())
    except (OSError, HTTPException, UnicodeDecodeError) as error:  # URLError is an OSError
        raise HoldfastError(f"the metadata service did not answer {method} {url}: {error}") from None
