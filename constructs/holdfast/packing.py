"""Packing code for a function and for nodes: the same bytes from the same sources, without Docker."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

from holdfast.errors import BundleError

#: The earliest time that a zip entry can carry.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_PIP_TIMEOUT_SECONDS = 600
#: What the function's runtime and the nodes are (Python 3.11 on x86_64), whatever machine synthesizes.
_PLATFORM = (
    "--only-binary=:all:",
    "--platform=manylinux2014_x86_64",
    "--python-version=3.11",
    "--implementation=cp",
)


def digest(contents: Mapping[str, bytes]) -> str:
    """Return the SHA-256 (hex) of named contents, whatever their order."""
    total = hashlib.sha256()
    for name, content in sorted(contents.items()):
        total.update(f"{len(name)} {name} {len(content)} ".encode())
        total.update(content)
    return total.hexdigest()


def read_tree(directory: Path, pattern: str) -> dict[str, bytes]:
    """Return the files below `directory` that match `pattern`, by their POSIX path relative to it."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob(pattern))
        if path.is_file() and "__pycache__" not in path.parts
    }


def write_zip(target: Path, contents: Mapping[str, bytes | Path]) -> str:
    """Write a zip whose bytes depend on `contents` alone (bytes, or files that hold them); return its SHA-256 (hex)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=target.parent, suffix=".part")
    with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, _ZIP_EPOCH)
            entry.create_system = 3  # Unix, wherever it is made
            entry.external_attr = 0o100644 << 16
            # Stored, not deflated: compressed bytes differ between versions of zlib.
            data = content.read_bytes() if isinstance(content, Path) else content
            archive.writestr(entry, data, zipfile.ZIP_STORED)
    Path(part).replace(target)
    return file_digest(target)


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack_wheels(lock: Path, cache: Path) -> tuple[Path, str]:
    """Return a zip of the wheels that a lock file names, and the zip's SHA-256 (hex).

    They are downloaded once per lock file into `cache`, each with a hash that the lock holds; after that packing needs
    no network.

    Raises:
        BundleError: pip refused; the message holds its last lines.
    """
    target = (
        cache / f"wheelhouse-{digest({'lock': lock.read_bytes(), 'platform': ' '.join(_PLATFORM).encode()})[:16]}.zip"
    )
    if target.is_file():
        return target, file_digest(target)
    cache.mkdir(parents=True, exist_ok=True)
    print(f"holdfast: downloading the wheels of {lock} (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        # --no-deps: the lock is complete, and a resolver would look at releases that are newer than it is.
        _pip("download", "--no-deps", "--require-hashes", *_PLATFORM, "--dest", scratch, lock=lock)
        return target, write_zip(target, {wheel.name: wheel for wheel in Path(scratch).iterdir()})


def pack_function(sources: Path, cache: Path, *, services: Collection[str] = ()) -> tuple[Path, str]:
    """Return a directory with a function's modules and locked dependencies, and a digest of both.

    Dependencies are installed once per lock file into `cache`; after that packing needs no network.

    Args:
        sources: a flat directory of modules with a hash-locked `requirements.txt`.
        cache: where packed functions are kept between calls.
        services: the AWS services that the function calls. The AWS SDK's descriptions of all others, nine tenths of
            its size, are left out.

    Raises:
        BundleError: there are no modules, or pip refused; the message holds pip's last lines.
    """
    modules = read_tree(sources, "*.py")
    lock = sources / "requirements.txt"
    if "handler.py" not in modules or not lock.is_file():
        raise BundleError(f"{sources} must hold handler.py and requirements.txt, got {sorted(modules)}")
    dependencies = _dependencies(lock, cache / f"{sources.name}-deps-{digest({'lock': lock.read_bytes()})[:16]}")
    choices = {"platform": " ".join(_PLATFORM).encode(), "services": " ".join(sorted(services)).encode()}
    packed_digest = digest({**modules, "requirements.txt": lock.read_bytes(), **choices})
    target = cache / f"{sources.name}-{packed_digest[:16]}"
    if not target.is_dir():
        scratch = Path(tempfile.mkdtemp(dir=cache))
        descriptions = dependencies / "botocore/data"

        def unused(directory: str, names: list[str]) -> set[str]:
            if Path(directory) != descriptions:
                return set()
            return {name for name in names if name not in services and (descriptions / name).is_dir()}

        shutil.copytree(dependencies, scratch, dirs_exist_ok=True, ignore=unused)
        for name, content in modules.items():
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        _move_into_place(scratch, target)
    return target, packed_digest


def _dependencies(lock: Path, target: Path) -> Path:
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"holdfast: installing the locked dependencies of the {lock.parent.name} function (once)", file=sys.stderr)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        _pip("install", "--no-compile", "--require-hashes", *_PLATFORM, "--target", str(scratch), lock=lock)
    except BundleError:
        shutil.rmtree(scratch)
        raise
    _move_into_place(scratch, target)
    return target


def _pip(command: str, *options: str, lock: Path) -> None:
    argv = (sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *options)
    try:
        subprocess.run(
            [*argv, "--requirement", str(lock)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_PIP_TIMEOUT_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise BundleError(
            f"the dependencies in {lock} could not be installed: {_last_lines(error)}; "
            "check that this machine reaches a Python package index"
        ) from None


def _move_into_place(scratch: Path, target: Path) -> None:
    """Rename `scratch` to `target`; where another synthesis was quicker, its equal result stays."""
    scratch.chmod(0o755)
    try:
        scratch.rename(target)
    except OSError:
        shutil.rmtree(scratch)
        if not target.is_dir():
            raise


def _last_lines(error: subprocess.CalledProcessError | subprocess.TimeoutExpired) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"pip did not finish within {_PIP_TIMEOUT_SECONDS} seconds"
    lines = [line for line in str(error.stderr).splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or f"pip ended with status {error.returncode}"
