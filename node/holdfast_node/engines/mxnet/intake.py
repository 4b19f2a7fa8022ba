"""Whether a server takes further messages: not while those that it has taken, and not followed, fill its memory.

ps-lite queues what is received without a limit, so a worker that sends faster than the server works fills it with
messages that are each allowed. While the server takes none, its queue shrinks, and what comes in the meantime is under
way: `backlog.py` has a limit for that, by peer, and TCP slows whoever sends down.
"""

import ctypes
from dataclasses import dataclass

#: Heartbeats are messages too: after this long some are taken, whatever the queue.
MOST_SECONDS = 2.0
#: Of one CPU: a server that works less than this, with nothing to take, has followed all that it took.
IDLE_SHARE = 0.2
#: In allowances: a server that does nothing and needs more than this is stuck, as one is that a worker does not listen
#: to. An allowance is some of the server's part of the model, of which optimizers keep a few copies.
MOST_ALLOWANCES = 4


@dataclass
class Intake:
    """Judges memory in use, look by look.

    `base` is what the server needs with an empty queue, in bytes; `full` is set once it took messages in spite of a
    full queue.
    """

    base: int | None = None
    open: bool = True
    full: bool = False
    _first: int = 0
    _closed_at: float = 0.0
    _looked_at: float = 0.0
    _worked: float = 0.0

    def look(self, used: int, allowance: int, now: float, worked: float) -> bool:
        """Return whether the server may take messages from now on.

        Args:
            used: its memory in use, without what is under way to it.
            allowance: how much more than its base may be in use for queued messages.
            now: the clock, in seconds.
            worked: the CPU time that its process has used so far, in seconds.
        """
        share = (worked - self._worked) / max(now - self._looked_at, 1e-9)
        self._looked_at, self._worked = now, worked
        if self.base is None:
            self._first = self.base = used
        self.base = min(self.base, used)
        if self.open:
            if used > self.base + allowance:
                self.open, self._closed_at = False, now
        elif share < IDLE_SHARE and used <= self._first + MOST_ALLOWANCES * allowance:
            self.base, self.open = used, True  # it needs this much: a model, an optimizer's states
        elif used <= self.base + allowance // 2:
            self.open = True
        elif now - self._closed_at >= MOST_SECONDS:
            self.open = self.full = True
        return self.open


class _Allocated(ctypes.Structure):
    """struct mallinfo2 (mallinfo(3), glibc 2.33)."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


_libc = ctypes.CDLL(None)


def used_bytes() -> int:
    """Return how much memory native code has allocated in this process and not freed."""
    _libc.mallinfo2.restype = _Allocated
    allocated = _libc.mallinfo2()
    return int(allocated.uordblks + allocated.hblkhd)
