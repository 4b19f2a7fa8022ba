"""The hypervisor's published state: `hosts.json`, replaced as a whole whenever something in it changes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast_local.hosts.fabric import Drops
from holdfast_local.hosts.isolation import Isolation

STATE_FILE = "hosts.json"
#: Held (flock) by the hypervisor as long as it runs.
LOCK_FILE = "hypervisor.lock"


class StateFile:
    """Writes `hosts.json` in the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / STATE_FILE
        self._written = b""

    def publish(self, *, isolation: Isolation, hosts: Sequence[dict[str, Any]], drops: Drops, error: str) -> None:
        """Replace the file if its content would change."""
        state = {
            "pid": os.getpid(),
            "mode": isolation.mode.value,
            "separate_users": isolation.separate_users,
            "not_enforced": list(isolation.not_enforced),
            "not_stronger": list(isolation.not_stronger),
            "hosts": list(hosts),
            "drops": {"refused": drops.refused, "spoofed": drops.spoofed},
            "error": error,
        }
        data = json.dumps(state, indent=1).encode() + b"\n"
        if data != self._written:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(data)
            temporary.replace(self._path)
            self._written = data

    def remove(self) -> None:
        """Remove the file: there is no hypervisor any more."""
        self._path.unlink(missing_ok=True)
