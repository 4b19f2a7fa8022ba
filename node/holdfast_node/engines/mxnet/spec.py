"""Commands to the servers: JSON objects with closed schemas, so that nothing a server is sent can run.

MXNet's controller commands are pickles (kvstore_server.py, lines 54 to 59). Ours are parsed here, without MXNet and
without side effects; `Kind` is the vocabulary of the schemas.
"""

import json
import math
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any, NoReturn

from holdfast_node.engines.errors import SpecError

VERSION = 1
MAX_BYTES = 4 << 20
MAX_ITEMS = 100_000
MAX_TEXT = 256
#: More updates than any job makes; it bounds the loops of MXNet's schedulers.
MAX_COUNT = 1 << 40


class Kind(Enum):
    """What a value must be."""

    NUMBER = "a finite number"
    OPTIONAL_NUMBER = "a finite number or null"
    COUNT = f"a whole number between 0 and {MAX_COUNT}"
    BOOLEAN = "true or false"
    TEXT = f"a string of at most {MAX_TEXT} characters"
    PLAIN = "a number, string, boolean or null, or a list of them"
    COUNTS = f"a list of at most {MAX_ITEMS} whole numbers"


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; it has a string `op`, and no duplicate key, NaN or infinity.

    Raises:
        SpecError: it is anything else, a pickle for example.
    """
    if len(body) > MAX_BYTES:
        raise SpecError(f"a command must be at most {MAX_BYTES} bytes, got {len(body)}")
    try:
        command = json.loads(body.decode("ascii"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"a command must be a JSON object, got something else ({type(error).__name__})") from None
    if not isinstance(command, dict) or not isinstance(command.get("op"), str):
        raise SpecError("a command must be a JSON object with a string 'op'")
    return command


def serialise(command: Mapping[str, Any]) -> str:
    """Return the command as JSON that `parse` accepts; equal commands give equal text.

    Raises:
        SpecError: it is too large for the servers.
    """
    text = json.dumps(command, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_BYTES:
        raise SpecError(f"a command must be at most {MAX_BYTES} bytes, got {len(text)}")
    return text


def require_keys(value: Any, keys: Collection[str], where: str) -> dict[str, Any]:
    """Return `value` if it is an object with exactly these keys; else raise SpecError naming the difference."""
    if not isinstance(value, dict):
        raise SpecError(f"{where} must be an object, got {type(value).__name__}")
    if unknown := sorted(set(value) - set(keys)):
        raise SpecError(f"{where} has unknown keys {unknown[:5]}, allowed: {sorted(keys)}")
    if missing := sorted(set(keys) - set(value)):
        raise SpecError(f"{where} lacks the keys {missing}")
    return value


def require_kind(value: Any, kind: Kind, where: str) -> Any:
    """Return `value` if it is of this kind; else raise SpecError saying where, what was allowed and what came."""
    if not _is(value, kind):
        raise SpecError(f"{where} must be {kind.value}, got {repr(value)[:80]}")
    return value


def require_list(value: Any, where: str) -> list[Any]:
    """Return `value` if it is a list of bounded length; else raise SpecError."""
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise SpecError(f"{where} must be a list of at most {MAX_ITEMS} items, got {type(value).__name__}")
    return value


def plain(value: Any, where: str) -> Any:
    """Return `value` as plain Python: NumPy scalars become numbers; objects, NaN and infinity are refused."""
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{where} must be a finite number, got {value}")
    if value is None or isinstance(value, bool | str | int | float):
        return value
    raise SpecError(f"{where} must be a number, string, boolean or null, got {type(value).__name__}")


def _is(value: Any, kind: Kind) -> bool:
    if kind is Kind.BOOLEAN:
        return isinstance(value, bool)
    if kind is Kind.PLAIN:
        items = value if isinstance(value, list) and len(value) <= MAX_ITEMS else [value]
        scalars = (Kind.OPTIONAL_NUMBER, Kind.BOOLEAN, Kind.TEXT)
        return all(any(_is(item, scalar) for scalar in scalars) for item in items)
    if kind is Kind.TEXT:
        return isinstance(value, str) and len(value) <= MAX_TEXT
    if kind is Kind.COUNTS:
        return isinstance(value, list) and len(value) <= MAX_ITEMS and all(_is(item, Kind.COUNT) for item in value)
    if kind is Kind.OPTIONAL_NUMBER and value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind is Kind.COUNT:
        return isinstance(value, int) and 0 <= value <= MAX_COUNT
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= 1 << 53


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"constant {name}")
