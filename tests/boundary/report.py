"""What the trials found, as tables on the terminal and as pages in docs/evidence/."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.boundary.ports import UDP_PORTS, Answers, Seen
from tests.boundary.rules import Trial

EVIDENCE = Path(__file__).resolve().parents[2] / "docs/evidence"
_MARKS = {True: "as it should", False: "**NOT as it should**"}
_PORTS = f"""# Who answers whom

Written by `make boundary`. While a job trained on 1 scheduler, 2 servers and 2 workers, one host of each role, and one
that is in the cluster's network and in none of its groups, scanned every TCP port (1 to 65535) of every other address
of the network, past their own firewalls, and these UDP ports: {UDP_PORTS.replace(",", ", ")}.

No other port answered, neither with a connection nor with a refusal. A TCP answer means that the security groups of
both ends, and at a node its own firewall, let the connection through; who connects is asked for a certificate then.

"""
_RULES = """# Which rules training needs

Written by `make boundary`. Each security-group rule of the deployed templates was taken away by the EC2 API, a job was
started on fresh hosts with 1 server and 1 worker, and the rule was put back. A rule between groups stands at both
ends, as `out` and `in`. Training that has not completed after one and a half times of what it takes with all rules
(20 seconds at least) counts as training that does not complete.

"""


def ports(seen: Sequence[Seen]) -> list[list[str]]:
    """Return the rows of the ports' table: by source and kind of target, what answered."""
    rows = []
    for (source, target), group in groupby(sorted(seen, key=_pair), key=_pair):
        items = list(group)
        answers = sorted({_text(item.answers) for item in items})
        rows.append([source, target, str(len(items)), " / ".join(answers), _MARKS[all(i.as_expected for i in items)]])
    return rows


def rules(trials: Iterable[Trial]) -> list[list[str]]:
    """Return the rows of the rules' table."""
    return [
        [
            str(trial.rule) if trial.rule else "(none: all rules are there)",
            f"completed in {trial.ended.seconds:.0f} s" if trial.ended.completed else "does not complete",
            "" if trial.ended.completed else _short(trial.ended.seen),
            _MARKS[trial.as_expected],
        ]
        for trial in trials
    ]


PORTS_HEAD = ["from", "to", "addresses", "answers", "verdict"]
RULES_HEAD = ["rule taken away", "training", "last seen", "verdict"]


def show(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)


def write_ports(rows: Iterable[Sequence[str]]) -> None:
    """Write the page of the ports."""
    _write("ports.md", _PORTS, PORTS_HEAD, rows)


def write_rules(rows: Iterable[Sequence[str]]) -> None:
    """Write the page of the rules."""
    _write("rules.md", _RULES, RULES_HEAD, rows)


def _write(name: str, intro: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    EVIDENCE.mkdir(exist_ok=True)
    (EVIDENCE / name).write_text(intro + "\n".join(lines) + "\n")


def _pair(seen: Seen) -> tuple[str, str]:
    return seen.source, seen.target


def _text(answers: Answers) -> str:
    found = [f"{protocol} {port} {how}" for protocol, by in answers.items() for port, how in sorted(by.items())]
    return ", ".join(found) or "nothing"


def _short(text: str) -> str:
    """Return what was seen without what differs in every run, in one table cell."""
    return text.split(" s3://")[0].split(" fs-")[0].replace("|", "/")[:160]
