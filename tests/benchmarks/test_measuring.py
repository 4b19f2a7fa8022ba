"""What the benchmark makes of its numbers; the timing itself is no test."""

import os

import pytest

from benchmarks.measuring import Case, CpuSampler, phases, spread, table

LOG = """\
noise
{"phase": "1 MB", "start": 10.0, "end": 12.0, "bytes": 4000000}
{"phase": "training", "start": 10.0, "end": 15.0, "samples": 320}
"""


def test_a_job_s_log_tells_its_phases() -> None:
    exchange, training = phases(LOG)
    assert (exchange.name, exchange.rate, exchange.unit) == ("1 MB", 2.0, "MB")
    assert (training.name, training.rate, training.unit) == ("training", 64.0, "samples")


def test_a_ratio_pairs_the_runs_of_one_repetition() -> None:
    case = Case("digits", "samples", vanilla=[100.0, 200.0, 50.0], holdfast=[90.0, 100.0])
    assert case.ratios() == [0.9, 0.5]
    summary = case.as_json()["summary"]["ratio"]
    assert (summary["median"], summary["min"], summary["max"]) == (pytest.approx(0.7), 0.5, 0.9)


def test_the_cpu_ratio_counts_trainers_and_tunnels_against_vanilla_s_trainers() -> None:
    case = Case("digits", "samples", vanilla_cpu=[3.0, 1.0], trainers_cpu=[3.0], tunnels_cpu=[1.0])
    assert case.cpu_ratios() == [0.75]


def test_nothing_measured_is_said_and_not_invented() -> None:
    assert spread([]) is None
    assert "digits" not in table([Case("digits", "samples")])


def test_cpu_time_is_counted_between_two_moments() -> None:
    sampler = CpuSampler([os.getpid()])
    sampler._samples = [(1.0, 0.5), (2.0, 0.9), (3.0, 2.5)]
    assert sampler.used(1.1, 2.9) == pytest.approx(2.0)
