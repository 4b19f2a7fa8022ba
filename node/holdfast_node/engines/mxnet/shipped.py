"""Optimizers of the job's own: classes in `holdfast_optimizers.py` at the root of its signed code, and no others.

The servers load that file from the code that their agent has verified; a worker only names a class in it and gives
its constructor's arguments as JSON. So a server runs what the operator signed, never what a peer sent.
"""

import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import Any

from holdfast_node.engines.errors import EngineError, SpecError
from holdfast_node.engines.mxnet.spec import Kind

MODULE = "holdfast_optimizers"
#: Before a class's name in a specification: MXNet's own have none.
PREFIX = "job:"
#: The environment variable with the root of the job's code.
CODE = "HOLDFAST_CODE"


def load(mx: Any) -> dict[str, Any]:
    """Return the classes that the job ships, by name; none where it ships no such file.

    Raises:
        EngineError: the file does not load; the message has its error.
    """
    path = Path(os.environ.get(CODE, "")) / f"{MODULE}.py"
    if CODE not in os.environ or not path.is_file():
        return {}
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise EngineError(f"{path.name} of this job cannot be loaded: {type(error).__name__}: {error}") from None
    return {name: cls for name, cls in vars(module).items() if _is_own(cls, mx)}


def name_of(cls: Any, mx: Any) -> str | None:
    """Return how a specification names this class, or None where it is not one that the job ships."""
    name: str = cls.__name__
    return PREFIX + name if _is_own(cls, mx) and getattr(sys.modules.get(MODULE), name, None) is cls else None


def arguments_of(cls: Any, common: dict[str, Kind]) -> dict[str, Kind]:
    """Return the kinds of a class's arguments: its constructor's own, plain values, and those of every optimizer.

    Raises:
        SpecError: its constructor has none for those of every optimizer, or positional ones without end.
    """
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    kinds = {parameter.kind for parameter in parameters}
    if inspect.Parameter.VAR_KEYWORD not in kinds or inspect.Parameter.VAR_POSITIONAL in kinds:
        raise SpecError(
            f"the constructor of {cls.__name__} must take its arguments by name and pass **kwargs on to "
            "mxnet.optimizer.Optimizer"
        )
    own = {parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    return dict.fromkeys(own, Kind.PLAIN) | common


def _is_own(cls: Any, mx: Any) -> bool:
    return isinstance(cls, type) and cls.__module__ == MODULE and issubclass(cls, mx.optimizer.Optimizer)
