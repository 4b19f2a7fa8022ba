"""Attacks by what a model answers: D1, predictions leak the model."""

from tests.attacks.arenas import Arena
from tests.attacks.model import Outcome, Verdict, refused, succeeded, unharmed

from benchmarks.extraction import Row, measure
from holdfast_local.lab import NODE_PYTHON


def _rows(arena: Arena, answers: str) -> list[Row]:
    rows: list[Row] = arena.once("extraction", lambda: measure(NODE_PYTHON, budgets=(1,)))
    return [row for row in rows if row.answers == answers]


def extraction_from_vanilla(arena: Arena) -> Outcome:
    rows = _rows(arena, "vanilla")
    worst = max(rows, key=lambda row: row.error)
    evidence = f"{worst.queries} answers give the parameters to a relative error of {worst.error:.1e}"
    agrees = min(row.test_agreement for row in rows)
    copied = worst.error < 1e-6 and agrees == 1.0
    return succeeded(f"{evidence}; the copy answers as the model does") if copied else unharmed(evidence)


def extraction_from_holdfast(arena: Arena) -> Outcome:
    rows = _rows(arena, "labels")  # what a predictor gives by default
    best = min(rows, key=lambda row: row.error)
    agrees = max(row.test_agreement for row in rows)
    evidence = (
        f"{best.queries} labels: relative error {best.error:.2f}, the best copy agrees on {agrees:.0%} of the digits"
    )
    return refused(evidence) if best.error > 0.5 and agrees < 0.7 else Outcome(Verdict.SUCCEEDED, evidence)
