"""Checkpoints that are either whole or not there.

A checkpoint is a directory with a manifest of SHA-256 digests. It is written beside its place, flushed to the disk,
and renamed; the link `latest` moves last. A writer that dies at any point leaves nothing that `latest` accepts but
what was whole before. One writer at a time per directory, held by a lock that ends with its process.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from holdfast_node.contract.errors import HoldfastError

MANIFEST = "manifest.json"
LATEST = "latest"
FORMAT = 1
DEFAULT_KEEP = 3
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TEMPORARY = ".tmp-"
_LOCK = ".lock"
_log = logging.getLogger(__name__)


class CheckpointError(HoldfastError):
    """A checkpoint cannot be written, or one that was asked for is not whole."""


def save(directory: Path, name: str, write: Callable[[Path], None], *, keep: int = DEFAULT_KEEP) -> Path:
    """Return the path of a new, complete checkpoint `directory/name`, on the disk and verified by its manifest.

    Args:
        directory: where the checkpoints of one job are; it is created where it is missing.
        name: a file name; a checkpoint is never overwritten.
        write: called with an empty directory; it writes the checkpoint's files there.
        keep: how many checkpoints stay, this one included; the oldest others are removed.

    Raises:
        CheckpointError: the name is not one, is taken, another writer is at work, or nothing was written.
    """
    if not NAME_PATTERN.fullmatch(name) or name in (LATEST, MANIFEST):
        raise CheckpointError(f"checkpoint name must match {NAME_PATTERN.pattern} and not be {LATEST}, got {name!r}")
    if keep < 1:
        raise CheckpointError(f"keep must be at least 1, got {keep}")
    directory.mkdir(parents=True, exist_ok=True)
    with _only_writer(directory):
        _remove_leftovers(directory)
        target = directory / name
        if target.exists():
            raise CheckpointError(
                f"checkpoint {name} exists already; checkpoints are never overwritten, use a new name"
            )
        temporary = directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
        temporary.mkdir()
        try:
            write(temporary)
            sequence = max((number for number, _ in _candidates(directory)), default=0) + 1
            _seal(temporary, name, sequence)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_directory(directory)
        _point(directory, name)
        _prune(directory, keep)
    return target


def latest(directory: Path) -> Path | None:
    """Return the newest checkpoint whose every file has the digest of its manifest, or None where there is none.

    Those that are not whole are skipped, with a warning in the log that says why.
    """
    for _, path in sorted(_candidates(directory), reverse=True):
        try:
            verify(path)
        except CheckpointError as error:
            _log.warning("checkpoint skipped: %s", error)
        else:
            return path
    return None


def verify(path: Path) -> None:
    """Return if the checkpoint holds exactly the files of its manifest, with those digests.

    Raises:
        CheckpointError: something is missing, added or changed; the message names the first such file.
    """
    manifest = _manifest(path)
    present = {_relative(file, path) for file in _files(path)} - {MANIFEST}
    expected = manifest["files"]
    if missing := sorted(set(expected) - present):
        raise CheckpointError(f"{path.name} lacks {missing[0]}")
    if added := sorted(present - set(expected)):
        raise CheckpointError(f"{path.name} has {added[0]}, which is not in its manifest")
    for name, entry in expected.items():
        if (actual := _describe(path / name)) != entry:
            raise CheckpointError(
                f"{path.name}: {name} must have sha256 {entry['sha256']} and {entry['size']} bytes, "
                f"got {actual['sha256']} and {actual['size']}"
            )


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Replace the file `path` by what `write` puts at the path that it is given: all of it, on the disk, or nothing."""
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_directory(path.parent)


def flush_directory(path: Path) -> None:
    """Return when the names in this directory are on the disk."""
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _only_writer(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is writing a checkpoint in {directory}; only one worker should (kv.rank == 0)"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _seal(temporary: Path, name: str, sequence: int) -> None:
    """Flush every file and directory, and write the manifest: from here on the checkpoint can be verified."""
    files = sorted(_files(temporary))
    if not files:
        raise CheckpointError(f"checkpoint {name} is empty: its write function wrote no file")
    if any(_relative(file, temporary) == MANIFEST for file in files):
        raise CheckpointError(f"a checkpoint's file must not be called {MANIFEST}")
    for file in files:
        _flush(file)
    entries = {_relative(file, temporary): _describe(file) for file in files}
    manifest = {"format": FORMAT, "name": name, "sequence": sequence, "files": entries}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    _flush(temporary / MANIFEST)
    for folder in {file.parent for file in files} | {temporary}:
        flush_directory(folder)


def _point(directory: Path, name: str) -> None:
    link = directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
    link.symlink_to(name)
    link.rename(directory / LATEST)
    flush_directory(directory)


def _prune(directory: Path, keep: int) -> None:
    for _, path in sorted(_candidates(directory), reverse=True)[keep:]:
        doomed = directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
        path.rename(doomed)  # never half a checkpoint under its own name
        shutil.rmtree(doomed)


def _remove_leftovers(directory: Path) -> None:
    """Remove what writers that died have left; the lock says that none is alive."""
    for path in directory.glob(f"{_TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _candidates(directory: Path) -> Iterator[tuple[int, Path]]:
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.is_symlink() or not path.is_dir() or not NAME_PATTERN.fullmatch(path.name):
            continue
        try:
            yield _manifest(path)["sequence"], path
        except CheckpointError as error:
            _log.warning("checkpoint skipped: %s", error)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files, sequence = manifest["files"], manifest["sequence"]
        well_formed = manifest["format"] == FORMAT and manifest["name"] == path.name and isinstance(sequence, int)
        well_formed = well_formed and all(set(entry) == {"sha256", "size"} for entry in files.values())
    except OSError as error:
        raise CheckpointError(f"{path.name} has no manifest ({error.strerror}): it was not completed") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} has a damaged manifest ({type(error).__name__})") from None
    if not well_formed:
        raise CheckpointError(f"{path.name} has a manifest of another checkpoint or format")
    return dict(manifest)


def _files(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        if path.is_symlink():
            raise CheckpointError(f"a checkpoint holds files only, got the link {_relative(path, directory)}")
        if path.is_file():
            yield path


def _relative(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()


def _describe(path: Path) -> dict[str, str | int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"sha256": digest.hexdigest(), "size": size}
