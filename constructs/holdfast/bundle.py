"""The node bundle: what a node runs, as one archive that it can check."""

from pathlib import Path

from aws_cdk import Annotations
from aws_cdk import aws_s3_assets as assets
from constructs import Construct

from holdfast.errors import BundleError
from holdfast.packing import digest, read_tree, write_zip
from holdfast_node.contract.documents import Bundle

#: Beside the package `holdfast_node`: what a node installs and how.
_EXTRAS = ("requirements.txt", "install.sh")


class NodeBundle(Construct):
    """The node runtime as a deterministic zip, published as an asset; user data carries its SHA-256.

    The zip holds the package `holdfast_node`, its hash-locked `requirements.txt` and, where there is one,
    `install.sh`. Its bytes depend on those files alone, so an unchanged runtime changes no template.
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
            BundleError: `source` holds no package `holdfast_node`.
        """
        super().__init__(scope, construct_id)
        source = source or _installed_source()
        contents = {f"holdfast_node/{name}": data for name, data in read_tree(source / "holdfast_node", "*.py").items()}
        if "holdfast_node/__init__.py" not in contents:
            raise BundleError(f"{source} must hold the package holdfast_node, got none; name the node's source root")
        contents |= {name: (source / name).read_bytes() for name in _EXTRAS if (source / name).is_file()}
        #: Whether an EC2 instance can install it; without `install.sh` only the local hosts can.
        self.boots_on_ec2 = "install.sh" in contents
        if not self.boots_on_ec2:
            Annotations.of(self).add_info_v2(
                "holdfast:localHostsOnly",
                "the node bundle holds no install.sh: instances of EC2 refuse it at boot, local hosts run it",
            )
        # By its content: another synthesis in the same directory may pack another runtime at the same time.
        target = (cache_directory or Path.cwd() / ".build") / f"node-bundle-{digest(contents)[:16]}.zip"
        self.sha256 = write_zip(target, contents)
        self.asset = assets.Asset(self, "Zip", path=str(target), display_name="Node runtime")

    @property
    def document(self) -> Bundle:
        """Where the bundle is, as a node's configuration says it."""
        return Bundle(bucket=self.asset.s3_bucket_name, key=self.asset.s3_object_key, sha256=self.sha256)

    @property
    def object_arn(self) -> str:
        """The ARN of the published object: the only one in the assets' bucket that nodes may read."""
        return self.asset.bucket.arn_for_objects(self.asset.s3_object_key)


def _installed_source() -> Path:
    import holdfast_node

    return Path(next(iter(holdfast_node.__path__))).parent
