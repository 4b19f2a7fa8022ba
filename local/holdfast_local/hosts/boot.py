"""What a node's user data does at boot, done on a local host: configuration, then the node bundle, verified.

Runs inside the host as root, with the host's own metadata service and the instance's own credentials, and ends.
Every phase is a JSON line on standard output; a failure names its phase and cause, and the status is 1.
"""

import argparse
import hashlib
import hmac
import io
import json
import os
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from holdfast_local.hosts.errors import BootError
from holdfast_local.hosts.nfs import ping
from holdfast_local.hosts.setup import BUNDLE
from holdfast_local.hosts.userdata import node_config
from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.contract.roles import Role

METADATA_URL = "http://169.254.169.254"
PACKAGE = "holdfast_node"
MAX_BUNDLE_BYTES = 256 << 20
#: The roles that mount the checkpoints.
MOUNTING = (Role.SERVER, Role.WORKER)
_SECONDS = 5
_MOUNT_SECONDS = 10.0
_AWS = Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 4, "mode": "standard"})


def user_data(metadata_url: str) -> str:
    """Return this instance's user data from its metadata service, by IMDSv2.

    Raises:
        BootError: the metadata service does not answer, or the instance has no user data.
    """
    # No proxies: the metadata service refuses what comes through one.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    ask = urllib.request.Request(  # noqa: S310 - http, the link-local address
        f"{metadata_url}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    try:
        with opener.open(ask, timeout=_SECONDS) as answer:
            token = answer.read(1000).decode()
        ask = urllib.request.Request(  # noqa: S310
            f"{metadata_url}/latest/user-data", headers={"X-aws-ec2-metadata-token": token}
        )
        with opener.open(ask, timeout=_SECONDS) as answer:
            return str(answer.read(1 << 20).decode())
    except urllib.error.HTTPError as error:
        raise BootError(f"the metadata service gave no user data: HTTP {error.code}") from None
    except OSError as error:
        raise BootError(f"the metadata service at {metadata_url} does not answer: {error}") from None


def fetch_bundle(config: NodeConfig) -> bytes:
    """Return the node bundle's bytes, which have the digest that the configuration names.

    Raises:
        BootError: it cannot be fetched, it is too large, or its SHA-256 is another.
    """
    bundle = config.bundle
    where = f"s3://{bundle.bucket}/{bundle.key}"
    try:
        answer = boto3.client("s3", region_name=config.region, config=_AWS).get_object(
            Bucket=bundle.bucket, Key=bundle.key
        )
        data: bytes = answer["Body"].read(MAX_BUNDLE_BYTES + 1)
    except (ClientError, BotoCoreError) as error:
        raise BootError(f"cannot fetch the node bundle {where}: {error}") from None
    if len(data) > MAX_BUNDLE_BYTES:
        raise BootError(f"the node bundle {where} must be at most {MAX_BUNDLE_BYTES} bytes")
    got = hashlib.sha256(data).hexdigest()
    if not hmac.compare_digest(got, bundle.sha256):
        raise BootError(
            f"the node bundle {where} must have the SHA-256 {bundle.sha256}, got {got}; "
            "nothing of it was unpacked; deploy again, or find out who changed it"
        )
    return data


def unpack(data: bytes, target: Path) -> None:
    """Unpack a node bundle, a zip archive that holds the package `holdfast_node`.

    Raises:
        BootError: not such an archive, or a name in it leads elsewhere.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            for name in names:
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                    raise BootError(f"the node bundle holds a name that leads elsewhere: {name[:100]!r}")
            if not any(PurePosixPath(name).parts[:1] == (PACKAGE,) for name in names):
                raise BootError(f"the node bundle holds no package {PACKAGE}")
            archive.extractall(target)
    except zipfile.BadZipFile as error:
        raise BootError(f"the node bundle is not a zip archive: {error}") from None


def main() -> int:
    """Boot the node below `--root`."""
    parser = argparse.ArgumentParser(description="Configure a local host as its user data says.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--network", action="store_true", help="ask the checkpoints' file system whether it answers")
    options = parser.parse_args()
    root = options.root
    phase = "user-data"
    try:
        _tell(phase)
        config = node_config(user_data(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA_URL).rstrip("/")))
        paths = NodePaths(root)
        paths.config.write_bytes(config.to_json())
        paths.config.chmod(0o644)
        phase = "bundle"
        _tell(phase)
        unpack(fetch_bundle(config), root / BUNDLE)
        if options.network and config.role in MOUNTING:
            phase = "mount"
            _tell(phase)
            ping(f"{config.file_system_id}.efs.{config.region}.amazonaws.com", _MOUNT_SECONDS)
    except (HoldfastError, OSError) as error:
        print(json.dumps({"phase": phase, "error": str(error)}), flush=True)
        return 1
    return 0


def _tell(phase: str) -> None:
    print(json.dumps({"phase": phase}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
