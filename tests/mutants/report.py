"""The matrix of mutants and gates, on the terminal and as docs/evidence/mutants.md."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.mutants.trial import GATES, Outcome, Result

PAGE = Path(__file__).resolve().parents[2] / "docs/evidence/mutants.md"
NOT_CAUGHT = "**NOT caught**"
HEAD = ("mutant", "stack", "what it changes", *GATES)
_INTRO = """# Mutants of the templates, and who notices

Written by `make mutants`. Each mutant is one template of the reference deployment with one security property changed;
every gate judges it, and a cell names the rules that find something in it that they do not find in the original. Our
assertions ([tests/kit/posture](../../tests/kit/posture)) are rules that hold for the templates of every settings file;
a test holds this page to what they find, and each of them is the only one of its kind to notice some mutant. cdk-nag
judges the templates as `CfnInclude` reads them, by the pack AwsSolutions. Mutants and assertions have the same authors,
so the assertions' score says that none of them is idle, not that nothing else can go wrong.

"""


def summary(outcome: Outcome) -> list[list[str]]:
    """Return by gate how many mutants it caught, and how many nobody else did."""
    return [
        [
            gate,
            str(sum(bool(result.rules[gate]) for result in outcome.results)),
            str(sum(result.only_by(gate) for result in outcome.results)),
        ]
        for gate in GATES
    ]


def row(result: Result) -> list[str]:
    """Return a mutant's row of the matrix."""
    cells = [", ".join(result.rules[gate]) for gate in GATES]
    if not result.caught:
        cells[0] = NOT_CAUGHT
    mutant = result.mutant
    return [mutant.name, mutant.part, mutant.what, *cells]


def verdict(outcome: Outcome) -> str:
    """Return in one line what came of it."""
    caught = len(outcome.results) - len(outcome.missed)
    alarms = f"; {len(outcome.false_alarms)} findings in the originals" if outcome.false_alarms else ""
    missed = f"; not caught: {', '.join(outcome.missed)}" if outcome.missed else ""
    return f"{caught} of {len(outcome.results)} mutants are caught{missed}{alarms}"


def show(outcome: Outcome, console: Console) -> None:
    """Print the matrix."""
    table = Table(*HEAD)
    for result in outcome.results:
        table.add_row(*row(result))
    console.print(table)
    for alarm in outcome.false_alarms:
        console.print(f"in an original: {alarm}", markup=False)
    console.print(verdict(outcome), markup=False)


def page(outcome: Outcome) -> str:
    """Return docs/evidence/mutants.md."""
    gates = _table(("gate", "catches", "that no other gate does"), summary(outcome))
    matrix = _table(HEAD, [row(result) for result in outcome.results])
    return f"{_INTRO}{verdict(outcome)}.\n\n{gates}\n\n{matrix}\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def write_page(outcome: Outcome) -> None:
    """Write docs/evidence/mutants.md."""
    PAGE.write_text(page(outcome))
