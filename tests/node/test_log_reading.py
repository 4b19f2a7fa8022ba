"""What the agent makes of a trainer's end, as people will read it."""

import os
from pathlib import Path

import pytest

from holdfast_node.log_reading import exit_cause, first_step_ms, late_peers, one_line, read_head, read_tail

LOG = """\
{"event":"first_step","time":1700000000.25}
epoch 1 loss 2.1
Traceback (most recent call last):
  File "train.py", line 3, in <module>
ValueError: no such column
{"event":"done"}
"""


def test_cause_is_the_script_s_own_error() -> None:
    assert exit_cause(1, LOG) == "the trainer exited with status 1: ValueError: no such column"


def test_cause_names_the_signal() -> None:
    assert exit_cause(-9, LOG) == "the trainer was killed by signal 9"


def test_cause_of_a_silent_trainer_says_so() -> None:
    assert exit_cause(3, "") == "the trainer exited with status 3: its log is empty"


def test_cause_is_one_printable_line_of_bounded_length() -> None:
    text = one_line("a\x1b[31mred\nnext\t" + "x" * 1000)
    assert text.startswith("a [31mred next xxx")
    assert len(text) == 300


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (LOG, 1700000000250),
        ("", None),
        ('{"event":"first_step","time":"soon"}', None),
        ('{"event":"first_step","time":1e999}', None),
        ('{"first_step"', None),
        ('{"first_step":' + "[" * 100_000, None),
        ('{"note":"my first_step","first_step":1}\n' + LOG, 1700000000250),
    ],
    ids=["an event", "none", "no number", "no finite number", "no JSON", "deep nesting", "a look-alike before it"],
)
def test_first_step_is_read_from_the_trainer_s_events(log: str, expected: int | None) -> None:
    assert first_step_ms(log) == expected


LATE = '{"event": "peer_late", "role": "worker", "rank": 1, "seconds": 3}\n'
BACK = '{"event": "peer_back", "role": "worker", "rank": 1, "seconds": 5}\n'
LATE_PEERS = {
    "one": (LATE, {("worker", 1)}),
    "one that is back": (LATE + BACK, set()),
    "one that is late again": (LATE + BACK + LATE, {("worker", 1)}),
    "two": (LATE + LATE.replace("worker", "server").replace("1", "0"), {("worker", 1), ("server", 0)}),
    "nobody": (LOG, set()),
    "what is cut off": (LATE[:-5] + "\n" + LATE[3:], set()),
    "no rank": (LATE.replace("1", '"1"'), set()),
    "no role": (LATE.replace('"worker"', "[7]"), set()),
}


@pytest.mark.parametrize(("log", "expected"), LATE_PEERS.values(), ids=LATE_PEERS)
def test_late_are(log: str, expected: set[tuple[str, int]]) -> None:
    assert late_peers(log) == expected


def test_only_a_bounded_part_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    with log.open("wb") as file:
        file.write(b"first\n")
        file.truncate(1 << 30)  # sparse: as long as a runaway script's log
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert len(read_head(log)) == 4 << 20
    assert read_tail(log).endswith("\nlast\n")
    assert read_head(tmp_path / "none") == read_tail(tmp_path / "none") == ""
