"""Which checkpoints go: by count, by age, never the newest, never the best."""

import math

import pytest

from holdfast_node.contract.documents import Retention
from holdfast_node.retention import Entry, best, doomed

DAY, NOW = 86400, 1_000_000_000


def entries(*losses: float | None, ages: tuple[float, ...] = ()) -> list[Entry]:
    """Checkpoints a, b, c, … in the order of saving, with these losses and ages in days."""
    days = ages or (0.0,) * len(losses)
    return [
        Entry(name, number, NOW - age * DAY, {} if loss is None else {"loss": loss})
        for number, (name, loss, age) in enumerate(zip("abcdefgh", losses, days, strict=False), 1)
    ]


CASES: dict[str, tuple[list[Entry], Retention, str]] = {
    "nothing": ([], Retention(), ""),
    "fewer than are kept": (entries(None, None), Retention(keep_last=3), ""),
    "more than are kept": (entries(None, None, None, None), Retention(keep_last=2), "ab"),
    "the best outlives its turn": (entries(0.1, 0.5, 0.4, 0.3), Retention(keep_last=1), "bc"),
    "the two best": (entries(0.1, 0.2, 0.4, 0.3), Retention(keep_last=1, keep_best=2), "c"),
    "no best is kept": (entries(0.1, 0.5, 0.4), Retention(keep_last=1, keep_best=0), "ab"),
    "the highest is the best": (entries(0.9, 0.5, 0.1), Retention(keep_last=1, best="highest"), "b"),
    "another metric has no best": (entries(0.1, 0.5, 0.4), Retention(keep_last=1, best_metric="top1"), "ab"),
    "not a number is never the best": (entries(math.nan, 0.5, -math.inf, 0.6), Retention(keep_last=1), "ac"),
    "of equals the newer is the better": (entries(0.1, 0.1, 0.4), Retention(keep_last=1), "a"),
    "too old": (entries(None, None, None, ages=(31, 29, 0)), Retention(), "a"),
    "the newest is never too old": (entries(None, None, ages=(90, 80)), Retention(), "a"),
    "the best is never too old": (entries(0.1, 0.2, ages=(90, 80)), Retention(), ""),
    "exactly as old as allowed": (entries(None, None, ages=(30, 0)), Retention(), ""),
    "from a clock that is ahead": (entries(None, None, ages=(-5, 0)), Retention(), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_what_goes(case: str) -> None:
    given, rules, gone = CASES[case]
    assert "".join(entry.name for entry in doomed(reversed(given), rules, now=NOW)) == gone


def test_the_best_comes_first() -> None:
    assert [e.name for e in best(entries(0.3, 0.1, 0.2), Retention(keep_best=2))] == ["b", "c"]
