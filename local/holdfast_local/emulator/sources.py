"""How the embedded AWS knows through which VPC endpoint a connection came: by the loopback address it comes from.

What carries an endpoint's connections to the embedded AWS (`holdfast_local.hosts.services`) binds them to the address
that this function gives, and the extension turns the address back into the endpoint. A process of this machine could
do the same; a host in namespaces cannot, for it has no other way here.
"""

import hashlib
from ipaddress import IPv4Address, IPv4Network

#: A part of 127.0.0.0/8 (RFC 6890) that nothing else here uses: the overlay is 127.77.0.0/16.
SOURCES = IPv4Network("127.128.0.0/9")


def source_of(endpoint_id: str) -> str:
    """Return the address that connections through the VPC endpoint `endpoint_id` come from.

    Two of a hundred endpoints share one with a probability of 1 in 1,700 (23 bits of SHA-256).
    """
    digest = int.from_bytes(hashlib.sha256(endpoint_id.encode()).digest()[:4])
    return str(SOURCES[1 + digest % (SOURCES.num_addresses - 2)])


def is_source(address: str) -> bool:
    """Return whether connections from `address` came through an endpoint."""
    return IPv4Address(address) in SOURCES
