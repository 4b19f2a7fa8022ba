"""Logs: prefixed, in order, followed to the end, and harmless to the terminal."""

import contextlib
import json
import threading
import time

import pytest

from holdfast_cli.aws import Cluster
from holdfast_cli.logs import follow, read
from holdfast_node.contract.roles import Role

WORKER, SERVER = "i-0aaaaaaaaaaaaaaa1", "i-0bbbbbbbbbbbbbbb2"


def put(cluster: Cluster, stream: str, *messages: str, at: int = 0) -> None:
    logs = cluster.client("logs")
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_stream(logGroupName=cluster.log_group, logStreamName=stream)
    stamp = int(time.time() * 1000) + at
    logs.put_log_events(
        logGroupName=cluster.log_group,
        logStreamName=stream,
        logEvents=[{"timestamp": stamp, "message": message} for message in messages],
    )


def start(cluster: Cluster, name: str, servers: int = 3) -> str:
    cluster.client("stepfunctions").start_execution(
        stateMachineArn=cluster.state_machine, name=name, input=json.dumps({"servers": servers})
    )
    return name


@pytest.fixture
def logged(demo: Cluster, request: pytest.FixtureRequest) -> str:
    name = start(demo, request.node.name.replace("_", "-")[:60].rstrip("-"))
    put(demo, f"{name}/worker/{WORKER}/trainer", "epoch 0", "epoch 1", "epoch 2", at=-2000)
    put(demo, f"{name}/server/{SERVER}/agent", "ready", at=-3000)
    put(demo, f"{name}-other/worker/{WORKER}/trainer", "another job's line")
    return name


def test_logs_prefix_lines_with_role_instance_and_service(on_demo, logged) -> None:
    assert on_demo("logs", logged).stdout.splitlines() == [
        f"server/{SERVER}/agent | ready",
        f"worker/{WORKER}/trainer | epoch 0",
        f"worker/{WORKER}/trainer | epoch 1",
        f"worker/{WORKER}/trainer | epoch 2",
    ]


def test_logs_of_one_role_leave_the_others_out(on_demo, logged) -> None:
    assert on_demo("logs", logged, "--role", "server").stdout == f"server/{SERVER}/agent | ready\n"


def test_tail_keeps_the_last_lines(demo, logged) -> None:
    assert [line.message for line in read(demo, logged, tail=2)] == ["epoch 1", "epoch 2"]
    assert read(demo, logged, tail=0) == []


def test_logs_without_a_job_are_the_latest_job_s(on_demo, logged) -> None:
    assert f"server/{SERVER}/agent | ready" in on_demo("logs").stdout


def test_logs_as_json_are_one_document(on_demo, logged) -> None:
    lines = json.loads(on_demo("--output", "json", "logs", logged, "--role", "worker").stdout)["lines"]
    assert [(line["role"], line["service"], line["message"]) for line in lines[:1]] == [
        ("worker", "trainer", "epoch 0")
    ]


def test_control_characters_and_lines_within_an_event_stay_prefixed(on_demo, demo) -> None:
    name = start(demo, "evil-lines")
    put(demo, f"{name}/worker/{WORKER}/trainer", "a\x1b[2J\tb\r\nworker/i-fake/agent | forged\n")
    assert on_demo("logs", name).stdout.splitlines() == [
        rf"worker/{WORKER}/trainer | a\x1b[2J   b",
        f"worker/{WORKER}/trainer | worker/i-fake/agent | forged",
    ]


def test_follow_yields_lines_until_the_job_has_ended(demo) -> None:
    name = start(demo, "followed")
    stream = f"{name}/worker/{WORKER}/trainer"
    put(demo, stream, "first")
    got: list[str] = []
    arrived = threading.Event()

    def reader() -> None:
        for line in follow(demo, name, Role.WORKER, poll_seconds=0.05):
            got.append(line.message)
            arrived.set()

    thread = threading.Thread(target=reader)
    thread.start()
    assert arrived.wait(10)
    put(demo, stream, "second")
    put(demo, stream, "last words")
    demo.client("stepfunctions").stop_execution(executionArn=demo.execution_arn(name))
    thread.join(timeout=20)
    assert not thread.is_alive() and got == ["first", "second", "last words"]


def test_a_job_without_lines_is_told_from_no_job(on_demo, demo) -> None:
    name = start(demo, "silent")
    result = on_demo("logs", name)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"job {name} has logged nothing yet; --follow waits for it\n"
    assert on_demo("logs", "no-such-job").stderr.startswith("error: cluster demo has no job no-such-job; its latest:")


def test_follow_with_json_is_a_usage_error(on_demo, demo) -> None:
    result = on_demo("--output", "json", "logs", "--follow")
    assert result.exit_code == 2
    assert "--follow does not go with --output json, which is one document" in result.stderr
