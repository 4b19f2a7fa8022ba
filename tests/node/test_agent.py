"""The agent as the service manager starts it."""

import subprocess
import sys
from pathlib import Path


def test_agent_without_a_configuration_says_so_and_fails(tmp_path: Path) -> None:
    agent = subprocess.run(
        [sys.executable, "-m", "holdfast_node.agent", "--root", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert agent.returncode == 1
    assert "ERROR FileNotFoundError: " in agent.stderr
    assert "etc/holdfast/node.json" in agent.stderr
    assert "Traceback" not in agent.stderr
