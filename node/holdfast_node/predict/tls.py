"""Who may call: mutual TLS 1.3 with the node's own certificate, which name a client is counted by, who is revoked."""

import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The agent renews the list every few seconds.
STALE_SECONDS = 60.0


class ServerTls:
    """The endpoint's TLS context; it follows the certificate's files when they are renewed.

    TLS 1.3 only, and a client must present a certificate by `client_ca`: without one the handshake fails.
    """

    def __init__(self, directory: Path, client_ca: Path) -> None:
        """Load `cert.pem` and `key.pem` of `directory`.

        Raises:
            OSError, ssl.SSLError: they or the authority cannot be read, or do not belong together.
        """
        self._directory, self._client_ca = directory, client_ca
        self._state = self._files()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection; the old one stays while renewed files do not fit together yet."""
        state = self._files()
        if state != self._state:
            try:
                self._context = self._load()
            except (OSError, ssl.SSLError):
                return self._context  # a key without its certificate: they are replaced one after the other
            self._state = state
        return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.num_tickets = 0  # every connection shows its certificate
        context.load_cert_chain(self._directory / "cert.pem", self._directory / "key.pem")
        context.load_verify_locations(self._client_ca)
        return context

    def _files(self) -> list[tuple[int, int]]:
        found = []
        for path in (self._directory / "cert.pem", self._directory / "key.pem", self._client_ca):
            try:
                status = path.stat()
                found.append((status.st_ino, status.st_mtime_ns))
            except OSError:
                found.append((0, 0))
        return found


class Denied:
    """Clients that are nodes which an operator has revoked (`holdfast revoke`), from a file that the agent renews.

    Everybody is while the file is older than a minute or cannot be understood: nobody knows then who is revoked.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._read_at: tuple[int, int] | None = None
        self._instances: frozenset[str] | None = frozenset()

    def __contains__(self, client: object) -> bool:
        """Whether a client (`client_name`) is revoked."""
        try:
            status = self._path.stat()
            if self._clock() - status.st_mtime > STALE_SECONDS:
                return True
            if (state := (status.st_ino, status.st_mtime_ns)) != self._read_at:
                found = json.loads(self._path.read_bytes())
                self._instances = frozenset(found) if isinstance(found, list) else None
                self._read_at = state
        except (OSError, ValueError, TypeError):
            return True
        return self._instances is None or str(client).rpartition("/")[2] in self._instances


def client_name(certificate: dict[str, Any]) -> str:
    """Return the one name that a client's requests are counted by, from a verified certificate.

    The first URI (SPIFFE) name, else the first DNS name, else the subject. Not the key or the serial number: a client
    with a renewed certificate is the same client.
    """
    names = certificate.get("subjectAltName", ())
    for kind in ("URI", "DNS"):
        for found, value in names:
            if found == kind:
                return f"{kind}:{value}"[:300]
    parts = (f"{key}={value}" for group in certificate.get("subject", ()) for key, value in group)
    return f"subject:{','.join(parts)}"[:300]
