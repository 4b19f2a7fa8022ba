"""Booted nodes that must not become any: each says why in the same words, and a job that needs it fails with them.

The changes are made to the deployed template's user data, or to what its role may do; all else is what nodes run.
`test_script.py` has the same causes, and more, without booting.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.boot.booted import Booted, until

from holdfast_node.contract.documents import BootRecord
from holdfast_node.contract.roles import DEFAULT_PORTS, Role

pytestmark = pytest.mark.e2e

ZEROS = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an instance is made to fail, and the record that it must leave: patterns of its cause."""

    phase: str
    cause: str
    change: Callable[[str], str]
    role: Role = Role.SERVER
    status: str = "failed"
    told: bool = True


def before(line: str, *commands: str) -> Callable[[str], str]:
    """Return a change that runs commands right before the script's line that starts so."""

    def change(script: str) -> str:
        assert script.count(f"\n{line}") == 1, line
        return script.replace(f"\n{line}", "\n" + "\n".join((*commands, line)))

    return change


def value(old: str, new: str) -> Callable[[str], str]:
    """Return a change of the configuration: a pattern's first occurrence."""

    def change(script: str) -> str:
        changed, number = re.subn(old, new, script, count=1)
        assert number == 1, old
        return changed

    return change


def no_metadata(script: str) -> str:
    rules = "table inet down { chain out { type filter hook output priority 0; ip daddr 169.254.169.254 reject; }; }"
    return before("phase metadata", f"nft '{rules}'")(script).replace("phase metadata 60", "phase metadata 8")


#: A listener that is there before this line has ended.
_LISTEN = f'import os, socket, time; s = socket.create_server(("", {DEFAULT_PORTS[Role.SERVER]})); '
LISTEN = f"python3 -c '{_LISTEN}os.fork() or time.sleep(900)' < /dev/null > /dev/null 2>&1"
BUNDLE = r'("bundle":\{"bucket":"[^"]*","key":")[^"]*(","sha256":")'

FAILURES = {
    "metadata down": Failure(
        phase="metadata",
        status="timeout",
        cause="the instance metadata service gives no credentials: <urlopen error ",
        change=no_metadata,
        told=False,
    ),
    "wrong digest": Failure(
        phase="fetch",
        cause=rf"the bundle s3://cdk-\S+ must have the SHA-256 {ZEROS}, got [0-9a-f]{{64}}$",
        change=value(r'("bundle":\{[^}]*"sha256":")[0-9a-f]{64}', rf"\g<1>{ZEROS}"),
    ),
    "S3 denied": Failure(
        phase="fetch",
        cause=r"the bundle s3://cdk-\S+/other\.zip cannot be fetched: An error occurred \(AccessDenied\)",
        change=value(BUNDLE, r"\g<1>other.zip\g<2>"),
    ),
    "full disk": Failure(
        phase="wheels",
        cause="the disk is full$",
        change=before("lock=", "rm /opt/holdfast/venv/lock.sha256", 'mount -t tmpfs -o size=20m tmpfs "$disk"'),
    ),
    "a wheel that does not install": Failure(
        phase="environment",
        cause=r"the packages of requirements\.txt cannot be installed: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES",
        change=before("lock=", f'sed -i "s/sha256:[0-9a-f]*/sha256:{ZEROS}/" "$code/requirements.txt"'),
    ),
    "EFS refused": Failure(
        phase="mount",
        cause=r"the checkpoint file system fs-\S+ cannot be mounted: .*access denied by server",
        change=lambda script: script,
        role=Role.WORKER,
    ),
    "a taken port": Failure(
        phase="ports",
        cause=rf"port {DEFAULT_PORTS[Role.SERVER]} must be this node's, and something listens on it already$",
        change=before("phase ports", LISTEN),
    ),
    "enrolment refused": Failure(
        phase="enrol",
        # No group asked for it: somebody else's instance with the role's profile.
        cause=r"agent: .*enrolment refused \(not_in_group\): i-[0-9a-f]+ must be in Auto Scaling group local-server",
        change=lambda script: script,
    ),
}


@contextmanager
def denied(booted: Booted, role: Role, *actions: str) -> Iterator[None]:
    """Deny a role's nodes some actions."""
    iam, profile = booted.client("iam"), booted.template(role)["IamInstanceProfile"]
    name = profile.get("Name") or profile["Arn"].rpartition("/")[2]
    role_name = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"][0]["RoleName"]
    statement = {"Effect": "Deny", "Action": list(actions), "Resource": "*"}
    policy, document = f"denied-{secrets.token_hex(4)}", {"Version": "2012-10-17", "Statement": statement}
    iam.put_role_policy(RoleName=role_name, PolicyName=policy, PolicyDocument=json.dumps(document))
    try:
        yield
    finally:
        iam.delete_role_policy(RoleName=role_name, PolicyName=policy)


@pytest.fixture(scope="module")
def instances(booted: Booted) -> Iterator[dict[str, str]]:
    """One instance for each case, booting at the same time."""
    with denied(booted, Role.WORKER, "elasticfilesystem:ClientMount"):
        started = {}
        for case, failure in FAILURES.items():
            started[case] = booted.launch(failure.role, failure.change)
            # The next one's address is free among those of the hosts that are known.
            until(lambda instance_id=started[case]: booted.host(instance_id), f"{case} is a host")
        yield started


@pytest.mark.parametrize("case", FAILURES)
def test_an_instance_that_cannot_boot_says_why(booted: Booted, instances: dict[str, str], case: str) -> None:
    failure, instance_id = FAILURES[case], instances[case]

    def failed() -> list[dict[str, Any]]:
        records = booted.boot_records(instance_id)
        if not records or records[-1]["status"] == "ok":
            assert not records or records[-1]["phase"] != "enrol", "it booted"
            return []
        return records

    last = until(failed, f"{case}: a phase has failed\n{booted.console(instance_id)}")[-1]
    assert (last["phase"], last["status"]) == (failure.phase, failure.status), json.dumps(last)
    assert re.match(failure.cause, last["cause"]), last
    assert last["remedy"]
    line = f"holdfast: boot: {last['phase']} {last['status']}: {last['cause'][:60]}"
    until(lambda: line in booted.console(instance_id), f"{line!r} on the console", 10)
    if not failure.told:
        assert booted.stored(failure.role, instance_id) is None, "it had no credentials to store it with"
        return
    record = until(lambda: booted.stored(failure.role, instance_id), f"{case} is stored", 120)
    said = BootRecord.parse(json.dumps(record)).failure
    assert said == f"{failure.role} ({instance_id}) did not boot: {last['phase']}: {last['cause']}; {last['remedy']}"


def test_an_instance_that_cannot_boot_ends_itself(booted: Booted, instances: dict[str, str]) -> None:
    ended = instances["wrong digest"]
    until(lambda: not booted.host(ended), "it is off", 180)
    # It powered itself off, and its template makes that its end.
    found = booted.client("ec2").describe_instances(InstanceIds=[ended])["Reservations"][0]["Instances"][0]
    assert found["State"]["Name"] in ("shutting-down", "terminated")


def test_a_job_fails_with_the_cause_of_the_node_that_did_not_boot(booted: Booted) -> None:
    submit = ("submit", "examples/digits", "--entry", "train.py", "--workers", "1", "--servers", "1")
    with denied(booted, Role.WORKER, "s3:GetObject"):
        job = booted.holdfast("--output", "json", *submit).json["job_id"]
        done = booted.holdfast("status", job, "--wait")
    assert done.status == 3
    view = booted.holdfast("--output", "json", "status", job).json
    found = re.match(
        r"worker \((i-[0-9a-f]+)\) did not boot: fetch: the bundle s3://\S+ cannot be fetched: "
        r"An error occurred \(AccessDenied\)",
        view["cause"],
    )
    assert found, view["cause"]
    boots = {boot["instance_id"]: boot for boot in booted.holdfast("--output", "json", "nodes", job).json["nodes"]}
    assert (boots[found[1]]["status"], boots[found[1]]["role"]) == ("failed", "worker")
    shown = booted.holdfast("status", job).output
    assert f"worker ({found[1]}) did not boot: fetch failed" in shown
