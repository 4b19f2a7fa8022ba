import json
import re
from typing import Any

import pytest

from holdfast_node.contract.documents import (
    BootPhase,
    BootRecord,
    CodeArchive,
    Control,
    JobDocument,
    NodeConfig,
    NodeResult,
    Output,
    Peer,
    Predictions,
    Registration,
    RemoteAccess,
    Rendezvous,
    Retention,
    Wheelhouse,
)
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.roles import Role, Serving

JOB = JobDocument(
    job_id="digits-1",
    cluster="demo",
    engine="mxnet",
    entry="train.py",
    args=("--epochs", "3"),
    workers=2,
    servers=2,
    model_dir="model",
    timeout_seconds=600,
    code=CodeArchive(sha256="0" * 64, size=10),
)


def changed(**changes: object) -> bytes:
    return json.dumps(json.loads(JOB.to_json()) | changes).encode()


def test_job_document_round_trips() -> None:
    assert JobDocument.parse(JOB.to_json()) == JOB


def test_optional_field_may_be_absent_or_null() -> None:
    assert NodeResult.parse(b'{"status":0,"cause":"","rank":1,"tls_connections":4,"tls_peers":[]}').model_sha256 is None
    assert (
        NodeResult.parse(
            b'{"status":0,"cause":"","rank":1,"tls_connections":4,"tls_peers":[],"first_step_ms":null}'
        ).rank
        == 1
    )


REFUSED = {
    "not JSON": (b"{", "JobDocument is not valid JSON"),
    "not an object": (b"[]", "JobDocument must be an object, got list"),
    "a duplicate key": (b'{"job_id":"a","job_id":"b"}', "duplicate key"),
    "an unknown key": (changed(exec="rm"), "JobDocument has unknown keys ['exec'], allowed: ['args', 'cluster'"),
    "a missing key": (b"{}", "JobDocument lacks the keys ['args', 'cluster', 'code'"),
    "a number as a string": (changed(workers="2"), "JobDocument.workers must be int, got '2'"),
    "a boolean as a number": (changed(workers=True), "JobDocument.workers must be int, got True"),
    "no workers": (changed(workers=0), "workers must be at least 1, got 0"),
    "a seed that is a word": (changed(seed="lucky"), "seed must match [0-9a-f]{64}, got 'lucky'"),
    "an entry that leaves the archive": (changed(entry="../x.py"), "entry must match"),
    "an absolute entry": (changed(entry="/etc/passwd"), "entry must match"),
    "an entry that climbs inside": (changed(entry="a/../../x.py"), "entry must match"),
    "a model directory that leaves": (changed(model_dir=".."), "model_dir must match"),
    "a nested mistake": (changed(code={"sha256": "0" * 64}), "JobDocument.code lacks the keys ['size']"),
    "a short digest": (changed(code={"sha256": "00", "size": 1}), "code.sha256 must match"),
    "args that are no list": (changed(args="--x"), "JobDocument.args must be a list, got str"),
    "another version": (changed(version=2), "version must be 1, got 2"),
    "a bad cluster name": (changed(cluster="Demo"), "cluster must match"),
}


@pytest.mark.parametrize(("document", "message"), REFUSED.values(), ids=REFUSED)
def test_job_document_refuses(document: bytes, message: str) -> None:
    with pytest.raises(DocumentError) as refusal:
        JobDocument.parse(document)
    assert message in str(refusal.value)


def test_role_names_are_closed() -> None:
    peer = {"role": "mayor", "rank": 0, "instance_id": "i-0123456789", "address": "10.0.0.1"}
    with pytest.raises(DocumentError, match=r"must be one of \['scheduler', 'server', 'worker'\], got 'mayor'"):
        Rendezvous.parse(json.dumps({"job_id": "a", "generation": 1, "peers": [peer]}))


def test_rendezvous_is_void_for_an_instance_that_is_not_in_it() -> None:
    peer = Peer(role=Role.WORKER, rank=0, instance_id="i-0123456789", address="10.0.0.1")
    rendezvous = Rendezvous(job_id="abc", generation=1, peers=(peer,))
    assert rendezvous.me("i-0123456789") == peer
    assert rendezvous.me("i-99999999") is None


def test_control_document_is_closed() -> None:
    with pytest.raises(DocumentError, match="unknown keys"):
        Control.parse(b'{"job_id":"a","started_at":"x","task_token":"t","url":"http://elsewhere"}')


INJECTIONS = {
    "a line break": "10.0.0.1:9092\n[x]\nexec = /bin/sh",
    "a port": "10.0.0.1:9092",
    "a name": "evil.example",
    "an address with leading zeros": "010.0.0.1",
    "all addresses": "0.0.0.0",
    "nothing": "",
}


@pytest.mark.parametrize("address", INJECTIONS.values(), ids=INJECTIONS)
@pytest.mark.parametrize("kind", [Registration, Peer])
def test_address_that_becomes_another_node_s_configuration_is_one_address(kind: Any, address: str) -> None:
    fields = {"role": "worker", "instance_id": "i-0123456789", "address": address}
    extra = {"spiffe_id": "x", "serial": "1"} if kind is Registration else {"rank": 0}
    with pytest.raises(DocumentError, match="address must be a host's IPv4 address, got"):
        kind.parse(json.dumps(fields | extra))


SEATS = {
    "an instance twice": [("scheduler", 0, "i-00000001"), ("worker", 0, "i-00000001")],
    "a rank twice": [("scheduler", 0, "i-00000001"), ("worker", 0, "i-00000002"), ("worker", 0, "i-00000003")],
    "no scheduler": [("worker", 0, "i-00000002")],
    "a second scheduler's rank": [("scheduler", 1, "i-00000001")],
}


@pytest.mark.parametrize("seats", SEATS.values(), ids=SEATS)
def test_rendezvous_refuses(seats: list[tuple[str, int, str]]) -> None:
    peers = [{"role": r, "rank": n, "instance_id": i, "address": "10.0.0.1"} for r, n, i in seats]
    with pytest.raises(DocumentError, match="must"):
        Rendezvous.parse(json.dumps({"job_id": "abc", "generation": 1, "peers": peers}))


@pytest.mark.parametrize("moment", ["yesterday", "2026-11-22T00:00:00"], ids=["no time", "no zone"])
def test_control_refuses_a_start_without_zone(moment: str) -> None:
    with pytest.raises(DocumentError, match="started_at must be an ISO 8601 time with its zone"):
        Control.parse(json.dumps({"job_id": "abc", "started_at": moment, "task_token": "t"}))


RETENTIONS = {
    "none kept": ({"keep_last": 0}, "keep_last must be at least 1, got 0"),
    "no day": ({"max_age_days": 0}, "max_age_days must be at least 1, got 0"),
    "less than no best": ({"keep_best": -1}, "keep_best must be at least 0, got -1"),
    "no metric's name": ({"best_metric": "a b"}, "best_metric must match [A-Za-z0-9][A-Za-z0-9._-]{0,63}, got 'a b'"),
    "neither way": ({"best": "middle"}, "best must be lowest or highest, got 'middle'"),
    "an unknown rule": ({"keep_worst": 1}, "Retention has unknown keys ['keep_worst'], allowed: ['best', "),
}


@pytest.mark.parametrize("case", RETENTIONS)
def test_impossible_retention_is_refused(case: str) -> None:
    change, message = RETENTIONS[case]
    with pytest.raises(DocumentError, match=re.escape(message)):
        Retention.parse(json.dumps(change))


def test_absent_retention_rules_have_their_defaults() -> None:
    assert Retention.parse(b'{"keep_last":5}') == Retention(keep_last=5)


PREDICTOR = {
    "cluster": "demo",
    "role": "predictor",
    "region": "us-east-1",
    "ports": {"scheduler": 9091, "server": 9092, "worker": 9093},
    **dict.fromkeys(
        ("jobs_bucket", "models_bucket", "enrolment_function", "job_signing_key", "model_signing_key"), "x"
    ),
    **dict.fromkeys(("log_group", "file_system_id", "access_point_id"), "x"),
    "bundle": {"bucket": "assets", "key": "bundle.zip", "sha256": "0" * 64},
    "predictions": {"job_id": "digits-1"},
}


def test_a_predictors_configuration_gives_labels_and_limits_by_default() -> None:
    config = NodeConfig.parse(json.dumps(PREDICTOR))
    assert config.role is Serving.PREDICTOR and config.port == 9094
    assert config.predictions == Predictions(
        job_id="digits-1", output=Output.LABELS, digits=2, batch_rows=32, rows_per_minute=120, rows_per_day=1000
    )
    assert NodeConfig.parse(config.to_json()) == config


def test_nobody_has_a_shell_on_a_node_and_there_is_no_scratch_volume_unless_it_says_so() -> None:
    config = NodeConfig.parse(json.dumps(PREDICTOR))
    assert (config.remote_access, config.scratch_device) == (RemoteAccess.NONE, "")
    chosen = NodeConfig.parse(
        json.dumps(PREDICTOR | {"remote_access": "session-manager", "scratch_device": "/dev/sdb"})
    )
    assert (chosen.remote_access, chosen.scratch_device) == (RemoteAccess.SESSION_MANAGER, "/dev/sdb")


REFUSED_PREDICTORS: dict[str, tuple[dict[str, Any], str]] = {
    "a worker that predicts": ({"role": "worker"}, "predictions must be given for a predictor and for nobody else"),
    "nothing to predict with": ({"predictions": None}, "predictions must be given for a predictor and for nobody else"),
    "an unknown role": (
        {"role": "mayor"},
        "must be one of ['scheduler', 'server', 'worker', 'predictor'], got 'mayor'",
    ),
    "logits": (
        {"predictions": {"job_id": "digits-1", "output": "logits"}},
        "output must be one of ['labels', 'top-k', 'probabilities'], got 'logits'",
    ),
    "full precision": (
        {"predictions": {"job_id": "digits-1", "digits": 17}},
        "predictions.digits must be between 1 and 3, got 17",
    ),
    "a port for root": ({"predictions": {"job_id": "digits-1", "port": 443}}, "predictions.port must be between 1024"),
    "requests that no minute holds": (
        {"predictions": {"job_id": "digits-1", "rows_per_minute": 10}},
        "predictions.rows_per_minute must be between 2 * batch_rows (64) and rows_per_day (1000), got 10; half of",
    ),
    "a shell over SSH": (
        {"remote_access": "ssh"},
        "NodeConfig.remote_access must be one of ['none', 'session-manager'], got 'ssh'",
    ),
    "scratch on the root volume": ({"scratch_device": "/dev/sda"}, "scratch_device must match /dev/sd[b-z], got"),
    "scratch anywhere": ({"scratch_device": "/dev/sdb /etc"}, "scratch_device must match /dev/sd[b-z], got"),
    "a job id that is a path": ({"predictions": {"job_id": "../x"}}, "predictions.job_id must match"),
}


WHEELHOUSE = {"bucket": "assets", "key": "wheels.zip", "sha256": "1" * 64, "lock": "requirements.txt"}


def test_a_configuration_names_the_wheels_and_the_lock_that_they_fulfil() -> None:
    config = NodeConfig.parse(json.dumps(PREDICTOR | {"wheelhouse": WHEELHOUSE}))
    assert config.wheelhouse == Wheelhouse(bucket="assets", key="wheels.zip", sha256="1" * 64, lock="requirements.txt")
    assert NodeConfig.parse(json.dumps(PREDICTOR)).wheelhouse is None


REFUSED_WHEELHOUSES = {
    "a lock that is elsewhere": ({"lock": "../requirements.txt"}, "wheelhouse.lock must match"),
    "a lock that is an option": ({"lock": "--index-url.txt"}, "wheelhouse.lock must match"),
    "a short digest": ({"sha256": "11"}, "wheelhouse.sha256 must match"),
}


@pytest.mark.parametrize("case", REFUSED_WHEELHOUSES)
def test_a_configurations_wheelhouse_refuses(case: str) -> None:
    changes, message = REFUSED_WHEELHOUSES[case]
    with pytest.raises(DocumentError) as refusal:
        NodeConfig.parse(json.dumps(PREDICTOR | {"wheelhouse": WHEELHOUSE | changes}))
    assert message in str(refusal.value)


@pytest.mark.parametrize("case", REFUSED_PREDICTORS)
def test_a_predictors_configuration_refuses(case: str) -> None:
    changes, message = REFUSED_PREDICTORS[case]
    with pytest.raises(DocumentError) as refusal:
        NodeConfig.parse(json.dumps(PREDICTOR | changes))
    assert message in str(refusal.value)


PHASE = {
    "phase": "fetch",
    "start": "2026-11-24T18:31:29Z",
    "end": "2026-11-24T18:31:31Z",
    "status": "failed",
    "timeout_seconds": 120,
    "cause": "it is not there",
    "remedy": "deploy again",
}
BOOT = {"role": "predictor", "instance_id": "i-0123456789abcdef0", "phases": [PHASE | {"status": "ok"}, PHASE]}


def test_a_boot_that_failed_says_who_where_why_and_what_to_do() -> None:
    record = BootRecord.parse(json.dumps(BOOT))
    assert record.failure == "predictor (i-0123456789abcdef0) did not boot: fetch: it is not there; deploy again"
    assert [phase.seconds for phase in record.phases] == [2.0, 2.0]
    assert BootRecord.parse(record.to_json()) == record


def test_a_boot_whose_last_phase_went_well_has_no_failure() -> None:
    assert BootRecord.parse(json.dumps(BOOT | {"phases": [PHASE, PHASE | {"status": "ok"}]})).failure is None


REFUSED_PHASES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown status": ({"status": "fine"}, "status must be one of ['ok', 'failed', 'timeout'], got 'fine'"),
    "a time that is none": (
        {"end": "now"},
        "start and end must be ISO 8601 times, got '2026-11-24T18:31:29Z' and 'now'",
    ),
    "one time without a zone": ({"end": "2026-11-24T18:31:31"}, "start and end must be ISO 8601 times"),
    "another key": ({"shell": "rm"}, "BootPhase has unknown keys ['shell']"),
}


@pytest.mark.parametrize("case", REFUSED_PHASES)
def test_a_phase_of_a_boot_refuses(case: str) -> None:
    changes, message = REFUSED_PHASES[case]
    with pytest.raises(DocumentError) as refusal:
        BootPhase.parse(json.dumps(PHASE | changes))
    assert message in str(refusal.value)


@pytest.mark.parametrize("changes", [{"phases": []}, {"instance_id": "../x"}, {"role": "mayor"}])
def test_a_record_of_a_boot_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        BootRecord.parse(json.dumps(BOOT | changes))
