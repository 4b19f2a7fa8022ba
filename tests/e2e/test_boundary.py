"""The deployed cluster's network, tried: every port from every role and from outside, and one rule of each kind less.

`make boundary` takes away every rule, and scans every port of the network's services too.
"""

from pathlib import Path

import pytest
from tests.boundary import ports, rules
from tests.boundary.cluster import Cluster
from tests.e2e.support import Holdfast, require_isolation

from holdfast_node.contract.roles import DIALS, Role

pytestmark = pytest.mark.e2e

ONE_OF_EACH_KIND = (
    "scheduler to interface endpoints (out)",
    "server to checkpoints: NFS over TLS (in)",
    "worker to server (in)",
    "worker to the S3 gateway endpoint (out)",
)
#: What could be behind a service's address here: its own ports, and those of the machine's other parts.
SERVICE_PORTS = "1-1024,2049,4566,9091-9094"


@pytest.fixture(scope="module")
def deployed(cluster: Holdfast, state: Path) -> Cluster:
    require_isolation("root")  # a scan sends packets past the host's own kernel
    return Cluster(state)


def test_the_rules_are_those_that_the_roles_need_and_no_other(deployed: Cluster) -> None:
    pairs = [f"{source} to {target}" for source, targets in DIALS.items() for target in targets]
    endpoints = [f"{role} to interface endpoints" for role in Role]
    checkpoints = [f"{role} to checkpoints: NFS over TLS" for role in ports.MOUNTING]
    both = {f"{name} ({way})" for name in (*pairs, *endpoints, *checkpoints) for way in ("in", "out")}
    assert {str(rule) for rule in deployed.rules()} == both | {
        f"{role} to the S3 gateway endpoint (out)" for role in Role
    }


def test_names_resolve_by_the_deployed_firewall_only(deployed: Cluster) -> None:
    network = deployed.network()
    assert [rule.allow for rule in network.firewall] == [True, False]
    assert network.firewall[1].domains == ("*",)
    own = next(name for endpoint in network.endpoints for name in endpoint.names if name.startswith("vpce-"))
    (file_system,) = {name for endpoint in network.endpoints for name in endpoint.names if ".efs." in name}
    known = [f"{service}.us-east-1.amazonaws.com" for service in ("kms", "lambda", "logs", "s3", "states")]
    unknown = [own, "sts.us-east-1.amazonaws.com", "ec2.us-east-1.amazonaws.com", "example.com"]
    with deployed.outsider() as host:
        assert [bool(found) for found in deployed.look_up(host, [*known, file_system])] == [True] * 6
        # The endpoint's own name is one that the network knows and its firewall does not let through.
        assert deployed.look_up(host, unknown) == [[]] * 4


def test_nothing_answers_but_what_should(deployed: Cluster) -> None:
    seen = list(ports.scan(deployed, service_ports=SERVICE_PORTS))
    assert {item.source for item in seen} == {*Role, "outsider"}
    assert [item for item in seen if not item.as_expected] == []


def test_training_needs_each_rule(deployed: Cluster) -> None:
    chosen = [rule for rule in deployed.rules() if str(rule) in ONE_OF_EACH_KIND]
    assert len(chosen) == len(ONE_OF_EACH_KIND)
    trials = list(rules.try_without(deployed, chosen))
    assert [trial for trial in trials if not trial.as_expected] == []
