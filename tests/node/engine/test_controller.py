"""A server follows data and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def controller(in_node: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return in_node("controller.py")


def test_a_pickle_is_refused_reported_and_ends_a_server_without_an_optimizer(controller: dict[str, Any]) -> None:
    outcome = controller["pickle before"]
    (report,) = outcome["reports"]
    assert report["reason"].startswith("SpecError: a command must be a JSON object")
    assert (report["head"], report["fatal"], len(report["sha256"])) == (0, True, 64)
    assert outcome["ended"] == 1
    assert not outcome["ran"]


def test_a_pickle_is_refused_and_ends_a_server_with_an_optimizer_too(controller: dict[str, Any]) -> None:
    outcome = controller["pickle after"]
    assert [report["fatal"] for report in outcome["reports"]] == [True]
    assert outcome["ended"] == 1
    assert not outcome["ran"]


def test_a_save_that_fails_is_reported_and_the_server_trains_on(controller: dict[str, Any]) -> None:
    outcome = controller["failed save"]
    (report,) = outcome["reports"]
    assert report["reason"].startswith("FileNotFoundError: ")
    assert (report["fatal"], outcome["ended"]) == (False, 0)
    assert controller["still trains"]


def test_the_same_optimizer_from_every_worker_is_installed_once(controller: dict[str, Any]) -> None:
    assert controller["identical"] == {"reports": [], "ended": 0, "installed": ["sgd"], "ran": False}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("optimizer", "ConflictError: this job's workers disagree about the optimizer"),
        ("rate", "ConflictError: this job's workers disagree about change 1 of the optimizer, learning_rate to 0.4"),
        (
            "gap",
            "ConflictError: this job's workers disagree about change 2 of the optimizer, learning_rate to 0.5; 0",
        ),
    ],
)
def test_workers_in_conflict_end_the_server(controller: dict[str, Any], case: str, reason: str) -> None:
    outcome = controller["conflicts"][case]
    assert outcome["reports"][0]["reason"].startswith(reason)
    assert outcome["ended"] == 1


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("other head", "SpecError: command head must be 0, got 5"),
        ("unknown op", "SpecError: op must be set_optimizer, change, save_states or load_states"),
        ("rate before", "SpecError: the first command must be set_optimizer, got 'change'"),
        ("a rate beside a scheduler", "UserWarning: LRScheduler of the optimizer has already been defined"),
        ("another change", "SpecError: name must be one of ['learning_rate', 'rescale_grad'], got 'momentum'"),
        ("failing update", "update failed: ValueError: The truth value of an NDArray"),
    ],
)
def test_every_other_command_is_refused_and_ends_the_server(controller: dict[str, Any], case: str, reason: str) -> None:
    outcome = controller[case]
    assert outcome["reports"][0]["reason"].startswith(reason)
    assert outcome["ended"] == 1


def test_a_change_of_rate_or_rescaling_counts_once(controller: dict[str, Any]) -> None:
    assert controller["rate"]["reports"] == []
    assert (controller["rate"]["lr"], controller["rate"]["rescale_grad"]) == (0.25, 0.125)


def test_training_continues_exactly_from_saved_states(controller: dict[str, Any]) -> None:
    assert controller["states"] == [True, True, True]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("evil", "cannot be read: ValueError: Object arrays cannot be loaded when allow_pickle=False"),
        ("junk", "cannot be read: ValueError: Cannot load file containing pickled data"),
        ("absent", "are missing from the checkpoint directory"),
        ("out/file", "optimizer states must stay in the checkpoint directory, but out/file leads out of it"),
        ("dots", "path must match"),
    ],
)
def test_hostile_states_are_refused_and_end_the_server(controller: dict[str, Any], case: str, reason: str) -> None:
    outcome = controller["hostile"][case]
    assert reason in outcome["reports"][0]["reason"]
    assert outcome["ended"] == 1
    assert not outcome["ran"]


@pytest.mark.parametrize("way", ["loads", "pickle.loads", "Unpickler", "mxnet", "system", "fork"])
def test_a_server_process_can_neither_unpickle_nor_start_programs(controller: dict[str, Any], way: str) -> None:
    assert "is disabled in a parameter server" in controller["disabled"][way]
    assert not controller["ran"]
