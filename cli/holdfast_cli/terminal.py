"""What reaches the terminal: escaped text, tables, and one JSON document for programs.

Job names, causes, log lines and AWS messages come from nodes and are not trusted: a control sequence in one of them
could rewrite the screen or the clipboard. Everything passes through `safe` on its way to a terminal; JSON output is
ASCII with escapes, so it needs no more.
"""

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

#: Categories of Unicode that are never printed raw: control, format (which holds the bidirectional overrides),
#: surrogate, private use, unassigned, and the two line separators.
_UNSAFE_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def safe(value: object) -> str:
    r"""Return `value` as text in which every control or format character is escaped (`\x1b`, `\u202e`)."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNSAFE_CATEGORIES
        else character
        for character in text
    )


def safe_lines(value: object) -> list[str]:
    """Return the lines of `value`, each escaped by `safe`; tabs become spaces and a final newline is dropped."""
    text = str(value).replace("\r\n", "\n").rstrip("\n").expandtabs(4)
    return [safe(line) for line in text.split("\n")]


def console(stream: TextIO | None = None) -> "Console":
    """Return a console that colours only on a terminal, and never interprets markup in what it prints."""
    from rich.console import Console

    return Console(file=stream or sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_json(document: object) -> None:
    """Print one JSON document, ASCII only, on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, default=_json_default) + "\n")


def print_fields(rows: Iterable[tuple[str, object]]) -> None:
    """Print aligned `name  value` lines; rows whose value is None are left out."""
    shown = [(name, safe(value)) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    out = console()
    for name, value in shown:
        out.print(f"{name:<{width}}  ", value, sep="")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table without borders whose columns never wrap, so that each row stays one line in a pipe."""
    cells = [[safe(cell if cell is not None else "-") for cell in row] for row in rows]
    widths = [max(len(heading), *(len(row[i]) for row in cells), 0) for i, heading in enumerate(headings)]
    out = console()
    out.print("  ".join(h.ljust(w) for h, w in zip(headings, widths, strict=True)).rstrip(), style="bold")
    for row in cells:
        out.print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def duration(seconds: float) -> str:
    """Return a short form of a length of time: `42s`, `3m 05s`, `1h 02m`."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {left:02}s" if minutes else f"{left}s"


def moment(value: datetime) -> str:
    """Return an instant in the operator's time zone, to the second."""
    return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _json_default(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"not JSON: {type(value).__name__}")
