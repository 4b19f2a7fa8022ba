"""Running the installed command from tests, with a state directory of their own."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOLDFAST = ROOT / ".venv/bin/holdfast"
SECONDS = 540


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    status: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)


Holdfast = Callable[..., Outcome]


def run_holdfast(state: Path, *arguments: str, seconds: float = SECONDS) -> Outcome:
    """Run the installed `holdfast` to its end."""
    process = subprocess.run(
        [str(HOLDFAST), *arguments],
        env={**os.environ, "HOLDFAST_STATE_DIR": str(state)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Outcome(process.returncode, process.stdout, process.stderr)
