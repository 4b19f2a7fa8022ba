"""Files that MXNet saves below the checkpoint directory are whole or not there, with the script unchanged.

`mx.nd.save`, `Block.save_parameters`, `HybridBlock.export`, `Module.save_checkpoint` and `Symbol.save` all end in
one of two functions of the native library that take a file name first; those two are wrapped.

The native functions write into memory, and the bytes go to the disk from here: MXNet 1.9.1 does not look at what
`fclose` says (dmlc-core, local_filesys.cc), so on a full disk it can lose the last block without a word.
"""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast_node.checkpoints import atomic_write

_FUNCTIONS = ("MXNDArraySave", "MXSymbolSaveToFile")
#: Where the file name stands among the function's arguments (c_api.h, MXNet 1.9.1).
_POSITION = {"MXNDArraySave": 0, "MXSymbolSaveToFile": 1}


def install(library: Any, directory: Path) -> None:
    """Make the native library's two save functions atomic for paths below `directory`."""
    for name in _FUNCTIONS:
        setattr(library, name, _atomic(getattr(library, name), _POSITION[name], directory.resolve()))


def save_arrays(path: Path, arrays: dict[str, Any], mx: Any) -> None:
    """Write arrays to `path` in MXNet's own format, as `mx.nd.save` does, and notice a full disk.

    Raises:
        OSError: not all of it could be written.
    """
    native = mx.npx if mx.util.is_np_array() else mx.nd
    copy_written(path, lambda name: native.save(name, arrays))


def load_arrays(data: bytes, mx: Any) -> dict[str, Any]:
    """Return the arrays in the bytes of a file of MXNet's own format.

    Raises:
        MXNetError: they are no such file.
    """
    native = mx.npx if mx.util.is_np_array() else mx.nd
    with in_memory(data) as name:
        loaded = native.load(name)
    return loaded if isinstance(loaded, dict) else {}


@contextmanager
def in_memory(data: bytes) -> Iterator[str]:
    """Give the bytes a file name that native code can read; no other file is read in their place."""
    with os.fdopen(os.memfd_create("holdfast"), "wb", buffering=0) as file:
        _write(file.fileno(), data)
        yield f"/proc/self/fd/{file.fileno()}"


def copy_written(path: Path, native: Callable[[str], Any]) -> None:
    """Have `native` write the file name that it is given, which is memory, and put every byte of it at `path`.

    Raises:
        OSError: the file is larger than this process may write, or the disk is full.
    """
    with os.fdopen(os.memfd_create("holdfast"), "r+b", buffering=0) as memory:
        native(f"/proc/self/fd/{memory.fileno()}")
        size, limit = os.fstat(memory.fileno()).st_size, resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and size >= limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))  # the memory may have been cut, too
        with path.open("wb", buffering=0) as file:
            memory.seek(0)
            shutil.copyfileobj(memory, _Whole(file.fileno()), 1 << 20)


class _Whole:
    """A sink for a descriptor that writes all of what it is given, or raises."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        _write(self._descriptor, data)
        return len(data)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class _SaveError(Exception):
    """The native function returned an error code; MXNet's own check turns it into its message."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _atomic(function: Callable[..., int], position: int, directory: Path) -> Callable[..., int]:
    def save(*arguments: Any) -> int:
        path = Path(os.fsdecode(arguments[position].value))
        if not path.absolute().parent.resolve().is_relative_to(directory):
            return function(*arguments)

        def native(name: str) -> None:
            changed = list(arguments)
            changed[position] = type(arguments[position])(os.fsencode(name))
            if status := function(*changed):
                raise _SaveError(status)

        try:
            atomic_write(path, lambda temporary: copy_written(temporary, native))
        except _SaveError as failed:
            return failed.status
        return 0

    return save
