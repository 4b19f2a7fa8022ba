"""Status: what the execution and the scheduler's record say, readable whatever a node wrote into it."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from holdfast_cli.aws import Cluster
from holdfast_cli.status import job, watch
from holdfast_node.contract.layout import JobsBucket

NODE = {
    "role": "worker",
    "instance_id": "i-0123456789abcdef0",
    "address": "10.0.0.5",
    "spiffe_id": "spiffe://demo/worker/i-0123456789abcdef0",
    "serial": "0a",
    "rank": 1,
    "status": None,
    "cause": "",
    "late_since": None,
    "tls_connections": 7,
    "tls_peers": ["i-0123456789abcdef1.server.demo.holdfast"],
    "something_new": 1,
}


def start(cluster: Cluster, name: str, servers: int) -> str:
    cluster.client("stepfunctions").start_execution(
        stateMachineArn=cluster.state_machine, name=name, input=json.dumps({"servers": servers})
    )
    return name


def end(cluster: Cluster, name: str, servers: int) -> str:
    start(cluster, name, servers)
    for _ in watch(cluster, name, poll_seconds=0.1):
        pass
    return name


def write(cluster: Cluster, job_id: str, record: object) -> None:
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    cluster.client("s3").put_object(Bucket=cluster.jobs_bucket, Key=JobsBucket.status(job_id), Body=data)


def test_status_shows_phase_nodes_and_identities(on_demo, demo) -> None:
    name = start(demo, "shows-nodes", 3)
    now = datetime.now(UTC).timestamp()
    record = {"job_id": name, "phase": "running", "cause": None, "seed": "0f" * 32, "nodes": [NODE]}
    write(demo, name, record | {"first_step_at": now + 30})
    text = on_demo("status", name).stdout
    assert "state       running" in text
    assert f"seed        {'0f' * 32}" in text
    assert "first step  after " in text
    assert "worker 1  10.0.0.5  spiffe://demo/worker/i-0123456789abcdef0  7    running" in text


def test_status_shows_who_is_slow_and_for_how_long(on_demo, demo) -> None:
    name = start(demo, "slow", 3)
    since = datetime.now(UTC).timestamp() - 65
    slow, ended = NODE | {"late_since": since}, NODE | {"rank": 2, "late_since": since, "status": 0}
    odd = NODE | {"rank": 3, "late_since": 1e999}
    write(demo, name, {"phase": "running", "nodes": [slow, ended, odd]})
    rows = [line.split("  ")[-1].strip() for line in on_demo("status", name).stdout.splitlines() if "spiffe" in line]
    assert rows[0].startswith("slow for 1m 0")
    assert rows[1:] == ["ok", "running"]
    nodes = json.loads(on_demo("--output", "json", "status", name).stdout)["nodes"]
    assert [node["late_since"] for node in nodes] == [since, since, None]


def test_status_shows_the_generation_and_why_the_earlier_ones_ended(on_demo, demo) -> None:
    name = start(demo, "generations", 3)
    generations = [
        {"generation": 1, "started_at": 100.0, "ended_at": 170.0, "cause": "worker 0 (i-1): killed by signal 9"},
        {"generation": 2, "started_at": 175.0, "ended_at": None, "cause": None},
    ]
    write(demo, name, {"phase": "running", "generation": 2, "max_restarts": 2, "generations": generations})
    text = on_demo("status", name).stdout
    assert "generation  2 of at most 3" in text
    assert "  1 ended   after 1m 10s: worker 0 (i-1): killed by signal 9" in text
    view = json.loads(on_demo("--output", "json", "status", name).stdout)
    assert view["restarts"] == [{"generation": 1, "cause": "worker 0 (i-1): killed by signal 9", "seconds": 70.0}]
    assert (view["generation"], view["max_restarts"]) == (2, 2)


def test_status_as_json_has_every_field_of_a_node(on_demo, demo) -> None:
    name = start(demo, "as-json", 3)
    write(demo, name, {"phase": "running", "nodes": [NODE]})
    view = json.loads(on_demo("--output", "json", "status", name).stdout)
    assert (view["phase"], view["execution"], view["stopped_at"]) == ("running", "RUNNING", None)
    assert view["nodes"] == [{key: value for key, value in NODE.items() if key != "something_new"}]


PHASES = {
    "no record yet": (None, 3, "starting instances", None),
    "gathering": ({"phase": "gathering"}, 3, "gathering", None),
    "groups are being lowered": (
        {"phase": "failed", "cause": "server 0: killed"},
        3,
        "cleaning up",
        "server 0: killed",
    ),
    "succeeded": ({"phase": "succeeded"}, 1, "succeeded", None),
    "a success is not a failure because of an old cause": ({"cause": "old"}, 1, "succeeded", None),
    "failed, as the nodes say": ({"phase": "failed", "cause": "server 0: killed"}, 2, "failed", "server 0: killed"),
    "failed, as the execution says": (None, 2, "failed", "JobFailed: worker 0: ValueError: no data"),
    "a record that claims success of a failed job": (
        {"phase": "succeeded"},
        2,
        "failed",
        "JobFailed: worker 0: ValueError: no data",
    ),
    "too deep": (b"[" * 300_000, 3, "starting instances", "status/{name}.json is not JSON"),
    "not JSON": (b"\xff", 3, "starting instances", "status/{name}.json is not JSON"),
    "not an object": ([], 3, "starting instances", None),
    "wrong types": ({"phase": 7, "nodes": {"a": 1}, "first_step_at": [], "cause": None}, 3, "7", None),
    "generations of wrong types": (
        {"phase": "running", "generation": "x", "generations": [1, {"cause": 5, "started_at": "y"}]},
        3,
        "running",
        None,
    ),
    "nodes that are no objects": ({"phase": "running", "nodes": [1, None, "x"]}, 3, "running", None),
    "an absurd time": ({"phase": "running", "first_step_at": 1e300}, 3, "running", None),
}


@pytest.mark.parametrize("case", PHASES)
def test_phase_and_cause(case, demo) -> None:
    record, servers, phase, cause = PHASES[case]
    name = f"phase-{list(PHASES).index(case)}"
    if servers == 3:
        start(demo, name, servers)
    else:
        end(demo, name, servers)
    if record is not None:
        write(demo, name, record)
    view = job(demo, name)
    assert (view.phase, view.cause) == (phase, cause and cause.format(name=name))


def test_stopped_job_was_aborted(demo) -> None:
    start(demo, "stopped", 3)
    demo.client("stepfunctions").stop_execution(executionArn=demo.execution_arn("stopped"))
    view = job(demo, "stopped")
    assert (view.phase, view.ended, view.succeeded) == ("was aborted", True, False)


def test_no_control_character_of_a_node_reaches_the_terminal(on_demo, demo) -> None:
    name = start(demo, "escapes", 3)
    evil = NODE | {"cause": "\x1b]0;owned\x07\x9b2J\u202e", "role": "wor\rker", "address": "a\nb"}
    write(demo, name, {"phase": "\x1b[2Jrunning", "cause": "[red]no\x08[/red]", "nodes": [evil]})
    output = on_demo("status", name).stdout
    assert all(character.isprintable() or character == "\n" for character in output)
    assert r"\x1b]0;owned\x07\x9b2J\u202e" in output and r"\x1b[2Jrunning" in output
    assert r"[red]no\x08[/red]" in output


def test_latest_jobs_come_newest_first(on_demo, demo) -> None:
    first, second = end(demo, "table-a", 1), end(demo, "table-b", 2)
    rows = [line.split() for line in on_demo("status").stdout.splitlines()]
    assert rows[0] == ["JOB", "STATE", "STARTED", "TOOK"]
    ids = [row[0] for row in rows[1:]]
    assert ids.index(second) < ids.index(first)
    assert next(row for row in rows if row[0] == second)[1] == "failed"


def test_unknown_job_names_the_latest(on_demo, demo) -> None:
    end(demo, "known-job", 1)
    result = on_demo("status", "unknown-job")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cluster demo has no job unknown-job; its latest: known-job")


def test_cluster_without_jobs_says_how_to_start_one(aws, holdfast) -> None:
    result = holdfast("--cluster", "other", "status")
    assert result.stdout == "cluster other has run no job yet; start one with `holdfast submit`\n"
    result = holdfast("--cluster", "other", "logs")
    assert result.stderr.startswith("error: cluster other has run no job yet; start one with `holdfast submit")


def test_status_wait_reports_each_phase_once_and_ends_with_the_job(on_demo, demo) -> None:
    name = end(demo, "waited-for", 2)
    result = on_demo("status", name, "--wait")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[0] == f"{name}: failed"


def test_terminated_wait_ends_like_an_interrupted_one(demo, clusters, tmp_path) -> None:
    name = start(demo, "terminated", 3)
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from holdfast_cli.main import main; main()",
            "--cluster",
            "demo",
            "status",
            name,
            "--wait",
        ],
        env={"PYTHONPATH": f"{root}/cli:{root}/node", "PATH": os.environ["PATH"], "HOME": str(tmp_path)} | clusters,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == f"{name}: starting instances\n"
    process.terminate()
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "")
    assert errors == f"error: interrupted; the job goes on: `holdfast status {name} --wait` watches it again\n"


def test_the_state_machine_s_own_sweeps_are_no_jobs(demo) -> None:
    sweep = start(demo, "01234567-89ab-cdef-0123-456789abcdef", 3)
    job = start(demo, "a-job-beside-a-sweep", 3)
    running = [execution["name"] for execution in demo.executions(statusFilter="RUNNING")]
    assert job in running
    assert sweep not in running
