"""Whether this machine can boot hosts: found out by doing what a machine's launcher does, in small."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from holdfast_local.hosts.errors import IsolationError
from holdfast_local.hosts.machines import cgroups
from holdfast_local.hosts.machines.bake import LOCK, Baked, source
from holdfast_local.hosts.machines.image import SUITE, Image, Progress, cache_directory, sources

_SECONDS = 30
#: An empty machine: nspawn wants a tree with /usr, and systemd's control groups; /bin/true of this machine ends it.
_SCRIPT = """
set -e
mkdir -p lower/usr upper work tree
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work tree
mount -t tmpfs none /run/systemd
for hierarchy in $HIERARCHIES; do
  mkdir -p "$hierarchy/$GROUP"
  echo 0 > "$hierarchy/$GROUP/cgroup.procs"
done
exec systemd-nspawn --quiet --directory=tree --volatile=no --register=no --keep-unit --as-pid2 --pipe \
  --network-namespace-path=/proc/self/ns/net --resolv-conf=off --timezone=off --link-journal=no \
  --bind-ro=/usr --bind-ro=/bin --bind-ro=/lib --bind-ro=/lib64 /usr/bin/true
"""


def refusal(cache: Path | None = None) -> str | None:
    """Return why hosts cannot be booted here, or None; the image that they need may still have to be made."""
    hierarchies = cgroups.hierarchies()
    if not hierarchies:
        return "systemd's control groups are not mounted below /sys/fs/cgroup"
    if shutil.which("apt-get") is None or (not Image(cache).ready and not sources()):
        return f"the image is made from this machine's own package sources, and its apt has none of Debian {SUITE}"
    place = cache or cache_directory()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="trial-", dir=place) as directory:
        group = f"holdfast-trial-{os.getpid()}"
        environment = {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
            "HIERARCHIES": " ".join(map(str, hierarchies)),
            "GROUP": group,
        }
        argv = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _SCRIPT]
        try:
            done = subprocess.run(
                argv, cwd=directory, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"systemd-nspawn does not run here: {error}"
        finally:
            cgroups.remove(group)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return f"systemd-nspawn does not run here: {lines[-1] if lines else done.returncode}"


def image_refusal(cache: Path | None = None) -> str | None:
    """Return why the image is not there, or None if it is."""
    if Image(cache).ready:
        return None
    return "the image that hosts boot has not been made; `holdfast local up` makes it, once"


def make_bootable(wheels: Callable[[Path], Path], progress: Progress) -> None:
    """Make the image that hosts boot and what is baked into it, as far as they are not there.

    `wheels` returns a zip of the wheels of a lock file; it is called if they are needed.

    Raises:
        IsolationError: hosts cannot be booted here; nothing was made.
        ImageError: the image cannot be made.
    """
    if reason := refusal():
        raise IsolationError(f"hosts cannot be booted on this machine: {reason}; use --hosts auto to take what works")
    image = Image()
    image.make(progress)
    baked = Baked(image)
    if not baked.ready:
        baked.make(wheels(source() / LOCK), progress)
