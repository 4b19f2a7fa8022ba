"""The node's unit files, read as systemd.syntax(7) says."""

import subprocess
from pathlib import Path

UNITS = Path(__file__).resolve().parents[3] / "node/units"
#: What each kind of node adds to the trainer's unit.
DROP_INS = ("worker", "predictor", "gpu")


class Unit:
    """One unit file: every value of every key, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[tuple[str, str], list[str]] = {}
        section = ""
        for line in (UNITS / name).read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif "=" in line and not line.startswith("#"):
                key, value = line.split("=", 1)
                self.values.setdefault((section, key), []).append(value)

    def all(self, section: str, key: str) -> list[str]:
        return self.values.get((section, key), [])

    def one(self, section: str, key: str, default: str | None = None) -> str | None:
        values = self.all(section, key)
        assert len(values) <= 1, f"{self.name}: {key}= must be there once, got {values}"
        return values[0] if values else default

    def words(self, section: str, key: str) -> list[str]:
        return " ".join(self.all(section, key)).split()


def service(name: str) -> Unit:
    """The unit of a service of the contract."""
    return Unit(f"holdfast-{name}.service")


def image(root: Path, role: str = "worker") -> Path:
    """An image's root directory with the units of a role installed, and what they name."""
    (root / "etc").mkdir(parents=True, exist_ok=True)
    for file in ("etc/passwd", "etc/group"):
        (root / file).write_text("")
    programs = [f"usr/bin/{name}" for name in ("rm", "sh", "systemctl", "stunnel", "env")]
    for program in ("opt/holdfast/venv/bin/python", *programs):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        (root / program).write_text("#!/bin/true\n")
        (root / program).chmod(0o755)
    subprocess.run(["bash", str(UNITS / "install.sh"), role, str(root)], check=True, capture_output=True, text=True)
    return root
