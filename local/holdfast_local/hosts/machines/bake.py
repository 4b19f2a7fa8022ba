"""The layer above the image that a golden AMI would add: the packages of a node's lock, installed once.

The node bundle's own `install.sh --bake` makes it, in the image, without a network, so what machines boot with is what
they would have installed. A machine whose lock is another one installs for itself: `install.sh` compares.
"""

import hashlib
import os
import shutil
from pathlib import Path

import holdfast_node
from holdfast_local.hosts.errors import ImageError
from holdfast_local.hosts.machines import cgroups
from holdfast_local.hosts.machines.image import Image, Progress, building, only_one, run

LOCK = "requirements.txt"
_INSTALLER = "install.sh"
_INSIDE = "/run/bake"
_SCRIPT = """
set -e
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$UPPER,workdir=$WORK" "$TREE"
mount -t tmpfs none /run/systemd
for hierarchy in $HIERARCHIES; do
  mkdir -p "$hierarchy/$GROUP"
  echo 0 > "$hierarchy/$GROUP/cgroup.procs"
done
exec systemd-nspawn --quiet --directory="$TREE" --register=no --keep-unit --as-pid2 --pipe --private-network \\
  --resolv-conf=off --timezone=off --link-journal=no \\
  --bind-ro="$SOURCE:$INSIDE/bundle" --bind-ro="$WHEELS:$INSIDE/wheels.zip" \\
  /bin/bash "$INSIDE/bundle/install.sh" --bake "$LOCK" "$INSIDE/wheels.zip"
"""


def source() -> Path:
    """Return the directory that the node bundle is packed from."""
    return Path(next(iter(holdfast_node.__path__))).parent


class Baked:
    """The baked layer for an image and the lock and installer in `source`, in the image's cache."""

    def __init__(self, image: Image, node: Path | None = None) -> None:
        self._image, self._node = image, node or source()

    @property
    def path(self) -> Path:
        """The directory that it is kept in, whether or not it is there."""
        parts = [(self._node / name).read_bytes() for name in (LOCK, _INSTALLER)]
        digest = hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).hexdigest()
        return self._image.path.with_name(f"baked-{self._image.key}-{digest[:16]}")

    @property
    def ready(self) -> bool:
        """Whether it has been made."""
        return (self._node / _INSTALLER).is_file() and self.path.is_dir()

    def make(self, wheels: Path, progress: Progress) -> None:
        """Make the layer if it is not there, from a zip of the lock's wheels.

        Raises:
            ImageError: the installer refused; the message ends with its cause.
        """
        with only_one(self.path.parent):
            if self.ready:
                return
            progress("installing what nodes run into the image (once for each lock)")
            with building(self.path) as target:
                self._bake(target, wheels)

    def _bake(self, target: Path, wheels: Path) -> None:
        inner = {name: target / name for name in ("upper", "work", "tree")}
        for path in inner.values():
            path.mkdir()
        inner["upper"].chmod(0o755)
        group = f"holdfast-bake-{os.getpid()}"
        environment = {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            "HIERARCHIES": " ".join(map(str, cgroups.hierarchies())),
            "GROUP": group,
            "BASE": str(self._image.path),
            **{name.upper(): str(path) for name, path in inner.items()},
            "SOURCE": str(self._node),
            "WHEELS": str(wheels.resolve()),
            "LOCK": LOCK,
            "INSIDE": _INSIDE,
        }
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _SCRIPT]
        try:
            run(argv, environment=environment)
        finally:
            cgroups.remove(group)
        if not (inner["upper"] / "opt/holdfast/venv/lock.sha256").is_file():
            raise ImageError(f"{_INSTALLER} --bake left no environment in the image")
        # The layer is what was written; overlayfs's own work directory is not.
        shutil.rmtree(inner["work"])
        inner["tree"].rmdir()
        for path in inner["upper"].iterdir():
            path.rename(target / path.name)
        inner["upper"].rmdir()


def layers(cache: Path | None = None) -> list[Path]:
    """Return the layers of a machine's disk that are there, top first.

    Raises:
        ImageError: there is no image.
    """
    image = Image(cache)
    if not image.ready:
        raise ImageError("the image that hosts boot has not been made; `holdfast local up --hosts boot` makes it")
    baked = Baked(image)
    return [baked.path, image.path] if baked.ready else [image.path]
