"""The node's real firewall inside a host: who on a host reaches metadata, AWS and the overlay."""

from collections.abc import Iterator

import pytest
from tests.local.hosts.lab import ROOT, Lab, Machine, bundle, machine_of, until

from holdfast_node.contract.layout import User
from holdfast_node.contract.roles import Role

NODE = ROOT / "node/holdfast_node"
DIAL = """
import socket
try:
    socket.create_connection({target!r}, timeout=2).close()
    print("open")
except OSError as error:
    print(type(error).__name__)
"""
#: What the agent does for a job, as its user: leave the rendezvous and ask.
ADMIT = """
import json, pathlib
peer = {"role": "scheduler", "rank": 0, "instance_id": "i-00000001", "address": "10.0.0.1"}
worker = {"role": "worker", "rank": 0, "instance_id": "i-00000003", "address": "10.0.0.3"}
document = {"job_id": "digits-1", "generation": 1, "peers": [peer, worker]}
pathlib.Path("/var/lib/holdfast/agent/peers.json").write_text(json.dumps(document))
pathlib.Path("/run/holdfast/start/peers").touch()
"""


def real_modules() -> dict[str, str]:
    """Return the sources of the firewall and the contract."""
    files = [NODE / "firewall.py", *(NODE / "contract").glob("*.py")]
    return {str(file.relative_to(NODE).with_suffix("")): file.read_text() for file in files}


@pytest.fixture(scope="module", params=["root", "userns-ids", "userns"])
def node(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[Machine, str]]:
    with machine_of(request.param, lab) as machine:
        instance = lab.launch(Role.WORKER, lab.user_data(Role.WORKER, bundle(**real_modules())))
        assert machine.await_phase(instance)["services"]["firewall"] == "exited 0"
        yield machine, instance


def test_the_firewall_is_set(node: tuple[Machine, str]) -> None:
    machine, instance = node
    assert "chain input" in machine.run(instance, "nft", "list", "table", "inet", "holdfast").stdout


def test_the_agent_has_root_admit_a_job_s_peers_and_no_one_else_s(node: tuple[Machine, str]) -> None:
    machine, instance = node
    listed = ("nft", "list", "map", "inet", "holdfast", "admitted")
    assert "elements" not in machine.run(instance, *listed).stdout
    machine.python(instance, ADMIT, user=User.AGENT)
    until(lambda: machine.host(instance)["services"].get("peers") == "exited 0", "the peers are admitted")
    assert "elements = { 10.0.0.1 : 61000 }" in machine.run(instance, *listed).stdout
    assert "elements" not in machine.run(instance, "nft", "list", "set", "inet", "holdfast", "peers").stdout


@pytest.mark.parametrize(
    ("user", "reaches"),
    [(User.AGENT, True), (User.TUNNEL, False), (User.TRAINER, False)],
    ids=str,
)
def test_only_the_agent_reaches_the_metadata_service(node: tuple[Machine, str], user: User, reaches: bool) -> None:
    machine, instance = node
    if not machine.state()["separate_users"]:
        pytest.skip("this machine's hosts say that their users share one id")
    code = DIAL.format(target=("169.254.169.254", 80))
    assert (machine.python(instance, code, user=user) == "open") is reaches


@pytest.mark.parametrize(("user", "reaches"), [(User.AGENT, True), (User.TRAINER, False)], ids=str)
def test_the_trainer_does_not_reach_aws(node: tuple[Machine, str], user: User, reaches: bool) -> None:
    machine, instance = node
    if not machine.state()["separate_users"]:
        pytest.skip("this machine's hosts say that their users share one id")
    code = DIAL.format(target=("s3.us-east-1.amazonaws.com", 443))
    assert (machine.python(instance, code, user=user) == "open") is reaches
