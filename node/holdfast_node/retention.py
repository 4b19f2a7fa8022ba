"""Which checkpoints are no longer kept: a decision about a list, without a disk."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from holdfast_node.contract.documents import Retention

_DAY = 86400


@dataclass(frozen=True)
class Entry:
    """A checkpoint as far as retention goes. `sequence` grows with every save; `created` is seconds since the epoch."""

    name: str
    sequence: int
    created: float
    metrics: dict[str, float | None] = field(default_factory=dict)


def doomed(entries: Iterable[Entry], retention: Retention, *, now: float) -> list[Entry]:
    """Return the checkpoints that go, oldest first. The newest never goes, nor do the best.

    Of two that are equally good the newer one is the better. A metric that is absent, null or not finite is never
    the best. A checkpoint from the future (another clock) is young.
    """
    newest_first = sorted(entries, key=lambda entry: entry.sequence, reverse=True)
    stay = {entry.name for entry in newest_first[:1]} | {e.name for e in best(newest_first, retention)}
    old = now - retention.max_age_days * _DAY
    gone = [
        entry
        for position, entry in enumerate(newest_first)
        if entry.name not in stay and (position >= retention.keep_last or entry.created < old)
    ]
    return gone[::-1]


def best(entries: Iterable[Entry], retention: Retention) -> list[Entry]:
    """Return the `keep_best` best checkpoints by the metric of these rules, the best one first."""
    sign = 1 if retention.best == "lowest" else -1
    judged = [
        (sign * value, -entry.sequence, entry)
        for entry in entries
        if (value := entry.metrics.get(retention.best_metric)) is not None and math.isfinite(value)
    ]
    return [entry for *_, entry in sorted(judged, key=lambda item: item[:2])[: retention.keep_best]]
