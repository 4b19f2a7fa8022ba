"""VPC endpoints with what ministack forgets: interfaces with addresses and groups, private names, their policies.

And the region's prefix list of S3 under the id that it has on AWS, with a stand-in for its ranges.
"""

import html
import json
import secrets
from typing import Any

from holdfast_local.emulator.extension.addresses import free_address
from holdfast_local.emulator.extension.seams import seam
from holdfast_local.emulator.sources import source_of

_KIND = "AWS::EC2::VPCEndpoint"
INTERFACE, GATEWAY = "Interface", "Gateway"
#: What an endpoint without a policy of its own has (AWS PrivateLink Guide, "Default endpoint policy").
_EVERYTHING = {"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}]}
#: `describe-managed-prefix-lists` says these ids; ministack makes up others.
_S3_PREFIX_LISTS = {
    "com.amazonaws.us-east-1.s3": "pl-63a5400a",
    "com.amazonaws.us-east-2.s3": "pl-7ba54012",
    "com.amazonaws.us-west-2.s3": "pl-68a54001",
    "com.amazonaws.eu-west-1.s3": "pl-6da54004",
}
#: TEST-NET-2 (RFC 5737) in place of S3's public ranges: whatever goes wrong, no packet for it leads to anyone.
S3_RANGE = "198.51.100.0/24"

Record = dict[str, Any]
#: Endpoints by the loopback address that their connections come from, in every account and region.
by_source: dict[str, Record] = {}


def install() -> None:
    """Complete endpoints that stacks and requests make, change and delete, and what is said of them."""
    ec2 = seam(
        "ministack.services.ec2",
        "_ACTION_MAP",
        "_aws_pl_id_from_name",
        "_aws_prefix_list_to_cidr",
        "_network_interfaces",
        "_p",
        "_parse_member_list",
        "_security_groups",
        "_subnets",
        "_tag_set_xml",
        "_vpc_endpoints",
        "_vpce_fields_xml",
        "_xml",
    )
    book = _Book(ec2)
    _install_stacks(book)
    _install_requests(ec2, book)
    _install_prefix_lists(ec2)
    ec2._vpce_fields_xml = book.describe


class _Book:
    def __init__(self, ec2: Any) -> None:
        self._ec2 = ec2

    def complete(self, endpoint_id: str) -> None:
        """Give an endpoint what its properties ask for; once more changes only what has changed."""
        record = self._ec2._vpc_endpoints[endpoint_id]
        by_source[source_of(endpoint_id)] = record
        record["PolicyDocument"] = record.get("PolicyDocument") or _EVERYTHING
        if record["VpcEndpointType"] != INTERFACE:
            return
        kept = {self._ec2._network_interfaces[name]["SubnetId"]: name for name in record["NetworkInterfaceIds"]}
        for subnet in set(kept) - set(record["SubnetIds"]):
            del self._ec2._network_interfaces[kept.pop(subnet)]
        for subnet in record["SubnetIds"]:
            if subnet not in kept:
                kept[subnet] = self._interface(record, self._ec2._subnets[subnet])
        record["NetworkInterfaceIds"] = list(kept.values())
        for name in record["NetworkInterfaceIds"]:
            self._ec2._network_interfaces[name]["Groups"] = self._groups(record)
        record["DnsEntries"] = [{"DnsName": name} for name in _names(record)]

    def forget(self, endpoint_id: str) -> None:
        """Remove what was given to an endpoint."""
        record = by_source.pop(source_of(endpoint_id), {})
        for name in record.get("NetworkInterfaceIds", ()):
            self._ec2._network_interfaces.pop(name, None)

    def describe(self, record: Record, tag: str = "item") -> str:
        """Return an endpoint as the EC2 API describes it."""
        ec2 = self._ec2

        def texts(names: list[str]) -> str:
            return "".join(f"<item>{name}</item>" for name in names)

        groups = "".join(
            f"<item><groupId>{group['GroupId']}</groupId><groupName>{html.escape(group['GroupName'])}</groupName></item>"
            for group in self._groups(record)
        )
        names = "".join(f"<item><dnsName>{entry['DnsName']}</dnsName></item>" for entry in record.get("DnsEntries", ()))
        policy = record.get("PolicyDocument")
        text = policy if isinstance(policy, str) else json.dumps(policy)
        return f"""<{tag}>
            <vpcEndpointId>{record["VpcEndpointId"]}</vpcEndpointId>
            <vpcEndpointType>{record["VpcEndpointType"]}</vpcEndpointType>
            <vpcId>{record["VpcId"]}</vpcId>
            <serviceName>{record["ServiceName"]}</serviceName>
            <state>{record["State"]}</state>
            <policyDocument>{html.escape(text)}</policyDocument>
            <routeTableIdSet>{texts(record.get("RouteTableIds", []))}</routeTableIdSet>
            <subnetIdSet>{texts(record.get("SubnetIds", []))}</subnetIdSet>
            <groupSet>{groups}</groupSet>
            <privateDnsEnabled>{str(bool(record.get("PrivateDnsEnabled"))).lower()}</privateDnsEnabled>
            <networkInterfaceIdSet>{texts(record.get("NetworkInterfaceIds", []))}</networkInterfaceIdSet>
            <dnsEntrySet>{names}</dnsEntrySet>
            <ownerId>{record["OwnerId"]}</ownerId>
            {ec2._tag_set_xml(record["VpcEndpointId"])}
        </{tag}>"""

    def _groups(self, record: Record) -> list[dict[str, str]]:
        known = self._ec2._security_groups
        return [
            {"GroupId": name, "GroupName": (known.get(name) or {}).get("GroupName", name)}
            for name in record.get("SecurityGroupIds", ())
        ]

    def _interface(self, record: Record, subnet: Record) -> str:
        name = f"eni-{secrets.token_hex(9)[:17]}"
        self._ec2._network_interfaces[name] = {
            "NetworkInterfaceId": name,
            "SubnetId": subnet["SubnetId"],
            "VpcId": subnet["VpcId"],
            "AvailabilityZone": subnet["AvailabilityZone"],
            "Description": f"VPC Endpoint Interface {record['VpcEndpointId']}",
            "OwnerId": record["OwnerId"],
            "Status": "in-use",
            "PrivateIpAddress": free_address(subnet),
            "InterfaceType": "vpc_endpoint",
            "SourceDestCheck": True,
            "MacAddress": ":".join(["02", *(secrets.token_hex(1) for _ in range(5))]),
            "Groups": self._groups(record),
            "Attachment": None,
        }
        return name


def _names(record: Record) -> list[str]:
    """Return an interface endpoint's DNS names: its own, and with private DNS the service's (AWS PrivateLink Guide)."""
    _, _, region, service = record["ServiceName"].split(".", 3)
    own = f"{record['VpcEndpointId']}.{service}.{region}.vpce.amazonaws.com"
    return [own, f"{service}.{region}.amazonaws.com"] if record.get("PrivateDnsEnabled") else [own]


def _install_stacks(book: _Book) -> None:
    templates = seam("ministack.services.cloudformation.provisioners", "_RESOURCE_HANDLERS")
    handlers = templates._RESOURCE_HANDLERS[_KIND]
    create, update, delete = handlers["create"], handlers["update"], handlers["delete"]
    attributes = seam("ministack.services.cloudformation.provisioners", "_ec2_vpc_endpoint_attributes")
    ec2 = seam("ministack.services.ec2", "_vpc_endpoints")

    def completed(endpoint_id: str) -> tuple[str, dict[str, Any]]:
        book.complete(endpoint_id)
        return endpoint_id, attributes._ec2_vpc_endpoint_attributes(ec2._vpc_endpoints[endpoint_id])

    def remove(endpoint_id: str, properties: dict[str, Any]) -> None:
        book.forget(endpoint_id)
        delete(endpoint_id, properties)

    handlers["create"] = lambda *given: completed(create(*given)[0])
    handlers["update"] = lambda *given: completed(update(*given)[0])
    handlers["delete"] = remove


def _install_requests(ec2: Any, book: _Book) -> None:
    create, modify, delete = (
        ec2._ACTION_MAP[name] for name in ("CreateVpcEndpoint", "ModifyVpcEndpoint", "DeleteVpcEndpoints")
    )

    def create_endpoint(request: dict[str, Any]) -> Any:
        known = set(ec2._vpc_endpoints)
        answer = create(request)
        for endpoint_id in set(ec2._vpc_endpoints) - known:
            record = ec2._vpc_endpoints[endpoint_id]
            record["SecurityGroupIds"] = ec2._parse_member_list(request, "SecurityGroupId")
            record["NetworkInterfaceIds"], record["DnsEntries"] = [], []
            record["PrivateDnsEnabled"] = ec2._p(request, "PrivateDnsEnabled", "true") != "false"
            record["PolicyDocument"] = ec2._p(request, "PolicyDocument")
            book.complete(endpoint_id)
            return ec2._xml(200, "CreateVpcEndpointResponse", book.describe(record, tag="vpcEndpoint"))
        return answer

    def modify_endpoint(request: dict[str, Any]) -> Any:
        answer, endpoint_id = modify(request), ec2._p(request, "VpcEndpointId")
        if endpoint_id in ec2._vpc_endpoints:
            record = ec2._vpc_endpoints[endpoint_id]
            added = ec2._parse_member_list(request, "AddSecurityGroupId")
            removed = set(ec2._parse_member_list(request, "RemoveSecurityGroupId"))
            record["SecurityGroupIds"] = [
                group for group in dict.fromkeys([*record["SecurityGroupIds"], *added]) if group not in removed
            ]
            if ec2._p(request, "ResetPolicy") == "true":
                record["PolicyDocument"] = None
            book.complete(endpoint_id)
        return answer

    def delete_endpoints(request: dict[str, Any]) -> Any:
        for endpoint_id in ec2._parse_member_list(request, "VpcEndpointId"):
            book.forget(endpoint_id)
        return delete(request)

    ec2._ACTION_MAP |= {
        "CreateVpcEndpoint": create_endpoint,
        "ModifyVpcEndpoint": modify_endpoint,
        "DeleteVpcEndpoints": delete_endpoints,
    }


def _install_prefix_lists(ec2: Any) -> None:
    made_up, ranges = ec2._aws_pl_id_from_name, ec2._aws_prefix_list_to_cidr
    ec2._aws_pl_id_from_name = lambda name: _S3_PREFIX_LISTS.get(name) or made_up(name)
    ec2._aws_prefix_list_to_cidr = lambda name, ipv6=False: (
        S3_RANGE if name in _S3_PREFIX_LISTS and not ipv6 else ranges(name, ipv6)
    )
