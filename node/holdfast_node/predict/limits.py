"""How many rows one client gets answered: the defence against everything that rounding only slows down.

Sans-IO: the caller gives the time. Each limit is a token bucket (RFC 2697's shape) that holds half of the limit and
refills the other half in the limit's window, so that in no window whatever, not only in calendar ones, more than
the limit is answered. Nothing outlives the process: a restart gives every client full buckets.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

MINUTE, DAY = 60.0, 86400.0
#: Clients that are remembered. The authority that gives clients their certificates bounds how many there are.
MAX_CLIENTS = 10_000


@dataclass
class _Bucket:
    limit: int
    window_seconds: float
    tokens: float = field(init=False)
    updated: float

    def __post_init__(self) -> None:
        self.tokens = self.capacity

    @property
    def capacity(self) -> float:
        return self.limit / 2

    def refill(self, now: float) -> None:
        earned = max(0.0, now - self.updated) * self.capacity / self.window_seconds
        self.tokens = min(self.capacity, self.tokens + earned)
        self.updated = now

    def wait(self, rows: int) -> float:
        """Return how many seconds it takes until `rows` can be taken; infinity if never."""
        if rows > self.capacity:
            return math.inf
        return max(0.0, rows - self.tokens) * self.window_seconds / self.capacity


class RateLimiter:
    """Counts rows by client. A request counts as one row at least, whatever becomes of it."""

    def __init__(self, *, rows_per_minute: int, rows_per_day: int, max_clients: int = MAX_CLIENTS) -> None:
        self._limits = ((rows_per_minute, MINUTE), (rows_per_day, DAY))
        self._max_clients = max_clients
        self._clients: OrderedDict[str, tuple[_Bucket, ...]] = OrderedDict()

    def admit(self, client: str, rows: int, now: float) -> float:
        """Return 0 and count the rows, or return in how many seconds they would be admitted and count nothing.

        `now` is a monotonic time in seconds. A client too many waits until an older one's buckets are full again.
        """
        buckets = self._clients.get(client)
        if buckets is None:
            self._forget(now)
            if len(self._clients) >= self._max_clients:
                return MINUTE
            buckets = tuple(_Bucket(limit, window, now) for limit, window in self._limits)
            self._clients[client] = buckets
        self._clients.move_to_end(client)
        for bucket in buckets:
            bucket.refill(now)
        wait = max(bucket.wait(rows) for bucket in buckets)
        if wait > 0:
            return wait
        for bucket in buckets:
            bucket.tokens -= rows
        return 0.0

    def _forget(self, now: float) -> None:
        """Forget clients whose buckets are full: they are as good as new. The longest silent one comes first."""
        while self._clients:
            client, buckets = next(iter(self._clients.items()))
            for bucket in buckets:
                bucket.refill(now)
            if any(bucket.tokens < bucket.capacity for bucket in buckets):
                return
            del self._clients[client]
