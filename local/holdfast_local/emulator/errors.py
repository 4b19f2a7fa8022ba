"""Errors of the embedded AWS.

HoldfastError
└── EmulatorError    the embedded AWS did not start, or is not running
    └── DeployError  the CDK command line failed
"""

from pathlib import Path

from holdfast_node.contract.errors import HoldfastError

LAST_LINES = 15


class EmulatorError(HoldfastError):
    """The embedded AWS could not do what was asked; the message says what, got and the remedy."""


class DeployError(EmulatorError):
    """The CDK command line failed; the message ends with the last lines that it wrote."""


def last_lines(log: Path, count: int = LAST_LINES) -> str:
    """Return the last lines of a log file, indented, or a note that there are none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return "\n".join(f"  | {line[:300]}" for line in lines[-count:]) or "  | (nothing was logged)"
