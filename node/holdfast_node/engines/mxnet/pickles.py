"""A process that cannot unpickle, and cannot start another process."""

import importlib
import sys
from typing import Any, NoReturn

_NAMES = ("load", "loads", "Unpickler", "_load", "_loads", "_Unpickler", "dump", "dumps", "Pickler")
#: Audit events (docs.python.org, "Audit events table"). Every pickle that does more than build plain containers
#: looks a class up; the hook sees it even from an Unpickler that someone imported earlier.
_REFUSED_EVENTS = frozenset(
    {"pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"}
)


def disable() -> None:
    """Make unpickling and starting processes impossible in this process, for good.

    Call it after MXNet is imported. Audit hooks cannot be removed.
    """
    for module in ("pickle", "_pickle"):
        for name in _NAMES:
            loaded = importlib.import_module(module)
            if hasattr(loaded, name):
                setattr(loaded, name, _refuse)
    sys.addaudithook(_audit)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("pickle is disabled in a parameter server")


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if event in _REFUSED_EVENTS:
        raise RuntimeError(f"{event} is disabled in a parameter server")
