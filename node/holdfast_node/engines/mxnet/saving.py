"""Files that MXNet saves below the checkpoint directory are whole or not there, with the script unchanged.

`mx.nd.save`, `Block.save_parameters`, `HybridBlock.export`, `Module.save_checkpoint` and `Symbol.save` all end in
one of two functions of the native library that take a file name first; those two are wrapped.
"""

import os
from collections.abc import Callable
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

        def write(temporary: Path) -> None:
            changed = list(arguments)
            changed[position] = type(arguments[position])(os.fsencode(temporary))
            if status := function(*changed):
                raise _SaveError(status)

        try:
            atomic_write(path, write)
        except _SaveError as failed:
            return failed.status
        return 0

    return save
