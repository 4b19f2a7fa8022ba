"""Jobs on one deployed cluster: what goes wrong is said, and the groups always go back to zero."""

import hashlib
import ipaddress
import json
import re
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import ROOT, Holdfast, client_of, deploy_predictor, skip

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
    "aws": attempt(lambda: socket.create_connection(("198.51.100.1", 443), timeout=3)),
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
    """The desired capacity of every group that jobs raise, as AWS says."""
    client = client_of(session.environment(state), "autoscaling")
    names = [f"local-{role}" for role in Role]
    groups = client.describe_auto_scaling_groups(AutoScalingGroupNames=names)["AutoScalingGroups"]
    return [group["DesiredCapacity"] for group in groups]


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


@pytest.fixture(scope="module")
def trained(cluster: Holdfast) -> str:
    """The id of a job that has trained and published a model."""
    arguments = ["--workers", "2", "--servers", "1", "--wait", "--output", "json", "--", "--epochs", "2"]
    submitted = cluster("submit", "examples/digits", "--entry", "train.py", *arguments)
    assert submitted.status == 0, submitted.errors
    return str(submitted.json["job_id"])


def test_checkpoints_reach_the_shared_directory_whole(trained: str, state: Path) -> None:
    files = [path for path in (state / "efs").rglob("*") if path.is_file() and trained in str(path)]
    assert [path for path in files if path.suffix == ".params"], files
    assert not [path for path in files if path.name.startswith(".")], "a half-written file was left"


def test_a_jobs_seed_is_shown_and_its_writer_keeps_what_the_settings_say(cluster: Holdfast, state: Path) -> None:
    arguments = ["--workers", "1", "--servers", "1", "--seed", "lucky", "--wait", "--output", "json"]
    job = cluster("submit", "examples/resume", "--entry", "train.py", *arguments, "--", "--epochs", "5")
    assert job.status == 0, job.errors
    assert job.json["seed"] == hashlib.sha256(b"lucky").hexdigest()
    (folder,) = {path.parent for path in (state / "efs").rglob("step-*") if job.json["job_id"] in str(path)}
    # The losses of what was removed are in the log; the two newest stay, and the best one.
    log = cluster("logs", job.json["job_id"], "--role", "worker").output
    losses = {f"step-{int(epoch):08d}": float(loss) for epoch, loss in re.findall(r"epoch (\d)/5 loss (\S+)", log)}
    assert len(losses) == 5
    kept = {"step-00000004", "step-00000005", min(losses, key=lambda name: losses[name])}
    assert {path.parent.name for path in folder.glob("step-*/manifest.json")} == kept


#: Asks a predictor with the certificate of the host that this runs on.
ASK = """
import http.client, json, socket, ssl, sys
tls = "/var/lib/holdfast/job/tls/"
context = ssl.create_default_context(cafile=tls + "ca.pem")
context.load_cert_chain(tls + "cert.pem", tls + "key.pem")
try:
    plain = socket.create_connection((sys.argv[1], 9094), timeout=3)
    connection = http.client.HTTPConnection(sys.argv[1])
    connection.sock = context.wrap_socket(plain, server_hostname="predictor.local.holdfast")
    connection.request("POST", "/v1/predict", sys.argv[2], {"Content-Type": "application/json"})
    answer = connection.getresponse()
    print(answer.status, answer.read().decode())
except OSError as error:
    print("refused:", type(error).__name__)
"""

#: What vanilla MXNet says of the first held-out digits, from the model that the operator fetched.
EVALUATE = """
import json, sys
sys.path.insert(0, sys.argv[2])
import mxnet as mx
from digits import held_out_part
rows = held_out_part()[0][:8]
net = mx.gluon.SymbolBlock.imports(sys.argv[1] + "/digits-symbol.json", ["data"], sys.argv[1] + "/digits-0000.params")
labels = [str(int(k)) for k in net(mx.nd.array(rows)).argmax(axis=1).asnumpy()]
print(json.dumps({"rows": rows.tolist(), "labels": labels}))
"""


@pytest.fixture
def predictors(trained: str, state: Path) -> Iterator[list[dict[str, Any]]]:
    """Two predictors of the trained model, deployed from settings that name it; their group is at zero afterwards."""
    deploy_predictor(state, trained)
    scaling = client_of(session.environment(state), "autoscaling")
    scaling.set_desired_capacity(AutoScalingGroupName="local-predictor", DesiredCapacity=2)
    try:
        yield await_serving(state)
    finally:
        scaling.set_desired_capacity(AutoScalingGroupName="local-predictor", DesiredCapacity=0)


def await_serving(state: Path) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        hosts = [host for host in session.hosts(state)["hosts"] if host["role"] == "predictor"]
        logs = [exec_in_host(state, host["instance_id"], ["cat", "/var/log/holdfast/agent.log"]) for host in hosts]
        if len(hosts) == 2 and all("serving predictions" in log.stdout for log in logs):
            return hosts
        time.sleep(0.5)
    raise AssertionError(f"no predictor serves within 120 s: {[log.stdout[-2000:] for log in logs]}")


def test_a_trained_model_is_served_to_whom_the_rules_let_in(
    cluster: Holdfast, predictors: list[dict[str, Any]], trained: str, state: Path, tmp_path: Path
) -> None:
    assert cluster("fetch", trained, "--to", str(tmp_path / "model")).status == 0
    evaluated = subprocess.run(
        [ROOT / ".venv-node/bin/python", "-c", EVALUATE, tmp_path / "model", ROOT / "examples/digits"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    expected = json.loads(evaluated.stdout)
    server, client = predictors
    argv = [NODE_PYTHON, "-c", ASK, server["address"], json.dumps({"data": expected["rows"]})]

    def ask() -> str:
        return exec_in_host(state, client["instance_id"], argv).stdout.strip()

    if session.hosts(state)["mode"] == "root":
        assert ask().startswith("refused: "), "no rule lets a client in"
    ec2 = client_of(session.environment(state), "ec2")
    found = ec2.describe_instances(InstanceIds=[server["instance_id"]])["Reservations"][0]["Instances"][0]
    (group,) = found["SecurityGroups"]
    pair = {"UserIdGroupPairs": [{"GroupId": group["GroupId"]}]}
    rule = [{"IpProtocol": "tcp", "FromPort": 9094, "ToPort": 9094, **pair}]
    ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=rule)
    ec2.authorize_security_group_egress(GroupId=group["GroupId"], IpPermissions=rule)
    deadline = time.monotonic() + 30
    while (answer := ask()).startswith("refused: ") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert answer == "200 " + json.dumps({"predictions": expected["labels"]}, separators=(",", ":"))
    service = exec_in_host(state, server["instance_id"], ["cat", "/var/log/holdfast/trainer.log"]).stdout
    assert f"spiffe://local/predictor/{client['instance_id']}" in service
    if session.hosts(state)["separate_users"]:
        processes = exec_in_host(state, server["instance_id"], ["ps", "-eo", "uid,args"]).stdout.splitlines()
        owners = {line.split()[0] for line in processes if "holdfast_node.predict.service" in line}
        assert owners == {str(UIDS[User.TRAINER])}


#: Trains for ever: what ends it is the revocation.
ENDLESS = """
import time
import mxnet as mx

kv = mx.kv.create("dist_sync")
kv.init("w", mx.nd.ones((100,)))
print("TRAINING", flush=True)
deadline = time.monotonic() + 100
while time.monotonic() < deadline:
    kv.push("w", mx.nd.ones((100,)))
    out = mx.nd.zeros((100,))
    kv.pull("w", out=out)
    out.wait_to_read()
    time.sleep(0.1)
"""
CUT_OFF_SECONDS = 60
_ESTABLISHED = "01"


@pytest.fixture
def running(cluster: Holdfast, script: Path, state: Path) -> Iterator[str]:
    """A job that trains, as its id; whatever the test did, it has ended afterwards."""
    if session.hosts(state)["mode"] == "loopback":
        skip("hosts on one shared loopback have no addresses of their own to tell connections apart")
    (script / "train.py").write_text(ENDLESS)
    arguments = ["--workers", "2", "--servers", "1", "--max-restarts", "0", "--timeout", "5m", "--output", "json"]
    submitted = cluster("submit", str(script), "--entry", "train.py", *arguments)
    assert submitted.status == 0, submitted.errors
    job_id = submitted.json["job_id"]
    until(lambda: cluster("logs", job_id, "--role", "worker").output.count("TRAINING") == 2, "two workers train", 120)
    yield job_id
    cluster("status", job_id, "--wait")


def until(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return value


def established(state: Path, host: str, peer: str) -> int:
    """How many established connections a host has with a peer's address, whoever dialled."""
    wanted = f"{struct.unpack('=I', ipaddress.IPv4Address(peer).packed)[0]:08X}"
    rows = [line.split() for line in exec_in_host(state, host, ["cat", "/proc/net/tcp"]).stdout.splitlines()[1:]]
    return sum(row[2].split(":")[0] == wanted and row[3] == _ESTABLISHED for row in rows)


def test_a_revoked_worker_is_cut_off_within_a_minute(cluster: Holdfast, state: Path, running: str) -> None:
    nodes = json.loads(cluster("status", running, "--output", "json").output)["nodes"]
    worker = next(node for node in nodes if (node["role"], node["rank"]) == ("worker", 1))
    peers = [node for node in nodes if node["role"] != "worker"]

    def connections() -> int:
        return sum(established(state, peer["instance_id"], worker["address"]) for peer in peers)

    assert connections() >= len(peers), "the control: the worker talks to scheduler and server"
    revoked_at = time.monotonic()
    done = cluster("revoke", worker["instance_id"], "--reason", "a test of the cut")
    assert done.status == 0, done.errors
    until(lambda: connections() == 0, "the revoked worker's connections end", CUT_OFF_SECONDS)
    print(f"cut off {time.monotonic() - revoked_at:.1f} s after the command")
    ended = cluster("status", running, "--wait")
    assert ended.status == 3
    # Whoever notices first gives the cause: the coordinator, or an agent beside the revoked node.
    assert worker["instance_id"] in ended.errors
    assert "was revoked by an operator" in ended.errors, ended.errors
    listed = json.loads(cluster("revoke", "--list", "--output", "json").output)["revoked"]
    assert [(one["instance_id"], one["reason"]) for one in listed] == [(worker["instance_id"], "a test of the cut")]
