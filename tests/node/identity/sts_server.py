"""An STS on loopback that verifies SigV4 query signatures for real, written from the specification.

It shares no code with botocore, which signs, so that it also checks what the node builds.
"""

import hashlib
import hmac
import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"


@dataclass(frozen=True)
class Credential:
    """Whose an access key is, in STS's words."""

    secret: str
    token: str
    arn: str
    user_id: str
    account: str


class StsServer:
    """Serves GetCallerIdentity. `credentials` are those that exist; `answer` replaces the next answers if set."""

    def __init__(self, directory: Path) -> None:
        self.credentials: dict[str, Credential] = {}
        self.answer: tuple[int, bytes] | None = None
        self.location: str | None = None
        self.requests: list[str] = []
        self.ca_bundle = str(_self_signed(directory))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "server.pem")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def respond(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """Return the answer to a GET."""
        self.requests.append(path)
        if self.answer:
            return self.answer
        query = dict(parse_qsl(urlsplit(path).query, keep_blank_values=True))
        akid = query.get("X-Amz-Credential", "").partition("/")[0]
        credential = self.credentials.get(akid)
        if not credential or query.get("X-Amz-Security-Token") != credential.token:
            return _error("InvalidClientTokenId")
        if not hmac.compare_digest(_signature(credential.secret, query, headers), query["X-Amz-Signature"]):
            return _error("SignatureDoesNotMatch")
        signed = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if datetime.now(UTC) > signed + timedelta(seconds=int(query["X-Amz-Expires"])):
            return _error("ExpiredToken")
        body = (
            f'<GetCallerIdentityResponse xmlns="{_NAMESPACE}"><GetCallerIdentityResult><Arn>{credential.arn}</Arn>'
            f"<UserId>{credential.user_id}</UserId><Account>{credential.account}</Account></GetCallerIdentityResult>"
            "</GetCallerIdentityResponse>"
        )
        return 200, body.encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, body = server.respond(self.path, headers)
                self.send_response(status)
                if server.location:
                    self.send_header("Location", server.location)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _signature(secret: str, query: dict[str, str], headers: dict[str, str]) -> str:
    names = query["X-Amz-SignedHeaders"].split(";")
    parameters = sorted((_quote(k), _quote(v)) for k, v in query.items() if k != "X-Amz-Signature")
    canonical = "\n".join(
        [
            "GET",
            "/",
            "&".join(f"{name}={value}" for name, value in parameters),
            *(f"{name}:{headers.get(name, '').strip()}" for name in names),
            "",
            query["X-Amz-SignedHeaders"],
            hashlib.sha256(b"").hexdigest(),
        ]
    )
    scope = query["X-Amz-Credential"].partition("/")[2]
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope, digest])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def _quote(text: str) -> str:
    return quote(text, safe="-_.~")


def _error(code: str) -> tuple[int, bytes]:
    body = (
        f'<ErrorResponse xmlns="{_NAMESPACE}"><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>'
    )
    return 403, body.encode()


def _self_signed(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sts")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "server.pem").write_bytes(private + pem)
    (directory / "ca.pem").write_bytes(pem)
    return directory / "ca.pem"
