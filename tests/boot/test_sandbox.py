"""What processes of a node can do from inside their units, tried there: each denial has an allowance beside it."""

import json

import pytest
from tests.boot.systemd_node import PATHS, SystemdNode, until

from holdfast_node.contract.layout import User

_PYTHON = "/opt/holdfast/venv/bin/python"
_PROBE = (_PYTHON, "-S", "-P", "/opt/holdfast/test/probe.py")
# The tunnel's unit may execute stunnel alone and sees no /opt: these lines open what the probe's interpreter needs.
_TUNNEL = f"""\
[Service]
ExecStart=
ExecStart={" ".join(_PROBE)}
ExecPaths=/opt/holdfast/venv -/usr/bin/python3.11
InaccessiblePaths=
InaccessiblePaths=-/boot
"""
_TUNNEL_DROP_IN = "/etc/systemd/system/holdfast-tunnel.service.d"
# A peer, an endpoint of AWS and the metadata service, in a namespace of their own behind a cable.
_WIRE = """
ip netns add wire
ip link add eth0 type veth peer name eth1 netns wire
ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up && ip route add 169.254.169.254/32 dev eth0
for address in 10.9.0.3/24 10.9.0.9/24 169.254.169.254/32; do ip -n wire addr add $address dev eth1; done
ip -n wire link set eth1 up && ip -n wire link set lo up
mkdir -p /var/lib/cloud && echo secret > /var/lib/cloud/data
"""
_OUTSIDE = ("10.9.0.3:9092", "10.9.0.3:22", "10.9.0.9:443", "169.254.169.254:80")
_INSIDE = ("127.77.0.1:9091", "127.0.0.1:8000")

#: What each may do of all that `in_node/probe.py` tries; everything else is refused.
EVERYBODY = {"execute the interpreter", "fork", "listen on the overlay", "write to /tmp"}
SERVER = EVERYBODY | {
    "connect to the overlay",
    "execute from memory",  # Python's callbacks for native code need what this needs
    "read the job",
    "write a checkpoint",
    "write to its scratch space",
}
WORKER = SERVER | {"execute a program of the system", "make a UNIX socket", "map memory to write and execute"}
TUNNEL = EVERYBODY | {"connect to a peer's port", "connect to the overlay", "read the tunnel's key"}
AGENT = EVERYBODY | {
    "ask for a service",
    "connect to AWS",
    "connect to a peer's other port",  # security groups hold it there: AWS's addresses are no list
    "connect to a peer's port",
    "connect to another service of the node",
    "connect to the metadata service",
    "make a UNIX socket",
    "read the agent's files",
    "read the job",
    "read the tunnel's key",
    "see another process",
    "write to the agent's files",
    "write to the job",
    "write to the tunnel's files",
}


@pytest.fixture(scope="package")
def on_server(server: SystemdNode) -> dict[str, dict[str, str]]:
    """What each service of a server found, and what root finds outside any sandbox."""
    prepare(server)
    found = {service: probe(server, service) for service in ("trainer", "tunnel", "agent")}
    found["root"] = unconfined(server)
    server.systemctl("stop", "inside.service", "outside.service")  # where other tests want a tunnel
    server.run("rm", "-r", _TUNNEL_DROP_IN)
    server.systemctl("daemon-reload")
    return found


@pytest.fixture(scope="package")
def on_worker(worker: SystemdNode) -> dict[str, str]:
    """What a worker's trainer found."""
    prepare(worker)
    return probe(worker, "trainer")


def allowed(found: dict[str, str]) -> set[str]:
    return {name for name, outcome in found.items() if outcome == "ok"}


def test_root_outside_any_sandbox_may_do_all_of_it(on_server: dict[str, dict[str, str]]) -> None:
    assert {name: outcome for name, outcome in on_server["root"].items() if outcome != "ok"} == {}


@pytest.mark.parametrize(("service", "may"), {"trainer": SERVER, "tunnel": TUNNEL, "agent": AGENT}.items())
def test_a_servers_services_may_do_this_and_nothing_else(
    service: str, may: set[str], on_server: dict[str, dict[str, str]]
) -> None:
    assert allowed(on_server[service]) == may


def test_a_workers_trainer_may_do_this_and_nothing_else(on_worker: dict[str, str]) -> None:
    assert allowed(on_worker) == WORKER


def test_it_is_the_firewall_that_refuses_by_user(on_server: dict[str, dict[str, str]]) -> None:
    refused = {
        service: {name for name, outcome in found.items() if name.startswith("connect") and outcome == "ECONNREFUSED"}
        for service, found in on_server.items()
    }
    off_overlay = {"connect to the metadata service", "connect to AWS", "connect to a peer's other port"}
    off_overlay |= {"connect to another service of the node"}
    assert refused == {
        "trainer": off_overlay | {"connect to a peer's port"},
        "tunnel": off_overlay,
        "agent": {"connect to the overlay"},
        "root": set(),
    }


def prepare(node: SystemdNode) -> None:
    """Give the node a network, what to read, and its firewall."""
    done = node.run("sh", "-ec", _WIRE)
    assert done.returncode == 0, done.stderr
    listener = f"{_PYTHON} -S /opt/holdfast/test/listener.py"
    for name, enter, places in (("outside", "ip netns exec wire ", _OUTSIDE), ("inside", "", _INSIDE)):
        argv = f"{enter}{listener} {' '.join(places)}".split()
        node.systemctl("reset-failed")
        done = node.run("systemd-run", f"--unit={name}", f"--property=StandardOutput=append:/run/{name}", *argv)
        assert done.returncode == 0, done.stderr
        until(lambda name=name: node.run("cat", f"/run/{name}").stdout, f"the listeners {name}")  # type: ignore[misc]
    for path, user in ((PATHS.tls / "key.pem", User.AGENT), (PATHS.state / "own", User.AGENT)):
        node.run("sh", "-c", f"umask 027; echo secret > {path}", user=user)
    drop_in = f"mkdir -p {_TUNNEL_DROP_IN}; printf '%s' '{_TUNNEL}' > {_TUNNEL_DROP_IN}/test.conf"
    node.run("sh", "-ec", f"{drop_in}; systemctl daemon-reload")
    node.launch(*_PROBE)
    node.systemctl("stop", "holdfast-agent.service")
    node.start(agent="probe")


def probe(node: SystemdNode, service: str) -> dict[str, str]:
    """Return what a service found, after it was started as the contract says."""
    seen = node.log(service).count("PROBE ")
    if service != "agent":
        node.ask(service)

    def found() -> str:
        lines = [line for line in node.log(service).splitlines() if line.startswith("PROBE ")]
        return lines[-1] if len(lines) > seen or service == "agent" else ""

    return dict(json.loads(until(found, f"{service}'s report", 60).removeprefix("PROBE ")))


def unconfined(node: SystemdNode) -> dict[str, str]:
    """Return what root finds outside any sandbox."""
    done = node.run("systemd-run", "--quiet", "--pipe", "--wait", "--property=PrivateMounts=yes", *_PROBE)
    return dict(json.loads(done.stdout.removeprefix("PROBE ")))


def test_without_the_firewall_the_trainers_unit_still_keeps_it_off_the_wire(
    worker: SystemdNode, on_worker: dict[str, str]
) -> None:
    connects = {name for name in on_worker if name.startswith("connect") and "bus" not in name}
    worker.run("nft", "delete", "table", "inet", "holdfast")
    try:
        found = probe(worker, "trainer")
        assert {name for name in connects if found[name] == "ok"} == {
            "connect to the overlay",
            "connect to another service of the node",
        }
        assert found["connect to the metadata service"] in ("EPERM", "ETIMEDOUT")
    finally:
        worker.systemctl("restart", "holdfast-firewall.service")


@pytest.mark.parametrize("role", ["server", "worker"])
def test_mxnet_works_in_the_sandbox_of(role: str, request: pytest.FixtureRequest) -> None:
    node: SystemdNode = request.getfixturevalue(role)
    node.systemctl("stop", "holdfast-agent.service")
    node.start()
    name = {"server": "server.py", "worker": "script.py"}[role]
    node.launch(_PYTHON, "-P", f"/opt/holdfast/test/{name}")
    node.ask("trainer")
    assert node.ended("trainer", 120) == 0, node.log("trainer")[-2000:]
    assert node.log("trainer").splitlines()[-1] == "TRAINED"


def test_the_page_shows_what_was_found(on_server: dict[str, dict[str, str]], on_worker: dict[str, str]) -> None:
    from tests.boot import reach  # which takes its tools from here

    assert reach.PAGE.read_text() == reach.page(reach.columns(on_server, on_worker)), "run: python -m tests.boot.reach"
