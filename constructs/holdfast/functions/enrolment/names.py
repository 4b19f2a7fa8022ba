"""The names that a certificate carries, restated for a function that ships without the node's package.

`tests/node/identity/test_names.py` holds them equal to `holdfast_node.contract`.
"""

import re

DOMAIN = "holdfast"
ROLES = ("scheduler", "server", "worker", "predictor")
CLUSTER_PATTERN = re.compile(r"[a-z][a-z0-9-]{1,30}[a-z0-9]")
INSTANCE_ID_PATTERN = re.compile(r"i-[0-9a-f]{8,17}")
DENIED_PREFIX = "denied/"
PROOFS_PREFIX = "pki/proofs/"

#: What a node signs beside the request to STS, so that a captured request enrols no other key and no other cluster.
CSR_HEADER = "x-holdfast-csr-sha256"
CLUSTER_HEADER = "x-holdfast-cluster"


def ca_certificate_key(generation: int) -> str:
    """Return where the certificate of a generation of the CA is."""
    return "pki/ca.pem" if generation == 1 else f"pki/ca-{generation}.pem"


def role_name(cluster: str, role: str) -> str:
    """Return the DNS name that every node of a role carries."""
    return f"{role}.{cluster}.{DOMAIN}"


def node_name(cluster: str, role: str, instance_id: str) -> str:
    """Return the DNS name that only this node carries: what its peers check."""
    return f"{instance_id}.{role}.{cluster}.{DOMAIN}"


def spiffe_id(cluster: str, role: str, instance_id: str) -> str:
    """Return the node's SPIFFE identifier."""
    return f"spiffe://{cluster}/{role}/{instance_id}"
