"""The image that machines boot: Debian by mmdebstrap from this machine's own package sources, kept in a cache.

Where the sources are is this machine's business: the suites that its apt knows for its own release are asked for the
packages below, signed as ever, and no other. The cache is keyed by all that goes in, so it never is stale by itself;
`rm -r` of the directory that `cache_directory` names has it made afresh, with whatever updates there are then.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from holdfast_local.hosts.errors import ImageError

#: What an Amazon Linux image holds already (systemd, cloud-init, the AWS command line, Python), what user data installs
#: there and takes for granted here (interface: `ID=debian`), and the two libraries that MXNet's wheel does not carry.
PACKAGES = (
    "awscli",
    "ca-certificates",
    "cloud-init",
    "dbus",
    "iproute2",
    "libgomp1",
    "libquadmath0",
    "netbase",
    "nftables",
    "python3",
    "python3-venv",
    "stunnel4",
    "systemd",
    "systemd-sysv",
)
#: The release whose Python is the one that nodes need (3.11), and whose systemd is Amazon Linux 2023's (252).
SUITE = "bookworm"
_OPTIONS = (
    "--mode=root",
    "--variant=apt",
    "--format=directory",
    '--aptopt=APT::Install-Recommends "false"',
    "--dpkgopt=force-unsafe-io",
    # No manuals; and no DHCP client: a host's network is there before it boots, and cloud-init would wait for a lease.
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")),
    "--dpkgopt=path-exclude=/sbin/dhclient",
)
_CLOUD_CONFIG = """\
# The image of a local machine. Everything else is cloud-init's own default.
datasource_list: [Ec2, None]
network: {config: disabled}
locale: false
"""
#: What would want the internet, or a disk's own attention, at a time of its own.
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer")
_GUEST = Path(__file__).with_name("guest")
_BUILD_SECONDS = 900
_QUERY_SECONDS = 60

Progress = Callable[[str], None]


def cache_directory() -> Path:
    """Return where images are kept: below XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).resolve() / "holdfast/images"


def sources() -> list[str]:
    """Return this machine's package sources of the image's release, as apt lines; empty if it has none."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"]
    found: dict[tuple[str, str], list[str]] = {}
    for line in _output(argv).splitlines():
        uri, release, component = line.split("|")
        if release in (SUITE, f"{SUITE}-updates", f"{SUITE}-security"):
            components = found.setdefault((uri, release), [])
            components += [component] if component not in components else []
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.is_file() else ""
    return [f"deb {signed}{uri} {release} {' '.join(sorted(names))}" for (uri, release), names in found.items()]


def transport_options() -> list[str]:
    """Return mmdebstrap's options that reach the sources as this machine's apt does: through its proxies."""
    lines = [line for line in _output(["apt-config", "dump"]).splitlines() if line.startswith("Acquire::http")]
    return [f"--aptopt={line}" for line in lines if not line.endswith('"";')]


class Image:
    """The base layer of machines' disks, in a cache."""

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache or cache_directory()
        self._sources = sources()

    @property
    def key(self) -> str:
        """Stands for everything that the image is made from."""
        guest = {path.name: path.read_text() for path in sorted(_GUEST.iterdir()) if path.is_file()}
        recipe = [PACKAGES, _OPTIONS, self._sources, _CLOUD_CONFIG, _MASKED, guest]
        return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]

    @property
    def path(self) -> Path:
        """The directory that it is kept in, whether or not it is there."""
        return self._cache / f"base-{self.key}"

    @property
    def ready(self) -> bool:
        """Whether it has been made."""
        return self.path.is_dir()

    def make(self, progress: Progress) -> Path:
        """Return the image, made first if it is not there. The lines of `progress` say what takes the time.

        Raises:
            ImageError: it cannot be made; the message ends with the tool's own last line.
        """
        with only_one(self._cache):
            if not self.ready:
                progress(f"making the image that hosts boot ({len(PACKAGES)} packages and what they need; once)")
                with building(self.path) as target:
                    self._install(target)
                    customize(target)
            return self.path

    def _install(self, target: Path) -> None:
        if not self._sources:
            raise ImageError(f"this machine's apt has no source of {SUITE}; the image is made from the machine's own")
        include = f"--include={','.join(PACKAGES)}"
        run(["mmdebstrap", *_OPTIONS, *transport_options(), include, SUITE, str(target), *self._sources])


def customize(root: Path) -> None:
    """Make a fresh Debian tree an image: no identity of its own, cloud-init on EC2, what stands in for `mount.efs`."""
    write(root / "etc/cloud/cloud.cfg.d/90-local-image.cfg", _CLOUD_CONFIG)
    for unit in _MASKED:
        (root / "etc/systemd/system" / unit).unlink(missing_ok=True)
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    write(root / "etc/machine-id", "")
    (root / "etc/hostname").unlink(missing_ok=True)
    write(root / "usr/sbin/mount.efs", (_GUEST / "mount.efs").read_text(), mode=0o755)


def write(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a file of an image, whatever mask this process has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


@contextlib.contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Hold the cache alone; a second caller waits and finds what the first one has made."""
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def building(path: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `path` if all goes well, and goes away otherwise."""
    # What was killed here before has left its own; nobody else builds now.
    for old in path.parent.glob("making-*"):
        shutil.rmtree(old, ignore_errors=True)
    target = Path(tempfile.mkdtemp(prefix="making-", dir=path.parent))
    target.chmod(0o755)
    try:
        yield target
        target.rename(path)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def run(argv: Sequence[str], *, environment: dict[str, str] | None = None) -> None:
    """Run a step of an image's making.

    Raises:
        ImageError: it failed or hung.
    """
    try:
        result = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=_BUILD_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"{argv[0]} did not end within {_BUILD_SECONDS} s") from None
    if result.returncode:
        lines = [line for line in f"{result.stdout}\n{result.stderr}".splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "error", "cause"))]
        raise ImageError(f"{argv[0]} failed: {' / '.join((errors or lines)[-2:]) or result.returncode}")


def _output(argv: Sequence[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
