"""Each security-group rule is needed: without any one of them training does not complete, and with all it does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.boundary.cluster import Cluster, Ended, Rule

#: A try without a rule waits so many times as long as training takes with all of them, and at least so long.
_PATIENCE, _LEAST_SECONDS = 1.5, 20.0
_LIMIT_SECONDS = 150.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of training without `rule` (None: with all of them)."""

    rule: Rule | None
    ended: Ended

    @property
    def as_expected(self) -> bool:
        """Whether training completed with every rule, or did not without one."""
        return self.ended.completed is (self.rule is None)


def try_without(cluster: Cluster, rules: Iterable[Rule]) -> Iterator[Trial]:
    """Train with all rules, then without each of `rules` in turn, then with all again."""
    whole = cluster.train(_LIMIT_SECONDS)
    yield Trial(rule=None, ended=whole)
    patience = max(_LEAST_SECONDS, _PATIENCE * whole.seconds)
    for rule in rules:
        with cluster.without(rule):
            yield Trial(rule=rule, ended=cluster.train(patience))
    yield Trial(rule=None, ended=cluster.train(_LIMIT_SECONDS))
