"""Checkpoints that are either whole or not there.

A checkpoint is a directory with a manifest of SHA-256 digests. It is written beside its place, flushed to the disk,
and renamed; the link `latest` moves last. A writer that dies at any point leaves nothing that `latest` accepts but
what was whole before. One writer at a time per directory, held by a lock that ends with its process.

The digests find accidents: cut files, flipped bits, mixed-up or half-copied directories. They are no signature: who
may write the directory can write a manifest that fits (docs/adr/0009-checkpoints.md).
"""

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from holdfast_node.contract.documents import DEFAULT_RETENTION, Retention
from holdfast_node.durable import LEASE_SECONDS, PART, atomic_write, explained, flush, locked, only_writer
from holdfast_node.manifests import MANIFEST, NAME_PATTERN, CheckpointError, Manifest, describe
from holdfast_node.retention import doomed

__all__ = ["LEASE_SECONDS", "CheckpointError", "atomic_write", "hold", "latest", "read", "save", "verify"]

LATEST = "latest"
_TEMPORARY = ".tmp-"
#: How long nothing was written to a part that counts as left behind: no write takes that long between two blocks.
_PART_SECONDS = 3600
_log = logging.getLogger(__name__)


def save(
    directory: Path,
    name: str,
    write: Callable[[Path], None],
    *,
    retention: Retention = DEFAULT_RETENTION,
    metrics: Mapping[str, float] | None = None,
    draft: str | None = None,
    patience: float = 0.0,
    clock: Callable[[], float] = time.time,
) -> Path:
    """Return the path of a new, complete checkpoint `directory/name`, on the disk and verified by its manifest.

    Args:
        directory: where the checkpoints of one job are; it is created where it is missing.
        name: a file name; a whole checkpoint is never overwritten, a damaged one of this name is replaced.
        write: called with an empty directory; it writes the checkpoint's files there.
        retention: which checkpoints stay afterwards; the others are removed, but for those that somebody holds.
        metrics: what the best ones are chosen by; values that are not finite are recorded as null.
        draft: the temporary directory is `draft_path(directory, draft)`, for other processes that write there too.
        patience: how many seconds to wait for another writer to end: a lost node's lock outlives it (`LEASE_SECONDS`).
        clock: tells the time in seconds since the epoch.

    Raises:
        CheckpointError: the name is not one, is taken, another writer is at work, nothing was written, or the disk
            is full. The earlier checkpoints are untouched.
    """
    if not NAME_PATTERN.fullmatch(name) or name in (LATEST, MANIFEST):
        raise CheckpointError(f"checkpoint name must match {NAME_PATTERN.pattern} and not be {LATEST}, got {name!r}")
    noted = _noted(metrics or {})
    temporary = draft_path(directory, draft or secrets.token_hex(8))
    with explained(directory, name):
        directory.mkdir(parents=True, exist_ok=True)
        with only_writer(directory, patience):
            _remove_leftovers(directory, clock())
            target = directory / name
            _make_way(target)
            temporary.mkdir()
            try:
                write(temporary)
                sequence = max((manifest.sequence for manifest, _ in _candidates(directory)), default=0) + 1
                _seal(temporary, name, sequence=sequence, created=int(clock()), metrics=noted)
                temporary.rename(target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            flush(directory)
            try:  # the checkpoint is there: what fails from here on is no reason to call it unsaved
                _point(directory, name)
                _prune(directory, retention, clock())
            except OSError as error:
                _log.warning("checkpoint %s is saved, but not tidied up after: %s", name, error)
    return target


def _noted(metrics: Mapping[str, float]) -> dict[str, float | None]:
    try:
        return {str(name): float(value) if math.isfinite(value) else None for name, value in metrics.items()}
    except (TypeError, ValueError, AttributeError):
        raise CheckpointError(f"metrics must be numbers by name, got {str(metrics)[:80]}") from None


def draft_path(directory: Path, draft: str) -> Path:
    """Return where a checkpoint with this draft's name is written until it is whole."""
    return directory / f"{_TEMPORARY}{draft}"


def latest(directory: Path) -> Path | None:
    """Return the newest checkpoint whose every file has the digest of its manifest, or None where there is none.

    Those that are not whole are skipped, with a warning in the log that says why.
    """
    for _, path in sorted(_candidates(directory), key=lambda item: item[0].sequence, reverse=True):
        try:
            verify(path)
        except CheckpointError as error:
            _log.warning("checkpoint skipped: %s", error)
        else:
            return path
    return None


def verify(path: Path) -> Manifest:
    """Return the checkpoint's manifest if it holds exactly the files of it, with those digests.

    Raises:
        CheckpointError: something is missing, added or changed; the message names the first such file.
    """
    manifest = Manifest.of(path)
    present = {_relative(file, path) for file in _files(path)} - {MANIFEST}
    if missing := sorted(set(manifest.files) - present):
        raise CheckpointError(f"{path.name} lacks {missing[0]}")
    if added := sorted(present - set(manifest.files)):
        raise CheckpointError(f"{path.name} has {added[0]}, which is not in its manifest")
    for name in manifest.files:
        manifest.check(path, name, describe(path / name))
    return manifest


def read(path: Path, name: str, manifest: Manifest) -> bytes:
    """Return the bytes of a checkpoint's file: the very bytes whose digest was compared.

    Raises:
        CheckpointError: the file is not in the manifest, is missing, or is not what it was.
    """
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path.name}: {name} cannot be read: {error.strerror}") from None
    manifest.check(path, name, {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)})
    return data


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep the checkpoint from being removed while the block runs, whatever retention says.

    Raises:
        CheckpointError: it is not there any more.
    """
    with locked(path, os.O_RDONLY, fcntl.LOCK_SH) as held:
        if not held:  # only while a writer decides, which takes no time
            raise CheckpointError(f"{path.name} is being removed; use a newer checkpoint")
        yield


def _make_way(target: Path) -> None:
    if not target.exists():
        return
    try:
        verify(target)
    except CheckpointError as error:
        _log.warning("a damaged checkpoint is replaced: %s", error)
        _remove(target)
    else:
        raise CheckpointError(
            f"checkpoint {target.name} exists already; checkpoints are never overwritten, use a new name"
        )


def _seal(temporary: Path, name: str, *, sequence: int, created: int, metrics: dict[str, float | None]) -> None:
    """Flush every file and directory, and write the manifest: from here on the checkpoint can be verified."""
    files = sorted(_files(temporary))
    if not files:
        raise CheckpointError(f"checkpoint {name} is empty: its write function wrote no file")
    if any(_relative(file, temporary) == MANIFEST for file in files):
        raise CheckpointError(f"a checkpoint's file must not be called {MANIFEST}")
    for file in files:
        flush(file)
    entries = {_relative(file, temporary): describe(file) for file in files}
    manifest = Manifest(name=name, sequence=sequence, created=created, metrics=metrics, files=entries)
    (temporary / MANIFEST).write_bytes(manifest.to_json())
    flush(temporary / MANIFEST)
    for folder in {file.parent for file in files} | {temporary}:
        flush(folder)


def _point(directory: Path, name: str) -> None:
    link = directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
    link.symlink_to(name)
    link.rename(directory / LATEST)
    flush(directory)


def _prune(directory: Path, retention: Retention, now: float) -> None:
    """Remove what these rules do not keep; called right after the newest one was completed."""
    entries = {manifest.name: (manifest, path) for manifest, path in _candidates(directory)}
    for entry in doomed([manifest.entry for manifest, _ in entries.values()], retention, now=now):
        path = entries[entry.name][1]
        with contextlib.suppress(CheckpointError), locked(path, os.O_RDWR, fcntl.LOCK_EX) as mine:
            if mine:
                _remove(path)
            else:
                _log.info("checkpoint %s is in use and stays for now", entry.name)


def _remove(path: Path) -> None:
    doomed_path = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    path.rename(doomed_path)  # never half a checkpoint under its own name
    shutil.rmtree(doomed_path)


def _remove_leftovers(directory: Path, now: float) -> None:
    """Remove what writers that died have left; the lock says that none is alive.

    Parts of single files have other writers, which hold no lock: those go when they are old.
    """
    for path in [*directory.glob(f"{_TEMPORARY}*"), *directory.glob(f"{PART}*")]:
        if path.name.startswith(PART) and now - path.lstat().st_mtime < _PART_SECONDS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _candidates(directory: Path) -> Iterator[tuple[Manifest, Path]]:
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.is_symlink() or not path.is_dir() or not NAME_PATTERN.fullmatch(path.name):
            continue
        try:
            yield Manifest.of(path), path
        except CheckpointError as error:
            _log.warning("checkpoint skipped: %s", error)


def _files(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError(
                f"a checkpoint holds files only, got the {'link' if path.is_symlink() else 'special file'} "
                f"{_relative(path, directory)}"
            )
        if path.is_file():
            yield path


def _relative(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()
