"""A cluster's CA for the lab: the enrolment function's own certificate profile, signed by a key of this process.

The one thing that is not as on AWS is where the CA's key lives: KMS there, this process's memory here.
"""

import importlib
import os
import sys
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from holdfast_local.lab.hosts import ROOT
from holdfast_node.contract.layout import UIDS, User
from holdfast_node.contract.roles import Role

_FUNCTION = ROOT / "constructs/holdfast/functions/enrolment"


class Authority:
    """A CA of a cluster. Two authorities of one name have different keys: the other one is foreign."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate: x509.Certificate = _profile().ca_certificate(
            cluster=cluster, public_key=self._key.public_key(), now=datetime.now(UTC), sign=self._sign
        )

    def issue(
        self,
        directory: Path,
        *,
        role: Role,
        instance_id: str,
        address: str,
        lifetime: timedelta = timedelta(hours=24),
        at: datetime | None = None,
        trusted: "Authority | None" = None,
    ) -> x509.Certificate:
        """Write key.pem, cert.pem and ca.pem of a node, as its agent does; return the certificate.

        `at` is when it is issued (default: now); with `trusted` the node trusts that CA instead of this one.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        node = _profile().Node(
            cluster=self.cluster,
            role=role.value,
            instance_id=instance_id,
            address=IPv4Address(address),
            public_key=key.public_key(),
            csr=b"",  # only an AWS Private CA wants it
        )
        certificate: x509.Certificate = _profile().node_certificate(
            node=node,
            ca=self.certificate,
            lifetime=lifetime,
            now=at or datetime.now(UTC),
            sign=self._sign,
        )
        directory.mkdir(parents=True, exist_ok=True)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(directory / "key.pem", private)
        _write(directory / "cert.pem", certificate.public_bytes(Encoding.PEM))
        _write(directory / "ca.pem", (trusted or self).certificate.public_bytes(Encoding.PEM))
        return certificate

    def _sign(self, message: bytes) -> bytes:
        return self._key.sign(message, ec.ECDSA(SHA256()))


def _write(path: Path, data: bytes) -> None:
    """Write a file of the agent's that the tunnel may read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.chown(path, UIDS[User.AGENT], UIDS[User.TUNNEL])


@cache
def _profile() -> Any:
    """Return the function's module of certificate contents; its modules are flat, as Lambda loads them."""
    sys.path.insert(0, str(_FUNCTION))
    try:
        return importlib.import_module("certificates")
    finally:
        sys.path.remove(str(_FUNCTION))
