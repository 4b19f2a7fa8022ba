"""What a row of the attack table is, and what an attack comes to."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.attacks.arenas import Arena


#: MXNet never initialises `KVStoreDistServer::multi_precision_` (kvstore_dist_server.h): what its memory held before
#: decides whether command 1 does anything, and that depends on things like the length of the checkout's path. With
#: these glibc hands out memory full of zeros (mallopt(3), M_PERTURB; the cache of each thread would pass by it).
ZEROED_MEMORY = {"MALLOC_PERTURB_": "255", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


class Verdict(StrEnum):
    """How an attack ended. `SUCCEEDED` is what vanilla MXNet shows, and a defect where Holdfast does."""

    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    UNHARMED = "unharmed"


@dataclass(frozen=True)
class Outcome:
    """What really happened, and the observation that says so."""

    verdict: Verdict
    evidence: str


def succeeded(evidence: str) -> Outcome:
    return Outcome(Verdict.SUCCEEDED, evidence)


def refused(evidence: str) -> Outcome:
    return Outcome(Verdict.REFUSED, evidence)


def unharmed(evidence: str) -> Outcome:
    return Outcome(Verdict.UNHARMED, evidence)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A row. `against_*` describe the attack, `defence` what stands against it, `*_expected` the verdicts.

    `vanilla_expected` is not `SUCCEEDED` where vanilla MXNet withstands, too: the table says so.
    """

    id: str
    threat: str
    title: str
    against_vanilla: str
    against_holdfast: str
    defence: str
    vanilla: "Callable[[Arena], Outcome]"
    holdfast: "Callable[[Arena], Outcome]"
    vanilla_expected: Verdict = Verdict.SUCCEEDED
    holdfast_expected: Verdict = Verdict.REFUSED

    def on_both(self, arena: "Arena") -> "tuple[Outcome | Exception, Outcome | Exception]":
        """Return what the attack comes to on vanilla and on Holdfast; an exception if it could not be tried.

        Both sides are tried at once: they share no cluster.
        """
        with ThreadPoolExecutor(2) as pool:
            vanilla, holdfast = pool.submit(self.vanilla, arena), pool.submit(self.holdfast, arena)
        return _result(vanilla), _result(holdfast)


def _result(future: "Future[Outcome]") -> "Outcome | Exception":
    error = future.exception()
    return future.result() if error is None else error if isinstance(error, Exception) else RuntimeError(repr(error))
