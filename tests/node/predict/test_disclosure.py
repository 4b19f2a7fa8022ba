"""What leaves a predictor: labels, first labels or rounded probabilities, whatever the model gives."""

import json
import math
from typing import Any

import numpy as np
import pytest

from holdfast_node.contract.documents import Output
from holdfast_node.predict.disclosure import Disclosure
from holdfast_node.predict.errors import PredictorError
from holdfast_node.predict.limits import DAY, RateLimiter
from holdfast_node.predict.predictor import Activation, Predictor, ServedModel

LABELS = ("cat", "dog", "hen")
ROWS = np.array([[0.333333, 0.333334, 0.333333], [0.9951, 0.0049, 0.0], [0.10499, 0.2, 0.69501]])


def test_labels_are_all_that_leaves_by_default() -> None:
    assert Disclosure().apply(ROWS, LABELS) == ["dog", "cat", "hen"]


def test_two_digits_leave_and_no_trace_of_a_third() -> None:
    answers = Disclosure(output=Output.PROBABILITIES).apply(ROWS, LABELS)
    assert json.dumps(answers) == (
        '[{"cat": 0.33, "dog": 0.33, "hen": 0.33}, {"cat": 1.0, "dog": 0.0, "hen": 0.0}, '
        '{"cat": 0.1, "dog": 0.2, "hen": 0.7}]'
    )


def test_rounded_probabilities_are_not_scaled_to_one() -> None:
    (answer,) = Disclosure(output=Output.PROBABILITIES).apply(ROWS[:1], LABELS)
    assert round(sum(answer.values()), 10) == 0.99


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_every_probability_is_a_decimal_of_so_many_digits(digits: int) -> None:
    random = np.random.default_rng(7)
    probabilities = random.dirichlet(np.ones(3), 2000)
    for answer in Disclosure(output=Output.PROBABILITIES, digits=digits).apply(probabilities, LABELS):
        for value in answer.values():
            assert len(repr(value).partition(".")[2]) <= digits


def test_top_k_names_the_most_probable_in_order_with_rounded_probabilities() -> None:
    answers = Disclosure(output=Output.TOP_K, top_k=2).apply(ROWS, LABELS)
    assert [[item["label"] for item in answer] for answer in answers] == [
        ["dog", "cat"],
        ["cat", "dog"],
        ["hen", "dog"],
    ]
    assert answers[2] == [{"label": "hen", "probability": 0.7}, {"label": "dog", "probability": 0.2}]


def served(activation: Activation, labels: tuple[str, ...] = ()) -> ServedModel:
    return ServedModel(symbol="s", parameters="p", input="data", shape=(2,), activation=activation, labels=labels)


def scores(*rows: Any) -> Any:
    return lambda inputs: np.array(rows)[: len(inputs)]


ACTIVATIONS = {
    "softmax": (Activation.SOFTMAX, [0.0, math.log(3)], {"0": 0.25, "1": 0.75}),
    "sigmoid": (Activation.SIGMOID, [-math.log(3)], {"0": 0.75, "1": 0.25}),
    "none": (Activation.NONE, [0.25, 0.75], {"0": 0.25, "1": 0.75}),
    "a huge score": (Activation.SOFTMAX, [1e30, 0.0], {"0": 1.0, "1": 0.0}),
    "a huge negative score": (Activation.SIGMOID, [-1e30], {"0": 1.0, "1": 0.0}),
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_scores_become_probabilities(case: str) -> None:
    activation, row, answer = ACTIVATIONS[case]
    predictor = Predictor(served(activation), scores(row), Disclosure(output=Output.PROBABILITIES))
    assert predictor.predict(np.zeros((1, 2), np.float32)) == [answer]


UNSERVABLE = {
    "logits that claim to be probabilities": (served(Activation.NONE), [2.0, -1.0], "must be probabilities of two "),
    "scores that sum to two": (served(Activation.NONE), [1.0, 1.0], "must be probabilities of two classes or more"),
    "one class": (served(Activation.SOFTMAX), [1.0], "must be probabilities of two classes or more"),
    "two outputs of a sigmoid": (
        served(Activation.SIGMOID),
        [1.0, 1.0],
        "with activation sigmoid has one output, got 2",
    ),
    "not a number": (served(Activation.SOFTMAX), [math.nan, 1.0], "must give one row of finite scores per row"),
    "a tensor": (served(Activation.SOFTMAX), [[1.0, 2.0]], r"got shape \(1, 1, 2\)"),
    "labels that do not fit": (served(Activation.SOFTMAX, ("a",)), [1.0, 2.0], "has 2 classes, serving.json names 1"),
}


@pytest.mark.parametrize("case", UNSERVABLE)
def test_a_model_that_gives_no_probabilities_is_not_served(case: str) -> None:
    description, row, message = UNSERVABLE[case]
    with pytest.raises(PredictorError, match=message):
        Predictor(description, scores(row), Disclosure())


def test_a_model_that_breaks_later_answers_nothing() -> None:
    state = {"row": [0.0, 1.0]}
    predictor = Predictor(served(Activation.SOFTMAX), lambda rows: np.array([state["row"]]), Disclosure())
    state["row"] = [math.inf, 1.0]
    with pytest.raises(PredictorError, match="finite scores"):
        predictor.predict(np.zeros((1, 2), np.float32))


# --- how much of it one client gets ---


def test_no_window_of_a_minute_gives_more_than_the_limit() -> None:
    limiter = RateLimiter(rows_per_minute=60, rows_per_day=1_000_000)
    given = [now for now in (tenth / 10 for tenth in range(3000)) if limiter.admit("a", 1, now) == 0]
    most = max(sum(start <= now < start + 60 for now in given) for start in given)
    assert 55 <= most <= 60


def test_no_window_of_a_day_gives_more_than_the_limit() -> None:
    limiter = RateLimiter(rows_per_minute=1000, rows_per_day=100)
    given = [now for now in range(0, int(3 * DAY), 60) if limiter.admit("a", 1, float(now)) == 0]
    most = max(sum(start <= now < start + DAY for now in given) for start in given)
    assert 90 <= most <= 100


def test_a_refused_request_counts_for_nothing_and_says_when_to_come_again() -> None:
    limiter = RateLimiter(rows_per_minute=60, rows_per_day=1000)
    assert limiter.admit("a", 30, 0.0) == 0
    wait = limiter.admit("a", 10, 0.0)
    assert wait == 20.0
    assert limiter.admit("a", 10, wait - 0.1) > 0
    assert limiter.admit("a", 10, wait + 0.01) == 0


def test_clients_are_counted_apart() -> None:
    limiter = RateLimiter(rows_per_minute=10, rows_per_day=1000)
    assert limiter.admit("a", 5, 0.0) == 0 and limiter.admit("a", 1, 0.0) > 0
    assert limiter.admit("b", 5, 0.0) == 0


def test_what_no_limit_ever_admits_waits_forever() -> None:
    assert RateLimiter(rows_per_minute=10, rows_per_day=1000).admit("a", 6, 0.0) == math.inf


def test_memory_is_bounded_and_a_client_too_many_does_not_reset_another() -> None:
    limiter = RateLimiter(rows_per_minute=10, rows_per_day=20, max_clients=2)
    assert limiter.admit("a", 5, 0.0) == 0 and limiter.admit("b", 5, 0.0) == 0
    assert limiter.admit("c", 1, 0.0) > 0
    assert limiter.admit("a", 5, 1.0) > 0, "its buckets are still as empty as it left them"
    assert limiter.admit("c", 1, DAY * 2) == 0, "silent clients are forgotten once their buckets are full"
