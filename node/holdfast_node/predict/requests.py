"""What a request may be: one small HTTP/1.1 message with a JSON body. Sans-IO: bytes in, a request or a refusal out.

A strict subset of RFC 9112: one request per connection, a length that is known beforehand, no transfer coding, no
folded or repeated header that matters, no `Expect`. What is outside the subset is refused and never guessed at.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast_node.predict.errors import RequestRefused

MAX_HEAD_BYTES = 8192
MAX_HEADERS = 50
_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) (/[!-~]{0,255}) (HTTP/[0-9]\.[0-9])")
#: The spaces around a value are taken off afterwards: an expression that may divide them between itself and the value
#: in many ways tries them all on a bad header, which takes minutes.
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):([\t -~]{0,1024})")
_LENGTH = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, kw_only=True)
class Head:
    """Method and target of a request, and how many bytes of body follow."""

    method: str
    target: str
    length: int


def parse_head(data: bytes, *, max_body_bytes: int) -> Head:
    """Return the head in `data`, which ends with the empty line.

    Raises:
        RequestRefused: not HTTP/1.1, outside the subset, or a body that is too large or not JSON.
    """
    try:
        line, *lines = data.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    except UnicodeDecodeError:
        raise RequestRefused(400, "the request's head must be ASCII") from None
    request = _REQUEST_LINE.fullmatch(line)
    if not request:
        raise RequestRefused(400, "the request must begin with a line such as POST /v1/predict HTTP/1.1")
    method, target, version = request.groups()
    if version != "HTTP/1.1":
        raise RequestRefused(505, f"the protocol must be HTTP/1.1, got {version}")
    if len(lines) > MAX_HEADERS:
        raise RequestRefused(431, f"a request has at most {MAX_HEADERS} headers, got {len(lines)}")
    headers: dict[str, str] = {}
    for item in lines:
        header = _HEADER.fullmatch(item)
        if not header:
            raise RequestRefused(400, "a header must be a name, a colon and printable text on one line")
        name = header[1].lower()
        if name in headers and name in ("content-length", "content-type", "transfer-encoding", "host", "expect"):
            raise RequestRefused(400, f"the header {name} must be given once")
        headers[name] = header[2].strip(" \t")
    if "transfer-encoding" in headers:
        raise RequestRefused(501, "a body must have a Content-Length, got a Transfer-Encoding")
    if "expect" in headers:
        raise RequestRefused(417, "Expect is not supported; send the body at once")
    return Head(method=method, target=target, length=_length(method, headers, max_body_bytes))


def _length(method: str, headers: dict[str, str], max_body_bytes: int) -> int:
    text = headers.get("content-length")
    if method != "POST":
        if text not in (None, "0"):
            raise RequestRefused(400, f"{method} must have no body")
        return 0
    if text is None or not _LENGTH.fullmatch(text):
        raise RequestRefused(411, "POST must have a Content-Length in decimal digits")
    if int(text) > max_body_bytes:
        raise RequestRefused(413, f"a body must be at most {max_body_bytes} bytes, got {int(text)}")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestRefused(415, "Content-Type must be application/json")
    return int(text)


def parse_rows(body: bytes, *, shape: tuple[int, ...], max_rows: int) -> NDArray[np.float32]:
    """Return the rows in `{"data": [row, …]}` as float32 of shape (rows, *shape).

    Raises:
        RequestRefused: not such JSON, no row or more than `max_rows`, another shape, or a value that is not a finite
            number as float32.
    """
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RequestRefused(400, 'the body must be JSON such as {"data": [[0.5, 1.0]]}, with finite numbers') from None
    if not isinstance(value, dict) or set(value) != {"data"} or not isinstance(value["data"], list):
        raise RequestRefused(400, 'the body must be an object with the one key "data", a list of rows')
    rows = value["data"]
    if not 1 <= len(rows) <= max_rows:
        raise RequestRefused(400, f"a request must have between 1 and {max_rows} rows, got {len(rows)}")
    flat: list[float] = []
    for number, row in enumerate(rows):
        _flatten(row, shape, flat, f"row {number}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused below
        array = np.array(flat, dtype=np.float64).astype(np.float32)
    if not np.isfinite(array).all():
        raise RequestRefused(400, "every value must be finite as a 32-bit float")
    return array.reshape(len(rows), *shape)


def _flatten(value: Any, shape: tuple[int, ...], into: list[float], where: str) -> None:
    if not shape:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestRefused(400, f"{where} must hold numbers only, got {type(value).__name__}")
        try:
            into.append(float(value))
        except OverflowError:
            raise RequestRefused(400, "every value must be finite as a 32-bit float") from None
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        got = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
        raise RequestRefused(400, f"{where} must be a list of {shape[0]}, got {got}")
    for item in value:
        _flatten(item, shape[1:], into, where)


def _no_constant(name: str) -> float:
    raise ValueError(name)
