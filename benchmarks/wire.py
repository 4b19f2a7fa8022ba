"""What the wire costs: vanilla MXNet and Holdfast side by side on this machine, as ratios with their spread.

Both run the same jobs in the same network namespaces on the same switch, one after the other, and in the opposite
order in the next repetition; a ratio compares two runs of one repetition. Vanilla is plain MXNet on an open network.
Holdfast is what a node runs: launchers, stunnel, nftables. It needs root, like the lab (`holdfast_local.lab`).
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import Case, CpuSampler, Phase, phases, table
from holdfast_local.lab import Cluster, HoldfastCluster, LabError, Network, VanillaCluster, require

ROOT = Path(__file__).resolve().parents[1]
KINDS: dict[str, type[Cluster]] = {"vanilla": VanillaCluster, "holdfast": HoldfastCluster}
_RUN_SECONDS, _END_SECONDS = 300, 30


@dataclass(frozen=True)
class Job:
    """A job to time: its entry and arguments, and what its phases are called in the report."""

    entry: str
    args: tuple[str, ...]
    title: str


JOBS = {
    "pushpull": Job("pushpull.py", (), "push/pull {phase}"),
    "digits": Job("timed.py", ("train.py", "--epochs", "20"), "digits (wire-bound)"),
    "cnn": Job("timed.py", ("cnn.py", "--steps", "30"), "CNN (compute-bound)"),
}


@contextmanager
def job_folder() -> Iterator[Path]:
    """A folder with the benchmark's jobs and the digits example."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        folder = Path(name)
        for source in (ROOT / "benchmarks/jobs", ROOT / "examples/digits"):
            shutil.copytree(source, folder, dirs_exist_ok=True)
        yield folder


def run(kind: str, job: Job, folder: Path, *, workers: int, servers: int) -> list[tuple[Phase, float, float]]:
    """Run a job once; return its phases with the CPU seconds of trainers and tunnels in each.

    Raises:
        LabError: a trainer failed, or the job took too long.
    """
    with Network() as network:
        cluster = KINDS[kind](network, code=folder, entry=job.entry, args=job.args, workers=workers, servers=servers)
        cluster.start()
        trainers = CpuSampler(process.popen.pid for process in cluster.processes.values())
        tunnels = CpuSampler(process.popen.pid for process in getattr(cluster, "tunnels", {}).values())
        trainers.start()
        tunnels.start()
        try:
            workers_only = [name for name in cluster.peers if name.startswith("worker")]
            statuses = cluster.wait(*workers_only, seconds=_RUN_SECONDS)
            if not any(statuses.values()):
                statuses |= cluster.wait(seconds=_END_SECONDS)
        finally:
            trainers.stop()
            tunnels.stop()
        if any(statuses.values()):
            raise LabError(f"a {kind} run of {job.entry} ended with {statuses}:\n{cluster.logs()}")
        told = phases(cluster.log("worker0"))
    if not told:
        raise LabError(f"a {kind} run of {job.entry} told nothing")
    return [(phase, trainers.used(phase.start, phase.end), tunnels.used(phase.start, phase.end)) for phase in told]


def measure(names: list[str], *, repetitions: int, seconds: float, workers: int, servers: int) -> list[Case]:
    """Run the jobs, alternating; stop early where another repetition would not end within `seconds`."""
    cases: dict[str, Case] = {}
    begun, longest = time.monotonic(), 0.0
    with job_folder() as folder:
        for repetition in range(repetitions):
            started = time.monotonic()
            if repetition and started - begun + longest > seconds:
                say(f"no time is left for repetition {repetition + 1} of {repetitions}")
                break
            for name in names:
                order = list(KINDS) if repetition % 2 == 0 else list(KINDS)[::-1]
                for kind in order:
                    results = run(kind, JOBS[name], folder, workers=workers, servers=servers)
                    for phase, trainers, tunnels in results:
                        title = JOBS[name].title.format(phase=phase.name)
                        note(cases.setdefault(title, Case(title, phase.unit)), kind, phase, trainers, tunnels)
                    rates = ", ".join(f"{phase.rate:.0f} {phase.unit}/s" for phase, _, _ in results)
                    say(f"repetition {repetition + 1}/{repetitions} {name} {kind}: {rates}")
            longest = max(longest, time.monotonic() - started)
    return list(cases.values())


def note(case: Case, kind: str, phase: Phase, trainers: float, tunnels: float) -> None:
    """Add one run's numbers to its case; CPU seconds count per GB, or per 1000 samples."""
    getattr(case, kind).append(phase.rate)
    trainers, tunnels = (seconds / phase.amount * 1000 for seconds in (trainers, tunnels))
    if kind == "vanilla":
        case.vanilla_cpu.append(trainers)
    else:
        case.trainers_cpu.append(trainers)
        case.tunnels_cpu.append(tunnels)


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    version = subprocess.run(["stunnel", "-version"], capture_output=True, text=True, timeout=10, check=False).stderr
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": model.partition(":")[2].strip(),
        "kernel": platform.release(),
        "stunnel": next((line.split(" on ")[0] for line in version.splitlines() if line.startswith("stunnel")), ""),
        "load_before": os.getloadavg()[0],
    }


def say(text: str) -> None:
    """Show progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure and print; returns 1 with a reason if this machine cannot."""
    parser = argparse.ArgumentParser(description="Measure what the wire costs, against vanilla MXNet.")
    parser.add_argument("--jobs", default=",".join(JOBS), help="which, by commas (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="at most (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=6, help="start no repetition that would end later")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    names = arguments.jobs.split(",")
    if unknown := [name for name in names if name not in JOBS]:
        parser.error(f"--jobs must be some of {', '.join(JOBS)}, got {unknown[0]!r}")
    try:
        require()
        facts = machine()
        cases = measure(
            names,
            repetitions=arguments.repetitions,
            seconds=arguments.minutes * 60,
            workers=arguments.workers,
            servers=arguments.servers,
        )
    except LabError as error:
        say(f"error: {error}")
        return 1
    if arguments.output == "json":
        shape = {"workers": arguments.workers, "servers": arguments.servers}
        print(json.dumps({"machine": facts, **shape, "cases": [case.as_json() for case in cases]}, indent=2))
    else:
        print(f"{facts['cpus']} x {facts['cpu']}, {facts['stunnel']}, 1 + {arguments.servers} + {arguments.workers}")
        print(table(cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
