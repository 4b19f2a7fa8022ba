"""A job's directory as a code archive whose bytes depend on nothing but the files' names, contents and execute bits."""

import errno
import gzip
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import IO

from holdfast_cli.errors import PackError
from holdfast_node.contract.documents import RELATIVE_PATH_PATTERN, CodeArchive

MAX_CODE_BYTES = 256 * 1024 * 1024
MAX_CODE_FILES = 10_000

#: Directories that are never part of a job's code: version control, environments, caches.
EXCLUDED = frozenset(
    {".git", ".hg", ".svn", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}
)


def find_entry(directory: Path, entry: str) -> str:
    """Return the entry script's path relative to `directory`, with forward slashes.

    Raises:
        PackError: no such directory; the entry is outside it, missing (near names are suggested), or not a file.
    """
    if not directory.exists():
        raise PackError(f"no directory {directory}; give the directory that holds your training script")
    if not directory.is_dir():
        raise PackError(f"{directory} is not a directory; give the directory that holds your training script")
    relative = PurePosixPath(os.path.normpath(entry))
    if relative.is_absolute() or ".." in relative.parts:
        raise PackError(f"entry must be inside {directory}, got {entry!r}; name it relative to that directory")
    names = [name for name, _ in _files(directory)]
    if str(relative) not in names:
        raise PackError(_no_entry(directory, relative, names))
    if not RELATIVE_PATH_PATTERN.fullmatch(str(relative)):
        raise PackError(f"entry must match {RELATIVE_PATH_PATTERN.pattern}, got {str(relative)!r}; rename the script")
    return str(relative)


def pack(directory: Path, out: IO[bytes]) -> CodeArchive:
    """Write the gzipped tar of `directory` to `out` and return its digest and size.

    Sorted names, no owners, no times: the same files give the same bytes. `EXCLUDED` directories are left out.

    Raises:
        PackError: a symbolic link or special file, more than `MAX_CODE_FILES`, or more than `MAX_CODE_BYTES`.
    """
    hashing = _HashingWriter(out)
    total = 0
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=hashing, mtime=0, compresslevel=6) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for count, (name, path) in enumerate(sorted(_files(directory)), start=1):
            total += path.stat().st_size
            if total > MAX_CODE_BYTES or count > MAX_CODE_FILES:
                raise PackError(_too_big(directory))
            _add(archive, name, path)
    if hashing.size > MAX_CODE_BYTES:  # what does not compress grows a little; nodes refuse a larger archive
        raise PackError(_too_big(directory))
    return CodeArchive(sha256=hashing.digest.hexdigest(), size=hashing.size)


class _HashingWriter:
    """A file that is only written to, and hashed on the way: what gzip needs and no more."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name relative to `directory`, path) of every file that belongs to the job, in no order."""
    for folder, subfolders, names in os.walk(directory, onerror=_raise):
        subfolders[:] = sorted(name for name in subfolders if name not in EXCLUDED)
        for name in [*subfolders, *names]:
            path = Path(folder, name)
            if path.is_symlink():
                raise PackError(
                    f"{path} is a symbolic link to {path.readlink()}; links are not packed, because they could lead "
                    "out of the directory: replace it with a copy of the file"
                )
        for name in names:
            path = Path(folder, name)
            if name in EXCLUDED:  # in a worktree or a submodule .git is a file
                continue
            if not stat.S_ISREG(path.lstat().st_mode):
                raise PackError(
                    f"{path} is neither a file nor a directory; remove it (sockets and devices cannot be packed)"
                )
            relative = path.relative_to(directory).as_posix()
            if not relative.isprintable():
                raise PackError(f"the file name {relative!r} has unprintable characters; rename it")
            yield relative, path


def _raise(error: OSError) -> None:
    raise error


def _add(archive: tarfile.TarFile, name: str, path: Path) -> None:
    # O_NOFOLLOW: a file swapped for a link since the walk must not be followed.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PackError(f"{path} became a symbolic link while it was packed; submit again") from None
        raise
    with open(descriptor, "rb") as source:  # noqa: PTH123 - a descriptor, not a path
        status = os.fstat(descriptor)
        entry = tarfile.TarInfo(name)
        entry.size = status.st_size
        entry.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        try:
            archive.addfile(entry, source)
        except OSError as error:
            raise PackError(f"{path} changed while it was packed ({error}); submit again") from None


def _no_entry(directory: Path, relative: PurePosixPath, names: list[str]) -> str:
    if (directory / relative).is_dir():
        return f"entry must be a file, but {relative} in {directory} is a directory; name a script in it"
    scripts = sorted(name for name in names if name.endswith(".py"))
    near = [name for name in scripts if PurePosixPath(name).name == relative.name]
    near = near or get_close_matches(str(relative), scripts, n=3, cutoff=0.6)
    if near:
        return f"no file {relative} in {directory}; did you mean {' or '.join(near[:3])}?"
    known = f"the scripts there are {', '.join(scripts[:5])}" if scripts else "there is no .py file in it"
    return f"no file {relative} in {directory}; {known}"


def _too_big(directory: Path) -> str:
    sizes = sorted(((path.stat().st_size, name) for name, path in _files(directory)), reverse=True)
    largest = ", ".join(f"{name} ({size / 1024**2:.0f} MiB)" for size, name in sizes[:3])
    return (
        f"code must be at most {MAX_CODE_BYTES // 1024**2} MiB in {MAX_CODE_FILES} files, "
        f"got {sum(size for size, _ in sizes) / 1024**2:.0f} MiB in {len(sizes)} files in {directory}; "
        f"the largest: {largest}; keep data sets and models out of the job's directory"
    )
