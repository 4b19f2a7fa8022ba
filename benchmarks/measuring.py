"""What a benchmark's numbers mean: phases that a job tells, CPU time around them, and ratios with their spread."""

import json
import os
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Phase:
    """A measured stretch of a job: seconds since the epoch, and what was done in them, in `unit`s."""

    name: str
    start: float
    end: float
    amount: float
    unit: str

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.amount / (self.end - self.start)


def phases(log: str) -> list[Phase]:
    """Return the phases that a job's log tells, one JSON object a line."""
    found = []
    for line in log.splitlines():
        if line.startswith('{"phase"'):
            told = json.loads(line)
            unit = "samples" if "samples" in told else "MB"
            amount = told["samples"] if unit == "samples" else told["bytes"] / 1e6
            found.append(Phase(told["phase"], told["start"], told["end"], amount, unit))
    return found


class CpuSampler(threading.Thread):
    """Notes every 50 ms how much CPU time some processes have used, all together."""

    def __init__(self, pids: Iterable[int]) -> None:
        super().__init__(daemon=True)
        self._pids = list(pids)
        self._last: dict[int, float] = dict.fromkeys(self._pids, 0.0)
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._over.wait(0.05):
            for pid in self._pids:
                self._last[pid] = max(self._last[pid], cpu_seconds(pid))
            self._samples.append((time.time(), sum(self._last.values())))

    def stop(self) -> None:
        """End the sampling."""
        self._over.set()
        self.join()

    def used(self, start: float, end: float) -> float:
        """Return the CPU seconds between two moments (seconds since the epoch)."""
        if not self._samples:
            return 0.0
        before, after = (min(self._samples, key=lambda sample: abs(sample[0] - moment)) for moment in (start, end))
        return after[1] - before[1]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, user and system; 0 once it is gone (proc(5), fields 14 and 15 of stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass
class Case:
    """One measured thing, in each repetition: rates, and CPU seconds per GB or per 1000 samples.

    `vanilla_cpu` and `trainers_cpu` are the trainers' (Holdfast's and vanilla's), `tunnels_cpu` the tunnels' on both
    ends.
    """

    name: str
    unit: str
    vanilla: list[float] = field(default_factory=list)
    holdfast: list[float] = field(default_factory=list)
    vanilla_cpu: list[float] = field(default_factory=list)
    trainers_cpu: list[float] = field(default_factory=list)
    tunnels_cpu: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Return Holdfast's rate as a share of vanilla's, for each repetition."""
        return [ours / theirs for ours, theirs in zip(self.holdfast, self.vanilla, strict=False)]

    def cpu_ratios(self) -> list[float]:
        """Return vanilla's CPU time for the same work as a share of Holdfast's: the ratio where CPUs are the limit."""
        ours = (trainers + tunnels for trainers, tunnels in zip(self.trainers_cpu, self.tunnels_cpu, strict=True))
        return [theirs / both for theirs, both in zip(self.vanilla_cpu, ours, strict=False) if both]

    def as_json(self) -> dict[str, Any]:
        """Return everything that was measured, and its summary."""
        summary = {"ratio": self.ratios(), "cpu_ratio": self.cpu_ratios(), "vanilla": self.vanilla}
        per = "gb" if self.unit == "MB" else "1000_samples"
        return {
            "name": self.name,
            "unit": f"{self.unit}/s",
            "vanilla": self.vanilla,
            "holdfast": self.holdfast,
            f"vanilla_cpu_seconds_per_{per}": self.vanilla_cpu,
            f"trainers_cpu_seconds_per_{per}": self.trainers_cpu,
            f"tunnels_cpu_seconds_per_{per}": self.tunnels_cpu,
            "summary": {name: spread(values) for name, values in (summary | {"holdfast": self.holdfast}).items()},
        }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return median, least and most, or None without values."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(cases: Sequence[Case]) -> str:
    """Return the summary as text: one line a case, medians and what lies between the least and the most."""
    lines = [
        f"{'':<22}{'vanilla':>9}{'Holdfast':>10}{'':<10}{'ratio':>6} {'min..max':<11}{'CPU ratio':>9} {'min..max':<11}"
        "CPU seconds per GB or 1000 samples: vanilla, trainers + tunnels"
    ]
    for case in cases:
        if not case.ratios():
            continue
        cpu = [statistics.median(values) for values in (case.vanilla_cpu, case.trainers_cpu, case.tunnels_cpu)]
        lines.append(
            f"{case.name:<22}{statistics.median(case.vanilla):>9.0f}{statistics.median(case.holdfast):>10.0f}"
            f" {case.unit + '/s':<9}{_median_and_spread(case.ratios())}{'':<3}{_median_and_spread(case.cpu_ratios())}"
            f"{cpu[0]:.3g}, {cpu[1]:.3g} + {cpu[2]:.2g}"
        )
    return "\n".join(lines)


def _median_and_spread(values: Sequence[float]) -> str:
    found = spread(values)
    if found is None:
        return f"{'':<18}"
    return f"{found['median']:>6.2f} {found['min']:.2f}..{found['max']:<5.2f}"
