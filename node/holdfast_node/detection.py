"""Within how long each kind of loss is noticed: everything follows from the one setting `lost_seconds`.

Each share leaves room for what comes after it, the report and one poll of the coordinator, so that the whole stays
within `lost_seconds` (docs/failure.md has what was measured).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Detection:
    """The waits of a cluster whose losses are to be noticed within `lost_seconds`."""

    lost_seconds: int

    @property
    def presence_seconds(self) -> float:
        """How often a node renews its registration: four renewals may fail before it counts as lost."""
        return self.lost_seconds / 5

    @property
    def silence_seconds(self) -> float:
        """How long a registration may go without being renewed."""
        return self.lost_seconds * 0.8

    @property
    def heartbeat_seconds(self) -> int:
        """How old ps-lite's last heartbeat of a process may be; it counts whole seconds and beats once in each."""
        return self.lost_seconds * 3 // 5

    @property
    def stopped_seconds(self) -> float:
        """How long a process may be stopped. Its end takes 3 s more, and it cannot be mistaken for a slow one."""
        return self.lost_seconds * 0.4

    @property
    def unreachable_seconds(self) -> float:
        """How long a peer may leave everything unacknowledged that this node's kernel sends it."""
        return self.lost_seconds * 0.5
