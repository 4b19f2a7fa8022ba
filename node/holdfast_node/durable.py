"""What survives a dying process: files that are flushed and replaced at once, locks, and errors that explain a disk."""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from holdfast_node.manifests import MANIFEST, CheckpointError

#: Names of single files until they are whole.
PART = ".part-"
#: What a file system says when it is full, a quota is used up, or a file is larger than it may be.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: How long a file server keeps the locks of a client that it has lost: 90 s with NFSv4 on Linux (nfsd(7), lease time),
#: and a reserve. A process that ends takes its locks with it at once.
LEASE_SECONDS = 120.0
_LOCK = ".lock"
_POLL_SECONDS = 0.1


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Replace the file `path` by what `write` puts at the path that it is given: all of it, on the disk, or nothing.

    Raises:
        CheckpointError: the disk is full; what was at `path` is untouched.
    """
    temporary = path.with_name(f"{PART}{secrets.token_hex(8)}")
    try:
        write(temporary)
        flush(temporary)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise full_disk(path.name, path.parent, error) from error
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Return when the bytes of this file, or the names in this directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(directory: Path, name: str) -> Iterator[None]:
    """Turn what a disk says into what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise full_disk(f"checkpoint {name}", directory, error) from error
        raise CheckpointError(
            f"checkpoint {name} cannot be written to {directory}: {error.strerror or error}; the earlier ones are "
            "untouched"
        ) from error


def full_disk(what: str, directory: Path, error: OSError) -> CheckpointError:
    """Return the error that says what did not fit, where, how much room there is, and what to do."""
    free = shutil.disk_usage(directory).free if directory.is_dir() else 0
    return CheckpointError(
        f"{what} does not fit in {directory}: {error.strerror}, {free:,} bytes are free; make room, or keep fewer "
        "checkpoints ([checkpoints] keep_last): there must be room for one more than are kept. What was there is "
        "untouched"
    )


@contextlib.contextmanager
def only_writer(directory: Path, patience: float) -> Iterator[None]:
    """Hold the one lock of a directory while the block runs; it ends with the process.

    Raises:
        CheckpointError: somebody else has held it for `patience` seconds.
    """
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise CheckpointError(
                        f"another process is writing a checkpoint in {directory}; only one worker should (kv.rank == 0)"
                    ) from None
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, flags: int, kind: int) -> Iterator[bool]:
    """Yield whether the lock on a checkpoint's manifest could be had; it ends with the block or the process."""
    try:
        descriptor = os.open(path / MANIFEST, flags | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be used: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
