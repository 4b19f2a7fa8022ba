"""What the report says of a run, and the page that is made of the table."""

import json
from dataclasses import replace

import pytest
from rich.console import Console
from tests.attacks import report
from tests.attacks.model import Verdict, refused, succeeded, unharmed
from tests.attacks.report import Result
from tests.attacks.table import ATTACKS

ATTACK = replace(ATTACKS[0], vanilla_expected=Verdict.SUCCEEDED)


def test_the_threat_page_is_the_table_s_with_the_verdicts_that_it_expects() -> None:
    assert report.PAGE.read_text() == report.page(), "run `make attacks`: it writes the page"


def test_the_page_says_what_came_of_a_run_and_not_what_should_have() -> None:
    bad = Result(ATTACKS[0], unharmed("a"), None, "Holdfast: no", 0.0)
    assert "| **unharmed** |" in report.page([bad])
    assert "| **not tried** |" in report.page([bad])


@pytest.mark.parametrize(
    ("vanilla", "holdfast", "expected"),
    [
        (succeeded("a"), refused("b"), True),
        (succeeded("a"), unharmed("b"), True),
        (succeeded("a"), succeeded("b"), False),
        (unharmed("a"), refused("b"), False),
        (None, refused("b"), False),
        (succeeded("a"), None, False),
    ],
)
def test_a_run_is_as_expected_only_if_vanilla_fell_and_holdfast_held(vanilla, holdfast, expected) -> None:  # type: ignore[no-untyped-def]
    assert Result(ATTACK, vanilla, holdfast, "", 0.0).as_expected is expected


def test_an_attack_that_cannot_be_tried_is_said_so_and_hides_nothing() -> None:
    def broken(_: object) -> None:
        raise OSError("no such namespace")

    attack = replace(ATTACK, vanilla=broken, holdfast=lambda _: refused("held"))
    result = report.run(None, attack)  # type: ignore[arg-type]
    assert (result.vanilla, result.holdfast) == (None, refused("held"))
    assert result.error == "vanilla: OSError: no such namespace"
    console = Console(record=True, width=120)
    report.show([result], console)
    text = console.export_text()
    assert "not tried" in text
    assert "1 attacks, 1 not as expected: rogue-worker" in text


def test_json_has_every_cell() -> None:
    (row,) = json.loads(report.as_json([Result(ATTACK, succeeded("in"), refused("out"), "", 1.0)]))
    assert row["vanilla"] == {"verdict": "succeeded", "evidence": "in"}
    assert (row["holdfast"]["verdict"], row["as_expected"], row["threat"]) == ("refused", True, "T1")
