"""`python -m tests.boot`: boots 5 and 10 hosts, times them, reboots one, and writes docs/evidence/boot.md."""

import datetime as dt
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.boot.booted import Booted, until
from tests.e2e.support import ROOT, run_holdfast

from holdfast_node.contract.roles import Role

PAGE = ROOT / "docs/evidence/boot.md"
#: Hosts, servers and workers of a run, and the seconds that it may take from `submit` with a warm cache.
RUNS = ((5, 2, 2, 90), (10, 4, 5, 150))


@contextmanager
def settings() -> Iterator[str]:
    """Yield the name of settings like `local`, with groups large enough for every run; the file goes again."""
    text = (ROOT / "settings/local.toml").read_text()
    file = ROOT / "settings/local-boot.toml"
    file.write_text(re.sub(r"^max = 2$", f"max = {max(max(run[1:3]) for run in RUNS)}", text, flags=re.M))
    try:
        yield file.stem
    finally:
        file.unlink()


@contextmanager
def cluster() -> Iterator[tuple[Booted, float]]:
    """Yield a cluster whose hosts boot, and how many seconds its start took."""
    with tempfile.TemporaryDirectory(prefix="holdfast-boot-") as directory, settings() as name:
        state, started = Path(directory) / "state", time.monotonic()
        up = run_holdfast(state, "local", "up", "--hosts", "boot", "--settings", name, seconds=900)
        if up.status:
            raise SystemExit(up.errors)
        try:
            yield Booted(state), time.monotonic() - started
        finally:
            run_holdfast(state, "local", "down")


def train(booted: Booted, servers: int, workers: int) -> tuple[float, dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Run the digits example; return seconds from submit to the end, the job, and the nodes' boot records."""
    started = time.monotonic()
    submit = ("submit", "examples/digits", "--entry", "train.py", "--wait")
    done = booted.holdfast("--output", "json", *submit, "--servers", str(servers), "--workers", str(workers))
    spent = time.monotonic() - started
    if done.status:
        raise SystemExit(done.errors)
    job = booted.holdfast("--output", "json", "status", done.json["job_id"]).json
    records = {f"{node['role']} {node['rank']}": booted.boot_records(node["instance_id"]) for node in job["nodes"]}
    return spent, job, records


def seconds(record: dict[str, Any]) -> float:
    """Return how long a phase took."""
    start, end = (dt.datetime.fromisoformat(record[name]) for name in ("start", "end"))
    return (end - start).total_seconds()


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def reboot(booted: Booted) -> float:
    """Boot a server by itself, reboot it, and return the seconds until its agent has enrolled again."""
    (server,) = booted.scale(Role.SERVER, 1)
    first = booted.await_phase(server)["pid"]
    started = time.monotonic()
    booted.run(server, "systemctl", "--no-block", "reboot")
    until(lambda: booted.host(server)["pid"] not in (0, first), "the machine has another process 1")
    booted.await_phase(server)
    until(lambda: booted.host(server)["services"].get("agent") == "running", "the agent runs again")
    booted.run(server, "systemctl", "is-active", "--wait", "holdfast-agent")
    spent = time.monotonic() - started
    booted.scale(Role.SERVER, 0)
    return spent


def main() -> None:
    """Measure and write the page; end with status 1 if a run took longer than it may."""
    load = os.getloadavg()[0]
    lines = [
        "# Hosts that boot, timed",
        "",
        f"Written by `python -m tests.boot` on {dt.date.today().isoformat()}: {os.cpu_count()} cores, load {load:.1f} "
        "before it began. Every host is a systemd of its own, and its phases are those that its user data recorded; "
        "times are seconds. The image is in the cache.",
        "",
    ]
    late = []
    with cluster() as (booted, start):
        lines += [f"`holdfast local up --hosts boot` took {start:.0f} s.", ""]
        for hosts, servers, workers, limit in RUNS:
            spent, job, records = train(booted, servers, workers)
            late += [hosts] if spent > limit else []
            lines += [f"## {hosts} hosts", ""]
            what = [["submit until the job has succeeded", f"{spent:.0f}", str(limit)]]
            what += [["job's start until its first training step", str(job["first_step_seconds"]), ""]]
            lines += [*table(["from", "s", "at most"], what), ""]
            phases = list(dict.fromkeys(record["phase"] for node in records.values() for record in node))
            rows = [
                [name, *(next((f"{seconds(r):.0f}" for r in node if r["phase"] == p), "") for p in phases)]
                for name, node in records.items()
            ]
            lines += [*table(["node", *phases], rows), ""]
        lines += [
            "## A reboot",
            "",
            f"A server was back, mounted and enrolled, {reboot(booted):.0f} s after it was told.",
            "",
        ]
    print("\n".join(lines))
    PAGE.write_text("\n".join(lines) + "\n")
    if late:
        raise SystemExit(f"too slow with {late} hosts")


if __name__ == "__main__":
    main()
