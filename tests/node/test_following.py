"""The rendezvous at hand: the newest that could be read."""

from typing import Any

from botocore.exceptions import EndpointConnectionError

from holdfast_node.contract.documents import Peer, Rendezvous
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.roles import Role
from holdfast_node.following import RendezvousFollower

SCHEDULER = Peer(role=Role.SCHEDULER, rank=0, instance_id="i-00000001", address="10.0.0.1")
FIRST = Rendezvous(job_id="digits-1", generation=1, peers=(SCHEDULER,))
SECOND = Rendezvous(job_id="digits-1", generation=2, peers=(SCHEDULER,))


class Store:
    """Answers what it is given, one after the other."""

    denial = ""

    def __init__(self, *answers: Any) -> None:
        self._answers = iter(answers)

    def load(self, _kind: type, _key: str) -> Any:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_newest_is_kept_through_everything_that_cannot_be_read() -> None:
    unreachable = EndpointConnectionError(endpoint_url="https://s3")
    store = Store(None, FIRST, unreachable, None, DocumentError("Rendezvous has unknown keys"), SECOND)
    follower = RendezvousFollower(store)  # type: ignore[arg-type]
    seen = []
    for _ in range(6):
        follower.poll()
        seen.append(follower.current)
    assert seen == [None, FIRST, FIRST, FIRST, FIRST, SECOND]


def test_a_problem_is_told_until_a_read_goes_well() -> None:
    follower = RendezvousFollower(Store(DocumentError("Rendezvous has unknown keys"), FIRST))  # type: ignore[arg-type]
    follower.poll()
    assert follower.problem == " (the rendezvous could not be read: Rendezvous has unknown keys)"
    follower.poll()
    assert follower.problem == ""
