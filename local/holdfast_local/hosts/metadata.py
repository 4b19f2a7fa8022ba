"""An instance metadata service (IMDSv2) for one host: its own tokens, its own paths, its own credentials.

Behaviour from https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html: a PUT gives a
session token (never through a proxy), every GET needs one, version 1 is refused. A token is good for this host
only: each host's service has tokens of its own and a socket inside that host's network namespace.
"""

import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path, not a secret
TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105 - a header's name
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
#: The versions that answer, oldest first; a client takes the newest that it knows. cloud-init asks for a number, and
#: wants the oldest of these at least (`cloudinit/sources/DataSourceEc2.py`).
VERSIONS = ("2009-04-04", "2018-09-24", "2021-03-23", "latest")
_MAX_TTL = 21600
_MAX_TOKENS = 1000
_REQUEST_SECONDS = 10

Leaf = str | Callable[[], str]


@dataclass
class Metadata:
    """What one instance may know of itself: leaves by path below a version, and the tokens that open them.

    A leaf that is callable is called per request; what it raises is a 503 and told to `on_error`.
    """

    leaves: Mapping[str, Leaf]
    clock: Callable[[], float] = time.monotonic
    on_error: Callable[[str], None] = lambda _: None
    _tokens: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, path: str, headers: Message) -> tuple[int, str]:
        """Return status and body of a PUT: a token, or why there is none."""
        if path != TOKEN_PATH:
            return 404, ""
        if headers.get("X-Forwarded-For") is not None:
            return 403, ""
        ttl = headers.get(TTL_HEADER, "")
        if not ttl.isascii() or not ttl.isdigit() or not 1 <= int(ttl[:9]) <= _MAX_TTL:
            return 400, ""
        token = secrets.token_urlsafe(42)
        with self._lock:
            now = self.clock()
            self._tokens = {old: until for old, until in self._tokens.items() if until > now}
            if len(self._tokens) >= _MAX_TOKENS:
                return 503, ""
            self._tokens[token] = now + int(ttl)
        return 200, token

    def get(self, path: str, headers: Message) -> tuple[int, str]:
        """Return status and body of a GET: a leaf, or the entries below a folder."""
        if not self._valid(headers.get(TOKEN_HEADER, "")):
            return 401, ""
        version, _, name = path.partition("?")[0].strip("/").partition("/")
        if not version:
            return 200, "\n".join(VERSIONS)
        if version not in VERSIONS:
            return 404, ""
        if name in self.leaves:
            leaf = self.leaves[name]
            try:
                return 200, leaf if isinstance(leaf, str) else leaf()
            except Exception as error:
                self.on_error(f"{name}: {error}")
                return 503, ""
        entries = self._entries(f"{name}/" if name else "")
        return (200, "\n".join(entries)) if entries else (404, "")

    def _valid(self, offered: str) -> bool:
        with self._lock:
            now = self.clock()
            known = [token for token, until in self._tokens.items() if until > now]
        return any(hmac.compare_digest(token.encode(), offered.encode("utf-8", "replace")) for token in known)

    def _entries(self, folder: str) -> list[str]:
        below = [name.removeprefix(folder) for name in self.leaves if name.startswith(folder)]
        return sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in below})


def leaves(
    *,
    instance: Mapping[str, Any],
    address: str,
    region: str,
    account: str,
    profile: Mapping[str, Any] | None,
    mac: str | None = None,
) -> dict[str, str]:
    """Return the leaves that an instance's description gives; `profile` is its instance profile's, if it has one.

    `mac` is its network interface's address, where it has an interface of its own.
    """
    zone = instance.get("Placement", {}).get("AvailabilityZone", f"{region}a")
    kind, image = instance.get("InstanceType", ""), instance.get("ImageId", "")
    name = instance.get("PrivateDnsName") or f"ip-{address.replace('.', '-')}.{region}.compute.internal"
    document = {
        "accountId": account,
        "architecture": instance.get("Architecture", "x86_64"),
        "availabilityZone": zone,
        "imageId": image,
        "instanceId": instance["InstanceId"],
        "instanceType": kind,
        "privateIp": address,
        "region": region,
        "version": "2017-09-30",
    }
    result = {
        "meta-data/ami-id": image,
        "meta-data/ami-launch-index": "0",
        "meta-data/hostname": name,
        "meta-data/instance-id": instance["InstanceId"],
        "meta-data/instance-type": kind,
        "meta-data/local-hostname": name,
        "meta-data/local-ipv4": address,
        "meta-data/placement/availability-zone": zone,
        "meta-data/placement/region": region,
        "meta-data/services/domain": "amazonaws.com",
        "meta-data/services/partition": "aws",
        "dynamic/instance-identity/document": json.dumps(document, indent=2),
    }
    if mac is not None:
        result["meta-data/mac"] = mac
        interface = {
            "device-number": "0",
            "local-hostname": name,
            "local-ipv4s": address,
            "mac": mac,
            "owner-id": account,
            "security-group-ids": "\n".join(item["GroupId"] for item in instance.get("SecurityGroups", ())),
            "subnet-id": instance.get("SubnetId", ""),
            "vpc-id": instance.get("VpcId", ""),
        }
        result |= {f"meta-data/network/interfaces/macs/{mac}/{key}": value for key, value in interface.items()}
    if profile is not None:
        result["meta-data/iam/info"] = json.dumps(
            {"Code": "Success", "InstanceProfileArn": profile["Arn"], "InstanceProfileId": profile["InstanceProfileId"]}
        )
    return result


class MetadataServer(ThreadingHTTPServer):
    """Serves a host's `Metadata` on a socket that was made inside the host."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, metadata: Metadata) -> None:
        # The socket is bound and listening; the base class would make one in this process's own namespace.
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.metadata = metadata
        # `shutdown` waits for one poll; five hosts end within a second.
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="metadata", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and close the socket."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a caller that went away in the middle of a request."""


class _Handler(BaseHTTPRequestHandler):
    server: MetadataServer
    server_version = "EC2ws"
    sys_version = ""
    timeout = _REQUEST_SECONDS

    def do_PUT(self) -> None:
        self._answer(*self.server.metadata.put(self.path, self.headers))

    def do_GET(self) -> None:
        self._answer(*self.server.metadata.get(self.path, self.headers))

    def log_message(self, *_: Any) -> None:
        """Log nothing: paths name roles, and answers hold credentials."""

    def _answer(self, status: int, body: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
