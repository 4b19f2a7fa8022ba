"""The only way in which the extension touches ministack: modules by name, with the private names that are used."""

import importlib
import importlib.metadata
from typing import Any

VERSION = "1.5.33"


class SeamError(Exception):
    """The installed ministack is not the one that the extension was written for."""


def require_version() -> None:
    """Raise SeamError unless ministack is installed in exactly the version that the extension was written for."""
    try:
        found = importlib.metadata.version("ministack")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != VERSION:
        raise SeamError(
            f"the embedded AWS needs ministack {VERSION}, got {found}; "
            "run `make setup`, or adapt local/holdfast_local/emulator/extension and its tests to the other version"
        )


def seam(module: str, *names: str) -> Any:
    """Import `module` and return it, once every name in `names` is known to exist in it.

    Raises:
        SeamError: the module or a name is missing; the message says which.
    """
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise SeamError(f"the embedded AWS relies on {module}, which cannot be imported: {error}") from None
    missing = [name for name in names if not hasattr(loaded, name)]
    if missing:
        raise SeamError(f"the embedded AWS relies on {', '.join(missing)} in {module} {VERSION}, got none; {_REMEDY}")
    return loaded


_REMEDY = "reinstall .venv-aws with `make setup`"
