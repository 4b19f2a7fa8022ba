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
    """One measured thing: rates and CPU seconds of each repetition, vanilla's and Holdfast's of the same one paired."""

    name: str
    unit: str
    vanilla: list[float] = field(default_factory=list)
    holdfast: list[float] = field(default_factory=list)
    trainers_cpu: list[float] = field(default_factory=list)
    tunnels_cpu: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Return Holdfast's rate as a share of vanilla's, for each repetition."""
        return [ours / theirs for ours, theirs in zip(self.holdfast, self.vanilla, strict=False)]

    def as_json(self) -> dict[str, Any]:
        """Return everything that was measured, and its summary."""
        summary = {name: spread(values) for name, values in (("ratio", self.ratios()), ("vanilla", self.vanilla))}
        return {
            "name": self.name,
            "unit": f"{self.unit}/s",
            "vanilla": self.vanilla,
            "holdfast": self.holdfast,
            f"trainers_cpu_seconds_per_{_per(self.unit)}": self.trainers_cpu,
            f"tunnels_cpu_seconds_per_{_per(self.unit)}": self.tunnels_cpu,
            "summary": summary | {"holdfast": spread(self.holdfast)},
        }


def _per(unit: str) -> str:
    return "gb" if unit == "MB" else "1000_samples"


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return median, least and most, or None without values."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(cases: Sequence[Case]) -> str:
    """Return the summary as text: one line a case."""
    lines = [
        f"{'(medians)':<22}{'vanilla':>12}{'Holdfast':>12}{'':<12}{'ratio':>7}  {'min..max':<10}{'CPU: trainers':>15}"
        f"{'tunnels':>10}  seconds per GB or 1000 samples"
    ]
    for case in cases:
        ratios = case.ratios()
        if not ratios:
            continue
        lines.append(
            f"{case.name:<22}{statistics.median(case.vanilla):>12.1f}{statistics.median(case.holdfast):>12.1f}"
            f" {case.unit + '/s':<11}{statistics.median(ratios):>7.2f}  {min(ratios):.2f}..{max(ratios):<4.2f}"
            f"{statistics.median(case.trainers_cpu):>15.2f}{statistics.median(case.tunnels_cpu):>10.2f}"
        )
    return "\n".join(lines)
