"""The main job on one machine: deploy, train, verify, report, tear down. It succeeds only if all of it is true."""

import contextlib
import json
import os
import signal
import subprocess
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import botocore.session
import click
from botocore.config import Config

from holdfast_local import session
from holdfast_local.errors import LocalError
from holdfast_local.session import Progress
from holdfast_node.contract.roles import DIALS, Role

WORKERS, SERVERS = 2, 2
MINIMUM_ACCURACY = 0.95
JOB_LIMIT = "5m"
COMMAND_SECONDS = 480.0


@dataclass
class Report:
    """What the demo found: facts, and claims that each held or did not."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    claims: list[tuple[str, bool]] = field(default_factory=list)

    def say(self, name: str, value: object) -> None:
        """Add a fact."""
        self.facts.append((name, str(value)))

    def claim(self, text: str, holds: bool) -> None:
        """Add a claim that the demo stands or falls with."""
        self.claims.append((text, holds))

    @property
    def passed(self) -> bool:
        """Whether there were claims and all of them held."""
        return bool(self.claims) and all(holds for _, holds in self.claims)

    def show(self) -> None:
        """Print the report."""
        click.echo("")
        for name, value in self.facts:
            click.echo(textwrap.fill(value, 116, initial_indent=f"  {name:22} ", subsequent_indent=" " * 25))
        click.echo("")
        for text, holds in self.claims:
            click.echo(f"  {click.style('yes', fg='green') if holds else click.style('NO ', fg='red')}  {text}")
        click.echo("")


def run_demo(*, isolation: str, keep: bool, progress: Progress) -> int:
    """Run the whole demo; return 0 only if every claim of its report holds.

    Raises:
        LocalError: a step could not be done at all; everything was torn down first.
    """
    report = Report()
    started = time.monotonic()
    session.up(isolation=isolation, settings="local", progress=progress)
    left = ""
    try:
        _describe_deployment(report)
        with TemporaryDirectory(prefix="holdfast-demo-") as scratch:
            _train_and_verify(report, Path(scratch), progress)
    finally:
        if not keep:
            left = _tear_down(progress)
    if not keep:
        report.claim("nothing is left: no process, mount, network link or file", not left)
    report.say("seconds in all", round(time.monotonic() - started))
    report.show()
    click.echo("all of it is true" if report.passed else "the demo failed: see the lines marked NO")
    return 0 if report.passed else 1


def _tear_down(progress: Progress) -> str:
    """End the cluster and return what is left of it, in words; why the demo failed stays what is raised."""
    with session.undisturbed():
        progress("tearing down")
        try:
            session.down()
            left = "; ".join(session.leftovers())
        except LocalError as error:
            left = str(error)
        if left:
            progress(left)
    return left


def _cloudformation(environment: Mapping[str, str]) -> Any:
    """Return a client of the embedded AWS that no profile, file, token or proxy of the user's has a say in."""
    variables: dict[str, Any] = {
        name: (None, [], None, None) for name in ("profile", "config_file", "credentials_file")
    }
    return boto3.Session(botocore_session=botocore.session.Session(session_vars=variables)).client(
        "cloudformation",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        verify=environment["AWS_CA_BUNDLE"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        config=Config(proxies={}, connect_timeout=5, read_timeout=60),
    )


def _describe_deployment(report: Report) -> None:
    environment, hosts = session.environment(), session.hosts()
    client = _cloudformation(environment)
    stacks = [s for s in client.describe_stacks()["Stacks"] if s["StackName"].startswith("Holdfast-")]
    resources = [
        resource["ResourceType"]
        for stack in stacks
        for page in client.get_paginator("list_stack_resources").paginate(StackName=stack["StackName"])
        for resource in page["StackResourceSummaries"]
    ]
    for stack in sorted(stacks, key=lambda stack: stack["StackName"]):
        report.say("stack", f"{stack['StackName']} {stack['StackStatus']}")
    frequent = ", ".join(f"{count} {kind.removeprefix('AWS::')}" for kind, count in Counter(resources).most_common(4))
    report.say("resources", f"{len(resources)} ({frequent}, …)")
    report.claim("the three stacks are deployed", sum(s["StackStatus"].endswith("_COMPLETE") for s in stacks) == 3)
    report.say("hosts are kept apart by", hosts["mode"])
    for line in hosts["not_enforced"]:
        report.say("  not enforced here", line)


def _train_and_verify(report: Report, scratch: Path, progress: Progress) -> None:
    root = session.checkout()
    submit = ["submit", str(root / "examples/digits"), "--entry", "train.py", "--timeout", JOB_LIMIT, "--wait"]
    job = _holdfast(*submit, "--workers", str(WORKERS), "--servers", str(SERVERS))["job_id"]
    progress(f"job {job} has succeeded")
    _describe_job(report, _holdfast("status", job))
    model = scratch / "model"
    _holdfast("fetch", job, "--to", str(model))
    report.claim("the model's signature is verified", True)
    progress("model fetched and verified")
    accuracy = _evaluate(root, model)
    report.say("accuracy", f"{accuracy:.4f} on held-out digits")
    report.claim(f"accuracy is at least {MINIMUM_ACCURACY}", accuracy >= MINIMUM_ACCURACY)
    report.claim("a flipped byte in the fetched model is refused", _flipped_byte_is_refused(report, model))


def _describe_job(report: Report, status: dict[str, Any]) -> None:
    nodes = status["nodes"]
    for node in nodes:
        report.say(f"{node['role']} {node['rank']}", f"{node['address']:14} {node['spiffe_id']}")
    connections = sum(node["tls_connections"] or 0 for node in nodes)
    report.say("TLS connections", f"{connections} mutual TLS 1.3 handshakes accepted between nodes")
    report.say("first training step", f"{status['first_step_seconds']} s after the job was started")
    expected = 1 + SERVERS + WORKERS
    identities = {node["spiffe_id"] for node in nodes}
    report.claim(f"{expected} nodes trained, each with its own identity", len(identities) == len(nodes) == expected)
    report.claim("every pair of peers spoke mutual TLS, and no other pair", all(_spoke_to_all(n, nodes) for n in nodes))


def _spoke_to_all(node: dict[str, Any], nodes: list[dict[str, Any]]) -> bool:
    """Whether a node accepted TLS from exactly the nodes that dial its role, by the names in their certificates."""
    peers = {(peer["role"], peer["instance_id"]) for peer in nodes if peer["role"] in DIALS[Role(node["role"])]}
    accepted = {(name.split(".")[1], name.split(".")[0]) for name in node["tls_peers"]}
    return accepted == peers


def _evaluate(root: Path, model: Path) -> float:
    result = subprocess.run(
        [str(root / ".venv-node/bin/python"), str(root / "examples/digits/evaluate.py"), str(model)],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    if result.returncode:
        raise LocalError(f"the evaluation failed: {result.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(result.stdout.splitlines()[-1])["accuracy"])


def _flipped_byte_is_refused(report: Report, model: Path) -> bool:
    victim = max((path for path in model.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    try:
        _holdfast("verify-model", str(model))
    except LocalError as refusal:
        report.say("flipped byte", refusal)
        return victim.name in str(refusal)
    return False


def _holdfast(*arguments: str) -> Any:
    """Run the operator's real command line against the local cluster; return what it prints as JSON."""
    command = [str(session.checkout() / ".venv/bin/holdfast"), "--local", "--output", "json", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    late = threading.Event()

    def give_up() -> None:
        late.set()
        _kill(process)

    assert process.stdout is not None and process.stderr is not None
    timer = threading.Timer(COMMAND_SECONDS, give_up)
    timer.start()
    # Both pipes are read as they fill: a child that waits for one would not close the other.
    with process.stdout, process.stderr, ThreadPoolExecutor(1) as pool:
        try:
            answer = pool.submit(process.stdout.read)
            errors = []
            for line in process.stderr:
                errors.append(line.rstrip())
                if not line.startswith(("error", "{")):
                    click.echo(f"          {line.rstrip()}", err=True)
            output = answer.result()
            process.wait()
        finally:
            timer.cancel()
            _kill(process)
            process.wait()
    if late.is_set():
        raise LocalError(f"`holdfast {arguments[0]}` must end within {COMMAND_SECONDS:.0f} s and did not")
    if process.returncode:
        raise LocalError(_error_text(errors, output) or f"holdfast {arguments[0]} ended with {process.returncode}")
    return json.loads(output)


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kill a command that leads a session, with everything it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _error_text(errors: list[str], output: str) -> str:
    for line in reversed([*errors, *output.splitlines()]):
        try:
            return str(json.loads(line)["error"])
        except (ValueError, KeyError, TypeError):
            if line.startswith("error: "):
                return line.removeprefix("error: ")
    return ""
