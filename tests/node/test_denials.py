"""What a node knows about revoked instances, and what it does when it can't know."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from holdfast_node.contract.documents import Denial
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.denials import POLL_SECONDS, STALE_SECONDS, Denials

REVOKED, OTHER = "i-0123456789abcdef0", "i-0fedcba9876543210"
DENIED = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "ListObjectsV2")


class Bucket:
    """The jobs bucket's keys; `error` is raised instead if set."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.error: Exception | None = None

    def changed_since(self, prefix: str, since: datetime) -> Iterator[tuple[str, datetime]]:
        if self.error:
            raise self.error
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        assert since < moment
        yield from ((key, moment) for key in self.keys if key.startswith(prefix))


class World:
    def __init__(self) -> None:
        self.bucket, self.now = Bucket(), 100.0
        self.denials = Denials(self.bucket, clock=lambda: self.now)


@pytest.fixture
def world() -> World:
    return World()


def test_a_denied_peer_is_a_cause_to_end_the_tunnel(world: World) -> None:
    world.bucket.keys = [JobsBucket.denial(REVOKED)]
    world.denials.poll()
    assert world.denials.denied() == {REVOKED}
    cause = world.denials.cause([OTHER, REVOKED])
    assert cause == f"{REVOKED} was revoked by an operator (holdfast revoke)"


def test_other_instances_denials_are_no_cause(world: World) -> None:
    world.bucket.keys = [JobsBucket.denial(REVOKED)]
    world.denials.poll()
    assert world.denials.cause([OTHER]) is None


def test_a_denial_that_vanishes_still_denies(world: World) -> None:
    world.bucket.keys = [JobsBucket.denial(REVOKED)]
    world.denials.poll()
    world.bucket.keys = []
    world.denials.poll()
    assert world.denials.denied() == {REVOKED}


@pytest.mark.parametrize("key", ["denied/", "denied/note.txt", "denied/i-zz.json", f"denied/{REVOKED}.json.bak"])
def test_other_keys_below_the_prefix_deny_nobody(world: World, key: str) -> None:
    world.bucket.keys = [key]
    world.denials.poll()
    assert not world.denials.denied()


@pytest.mark.parametrize(
    ("error", "name"),
    [(DENIED, "AccessDenied"), (ConnectTimeoutError(endpoint_url="x"), "ConnectTimeoutError")],
    ids=str,
)
def test_a_node_that_cannot_read_the_denials_stops_talking(world: World, error: Exception, name: str) -> None:
    world.denials.poll()
    world.bucket.error = error
    world.now += STALE_SECONDS
    world.denials.poll()
    assert world.denials.cause([OTHER]) is None
    world.now += 1
    world.denials.poll()
    assert world.denials.cause([OTHER]) == (
        f"the denials could not be read for 46 s ({name}); a revoked peer would go unnoticed"
    )


def test_what_was_known_before_a_failure_is_still_known(world: World) -> None:
    world.bucket.keys = [JobsBucket.denial(REVOKED)]
    world.denials.poll()
    world.bucket.error = DENIED
    world.denials.poll()
    assert "revoked" in str(world.denials.cause([REVOKED]))


def test_a_listing_that_works_again_ends_the_silence(world: World) -> None:
    world.bucket.error = DENIED
    world.now += 100
    world.denials.poll()
    assert world.denials.cause([OTHER])
    world.bucket.error = None
    world.denials.poll()
    assert world.denials.cause([OTHER]) is None


def test_polls_leave_time_for_the_cut_within_a_minute() -> None:
    # Worst case: a poll has just been, the next one fails once, the one after it sees the denial.
    assert 2 * POLL_SECONDS + 10 < 60
    assert STALE_SECONDS < 60


@pytest.mark.parametrize("reason", ["a\nb", "\x1b[31m", "x" * 201])
def test_a_denials_reason_is_one_printable_line(reason: str) -> None:
    denial = Denial(instance_id=REVOKED, reason=reason, revoked_at="2026-11-24T12:00:00+00:00")
    with pytest.raises(DocumentError, match="reason must be one printable line of at most 200 characters, got"):
        denial.validate()
