"""VPC endpoints: what the EC2 API says of them, and what a request that came through one is held to."""

import http.client
import json
import socket
import ssl
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from holdfast_local.emulator.process import Emulator
from holdfast_local.emulator.sources import is_source, source_of

from .conftest import ACCOUNT, REGION, Cloud, allow, unique

STATES = "com.amazonaws.us-east-1.states"
NODES = {"Sid": "Nodes", "Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "kms:ListKeys", "Resource": "*"}


def network(**endpoint: Any) -> dict[str, Any]:
    """Return a stack with two subnets, a group, and an interface endpoint with these properties."""
    subnet = {"Type": "AWS::EC2::Subnet", "Properties": {"VpcId": {"Ref": "Vpc"}}}
    subnets = {
        name: subnet | {"Properties": subnet["Properties"] | {"CidrBlock": cidr, "AvailabilityZone": f"{REGION}{zone}"}}
        for name, cidr, zone in (("A", "10.9.0.0/24", "a"), ("B", "10.9.1.0/24", "b"))
    }
    properties = {
        "VpcId": {"Ref": "Vpc"},
        "ServiceName": f"com.amazonaws.{REGION}.kms",
        "VpcEndpointType": "Interface",
        "SubnetIds": [{"Ref": "A"}, {"Ref": "B"}],
        "SecurityGroupIds": [{"Fn::GetAtt": ["Group", "GroupId"]}],
        "PrivateDnsEnabled": True,
    }
    group = {"GroupDescription": "endpoints", "VpcId": {"Ref": "Vpc"}}
    return {
        "Vpc": {"Type": "AWS::EC2::VPC", "Properties": {"CidrBlock": "10.9.0.0/16"}},
        **subnets,
        "Group": {"Type": "AWS::EC2::SecurityGroup", "Properties": group},
        "Endpoint": {"Type": "AWS::EC2::VPCEndpoint", "Properties": properties | endpoint},
    }


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def described(cloud: Cloud, endpoint_id: str) -> dict[str, Any]:
    found: dict[str, Any] = cloud.client("ec2").describe_vpc_endpoints(VpcEndpointIds=[endpoint_id])["VpcEndpoints"][0]
    return found


def interfaces(cloud: Cloud, endpoint: dict[str, Any]) -> list[dict[str, Any]]:
    names = endpoint["NetworkInterfaceIds"]
    found: list[dict[str, Any]] = cloud.client("ec2").describe_network_interfaces(NetworkInterfaceIds=names)[
        "NetworkInterfaces"
    ]
    return found


def test_an_interface_endpoint_is_described_whole(cloud: Cloud) -> None:
    stack = cloud.deploy(network(PolicyDocument=json.loads(policy(NODES))))
    endpoint = described(cloud, cloud.resource(stack, "Endpoint"))
    assert json.loads(endpoint["PolicyDocument"])["Statement"] == [NODES]
    assert [group["GroupId"] for group in endpoint["Groups"]] == [cloud.resource(stack, "Group")]
    assert endpoint["PrivateDnsEnabled"] is True
    assert "kms.us-east-1.amazonaws.com" in [entry["DnsName"] for entry in endpoint["DnsEntries"]]


def test_each_subnet_has_an_interface_of_it_with_its_groups(cloud: Cloud) -> None:
    stack = cloud.deploy(network())
    found = interfaces(cloud, described(cloud, cloud.resource(stack, "Endpoint")))
    assert {item["SubnetId"] for item in found} == {cloud.resource(stack, name) for name in "AB"}
    assert {group["GroupId"] for item in found for group in item["Groups"]} == {cloud.resource(stack, "Group")}
    assert sorted(item["PrivateIpAddress"] for item in found) == ["10.9.0.4", "10.9.1.4"]


def test_without_private_dns_it_has_its_own_name_only(cloud: Cloud) -> None:
    stack = cloud.deploy(network(PrivateDnsEnabled=False))
    endpoint_id = cloud.resource(stack, "Endpoint")
    names = [entry["DnsName"] for entry in described(cloud, endpoint_id)["DnsEntries"]]
    assert names == [f"{endpoint_id}.kms.us-east-1.vpce.amazonaws.com"]


def test_an_update_and_a_removal_take_their_interfaces_along(cloud: Cloud) -> None:
    stack = cloud.deploy(network())
    endpoint = described(cloud, cloud.resource(stack, "Endpoint"))
    cloud.update(stack, network(SubnetIds=[{"Ref": "A"}]))
    (kept,) = interfaces(cloud, described(cloud, cloud.resource(stack, "Endpoint")))
    assert kept["SubnetId"] == cloud.resource(stack, "A")
    cloud.delete(stack)
    assert interfaces(cloud, endpoint) == []


def test_endpoints_mount_targets_and_instances_never_share_an_address(cloud: Cloud) -> None:
    stack = cloud.deploy(network())
    efs, ec2 = cloud.client("efs"), cloud.client("ec2")
    system = efs.create_file_system(CreationToken=unique("system"))["FileSystemId"]
    subnet = cloud.resource(stack, "A")
    target = efs.create_mount_target(FileSystemId=system, SubnetId=subnet)["IpAddress"]
    other = ec2.create_vpc_endpoint(
        VpcId=cloud.resource(stack, "Vpc"), ServiceName=STATES, VpcEndpointType="Interface", SubnetIds=[subnet]
    )["VpcEndpoint"]["VpcEndpointId"]
    (late,) = interfaces(cloud, described(cloud, other))
    assert [target, late["PrivateIpAddress"]] == ["10.9.0.5", "10.9.0.6"]


def test_s3s_prefix_list_has_the_regions_id_and_leads_nowhere(cloud: Cloud) -> None:
    ec2 = cloud.client("ec2")
    filters = [{"Name": "prefix-list-name", "Values": ["com.amazonaws.us-east-1.s3"]}]
    (found,) = ec2.describe_managed_prefix_lists(Filters=filters)["PrefixLists"]
    entries = ec2.get_managed_prefix_list_entries(PrefixListId=found["PrefixListId"])["Entries"]
    assert (found["PrefixListId"], [entry["Cidr"] for entry in entries]) == ("pl-63a5400a", ["198.51.100.0/24"])


def test_a_rule_for_a_prefix_list_is_added_and_revoked_by_request(cloud: Cloud) -> None:
    stack, ec2 = cloud.deploy(network()), cloud.client("ec2")
    group = cloud.resource(stack, "Group")
    lists = [{"PrefixListId": "pl-63a5400a"}]
    rule = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "PrefixListIds": lists}

    def rules() -> list[Any]:
        egress = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissionsEgress"]
        return [permission["PrefixListIds"] for permission in egress if permission["PrefixListIds"]]

    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[rule])
    assert rules() == [lists]
    ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[rule])
    assert rules() == []


class Way:
    """A way to the embedded AWS through one endpoint, for the session of a role."""

    def __init__(self, emulator: Emulator, source: str, session: dict[str, str]) -> None:
        self._port = int(emulator.endpoint.rpartition(":")[2])
        self._trust = ssl.create_default_context(cafile=str(emulator.ca_certificate))
        self._source, self._session = source, session

    def send(
        self,
        name: str,
        *,
        method: str = "POST",
        path: str = "/",
        scope: str | None = None,
        body: str = "{}",
        sign: bool = True,
        **headers: str,
    ) -> tuple[int, str]:
        """Send a request for the host `name`, signed for its service or for `scope`; return status and text."""
        service = scope or name.split(".")[0]
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        request = AWSRequest(method, f"https://{name}{path}", headers=sent, data=body)
        if sign:
            credentials = Credentials(
                *(self._session[key] for key in ("access_key_id", "secret_access_key", "session_token"))
            )
            (S3SigV4Auth if service == "s3" else SigV4Auth)(credentials, service, REGION).add_auth(request)
        raw = socket.create_connection(("127.0.0.1", self._port), timeout=20, source_address=(self._source, 0))
        with self._trust.wrap_socket(raw, server_hostname=name) as secure:
            connection = http.client.HTTPConnection(name, timeout=20)
            connection.sock = secure
            connection.request(method, path, body=body, headers=dict(request.headers.items()) | {"Host": name})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def kms(self, operation: str, **more: Any) -> tuple[int, str]:
        kind = "application/x-amz-json-1.1"
        return self.send(
            "kms.us-east-1.amazonaws.com", X_Amz_Target=f"TrentService.{operation}", Content_Type=kind, **more
        )


@pytest.fixture(scope="module")
def kms(emulator: Emulator, cloud: Cloud) -> tuple[Way, str, str]:
    """A role that may list and describe keys, through an endpoint that admits listing; the endpoint's and VPC's ids."""
    stack = cloud.deploy(network(PolicyDocument=json.loads(policy(NODES))))
    endpoint = cloud.resource(stack, "Endpoint")
    session = cloud.session(allow(["kms:ListKeys", "kms:ListAliases", "logs:DescribeLogGroups"]))
    return Way(emulator, source_of(endpoint), session), endpoint, cloud.resource(stack, "Vpc")


def test_what_the_endpoints_policy_allows_is_done(kms: tuple[Way, str, str]) -> None:
    assert kms[0].kms("ListKeys")[0] == 200


def test_what_it_does_not_allow_is_denied_and_says_why(kms: tuple[Way, str, str]) -> None:
    status, text = kms[0].kms("ListAliases")
    assert status >= 400
    assert "because no VPC endpoint policy allows the kms:ListAliases action" in text
    assert "AccessDenied" in text


def test_the_policy_allows_nothing_that_iam_does_not(
    kms: tuple[Way, str, str], emulator: Emulator, cloud: Cloud
) -> None:
    stranger = Way(emulator, source_of(kms[1]), cloud.session(allow("kms:ListAliases")))
    status, text = stranger.kms("ListKeys")
    assert status >= 400
    assert "because no identity-based policy allows the kms:ListKeys action" in text


def test_a_policy_that_is_changed_or_reset_holds_at_once(kms: tuple[Way, str, str], cloud: Cloud) -> None:
    way, endpoint, _ = kms
    ec2 = cloud.client("ec2")
    denying = NODES | {"Effect": "Deny", "Principal": "*"}
    ec2.modify_vpc_endpoint(VpcEndpointId=endpoint, PolicyDocument=policy(NODES, denying))
    assert "with an explicit deny in a VPC endpoint policy" in way.kms("ListKeys")[1]
    ec2.modify_vpc_endpoint(VpcEndpointId=endpoint, ResetPolicy=True)
    assert way.kms("ListAliases")[0] == 200
    ec2.modify_vpc_endpoint(VpcEndpointId=endpoint, PolicyDocument=policy(NODES))
    assert way.kms("ListAliases")[0] >= 400
    assert way.kms("ListKeys")[0] == 200


def test_a_condition_on_this_account_holds_for_its_roles_only(kms: tuple[Way, str, str], cloud: Cloud) -> None:
    way, endpoint, _ = kms
    for account, allowed in ((ACCOUNT, True), ("123456789012", False)):
        condition = {"StringEquals": {"aws:PrincipalAccount": account}}
        document = policy(NODES | {"Condition": condition})
        cloud.client("ec2").modify_vpc_endpoint(VpcEndpointId=endpoint, PolicyDocument=document)
        assert (way.kms("ListKeys")[0] == 200) is allowed
    cloud.client("ec2").modify_vpc_endpoint(VpcEndpointId=endpoint, PolicyDocument=policy(NODES))


@pytest.mark.parametrize("key", ["aws:SourceVpce", "aws:SourceVpc"])
def test_policies_can_ask_for_the_endpoint_or_its_vpc(
    key: str, kms: tuple[Way, str, str], emulator: Emulator, cloud: Cloud, refused: Any
) -> None:
    _, endpoint, vpc = kms
    for wanted, allowed in ((endpoint if key == "aws:SourceVpce" else vpc, True), ("vpce-other", False)):
        session = cloud.session(allow("kms:ListKeys", StringEquals={key: wanted}))
        assert (Way(emulator, source_of(endpoint), session).kms("ListKeys")[0] == 200) is allowed
        with refused("AccessDeniedException"):
            cloud.client("kms", {**session, "session_token": session["session_token"]}).list_keys()


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "another service's name": (
        {"name": "logs.us-east-1.amazonaws.com", "X_Amz_Target": "Logs_20140328.DescribeLogGroups"},
        "this is kms.us-east-1.amazonaws.com, got a request for 'logs.us-east-1.amazonaws.com'",
    ),
    "signed for another service": (
        {"name": "kms.us-east-1.amazonaws.com", "scope": "sts", "X_Amz_Target": "TrentService.ListKeys"},
        "Credential should be scoped to correct service: 'kms'",
    ),
    "another service's operation": (
        {"name": "kms.us-east-1.amazonaws.com", "X_Amz_Target": "Logs_20140328.DescribeLogGroups"},
        "kms.us-east-1.amazonaws.com knows no operation 'Logs_20140328.DescribeLogGroups'",
    ),
    "unsigned": (
        {"name": "kms.us-east-1.amazonaws.com", "sign": False, "X_Amz_Target": "TrentService.ListKeys"},
        "must be signed with Signature Version 4",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_an_endpoint_carries_its_own_service_only(case: str, kms: tuple[Way, str, str]) -> None:
    request, reason = FOREIGN[case]
    status, text = kms[0].send(**request)
    assert status == 403
    assert reason in text


def test_administration_is_closed_through_an_endpoint_too(kms: tuple[Way, str, str]) -> None:
    for path in ("/_ministack/health", "/_ministack/cfn-response/x"):
        assert kms[0].send("kms.us-east-1.amazonaws.com", method="GET", path=path, sign=False)[0] == 403


def test_an_unknown_endpoint_carries_nothing(kms: tuple[Way, str, str], emulator: Emulator, cloud: Cloud) -> None:
    status, text = Way(emulator, source_of("vpce-gone"), cloud.session(allow("kms:ListKeys"))).kms("ListKeys")
    assert (status, "no such VPC endpoint" in text) == (403, True)


def test_s3_is_held_to_its_gateways_policy_by_bucket_name_and_by_path(emulator: Emulator, cloud: Cloud) -> None:
    s3, ec2 = cloud.client("s3"), cloud.client("ec2")
    mine, other = unique("bucket"), unique("bucket")
    for bucket in (mine, other):
        s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=bucket, Key="key", Body=b"object")
    vpc = ec2.create_vpc(CidrBlock="10.10.0.0/16")["Vpc"]["VpcId"]
    statement = NODES | {"Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{mine}/*"}
    endpoint = ec2.create_vpc_endpoint(
        VpcId=vpc, ServiceName=f"com.amazonaws.{REGION}.s3", VpcEndpointType="Gateway", PolicyDocument=policy(statement)
    )["VpcEndpoint"]["VpcEndpointId"]
    way = Way(emulator, source_of(endpoint), cloud.session(allow("s3:GetObject", "*")))
    get: dict[str, Any] = {"method": "GET", "body": "", "scope": "s3"}
    for name, path in ((f"{mine}.s3.us-east-1.amazonaws.com", "/key"), ("s3.us-east-1.amazonaws.com", f"/{mine}/key")):
        assert way.send(name, path=path, **get) == (200, "object")
    for name, path in ((f"{other}.s3.amazonaws.com", "/key"), ("s3.us-east-1.amazonaws.com", f"/{other}/key")):
        status, text = way.send(name, path=path, **get)
        assert (status, "no VPC endpoint policy allows the s3:GetObject action" in text) == (403, True)


def test_sources_are_loopback_addresses_of_their_own() -> None:
    assert source_of("vpce-1") != source_of("vpce-2")
    assert is_source(source_of("vpce-1"))
    assert not is_source("127.0.0.1")
    assert not is_source("127.77.0.1")  # the overlay
