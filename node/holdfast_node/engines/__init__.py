"""Training engines: MXNet first; a second one will stand beside it behind the same interface."""

from collections.abc import Callable

from holdfast_node.engines.base import Engine, Launch
from holdfast_node.engines.errors import EngineError
from holdfast_node.engines.mxnet.engine import MXNetEngine

__all__ = ["Engine", "EngineError", "Launch", "get_engine"]

_ENGINES: dict[str, Callable[[], Engine]] = {"mxnet": MXNetEngine}


def get_engine(name: str) -> Engine:
    """Return the engine that a job document names.

    Raises:
        EngineError: there is no such engine; the message lists those there are.
    """
    try:
        return _ENGINES[name]()
    except KeyError:
        raise EngineError(f"engine must be one of {sorted(_ENGINES)}, got {name[:100]!r}") from None
