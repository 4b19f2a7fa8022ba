"""A certificate's second third and what follows: renewed in time, tried again, and missed in the end."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ConnectTimeoutError

from holdfast_node.contract.errors import VerificationError
from holdfast_node.contract.roles import Role
from holdfast_node.identity import Identity, IdentityError
from holdfast_node.renewal import Renewal

START = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
LIFE = timedelta(hours=24)
UNAVAILABLE = IdentityError("no certificate after 5 attempts, the last: throttled", reason="unavailable")


class Node:
    """A node whose clock and whose enrolment function the test holds."""

    def __init__(self, life: timedelta = LIFE) -> None:
        self.now, self.life = START, life
        self.answer: Callable[[], Identity] = self.issue
        self.calls: list[str] = []
        self.serial = 1
        self.renewal = Renewal(self.issue(), self.enrol, lambda: self.calls.append("reload"), clock=lambda: self.now)

    def issue(self) -> Identity:
        self.serial += 1
        return Identity(
            role=Role.WORKER,
            instance_id="i-0123456789abcdef0",
            address="10.0.0.1",
            spiffe_id="spiffe://demo/worker/i-0123456789abcdef0",
            serial=f"{self.serial:x}",
            not_before=self.now,
            not_after=self.now + self.life,
        )

    def enrol(self) -> Identity:
        assert self.renewal.files.locked(), "the tunnel must not start while files are replaced"
        self.calls.append("enrol")
        return self.answer()

    def step_at(self, moment: datetime) -> None:
        self.now = moment
        self.renewal.step()

    def fail_with(self, error: Exception) -> None:
        def answer() -> Identity:
            raise error

        self.answer = answer


@pytest.fixture
def node() -> Node:
    return Node()


def test_nothing_happens_before_two_thirds(node: Node) -> None:
    node.step_at(START + LIFE * 2 / 3 - timedelta(seconds=1))
    assert node.calls == []


def test_by_three_quarters_it_has_enrolled_again_and_then_asked_for_a_reload(node: Node) -> None:
    node.step_at(START + LIFE * 3 / 4)
    assert node.calls == ["enrol", "reload"]
    assert node.renewal.renewed == 1
    assert node.renewal.identity.serial == "3"
    assert not node.renewal.files.locked()


def test_the_next_renewal_is_counted_from_the_new_certificate(node: Node) -> None:
    node.step_at(START + LIFE * 3 / 4)
    node.step_at(node.now + LIFE * 2 / 3 - timedelta(seconds=1))
    assert node.calls == ["enrol", "reload"]
    node.step_at(node.now + LIFE / 12 + timedelta(seconds=1))
    assert node.calls == ["enrol", "reload"] * 2


def test_nodes_that_boot_together_do_not_renew_together() -> None:
    moments = {Node().renewal.due for _ in range(20)}
    assert len(moments) == 20
    assert all(START + LIFE * 2 / 3 <= moment <= START + LIFE * 3 / 4 for moment in moments)


FAILURES: dict[str, Exception] = {
    "the function is down": UNAVAILABLE,
    "no network": ConnectTimeoutError(endpoint_url="https://lambda"),
    "the disk is full": OSError(28, "No space left on device"),
    "not this node's certificate": VerificationError("the certificate is for another key than this node's"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_renewal_is_logged_counted_and_tried_again(
    node: Node, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    node.fail_with(FAILURES[case])
    with caplog.at_level(logging.WARNING, "holdfast"):
        node.step_at(START + LIFE * 3 / 4)
    (record,) = caplog.records
    line = json.loads(record.message)
    assert (line["event"], line["failed"]) == ("renewal_failed", 1)
    assert str(FAILURES[case]) in line["cause"]
    assert (node.renewal.failed, node.renewal.renewed, node.renewal.cause()) == (1, 0, None)
    assert "reload" not in node.calls
    node.answer = node.issue
    node.step_at(node.renewal.due)
    assert (node.renewal.renewed, node.calls[-1]) == (1, "reload")


def test_it_asks_more_often_as_the_end_comes_closer_and_never_without_a_pause(node: Node) -> None:
    node.fail_with(UNAVAILABLE)
    waits = []
    while node.renewal.due < START + LIFE:
        node.step_at(node.renewal.due)
        waits.append(node.renewal.due - node.now)
    assert timedelta(minutes=20) < waits[0] <= timedelta(hours=1)
    assert min(waits) >= timedelta(seconds=5)
    assert waits[-1] < timedelta(minutes=1)
    assert 20 < len(waits) < 200


def test_a_certificate_that_ends_is_a_failure_with_its_cause(node: Node) -> None:
    node.fail_with(UNAVAILABLE)
    node.step_at(START + LIFE * 3 / 4)
    node.now = START + LIFE
    assert node.renewal.cause() == (
        "this node's certificate ended at 2026-11-25T12:00:00+00:00 and was not renewed; the last of 1 renewals "
        "failed: IdentityError: no certificate after 5 attempts, the last: throttled"
    )


def test_after_its_end_it_asks_no_more(node: Node) -> None:
    node.step_at(START + LIFE)
    assert node.calls == []
    assert node.renewal.cause() == "this node's certificate ended at 2026-11-25T12:00:00+00:00 and was not renewed"


def test_a_revoked_node_ends_at_once(node: Node) -> None:
    node.fail_with(IdentityError("enrolment refused (revoked): i-0123456789abcdef0 is denied", reason="revoked"))
    node.step_at(START + LIFE * 3 / 4)
    assert node.renewal.cause() == ("this node was revoked: enrolment refused (revoked): i-0123456789abcdef0 is denied")


def test_a_life_of_seconds_is_renewed_by_the_thread_itself(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(timedelta(seconds=3))
    node.now = datetime.now(UTC)
    identity = node.issue()
    node.life = timedelta(0)  # the renewed one has ended when it comes, which ends the thread
    reloaded: list[datetime] = []

    def enrol() -> Identity:
        node.now = datetime.now(UTC)
        return node.issue()

    renewal = Renewal(identity, enrol, lambda: reloaded.append(datetime.now(UTC)))
    renewal.start()
    renewal.join(timeout=15)
    assert not renewal.is_alive()
    assert identity.renew_at <= reloaded[0] < identity.not_after
