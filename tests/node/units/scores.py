"""How exposed the node's services are, as `systemd-analyze security` scores their units, and docs/evidence/sandbox.md.

`python -m tests.node.units.scores` writes the page. The score goes from 0 (nothing is left open) to 10; a service
with nothing but a `User=` has 9.2.
"""

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.node.units.unit_files import image

PAGE = Path(__file__).resolve().parents[3] / "docs/evidence/sandbox.md"
#: The most that a unit may score.
LIMITS = {
    "holdfast-trainer.service": 1.5,
    "holdfast-agent.service": 2.5,
    "holdfast-tunnel.service": 2.5,
    "holdfast-firewall.service": 2.5,
    "holdfast-peers.service": 2.5,
    "holdfast-request@trainer.service": 2.5,
    "holdfast-reload@tunnel.service": 2.5,
}
#: The kinds of nodes: their role, and whether they have a GPU. Only the trainer's unit differs.
NODES = {
    "scheduler, server": ("server", False),
    "worker": ("worker", False),
    "worker with a GPU": ("worker", True),
    "predictor": ("predictor", False),
}


@dataclass(frozen=True)
class Score:
    """One unit's score on one kind of node, and the settings that raise it, with how much each does."""

    unit: str
    node: str
    exposure: float
    open: tuple[str, ...]

    @property
    def limit(self) -> float:
        """The most that it may be."""
        return LIMITS[self.unit]


def give_gpu(root: Path) -> None:
    """Put an NVIDIA GPU on the PCI bus of an image, as the kernel shows one."""
    device = root / "sys/bus/pci/devices/0000:00:1e.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")


def analyze(root: Path, unit: str, threshold: float) -> tuple[bool, float]:
    """Return whether systemd-analyze finds the unit of an image within the threshold, and its score."""
    done = _analyze(root, unit, f"--threshold={round(threshold * 10)}")
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert match, done.stderr or done.stdout
    return done.returncode == 0, float(match[1])


def score(root: Path, unit: str, node: str) -> Score:
    """Return a unit's score."""
    items = json.loads(_analyze(root, unit, "--json=short").stdout)
    left = sorted(
        (item for item in items if item["exposure"]), key=lambda item: (-float(item["exposure"]), item["name"])
    )
    names = tuple(f"{item['name']} {float(item['exposure']):g}" for item in left)
    return Score(unit=unit, node=node, exposure=analyze(root, unit, 10)[1], open=names)


def scores() -> list[Score]:
    """Return the scores of every unit, on every kind of node where it differs."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for number, (node, (role, gpu)) in enumerate(NODES.items()):
            root = Path(directory) / str(number)
            if gpu:
                give_gpu(root)
            image(root, role)
            units = [unit for unit in LIMITS if not number or unit == "holdfast-trainer.service"]
            for unit in units:
                found.append(score(root, unit, node if unit == "holdfast-trainer.service" else "all"))
    return sorted(found, key=lambda entry: list(LIMITS).index(entry.unit))


def systemd_version() -> str:
    """Return the version of systemd whose scores these are: each has its own weights."""
    done = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[1]


def page(found: list[Score], version: str) -> str:
    """Return docs/evidence/sandbox.md."""
    lines = [
        "# The services' sandboxes, scored",
        "",
        "Written by `python -m tests.node.units.scores` from the unit files in `node/units`, with",
        f"`systemd-analyze security --offline=true` of systemd {version} (Debian 12 and Amazon Linux 2023 have 252).",
        "The score goes from 0, where nothing is left open, to 10; a service with nothing but a `User=` has 9.2. A",
        "test holds each to its limit, and this page to the units. The last column is all that systemd counts as open,",
        "and how much each weighs.",
        "",
        "| unit | on | score | limit | left open |",
        "|---|---|---|---|---|",
    ]
    for entry in found:
        names = (name.replace("|", "\\|").rpartition(" ") for name in entry.open)
        left = ", ".join(f"`{name}` {weight}" for name, _, weight in names)
        lines.append(f"| `{entry.unit}` | {entry.node} | {entry.exposure} | {entry.limit} | {left} |")
    return "\n".join(lines) + "\n"


def _analyze(root: Path, unit: str, *options: str) -> "subprocess.CompletedProcess[str]":
    argv = ["systemd-analyze", "security", "--offline=true", f"--root={root}", "--no-pager", *options, unit]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    text = page(scores(), systemd_version())
    PAGE.write_text(text)
    print(text, f"wrote {PAGE}", sep="\n")
