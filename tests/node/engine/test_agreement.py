"""All workers agree on what was saved and on what is restored, also when one of them fails."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def result(in_node: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return in_node("agreement.py", str(tmp_path_factory.mktemp("checkpoints")))


def test_workers_find_what_they_saved_together(result: dict[str, Any]) -> None:
    assert result["nothing"] == ["None", "None"]
    assert result["first"] == ["step-00000001"] * 2
    assert result["found"] == ["[1, []]", "[1, ['mean']]"]
    assert result["files"] == [
        *("parameters.params", "states", "training.json", "worker0.json", "worker1.json", "worker1.params")
    ]


FAILURES = {
    "worker 1 fails": (
        "worker 1 did not write its part; its log says why",
        "OSError: [Errno 28] No space left on device",
    ),
    "worker 0 fails": (
        "checkpoint step-00000002 does not fit in ",
        "the log of worker 0 says why",
    ),
    "worker 0 fails early": ("No space left on device", "the log of worker 0 says why"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_when_one_worker_fails_all_of_them_say_so_and_go_on_together(result: dict[str, Any], case: str) -> None:
    for said, why in zip(result[case], FAILURES[case], strict=True):
        assert said.startswith("CheckpointError: checkpoint step-00000002 was not written: ")
        assert why in said


def test_a_checkpoint_that_exists_is_not_taken_for_the_new_one(result: dict[str, Any]) -> None:
    assert "checkpoint step-00000001 exists already; checkpoints are never overwritten" in result["taken"][0]
    assert "was not written: the log of worker 0 says why" in result["taken"][1]


def test_failures_leave_the_one_before_and_nothing_half_done(result: dict[str, Any]) -> None:
    assert result["still there"] == "step-00000001"
    assert result["afterwards"] == ["step-00000002"] * 2
    assert result["left"] == []


def test_all_workers_go_back_to_the_last_whole_one(result: dict[str, Any]) -> None:
    assert result["damaged"] == ["[1, []]", "[1, ['mean']]"]


def test_another_number_of_workers_is_refused_on_all_of_them(result: dict[str, Any]) -> None:
    refusal = (
        "CheckpointError: step-00000001 was written by 2 workers, but this job has 3; submit it with --workers 2, "
        "or use another directory"
    )
    assert result["more workers"] == [refusal] * 2
