"""The declarative optimizer: exact, or refused with a reason."""

from collections.abc import Callable
from typing import Any

import pytest

MALFORMED: dict[str, tuple[Any, str]] = {
    "a pickle": ("cposix\nsystem\n(S'id'\ntR.", "must be a JSON object, got something else"),
    "a binary pickle": ("\x80\x04\x95", "must be a JSON object, got something else (UnicodeDecodeError)"),
    "nothing": ("", "must be a JSON object, got something else"),
    "a list": ("[]", "must be a JSON object with a string 'op'"),
    "no op": ("{}", "must be a JSON object with a string 'op'"),
    "deep nesting": ("[" * 100_000, "must be a JSON object, got something else"),
    "a duplicate key": ('{"op":"set_optimizer","op":"set_optimizer"}', "must be a JSON object, got something else"),
    "not a number": ('{"op":"set_optimizer","lr":NaN}', "must be a JSON object, got something else"),
    "too large": ('{"op":"' + "x" * (4 << 20) + '"}', "at most 4194304 bytes, got"),
    "an unknown key": ({"__class__": 1}, "set_optimizer has unknown keys ['__class__']"),
    "a missing key": ({"names": "<removed>"}, "set_optimizer lacks the keys ['names']"),
    "another version": ({"version": 2}, "version must be 1"),
    "an unlisted optimizer": ({"name": "lion"}, "optimizer must be one of"),
    "an optimizer that the job does not ship": ({"name": "job:Mine"}, "optimizer must be one of"),
    "an optimizer that is no name": ({"name": ["sgd"]}, "optimizer must be one of"),
    "an unknown argument": ({"arguments.sym": 1}, "arguments has unknown keys ['sym']"),
    "a missing argument": ({"arguments.momentum": "<removed>"}, "arguments lacks the keys ['momentum']"),
    "a string for a number": ({"arguments.wd": "0"}, "arguments.wd must be a finite number, got '0'"),
    "true for a number": ({"arguments.wd": True}, "arguments.wd must be a finite number, got True"),
    "an object for a number": ({"arguments.wd": {"a": 1}}, "arguments.wd must be a finite number"),
    "a number for a boolean": ({"arguments.lazy_update": 1}, "arguments.lazy_update must be true or false, got 1"),
    "a huge number": ({"arguments.wd": 1 << 60}, "arguments.wd must be a finite number"),
    "negative updates": ({"num_update": -1}, "num_update must be a whole number between 0 and"),
    "no rate at all": (
        {"arguments.learning_rate": None, "scheduler": None},
        "learning_rate must be a number where there is no scheduler",
    ),
    "another scheduler": ({"scheduler.name": "LRScheduler"}, "scheduler.name must be one of"),
    "a scheduler's unknown state": ({"scheduler.state.x": 1}, "scheduler.state has unknown keys ['x']"),
    "a scheduler that would spin": ({"scheduler.state.step": 0}, "scheduler.state.step must be at least 1, got 0"),
    "a scheduler far behind": (
        {"num_update": 1 << 40, "scheduler.state.step": 1},
        "scheduler.state.count is more than 1000000 steps behind num_update",
    ),
    "a growing rate": ({"scheduler.state.factor": 2}, "scheduler.state.factor must be at most 1, got 2"),
    "an unknown warm-up": ({"scheduler.state.warmup_mode": "x"}, "warmup_mode must be linear or constant, got 'x'"),
    "a name that is no string": ({"names": [[0, 1]]}, "names must be a string"),
    "names that are no pairs": ({"names": [[0]]}, "names must hold pairs, got [0]"),
    "a multiplier that is no number": ({"lr_mult": [["a", "b"]]}, "lr_mult must be a finite number, got 'b'"),
    "parameters that are no triples": ({"parameters": [[0, 1]]}, "parameters must hold triples, got [0, 1]"),
}
UNSENDABLE = {
    "own class": "use one of these, define it in holdfast_optimizers.py at the root of the job's directory, or use gl",
    "not for servers": "got mxnet.optimizer.optimizer.Optimizer; servers execute no code that the job does not ship",
    "own scheduler": "call trainer.set_learning_rate(…) from the script instead",
    "own attribute": "optimizer attribute trick=5 cannot be sent to the servers",
    "already used": "cannot be sent to the servers",
    "infinite": "learning_rate must be a finite number, got inf",
    "an array": "learning_rate must be a number, string, boolean or null, got NDArray",
}


@pytest.fixture(scope="module")
def codec(in_node: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return in_node("codec.py", {name: changes for name, (changes, _) in MALFORMED.items()})


def test_every_optimizer_and_scheduler_trains_bit_exactly_after_a_round_trip(codec: dict[str, Any]) -> None:
    trips = codec["round_trips"]
    assert len(trips) >= 19 * 5
    assert [name for name, exact in trips.items() if not exact] == []


def test_the_schema_has_exactly_the_arguments_of_mxnets_constructors(codec: dict[str, Any]) -> None:
    assert codec["arguments"] == codec["constructors"]


def test_no_optimizer_that_mxnet_registers_is_left_out(codec: dict[str, Any]) -> None:
    assert codec["registered"] == sorted(codec["arguments"])


def test_an_unchanged_specification_is_accepted(codec: dict[str, Any]) -> None:
    assert codec["unchanged"] == "accepted"


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_specification_is_refused(codec: dict[str, Any], case: str) -> None:
    assert MALFORMED[case][1] in codec["malformed"][case]


@pytest.mark.parametrize("case", UNSENDABLE)
def test_what_cannot_be_expressed_is_refused_on_the_worker(codec: dict[str, Any], case: str) -> None:
    assert UNSENDABLE[case] in codec["unsendable"][case]
