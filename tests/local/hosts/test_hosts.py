"""What a host in namespaces is, has, and does not have: as root, and as a user with and without subordinate ids."""

import json
from pathlib import Path

import pytest
from tests.local.hosts.lab import ROOT, Lab, Machine

from holdfast_node.contract.layout import UIDS, NodePaths, User
from holdfast_node.contract.roles import Role

IMDS = """
import urllib.request, urllib.error
def ask(path, method="GET", **headers):
    request = urllib.request.Request("http://169.254.169.254/latest/" + path, method=method, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=5).read().decode()
    except urllib.error.HTTPError as error:
        return error.code
def token():
    return ask("api/token", "PUT", **{"X-aws-ec2-metadata-token-ttl-seconds": "60"})
"""
AWS = """
import os, sys
sys.path.insert(0, "/opt/holdfast/host")
from pathlib import Path
from holdfast_local.hosts.setup import HostSetup
os.environ.update(HostSetup.parse(Path("/run/holdfast-setup.json").read_bytes()).aws_environment())
import boto3
"""


class Pair:
    """Two running hosts of one hypervisor."""

    def __init__(self, machine: Machine, lab: Lab) -> None:
        self.machine, self.lab = machine, lab
        self.a, self.b = lab.launch(Role.WORKER), lab.launch(Role.SERVER)
        for instance in (self.a, self.b):
            machine.await_phase(instance)


@pytest.fixture(scope="module")
def pair(any_machine: Machine, lab: Lab) -> Pair:
    return Pair(any_machine, lab)


def test_a_host_has_its_instances_address_name_and_role(pair: Pair) -> None:
    described = pair.lab.ec2.describe_instances(InstanceIds=[pair.a])["Reservations"][0]["Instances"][0]
    host = pair.machine.host(pair.a)
    assert (host["address"], host["role"], host["group"]) == (described["PrivateIpAddress"], "worker", "demo-worker")
    assert host["address"] in pair.machine.run(pair.a, "ip", "-4", "-o", "address").stdout
    assert pair.machine.run(pair.a, "hostname").stdout.strip() == f"ip-{host['address'].replace('.', '-')}"


def test_a_host_has_no_route_out_of_its_network(pair: Pair) -> None:
    routes = pair.machine.run(pair.a, "ip", "-4", "route").stdout.splitlines()
    assert [route.split()[0] for route in routes] == ["10.42.0.0/16", "198.51.100.0/24"]  # the VPC; S3's stand-in
    assert routes[0].startswith("10.42.0.0/16 dev eth0")


def test_the_services_run_and_the_firewall_ended_first(pair: Pair) -> None:
    services = pair.machine.host(pair.a)["services"]
    assert list(services)[:2] == ["firewall", "agent"]
    assert (services["firewall"], services["agent"]) == ("exited 0", "running")


def test_directories_have_the_owners_and_modes_of_the_contract(pair: Pair) -> None:
    paths = NodePaths()
    expected = {
        paths.state: "700 agent agent",
        paths.tls: "2750 agent tunnel",
        paths.job: "2750 agent trainer",
        paths.work: "2750 trainer agent",
        paths.run: "755 root root",
        paths.logs: "755 root root",
        paths.checkpoints: "700 trainer trainer",
        paths.config.parent: "755 root root",
    }
    listed = pair.machine.run(pair.a, "stat", "--format=%a %U %G", *map(str, expected)).stdout
    if not pair.machine.state()["separate_users"]:
        expected = {path: f"{text.split()[0]} root root" for path, text in expected.items()}
    assert listed.replace("holdfast-", "").splitlines() == list(expected.values())


def test_a_host_sees_nothing_of_the_machine(pair: Pair) -> None:
    state_dir = pair.machine.state_dir
    hidden = [str(path) for path in (state_dir, pair.lab.public, ROOT, Path.home() / ".bashrc", "/etc/shadow", "/sys")]
    code = f"import os; print([path for path in {hidden!r} if os.path.exists(path)])"
    assert pair.machine.python(pair.a, code) == "[]"


@pytest.mark.parametrize("user", [None, *User], ids=str)
def test_no_process_of_a_host_finds_the_root_key(pair: Pair, user: User | None) -> None:
    secret, key = (pair.lab.environment[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"))
    # In halves, so that this very command is not what is found.
    halves = [(text[:8], text[8:]) for text in (secret, key)]
    code = f"""
import os
found, seen = [], 0
for folder, _, names in os.walk("/"):
    if folder.startswith(("/usr", "/root", "/opt/holdfast/venv", "/proc/sys")):
        continue
    for name in names:
        path = os.path.join(folder, name)
        try:
            if folder.startswith("/proc") and name not in ("environ", "cmdline") or not os.path.isfile(path):
                continue
            data = open(path, "rb").read(1 << 20)
        except OSError:
            continue
        seen += 1
        if any((first + second).encode() in data for first, second in {halves!r}):
            found.append(path)
print(found, seen > 20)
"""
    assert pair.machine.python(pair.a, code, user=user) == "[] True"


def test_a_host_sees_only_its_own_processes(pair: Pair) -> None:
    pids = pair.machine.python(pair.a, "import os; print([p for p in os.listdir('/proc') if p.isdigit()])")
    assert "'1'" in pids
    assert len(json.loads(pids.replace("'", '"'))) < 10


def test_the_root_of_a_host_cannot_mount_or_make_devices(pair: Pair) -> None:
    assert "ermission denied" in pair.machine.run(pair.a, "mount", "-t", "tmpfs", "none", "/mnt").stderr
    assert "not permitted" in pair.machine.run(pair.a, "mknod", "/tmp/disk", "b", "254", "0").stderr
    assert pair.machine.run(pair.a, "touch", "/usr/bin/x").returncode != 0


def test_the_metadata_service_needs_a_token(pair: Pair) -> None:
    told = pair.machine.python(
        pair.a,
        f"{IMDS}\nt = token(); h = {{'X-aws-ec2-metadata-token': t}}\n"
        "print(ask('meta-data/instance-id'), ask('meta-data/instance-id', **h), ask('meta-data/local-ipv4', **h))\n"
        "ttl = {'X-aws-ec2-metadata-token-ttl-seconds': '60'}\n"
        "print(ask('api/token', 'PUT', **ttl, **{'X-Forwarded-For': '1.2.3.4'}))",
    )
    assert told.split() == ["401", pair.a, pair.machine.host(pair.a)["address"], "403"]


def test_a_token_is_good_on_one_host_only(pair: Pair) -> None:
    token = pair.machine.python(pair.a, f"{IMDS}\nprint(token())")
    code = f"{IMDS}\nprint(ask('meta-data/instance-id', **{{'X-aws-ec2-metadata-token': {token!r}}}))"
    assert pair.machine.python(pair.a, code) == pair.a
    assert pair.machine.python(pair.b, code) == "401"


def test_a_host_cannot_reach_another_hosts_metadata_service(pair: Pair) -> None:
    address = pair.machine.host(pair.b)["address"]
    code = f"import socket; socket.create_connection(({address!r}, 80), timeout=0.5)"
    assert "timed out" in pair.machine.run(pair.a, "/opt/holdfast/venv/bin/python", "-c", code).stderr


def test_the_agent_calls_aws_as_its_instance(pair: Pair) -> None:
    code = f"{AWS}\nprint(boto3.client('sts').get_caller_identity()['Arn'])"
    arn = pair.machine.python(pair.a, code, user=User.AGENT)
    assert arn.endswith(f":assumed-role/lab-node/{pair.a}")


def test_the_instances_role_is_what_it_calls_with(pair: Pair) -> None:
    code = f"""{AWS}
try:
    print(boto3.client("s3").list_buckets())
except Exception as error:
    print(error.response["Error"]["Code"])
"""
    assert pair.machine.python(pair.a, code, user=User.AGENT).startswith("AccessDenied")


def test_the_trainers_python_has_mxnet(pair: Pair) -> None:
    code = "import os, mxnet, boto3, cryptography; print(os.getuid(), mxnet.nd.ones((2, 2)).sum().asscalar())"
    uid = UIDS[User.TRAINER] if pair.machine.state()["separate_users"] else 0
    assert pair.machine.python(pair.a, code, user=User.TRAINER) == f"{uid} 4.0"


def test_the_checkpoint_directory_is_shared_by_all_hosts(pair: Pair) -> None:
    code = "open('/mnt/checkpoints/epoch', 'w').write('1')"
    pair.machine.python(pair.a, code, user=User.TRAINER)
    told = pair.machine.python(pair.b, "print(open('/mnt/checkpoints/epoch').read())", user=User.TRAINER)
    assert told == "1"


def test_tmp_is_private_to_a_host(pair: Pair) -> None:
    pair.machine.run(pair.a, "touch", "/tmp/mine")
    assert pair.machine.run(pair.a, "ls", "/tmp").stdout.strip() == "mine"
    assert pair.machine.run(pair.b, "ls", "/tmp").stdout.strip() == ""
    assert not Path("/tmp/mine").exists()


DENIED = [
    (User.TRAINER, "/var/lib/holdfast/agent", "r"),
    (User.TRAINER, "/var/lib/holdfast/tls", "r"),
    (User.TRAINER, "/run/holdfast/start/tunnel", "w"),
    (User.TRAINER, "/var/lib/holdfast/job/launch.json", "w"),
    (User.TUNNEL, "/mnt/checkpoints", "r"),
    (User.TUNNEL, "/var/lib/holdfast/work", "r"),
    (User.AGENT, "/mnt/checkpoints", "r"),
    (User.AGENT, "/opt/holdfast/bundle/x", "w"),
    (User.AGENT, "/etc/holdfast/node.json", "w"),
]


@pytest.mark.parametrize(("user", "path", "way"), DENIED, ids=[f"{u.value[9:]}-{p}" for u, p, _ in DENIED])
def test_users_of_a_host_are_kept_apart(pair: Pair, user: User, path: str, way: str) -> None:
    if not pair.machine.state()["separate_users"]:
        pytest.skip("this machine's hosts say that their users share one id")
    opened = "os.listdir({path!r})" if way == "r" else "open({path!r}, 'w')"
    code = f"import os\ntry: {opened.format(path=path)}\nexcept PermissionError: print('denied')"
    assert pair.machine.python(pair.a, code, user=user) == "denied"


def test_shared_user_ids_are_published_as_not_enforced(pair: Pair) -> None:
    state = pair.machine.state()
    assert state["separate_users"] != any("share one user id" in line for line in state["not_enforced"])
