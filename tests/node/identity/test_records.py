"""A revoked instance and a used proof: neither gets a certificate again."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from identity_support import INSTANCE, Bucket, World, client_error
from records import claim_proof
from refusal import Refused

from holdfast_node.contract.layout import JobsBucket

OTHER = "i-0fedcba9876543210"


@pytest.mark.parametrize("content", [b"{}", b"", b"not JSON"], ids=["a document", "nothing", "junk"])
def test_a_revoked_instance_is_refused_whatever_its_denial_holds(world: World, content: bytes) -> None:
    world.bucket.objects[JobsBucket.denial(INSTANCE)] = content
    answer = world.enrolment().respond(world.event())
    assert answer["refused"] == {
        "reason": "revoked",
        "message": f"{INSTANCE} was revoked by an operator (s3://jobs/denied/{INSTANCE}.json); that is for ever: "
        "replace the instance",
    }
    assert world.logged == [{"event": "enrolment_refused", **answer["refused"]}]
    assert set(world.bucket.objects) == {JobsBucket.denial(INSTANCE)}, "nothing was made for it"


def test_another_instances_denial_refuses_nobody_else(world: World) -> None:
    world.bucket.objects[JobsBucket.denial(OTHER)] = b"{}"
    assert "certificate" in world.enrolment().respond(world.event())


def test_an_instance_whose_id_begins_with_a_denied_one_is_another(world: World) -> None:
    world.bucket.objects[JobsBucket.denial(INSTANCE[:-1])] = b"{}"
    assert "certificate" in world.enrolment().respond(world.event())


def test_a_renewal_is_refused_once_the_instance_is_revoked(world: World) -> None:
    warm = world.enrolment()
    assert "certificate" in warm.respond(world.event())
    world.bucket.objects[JobsBucket.denial(INSTANCE)] = b"{}"
    assert warm.respond(world.event())["refused"]["reason"] == "revoked"


def test_a_replayed_proof_is_refused_by_every_copy_of_the_function(world: World) -> None:
    event = world.event()
    assert "certificate" in world.enrolment().respond(event)
    again = world.enrolment().respond(event)
    assert again["refused"] == {
        "reason": "replayed",
        "message": "this proof has been used before; sign a new proof for each request",
    }
    assert world.logged[-1] == {"event": "enrolment_refused", **again["refused"]}


def test_of_calls_at_once_with_one_proof_one_gets_a_certificate(world: World) -> None:
    event, together = world.event(), threading.Barrier(4)
    real = world.bucket.put_object

    def put(**arguments: Any) -> None:
        if arguments["Key"].startswith(JobsBucket.PROOFS):
            together.wait(5)
        real(**arguments)

    world.bucket.put_object = put  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: world.enrolment().respond(event), range(4)))
    assert sum("certificate" in answer for answer in answers) == 1
    assert [answer["refused"]["reason"] for answer in answers if "refused" in answer] == ["replayed"] * 3


def test_a_refused_proof_is_not_used_up(world: World) -> None:
    event = world.event()
    group = world.fleet.groups.pop(INSTANCE)
    assert world.enrolment().respond(event)["refused"]["reason"] == "not_in_group"
    world.fleet.groups[INSTANCE] = group
    assert "certificate" in world.enrolment().respond(event)


def test_the_bucket_keeps_a_hash_and_no_part_of_the_proof(world: World) -> None:
    event = world.event()
    world.enrolment().respond(event)
    signature = event["proof"]["query"]["X-Amz-Signature"]
    key = JobsBucket.PROOFS + hashlib.sha256(signature.encode()).hexdigest()
    assert world.bucket.objects[key] == b""
    assert signature not in str(world.bucket.objects)


def test_a_proof_that_cannot_be_remembered_gives_no_certificate(world: World) -> None:
    def put(**arguments: Any) -> None:
        raise client_error("AccessDenied", "PutObject", 403)

    world.enrolment().respond(world.event())  # the CA is there
    world.bucket.put_object = put  # type: ignore[method-assign]
    refused = world.enrolment().respond(world.event())["refused"]
    assert refused == {"reason": "unavailable", "message": "AWS refused PutObject to the function: AccessDenied"}


def test_a_proof_that_is_being_used_right_now_may_be_replaced_by_another() -> None:
    class Conflicting(Bucket):
        def put_object(self, **_: Any) -> None:
            raise client_error("ConditionalRequestConflict", "PutObject", 409)

    with pytest.raises(Refused, match="this proof is being used right now; sign a new one") as refusal:
        claim_proof(Conflicting(), "jobs", "0" * 64)
    assert refusal.value.reason == "unavailable"
