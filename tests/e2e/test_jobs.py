"""Jobs on one deployed cluster: what goes wrong is said, and the groups always go back to zero."""

import json
import time
from pathlib import Path

import boto3
import pytest
from tests.e2e.support import Holdfast

from holdfast_local import session
from holdfast_node.contract.layout import UIDS, User

pytestmark = pytest.mark.e2e


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/train.py").write_text(
        "import mxnet as mx\nkv = mx.kv.create('dist_sync')\nraise ValueError('the data has no labels')\n"
    )
    return tmp_path / "job"


PROBE = """
import json, os, socket, urllib.request
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
    "a peer's real address": attempt(lambda: socket.create_connection(("10.77.0.4", 9092), timeout=3)),
    "the node's private key": attempt(lambda: open("/var/lib/holdfast/tls/key.pem").read()),
    "the agent's files": attempt(lambda: os.listdir("/var/lib/holdfast/agent")),
    "its own code": attempt(lambda: open(__file__, "a")),
    "credentials": sorted(name for name in os.environ if name.startswith("AWS_")),
    "root": attempt(lambda: os.setuid(0)),
}
print("PROBE " + json.dumps(outcome), flush=True)
raise SystemExit("probed")
"""


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
    assert session.hosts(state)["mode"] == "root", "this claim is for hosts with users of their own"
    (script / "train.py").write_text(PROBE)
    cluster("submit", str(script), "--entry", "train.py", "--workers", "1", "--servers", "1", "--wait")
    logs = cluster("logs", "--role", "worker")
    line = next(line for line in logs.output.splitlines() if "PROBE " in line)
    outcome = json.loads(line.split("PROBE ", 1)[1])
    assert outcome.pop("uid") == UIDS[User.TRAINER]
    assert outcome.pop("credentials") == []
    assert {name: text for name, text in outcome.items() if not text.startswith("refused: ")} == {}


def test_checkpoints_reach_the_shared_directory_whole(cluster: Holdfast, state: Path) -> None:
    arguments = ["--workers", "2", "--servers", "1", "--wait", "--output", "json", "--", "--epochs", "2"]
    submitted = cluster("submit", "examples/digits", "--entry", "train.py", *arguments)
    assert submitted.status == 0, submitted.errors
    files = [path for path in (state / "efs").rglob("*") if path.is_file() and submitted.json["job_id"] in str(path)]
    assert [path for path in files if path.suffix == ".params"], files
    assert not [path for path in files if path.name.startswith(".")], "a half-written file was left"
