"""Progress on standard error: a spinner on a terminal, else plain lines; standard output is left to the answer."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from holdfast_cli.status import JobView
from holdfast_cli.terminal import console, duration, safe

if TYPE_CHECKING:
    from rich.status import Status


class Progress:
    """A line that says what is going on; use as a context manager."""

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain
        self._live: Status | None = None
        self._last = ""

    def __enter__(self) -> Self:
        if not self._plain and sys.stderr.isatty():
            self._live = console(sys.stderr).status("")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def report(self, text: str) -> None:
        """Say what is being done now; the same text twice is one line."""
        self._show(safe(text), safe(text))

    def report_job(self, view: JobView) -> None:
        """Say what phase the job is in, and which nodes have reported."""
        nodes = _count_nodes(view)
        stable = f"{view.job_id}: {safe(view.phase)}{nodes}"
        self._show(f"{stable} ({duration(view.seconds)})", stable)

    def _show(self, live: str, line: str) -> None:
        if self._live:
            from rich.text import Text

            self._live.update(Text(live))
        elif line != self._last:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        self._last = line


def _count_nodes(view: JobView) -> str:
    counts: dict[str, int] = {}
    for node in view.nodes:
        counts[node.role] = counts.get(node.role, 0) + 1
    text = ", ".join(f"{safe(role)} {count}" for role, count in counts.items())
    return f"; nodes: {text}" if text else ""
