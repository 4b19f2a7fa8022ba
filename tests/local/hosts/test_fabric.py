"""Security groups between hosts, on real packets: every rule's direction, both ways, and what no host can change."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.local.hosts.lab import Lab, Machine, bundle, machine_of, until

from holdfast_local.hosts import connections
from holdfast_node.contract.roles import DEFAULT_PORTS, DIALS, Role

FOREIGN_PORT = 9999
LOG = "/var/log/holdfast/agent.log"
PORTS = [*DEFAULT_PORTS.values(), FOREIGN_PORT]
#: Listens everywhere, so that only the fabric decides who gets through.
LISTENING_AGENT = f"""
import socket, time
servers = [socket.create_server(("0.0.0.0", port)) for port in {PORTS}]
print("listening", flush=True)
time.sleep(600)
"""
DIAL = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def dial(target):
    try:
        socket.create_connection(target, timeout=0.8).close()
        return "open"
    except TimeoutError:
        return "dropped"
    except OSError as error:
        return str(error)
targets = {targets!r}
with ThreadPoolExecutor(32) as pool:
    for (address, port), result in zip(targets, pool.map(dial, targets)):
        print(address, port, result)
"""


class Cluster:
    """A scheduler, two servers and two workers."""

    def __init__(self, machine: Machine, lab: Lab) -> None:
        self.machine, self.lab = machine, lab
        self.data = bundle(agent=LISTENING_AGENT)
        roles = (Role.SCHEDULER, Role.SERVER, Role.SERVER, Role.WORKER, Role.WORKER)
        self.roles = {lab.launch(role, lab.user_data(role, self.data)): role for role in roles}
        self.addresses = {name: machine.await_phase(name)["address"] for name in self.roles}
        for name in self.roles:
            until(lambda name=name: "listening" in machine.run(name, "cat", LOG).stdout, f"{name} listens")

    def of(self, role: Role, rank: int = 0) -> str:
        return [name for name, its in self.roles.items() if its is role][rank]

    def dial(self, source: str, targets: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Return what dialling (instance, port) from an instance gives."""
        named = {(self.addresses[name], port): (name, port) for name, port in targets}
        lines = self.machine.python(source, DIAL.format(targets=list(named))).splitlines()
        split = [line.split(maxsplit=2) for line in lines]
        return {named[address, int(port)]: result for address, port, result in split}

    def opens(self, source: str, target: str, port: int) -> bool:
        return self.dial(source, [(target, port)])[target, port] == "open"

    def wrong_pairs(self) -> list[tuple[Role, Role, int, str]]:
        """Dial from everyone to everyone else at every port; return what is not as the groups say."""
        wrong = []
        for source, role in self.roles.items():
            targets = [(name, port) for name in self.roles if name != source for port in PORTS]
            for (name, port), result in self.dial(source, targets).items():
                peer = self.roles[name]
                expected = "open" if peer in DIALS[role] and port == DEFAULT_PORTS[peer] else "dropped"
                if result != expected:
                    wrong.append((role, peer, port, result))
        return wrong


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Cluster]:
    with machine_of("root", lab) as machine:
        yield Cluster(machine, lab)


def test_exactly_the_pairs_of_the_groups_get_through(cluster: Cluster) -> None:
    assert cluster.wrong_pairs() == []


def test_connections_between_hosts_are_listed(cluster: Cluster) -> None:
    worker, server = cluster.of(Role.WORKER), cluster.of(Role.SERVER)
    ends = cluster.addresses[worker], cluster.addresses[server]
    code = f"import socket; c = socket.create_connection({(ends[1], DEFAULT_PORTS[Role.SERVER])}); c.recv(1)"
    argv = ["/opt/holdfast/venv/bin/python", "-c", code]
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(cluster.machine.run, worker, *argv)
        until(lambda: connections(cluster.machine.state_dir), "a connection is there")
        found = connections(cluster.machine.state_dir)
        assert {(c.local, c.remote) for c in found} == {ends, ends[::-1]}
        assert [c.local_port for c in found if c.local == ends[1]] == [DEFAULT_PORTS[Role.SERVER]]
        cluster.machine.run(worker, "sh", "-c", "kill $(grep -l create_connection /proc/[0-9]*/cmdline | cut -d/ -f3)")
        held.result(30)


def test_refused_packets_are_counted(cluster: Cluster) -> None:
    before = cluster.machine.state()["drops"]["refused"]
    worker, other = cluster.of(Role.WORKER), cluster.of(Role.WORKER, 1)
    assert not cluster.opens(worker, other, DEFAULT_PORTS[Role.WORKER])
    until(lambda: cluster.machine.state()["drops"]["refused"] > before, "the drop is counted")


@pytest.mark.parametrize("way", ["egress", "ingress"])
def test_each_direction_needs_its_rule(cluster: Cluster, way: str) -> None:
    source, target, port = cluster.of(Role.WORKER), cluster.of(Role.SERVER), DEFAULT_PORTS[Role.SERVER]
    groups = (cluster.lab.groups[Role.WORKER], cluster.lab.groups[Role.SERVER])
    mine, peer = groups if way == "egress" else groups[::-1]
    assert cluster.opens(source, target, port)
    cluster.lab.rule("revoke", way, mine, peer, port)
    try:
        until(lambda: not cluster.opens(source, target, port), f"the {way} rule is gone")
    finally:
        cluster.lab.rule("authorize", way, mine, peer, port)
    until(lambda: cluster.opens(source, target, port), f"the {way} rule is back")


def test_a_new_member_is_in_its_groups_at_once(cluster: Cluster) -> None:
    name = cluster.lab.launch(Role.WORKER, cluster.lab.user_data(Role.WORKER, cluster.data))
    cluster.addresses[name] = cluster.machine.await_phase(name)["address"]
    assert cluster.opens(name, cluster.of(Role.SERVER), DEFAULT_PORTS[Role.SERVER])
    assert not cluster.opens(name, cluster.of(Role.WORKER), DEFAULT_PORTS[Role.WORKER])
    cluster.lab.terminate(name)
    until(lambda: not cluster.machine.host(name), "the host is gone")


def test_a_false_source_address_is_dropped_and_counted(cluster: Cluster) -> None:
    # A worker takes the scheduler's address and sends to a server, which the scheduler may do.
    worker, server = cluster.of(Role.WORKER), cluster.of(Role.SERVER)
    stolen = cluster.addresses[cluster.of(Role.SCHEDULER)]
    before = cluster.machine.state()["drops"]["spoofed"]
    assert cluster.machine.run(worker, "ip", "address", "add", f"{stolen}/32", "dev", "lo").returncode == 0
    code = f"""
import socket
client = socket.socket(); client.settimeout(0.8); client.bind(({stolen!r}, 0))
try: client.connect(({cluster.addresses[server]!r}, {DEFAULT_PORTS[Role.SERVER]}))
except TimeoutError: print("dropped")
"""
    assert cluster.machine.python(worker, code) == "dropped"
    until(lambda: cluster.machine.state()["drops"]["spoofed"] > before, "the drop is counted")
    cluster.machine.run(worker, "ip", "address", "delete", f"{stolen}/32", "dev", "lo")


def test_a_hosts_root_cannot_see_or_change_the_fabric(cluster: Cluster) -> None:
    worker, other = cluster.of(Role.WORKER), cluster.of(Role.WORKER, 1)
    assert "holdfast_fabric" not in cluster.machine.run(worker, "nft", "list", "ruleset").stdout
    assert cluster.machine.run(worker, "nft", "flush", "ruleset").returncode == 0
    links = json.loads(cluster.machine.run(worker, "ip", "-json", "link").stdout)
    assert sorted(link["ifname"] for link in links) == ["eth0", "lo"]
    assert not cluster.opens(worker, other, DEFAULT_PORTS[Role.WORKER])
    assert cluster.opens(worker, cluster.of(Role.SERVER), DEFAULT_PORTS[Role.SERVER])


def test_a_hosts_root_cannot_reach_beyond_the_network(cluster: Cluster) -> None:
    worker = cluster.of(Role.WORKER)
    assert cluster.machine.run(worker, "ip", "route", "add", "default", "dev", "eth0").returncode == 0
    try:
        assert cluster.machine.python(worker, DIAL.format(targets=[("192.0.2.1", 443)])).startswith("192.0.2.1 443 ")
        assert "open" not in cluster.machine.python(worker, DIAL.format(targets=[("192.0.2.1", 443)]))
    finally:
        cluster.machine.run(worker, "ip", "route", "delete", "default")


def test_the_hosts_of_an_unprivileged_user_obey_the_groups_too(lab: Lab) -> None:
    with machine_of("userns", lab) as machine:
        assert Cluster(machine, lab).wrong_pairs() == []
