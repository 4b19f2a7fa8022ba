"""What a check finds, and what all of them say about each row of the threat table."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast_cli.posture.inventory import Inventory

#: The rows of the threat table (README.md, "Security model").
ROWS = {
    "T1": "no authentication of cluster nodes",
    "T2": "plaintext between nodes",
    "T3": "servers execute a pickle",
    "T4": "any peer can crash or flood",
    "B1": "least privilege",
    "B2": "private VPC, only the connections needed",
    "B3": "no physical or remote access",
    "B4": "encrypted from provision to delete",
    "B5": "signed models",
    "B6": "no static seeds for security",
    "D1": "predictions leak the model",
}
#: Rows that nothing in AWS's APIs shows, with where else they are proved.
NOT_SHOWN = {"B6": "no AWS API shows where code draws its seeds from; tests/kit/test_randomness.py holds it"}


class Status(StrEnum):
    """How a check ended; `unknown` is a failure too: what cannot be read is not known to be safe."""

    PASS = "pass"  # noqa: S105 (not a password)
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Outcome:
    """What was read, in one line, and what is wrong with it; nothing is, if `problems` is empty."""

    seen: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to the deployed cluster.

    `row` is the row of the threat table that it proves, `claim` what holds if it passes, `remedy` what to do if not.
    `look` raises `Unreadable` where it cannot read what it needs.
    """

    name: str
    row: str
    claim: str
    remedy: str
    look: Callable[["Inventory"], Outcome]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A check's result."""

    check: Check
    status: Status
    seen: str
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the finding for JSON output; `remedy` is null where nothing is to be done."""
        passed = self.status is Status.PASS
        return {
            "check": self.check.name,
            "row": self.check.row,
            "claim": self.check.claim,
            "status": self.status.value,
            "evidence": [self.seen, *self.problems] if self.seen else list(self.problems),
            "remedy": None if passed else self.check.remedy,
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings, in the order of the threat table's rows."""

    cluster: str
    region: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that did not pass, the unknown ones among them."""
        return tuple(finding for finding in self.findings if finding.status is not Status.PASS)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON output."""
        return {
            "cluster": self.cluster,
            "region": self.region,
            "passed": not self.failed,
            "checks": [finding.to_dict() for finding in self.findings],
            "not_shown": NOT_SHOWN,
        }
