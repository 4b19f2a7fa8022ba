"""What a host reaches beside its peers: the endpoints of its VPC, by their names, rules and policies; nothing else."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.local.hosts.lab import REGION, Lab, Machine, machine_of, until

from holdfast_node.contract.roles import Role

LOOK_UP = """
import json, socket
def found(name):
    try:
        return sorted({{item[4][0] for item in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)}})
    except socket.gaierror:
        return []
print(json.dumps([found(name) for name in {names!r}]))
"""
DIAL = """
import errno, json, socket
def dial(target):
    try:
        socket.create_connection(tuple(target), timeout=1).close()
        return "open"
    except TimeoutError:
        return "dropped"
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)
print(json.dumps([dial(target) for target in {targets!r}]))
"""
LIST_KEYS = """
import boto3
from botocore.exceptions import ClientError
try:
    print(len(boto3.client("kms").list_keys()["Keys"]), "keys")
except ClientError as error:
    print(error)
"""
S3_ADDRESS = "198.51.100.1"
RESOLVER = "10.42.0.2"


class Node:
    """A worker's host."""

    def __init__(self, machine: Machine, lab: Lab) -> None:
        self.machine, self.lab = machine, lab
        self.instance = lab.launch(Role.WORKER)
        machine.await_phase(self.instance)
        self.group = lab.groups[Role.WORKER]
        described = lab.ec2.describe_vpc_endpoints(VpcEndpointIds=[lab.endpoints["kms"]])["VpcEndpoints"][0]
        (interface,) = lab.ec2.describe_network_interfaces(NetworkInterfaceIds=described["NetworkInterfaceIds"])[
            "NetworkInterfaces"
        ]
        self.kms, self.endpoint_group = interface["PrivateIpAddress"], described["Groups"][0]["GroupId"]

    def look_up(self, *names: str) -> dict[str, list[str]]:
        found = json.loads(self.machine.python(self.instance, LOOK_UP.format(names=list(names))))
        return dict(zip(names, found, strict=True))

    def dial(self, *targets: tuple[str, int]) -> list[str]:
        return list(json.loads(self.machine.python(self.instance, DIAL.format(targets=list(targets)))))

    def opens(self, target: tuple[str, int]) -> bool:
        return self.dial(target) == ["open"]

    def list_keys(self) -> str:
        argv = ["env", "AWS_CA_BUNDLE=/etc/holdfast/ca-bundle.pem", f"AWS_REGION={REGION}"]
        argv += [f"AWS_DEFAULT_REGION={REGION}", "/opt/holdfast/venv/bin/python", "-c", LIST_KEYS]
        done = self.machine.run(self.instance, *argv)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def node(lab: Lab) -> Iterator[Node]:
    with machine_of("root", lab) as machine:
        yield Node(machine, lab)


def test_names_of_what_has_an_endpoint_resolve(node: Node) -> None:
    file_system = f"{node.lab.file_system}.efs.{REGION}.amazonaws.com"
    found = node.look_up(f"kms.{REGION}.amazonaws.com", f"bucket.s3.{REGION}.amazonaws.com", file_system)
    assert list(found.values())[:2] == [[node.kms], [S3_ADDRESS]]
    assert found[file_system][0].startswith("10.42.1.")


def test_no_other_name_resolves(node: Node) -> None:
    names = (
        f"logs.{REGION}.amazonaws.com",
        f"ec2.{REGION}.amazonaws.com",
        "kms.eu-west-1.amazonaws.com",
        "example.com",
    )
    assert set(map(tuple, node.look_up(*names).values())) == {()}


def test_only_the_endpoints_port_answers(node: Node) -> None:
    targets = [(node.kms, 443), (S3_ADDRESS, 443), (node.kms, 80), (node.kms, 4566), (S3_ADDRESS, 80), (RESOLVER, 443)]
    assert node.dial(*targets) == ["open", "open", *["dropped"] * 4]


def test_there_is_no_way_to_the_embedded_aws_but_the_endpoints(node: Node) -> None:
    port = int(node.lab.environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
    assert node.dial(("127.0.0.1", port), ("169.254.169.254", port)) == ["ECONNREFUSED"] * 2


@pytest.mark.parametrize("address", ["1.1.1.1", "192.0.2.1", "169.254.169.253", "172.17.0.1", "10.43.0.1"])
def test_there_is_no_route_elsewhere(address: str, node: Node) -> None:
    assert node.dial((address, 443)) == ["ENETUNREACH"]


def test_an_address_of_the_network_that_nobody_has_does_not_answer(node: Node) -> None:
    assert node.dial(("10.42.9.9", 443)) != ["open"]


def rules(node: Node) -> dict[str, tuple[Callable[[str], None], tuple[str, int]]]:
    lab, group, endpoints = node.lab, node.group, node.endpoint_group
    return {
        "out to the endpoints": (lambda verb: lab.rule(verb, "egress", group, endpoints, 443), (node.kms, 443)),
        "in to the endpoints": (lambda verb: lab.rule(verb, "ingress", endpoints, group, 443), (node.kms, 443)),
        "out to S3": (lambda verb: lab.s3_rule(verb, group), (S3_ADDRESS, 443)),
    }


@pytest.mark.parametrize("name", ["out to the endpoints", "in to the endpoints", "out to S3"])
def test_an_endpoint_is_reached_by_its_rules(name: str, node: Node) -> None:
    change, target = rules(node)[name]
    assert node.opens(target)
    change("revoke")
    try:
        until(lambda: not node.opens(target), f"without the rule {name} nothing answers")
    finally:
        change("authorize")
    until(lambda: node.opens(target), f"with the rule {name} it does again")


def test_a_call_is_held_to_its_endpoints_policy(node: Node) -> None:
    assert node.list_keys().endswith(" keys")
    statement: dict[str, Any] = {"Effect": "Allow", "Principal": "*", "Action": "kms:Sign", "Resource": "*"}
    endpoint = node.lab.endpoints["kms"]
    node.lab.ec2.modify_vpc_endpoint(VpcEndpointId=endpoint, PolicyDocument=json.dumps({"Statement": [statement]}))
    try:
        assert "because no VPC endpoint policy allows the kms:ListKeys action" in node.list_keys()
    finally:
        node.lab.ec2.modify_vpc_endpoint(VpcEndpointId=endpoint, ResetPolicy=True)
    assert node.list_keys().endswith(" keys")


def test_an_endpoint_that_comes_or_goes_is_followed(node: Node) -> None:
    ec2, lab = node.lab.ec2, node.lab
    made = ec2.create_vpc_endpoint(
        VpcId=lab.vpc,
        ServiceName=f"com.amazonaws.{REGION}.logs",
        VpcEndpointType="Interface",
        SubnetIds=[lab.subnet],
        SecurityGroupIds=[node.endpoint_group],
    )["VpcEndpoint"]["VpcEndpointId"]
    name = f"logs.{REGION}.amazonaws.com"
    address = str(until(lambda: node.look_up(name)[name], "the new name resolves")[0])
    until(lambda: node.opens((address, 443)), "the new endpoint answers")
    ec2.delete_vpc_endpoints(VpcEndpointIds=[made])
    until(lambda: not node.look_up(name)[name], "the name is gone")
    assert not node.opens((address, 443))
