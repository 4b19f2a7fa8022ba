"""What a node runs, as archives that it can check: the node bundle, and the wheels of a lock file in it."""

import os
import sys
from pathlib import Path

from aws_cdk import Annotations, Stack
from aws_cdk import aws_s3_assets as assets
from constructs import Construct

from holdfast.errors import BundleError
from holdfast.packing import digest, pack_wheels, read_tree, write_zip
from holdfast.wheels import recorded
from holdfast_node.contract.documents import Bundle
from holdfast_node.contract.documents import Wheelhouse as WheelhouseDocument

PACKAGE = "holdfast_node"
#: The locked Python packages of a node that trains on CPUs.
LOCK = "requirements.txt"
#: Those of a node that trains on NVIDIA GPUs: MXNet's CUDA build and the CUDA libraries that it links, 1.9 GB.
GPU_LOCK = "requirements-gpu.txt"
#: Beside the package `holdfast_node`: what a node installs and how, systemd's units, and the host's own settings.
_INSTALLER = "install.sh"
_EXTRAS = (LOCK, GPU_LOCK, _INSTALLER)
_FOLDERS = ("units", "host")


class NodeBundle(Construct):
    """The node runtime as a deterministic zip, published as an asset; user data carries its SHA-256.

    The zip holds the package `holdfast_node`, its hash-locked `requirements.txt` and, where they are, `install.sh` and
    the folders `units` and `host`. Its bytes depend on those files alone, so an unchanged runtime changes no template.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, source: Path | None = None, cache_directory: Path | None = None
    ) -> None:
        """Pack the bundle.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            source: the directory with the package `holdfast_node`. Default: the installed one.
            cache_directory: where the zip is written. Default: `.build` in the working directory.

        Raises:
            BundleError: `source` holds no package `holdfast_node`, or an installer without its locked packages.
        """
        super().__init__(scope, construct_id)
        #: The directory that it was packed from.
        self.source = source or _installed_source()
        self.cache_directory = cache_directory or Path.cwd() / ".build"
        contents = {f"{PACKAGE}/{name}": data for name, data in read_tree(self.source / PACKAGE, "*.py").items()}
        if f"{PACKAGE}/__init__.py" not in contents:
            raise BundleError(f"{self.source} must hold the package {PACKAGE}, got none; name the node's source root")
        contents |= {name: (self.source / name).read_bytes() for name in _EXTRAS if (self.source / name).is_file()}
        for folder in _FOLDERS:
            contents |= {f"{folder}/{name}": data for name, data in read_tree(self.source / folder, "*").items()}
        #: Whether an EC2 instance can install it; without `install.sh` only the local hosts can.
        self.boots_on_ec2 = _INSTALLER in contents
        if self.boots_on_ec2 and LOCK not in contents:
            raise BundleError(f"{self.source} must hold {LOCK}, which {_INSTALLER} installs, got none; add the lock")
        if not self.boots_on_ec2:
            Annotations.of(self).add_info_v2(
                "holdfast:localHostsOnly",
                "the node bundle holds no install.sh: instances of EC2 refuse it at boot, local hosts run it",
            )
        # By its content: another synthesis in the same directory may pack another runtime at the same time.
        target = self.cache_directory / f"node-bundle-{digest(contents)[:16]}.zip"
        self.sha256 = write_zip(target, contents)
        self.asset = assets.Asset(self, "Zip", path=str(target), display_name="Node runtime")

    @property
    def document(self) -> Bundle:
        """Where the bundle is, as a node's configuration says it."""
        return Bundle(bucket=self.asset.s3_bucket_name, key=self.asset.s3_object_key, sha256=self.sha256)

    @property
    def object_arn(self) -> str:
        """The ARN of the published object: with the wheels the only one in the assets' bucket that nodes may read."""
        return self.asset.bucket.arn_for_objects(self.asset.s3_object_key)


class Wheelhouse(Construct):
    """The wheels of one of the bundle's lock files as a deterministic zip, published as an asset.

    They are downloaded once per lock file, which needs a Python package index; after that synthesis needs no network.
    """

    def __init__(self, scope: Construct, construct_id: str, *, bundle: NodeBundle, lock: str = LOCK) -> None:
        """Pack the wheels.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            bundle: the bundle that holds the lock; the wheels are kept in its cache directory.
            lock: the lock's file name. Default: the packages of a node that trains on CPUs.

        Raises:
            BundleError: the wheels could not be downloaded.
        """
        super().__init__(scope, construct_id)
        self.lock = lock
        target, self.sha256 = pack_wheels(bundle.source / lock, bundle.cache_directory)
        self.asset = assets.Asset(self, "Zip", path=str(target), display_name="Node's Python packages")

    @property
    def document(self) -> WheelhouseDocument:
        """Where the wheels are, as a node's configuration says it."""
        asset = self.asset
        return WheelhouseDocument(
            bucket=asset.s3_bucket_name, key=asset.s3_object_key, sha256=self.sha256, lock=self.lock
        )

    @property
    def object_arn(self) -> str:
        """The ARN of the published object."""
        return self.asset.bucket.arn_for_objects(self.asset.s3_object_key)


class LateWheelhouse(Construct):
    """The wheels of a lock file that are downloaded when the asset is published, not at synthesis.

    For wheels that are too many to have at every synthesis. Their zip's SHA-256 is recorded beside the lock, so the
    template is the same with and without them; a zip with another digest is not published.
    """

    def __init__(self, scope: Construct, construct_id: str, *, bundle: NodeBundle, lock: str = GPU_LOCK) -> None:
        """Name the wheels.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            bundle: the bundle that holds the lock; the wheels are kept in its cache directory.
            lock: the lock's file name. Default: the packages of a node that trains on GPUs.

        Raises:
            BundleError: the lock has no record of its wheels.
        """
        super().__init__(scope, construct_id)
        self.lock = lock
        path = bundle.source / lock
        self.sha256 = recorded(path)
        roots = (Path(__file__).parent.parent, _installed_source())
        self._location = Stack.of(self).synthesizer.add_file_asset(
            source_hash=self.sha256,
            display_name="GPU nodes' Python packages",
            executable=[
                *("env", f"PYTHONPATH={os.pathsep.join(map(str, roots))}", sys.executable, "-m", "holdfast.wheels"),
                *(str(path), str(bundle.cache_directory), self.sha256),
            ],
        )

    @property
    def document(self) -> WheelhouseDocument:
        """Where the wheels are, as a node's configuration says it."""
        return WheelhouseDocument(
            bucket=self._location.bucket_name, key=self._location.object_key, sha256=self.sha256, lock=self.lock
        )

    @property
    def object_arn(self) -> str:
        """The ARN of the published object."""
        return f"arn:{Stack.of(self).partition}:s3:::{self._location.bucket_name}/{self._location.object_key}"


def _installed_source() -> Path:
    import holdfast_node

    return Path(next(iter(holdfast_node.__path__))).parent
