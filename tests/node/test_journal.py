"""What a node remembers of the parts that it began."""

from pathlib import Path

import pytest

from holdfast_node.contract.documents import NodeResult, Peer, Rendezvous
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.roles import Role
from holdfast_node.journal import Journal

SCHEDULER = Peer(role=Role.SCHEDULER, rank=0, instance_id="i-00000001", address="10.0.0.1")
ENDED = NodeResult(status=0, cause="", rank=0, tls_connections=2, tls_peers=("x",))


def rendezvous(generation: int, job_id: str = "digits-1") -> Rendezvous:
    return Rendezvous(job_id=job_id, generation=generation, peers=(SCHEDULER,))


def test_nothing_was_begun_at_first(tmp_path: Path) -> None:
    assert not Journal(tmp_path / "part.json").begun(rendezvous(1))
    assert Journal(tmp_path / "part.json").result(rendezvous(1)) is None


def test_an_agent_that_is_started_anew_knows_what_was_begun_and_not_ended(tmp_path: Path) -> None:
    Journal(tmp_path / "part.json").begin(rendezvous(2))
    journal = Journal(tmp_path / "part.json")
    assert [journal.begun(rendezvous(generation)) for generation in (1, 2, 3)] == [True, True, False]
    assert not journal.begun(rendezvous(2, "digits-2"))
    assert journal.result(rendezvous(2)) is None


def test_a_result_is_that_of_its_own_generation(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "part.json")
    journal.begin(rendezvous(2))
    journal.end(rendezvous(2), ENDED)
    assert journal.result(rendezvous(2)) == ENDED
    assert journal.result(rendezvous(3)) is None
    assert journal.result(rendezvous(2, "digits-2")) is None


def test_a_damaged_journal_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "part.json").write_text("{")
    with pytest.raises(DocumentError, match="is not valid JSON"):
        Journal(tmp_path / "part.json").begun(rendezvous(1))
