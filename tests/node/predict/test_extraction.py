"""The extraction of Tramèr et al. (2016) copies a logistic regression from vanilla MXNet, and not from a predictor.

docs/predictions.md has the whole table, with budgets at which rounding no longer helps; they are asserted here too,
so that the page cannot promise more than there is.
"""

from pathlib import Path

import pytest

from benchmarks.extraction import Row, measure
from holdfast_node.contract.documents import Predictions
from holdfast_node.predict.limits import DAY, RateLimiter

PYTHON = Path(__file__).resolve().parents[3] / ".venv-node/bin/python"
MODELS = ("binary", "multinomial")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return measure(PYTHON, budgets=(1, 10))


def best(rows: list[Row], model: str, answers: str, budget: int = 1) -> tuple[float, float, float]:
    """Return the attacker's best of all attacks: the smallest error and the largest agreements."""
    found = [row for row in rows if (row.model, row.answers, row.budget) == (model, answers, budget)]
    assert found
    return (
        min(row.error for row in found),
        max(row.test_agreement for row in found),
        max(row.uniform_agreement for row in found),
    )


@pytest.mark.parametrize("model", MODELS)
def test_vanilla_outputs_give_the_parameters_away_in_d_plus_1_queries(model: str, rows: list[Row]) -> None:
    error, test, uniform = best(rows, model, "vanilla")
    assert error < 1e-6
    assert (test, uniform) == (1.0, 1.0)


@pytest.mark.parametrize("model", MODELS)
def test_the_default_labels_give_no_copy_in_d_plus_1_queries(model: str, rows: list[Row]) -> None:
    error, test, _ = best(rows, model, "labels")
    assert error > 0.5
    assert test < 0.7


@pytest.mark.parametrize("model", MODELS)
def test_two_digits_hide_the_parameters_from_d_plus_1_queries(model: str, rows: list[Row]) -> None:
    assert best(rows, model, "2 digits")[0] > 1e5 * best(rows, model, "vanilla")[0]


def test_two_digits_and_top_k_spoil_a_copy_of_ten_classes_from_d_plus_1_queries(rows: list[Row]) -> None:
    assert best(rows, "multinomial", "2 digits")[2] < 0.9
    assert best(rows, "multinomial", "top-3, 2 digits")[1] < 0.7


@pytest.mark.parametrize("model", MODELS)
def test_two_digits_do_not_hide_the_labels_from_ten_times_as_many_queries(model: str, rows: list[Row]) -> None:
    assert best(rows, model, "2 digits", 10)[1] > 0.95  # why labels are the default, and rows are counted


def test_labels_do_not_hide_a_two_class_linear_model_from_ten_times_as_many_queries(rows: list[Row]) -> None:
    assert best(rows, "binary", "labels", 10)[1] > 0.95  # a boundary is found from labels alone: only counting helps


def test_the_default_labels_are_worth_no_more_than_a_guess_in_d_plus_1_queries(rows: list[Row]) -> None:
    assert best(rows, "binary", "labels")[1:] <= best(rows, "binary", "nothing", 0)[1:]


def test_fewer_digits_hide_more(rows: list[Row]) -> None:
    errors = [best(rows, "multinomial", answers)[0] for answers in ("vanilla", "3 digits", "2 digits", "1 digit")]
    assert errors == sorted(errors)


def seconds_for(rows: int) -> float:
    """How long one client needs for so many rows, a full request at a time, at the default limits."""
    defaults = Predictions(job_id="digits-1")
    limiter = RateLimiter(rows_per_minute=defaults.rows_per_minute, rows_per_day=defaults.rows_per_day)
    now, left = 0.0, rows
    while left:
        asked = min(left, defaults.batch_rows)
        if (wait := limiter.admit("attacker", asked, now)) == 0:
            left -= asked
        else:
            now += wait + 1e-6
    return now


@pytest.mark.parametrize(
    ("queries", "least", "most"), [(65, 0, 60), (650, 6 * 3600, 9 * 3600), (6500, 11 * DAY, 13 * DAY)]
)
def test_one_clients_time_for_an_extraction_is_what_the_page_says(queries: int, least: float, most: float) -> None:
    assert least <= seconds_for(queries) <= most
