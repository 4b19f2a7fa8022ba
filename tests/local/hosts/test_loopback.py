"""Hosts without namespaces: directories, addresses of 127.78.0.0/24, and an overlay each."""

from pathlib import Path

import pytest
from tests.local.hosts.lab import Lab, Machine, bundle, until

from holdfast_local.hosts import connections
from holdfast_node.contract.roles import DEFAULT_PORTS, Role, overlay_address

#: Serves its overlay address and its own address on the role port, dials both of its own, and tells who it is.
AGENT = f"""
import argparse, os, pathlib, socket, threading, time, urllib.request
root = pathlib.Path(argparse.ArgumentParser().parse_known_args()[1][1])
base = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] + "/latest/"
ttl = {{"X-aws-ec2-metadata-token-ttl-seconds": "60"}}
def ask(path, method="GET", **headers):
    request = urllib.request.Request(base + path, method=method, headers=headers)
    return urllib.request.urlopen(request, timeout=5).read().decode()
token = ask("api/token", "PUT", **ttl)
held = {{"X-aws-ec2-metadata-token": token}}
me, address = ask("meta-data/instance-id", **held), ask("meta-data/local-ipv4", **held)
def serve(server):
    while True:
        connection, _ = server.accept()
        connection.sendall(me.encode())
def start(target):
    server = socket.create_server(target)
    threading.Thread(target=serve, args=(server,), daemon=True).start()
overlay = ("{overlay_address(Role.SCHEDULER, 0)}", {DEFAULT_PORTS[Role.SCHEDULER]})
start(overlay)
start((address, 9092))
with socket.create_connection(overlay, timeout=5) as client:
    answer = client.recv(100).decode()
import boto3
arn = boto3.client("sts").get_caller_identity()["Arn"]
(root / "var/lib/holdfast/agent/told").write_text(f"{{me}} {{address}} {{answer}} {{arn}}")
(root / "run/holdfast/start/trainer").touch()
time.sleep(600)
"""


class Hosts:
    def __init__(self, machine: Machine, lab: Lab) -> None:
        self.machine = machine
        data = bundle(agent=AGENT)
        self.names = [lab.launch(role, lab.user_data(role, data)) for role in (Role.SERVER, Role.WORKER)]
        for name in self.names:
            machine.await_phase(name)

    def told(self, name: str) -> list[str]:
        file = self.disk(name) / "var/lib/holdfast/agent/told"
        until(lambda: file.exists() and len(file.read_text().split()) == 4, f"{name} has told")
        return file.read_text().split()

    def disk(self, name: str) -> Path:
        return Path(self.machine.host(name)["directory"]) / "disk"


@pytest.fixture(scope="module")
def hosts(loopback_machine: Machine, lab: Lab) -> Hosts:
    return Hosts(loopback_machine, lab)


def test_two_hosts_serve_the_same_overlay_address_and_reach_their_own(hosts: Hosts) -> None:
    for name in hosts.names:
        assert hosts.told(name)[2] == name


def test_metadata_names_each_instance_and_its_loopback_address(hosts: Hosts) -> None:
    told = [hosts.told(name)[:2] for name in hosts.names]
    addresses = [hosts.machine.host(name)["address"] for name in hosts.names]
    assert told == [list(pair) for pair in zip(hosts.names, addresses, strict=True)]
    assert sorted(addresses) == ["127.78.0.1", "127.78.0.2"]


def test_credentials_are_the_instances(hosts: Hosts) -> None:
    for name in hosts.names:
        assert hosts.told(name)[-1].endswith(f":assumed-role/lab-node/{name}")


def test_the_firewall_is_skipped_and_said_to_be(hosts: Hosts) -> None:
    for name in hosts.names:
        assert hosts.machine.host(name)["services"]["firewall"] == "skipped: no namespaces"
    assert any("firewall service is skipped" in line for line in hosts.machine.state()["not_enforced"])


def test_requested_services_run_with_the_hosts_root(hosts: Hosts) -> None:
    for name in hosts.names:
        until(lambda n=name: hosts.machine.host(n)["services"].get("trainer") == "running", "the trainer runs")
        log = hosts.disk(name) / "var/log/holdfast/trainer.log"
        until(lambda file=log: file.read_text() == "trainer is up\n", "the trainer is up")


def test_all_hosts_share_the_checkpoint_directory(hosts: Hosts) -> None:
    first, second = (hosts.disk(name) / "mnt/checkpoints" for name in hosts.names)
    (first / "epoch").write_text("1")
    assert (second / "epoch").read_text() == "1"


def test_connections_within_one_host_are_not_connections_between_hosts(hosts: Hosts) -> None:
    assert connections(hosts.machine.state_dir) == []
