"""Jobs on one deployed cluster: what goes wrong is said, and the groups always go back to zero."""

import json
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from tests.e2e.support import Holdfast, skip

from holdfast_local import session
from holdfast_local.hosts import exec_in_host
from holdfast_node.contract.layout import UIDS, User
from holdfast_node.contract.roles import DEFAULT_PORTS, Role

pytestmark = pytest.mark.e2e


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/train.py").write_text(
        "import mxnet as mx\nkv = mx.kv.create('dist_sync')\nraise ValueError('the data has no labels')\n"
    )
    return tmp_path / "job"


PROBE = """
import json, os, socket, time, urllib.request
import mxnet as mx

def attempt(action):
    try:
        return repr(action())[:80]
    except Exception as error:
        return "refused: " + type(error).__name__

def ask(url, method="GET"):
    request = urllib.request.Request(url, method=method, headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    return urllib.request.urlopen(request, timeout=3).status

kv = mx.kv.create("dist_sync")
outcome = {
    "uid": os.getuid(),
    "metadata": attempt(lambda: ask("http://169.254.169.254/latest/api/token", "PUT")),
    "aws": attempt(lambda: socket.create_connection(("127.0.0.1", 4566), timeout=3)),
    "the node's private key": attempt(lambda: open("/var/lib/holdfast/tls/key.pem").read()),
    "the agent's files": attempt(lambda: os.listdir("/var/lib/holdfast/agent")),
    "its own code": attempt(lambda: open(__file__, "a")),
    "credentials": sorted(name for name in os.environ if name.startswith("AWS_")),
    "root": attempt(lambda: os.setuid(0)),
}
print("PROBE " + json.dumps(outcome), flush=True)
# The job goes on until the test has dialled its nodes.
deadline = time.monotonic() + 120
while not os.path.exists("/tmp/dialled") and time.monotonic() < deadline:
    time.sleep(0.1)
raise SystemExit("probed")
"""

DIAL = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    print("connected")
except OSError as error:
    print("refused: " + type(error).__name__)
"""
NODE_PYTHON = "/opt/holdfast/venv/bin/python"


def capacities(state: Path) -> list[int]:
    """The desired capacity of every group of the cluster, as AWS says."""
    environment = session.environment(state)
    client = boto3.client(
        "autoscaling",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        verify=environment["AWS_CA_BUNDLE"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    return [group["DesiredCapacity"] for group in client.describe_auto_scaling_groups()["AutoScalingGroups"]]


def test_script_that_raises_fails_the_job_with_its_own_words(cluster: Holdfast, script: Path, state: Path) -> None:
    job = cluster("submit", str(script), "--entry", "train.py", "--workers", "1", "--servers", "1", "--wait")
    assert job.status == 3
    assert "ValueError: the data has no labels" in job.errors
    assert "Traceback" not in job.errors
    assert capacities(state) == [0, 0, 0]
    deadline = time.monotonic() + 20
    while session.hosts(state)["hosts"]:
        assert time.monotonic() < deadline, "hosts outlive their instances"
        time.sleep(0.2)


def test_logs_show_the_script_s_traceback(cluster: Holdfast) -> None:
    logs = cluster("logs", "--role", "worker")
    assert logs.status == 0
    assert "raise ValueError('the data has no labels')" in logs.output


def test_wrong_entry_is_refused_before_anything_runs(cluster: Holdfast, script: Path, state: Path) -> None:
    job = cluster("submit", str(script), "--entry", "trian.py")
    assert job.status == 1
    assert "trian.py" in job.errors
    assert "train.py" in job.errors
    assert capacities(state) == [0, 0, 0]


def test_more_workers_than_the_settings_allow_are_refused(cluster: Holdfast, script: Path, state: Path) -> None:
    job = cluster("submit", str(script), "--entry", "train.py", "--workers", "99")
    assert job.status == 1
    assert "workers must be between 1 and" in job.errors
    assert "got 99" in job.errors
    assert capacities(state) == [0, 0, 0]


def test_script_has_no_credentials_no_metadata_and_no_network_but_the_overlay(
    cluster: Holdfast, script: Path, state: Path
) -> None:
    require_separate_users(state)
    (script / "train.py").write_text(PROBE)
    submitted = cluster(
        "submit", str(script), "--entry", "train.py", "--workers", "1", "--servers", "1", "--output", "json"
    )
    assert submitted.status == 0, submitted.errors
    outcome = probed(cluster)
    nodes = {host["role"]: host for host in session.hosts(state)["hosts"]}
    worker, server = nodes["worker"]["instance_id"], nodes["server"]["address"]
    dialled = {user: dial(state, worker, server, user) for user in (User.TUNNEL, User.TRAINER)}
    exec_in_host(state, worker, ["touch", "/tmp/dialled"], user=User.TRAINER)
    assert cluster("status", submitted.json["job_id"], "--wait").status == 3
    assert outcome.pop("uid") == UIDS[User.TRAINER]
    assert outcome.pop("credentials") == []
    assert {name: text for name, text in outcome.items() if not text.startswith("refused: ")} == {}
    # The same dial to the same listener, by who may and by who may not.
    assert dialled[User.TUNNEL] == "connected"
    assert dialled[User.TRAINER].startswith("refused: ")


def require_separate_users(state: Path) -> None:
    found = session.hosts(state)
    if not found["separate_users"]:
        skip(f"the users of this machine's hosts ({found['mode']}) share one id; run it as root, or install uidmap")


def probed(cluster: Holdfast) -> dict[str, Any]:
    """What the script of the running job says of itself."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for line in cluster("logs", "--role", "worker").output.splitlines():
            if "PROBE " in line:
                return dict(json.loads(line.split("PROBE ", 1)[1]))
    raise AssertionError("the script has not probed within 90 s")


def dial(state: Path, worker: str, server: str, user: User) -> str:
    """How a dial from a worker's host to a server's real address ends for one of the host's users."""
    argv = [NODE_PYTHON, "-c", DIAL, server, str(DEFAULT_PORTS[Role.SERVER])]
    done = exec_in_host(state, worker, argv, user=user)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_checkpoints_reach_the_shared_directory_whole(cluster: Holdfast, state: Path) -> None:
    arguments = ["--workers", "2", "--servers", "1", "--wait", "--output", "json", "--", "--epochs", "2"]
    submitted = cluster("submit", "examples/digits", "--entry", "train.py", *arguments)
    assert submitted.status == 0, submitted.errors
    files = [path for path in (state / "efs").rglob("*") if path.is_file() and submitted.json["job_id"] in str(path)]
    assert [path for path in files if path.suffix == ".params"], files
    assert not [path for path in files if path.name.startswith(".")], "a half-written file was left"
