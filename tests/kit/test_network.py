"""The network's template: no way out but to the services that nodes call."""

import re
from typing import Any

import pytest
from tests.kit.support import Deployment, by_sid

OWN_ACCOUNT = {"StringEquals": {"aws:PrincipalAccount": "<AWS::AccountId>"}}
JOBS, MODELS = "<FoundationBucketsJobs.Arn>", "<FoundationBucketsModels.Arn>"
ENDPOINTS: dict[str, tuple[Any, Any]] = {
    "kms": (["kms:GetPublicKey", "kms:Sign"], ["<FoundationKeysJobSigning.Arn>", "<FoundationKeysModelSigning.Arn>"]),
    "logs": (["logs:CreateLogStream", "logs:PutLogEvents"], "<FoundationNodeLog.Arn>"),
    "states": (
        ["states:SendTaskFailure", "states:SendTaskHeartbeat", "states:SendTaskSuccess"],
        "arn:aws:states:us-east-1:<AWS::AccountId>:stateMachine:dev-jobs",
    ),
    "lambda": ("lambda:InvokeFunction", "<FoundationEnrolmentFunction.Arn>"),
}


def endpoints(dev: Deployment, kind: str) -> dict[str, dict[str, Any]]:
    return {
        properties["ServiceName"].rsplit(".", 1)[1]: properties
        for properties in dev.properties("AWS::EC2::VPCEndpoint").values()
        if properties["VpcEndpointType"] == kind
    }


def test_there_is_no_gateway_to_the_internet(dev: Deployment) -> None:
    ways_out = {
        "InternetGateway",
        "NatGateway",
        "EIP",
        "EgressOnlyInternetGateway",
        "TransitGatewayAttachment",
        "Route",
    }
    assert not {kind for kind in dev.types() if kind.rsplit("::", 1)[1] in ways_out}


def test_subnets_are_two_halves_in_two_zones_without_public_addresses(dev: Deployment) -> None:
    subnets = dev.properties("AWS::EC2::Subnet").values()
    assert [s["CidrBlock"] for s in subnets] == ["10.77.0.0/23", "10.77.2.0/23"]
    assert [s["AvailabilityZone"] for s in subnets] == [{"Fn::Select": [zone, {"Fn::GetAZs": ""}]} for zone in (0, 1)]
    assert {s["MapPublicIpOnLaunch"] for s in subnets} == {False}


def test_interface_endpoints_are_those_that_nodes_call(dev: Deployment) -> None:
    assert set(endpoints(dev, "Interface")) == set(ENDPOINTS)


@pytest.mark.parametrize("service", ENDPOINTS)
def test_interface_endpoint_admits_this_accounts_use_of_it_only(dev: Deployment, service: str) -> None:
    actions, resources = ENDPOINTS[service]
    assert endpoints(dev, "Interface")[service]["PolicyDocument"]["Statement"] == [
        {
            "Sid": "Nodes",
            "Effect": "Allow",
            "Principal": {"AWS": "*"},
            "Action": actions,
            "Resource": resources,
            "Condition": OWN_ACCOUNT,
        }
    ]


@pytest.mark.parametrize("service", ENDPOINTS)
def test_interface_endpoint_answers_to_the_services_own_name_in_both_zones(dev: Deployment, service: str) -> None:
    properties = endpoints(dev, "Interface")[service]
    assert properties["PrivateDnsEnabled"] is True
    assert len(properties["SubnetIds"]) == 2
    assert properties["SecurityGroupIds"] == ["<NetworkEndpointGroup.GroupId>"]


def test_s3_gateway_admits_the_clusters_objects_and_public_packages_only(dev: Deployment) -> None:
    (gateway,) = endpoints(dev, "Gateway").values()
    statements = by_sid(gateway["PolicyDocument"])
    assert {sid: (s["Action"], s["Resource"], s.get("Condition")) for sid, s in statements.items()} == {
        "ListRegistrations": ("s3:ListBucket", JOBS, OWN_ACCOUNT),
        "JobObjects": (["s3:GetObject", "s3:PutObject"], f"{JOBS}/*", OWN_ACCOUNT),
        "ModelObjects": (["s3:GetObject", "s3:PutObject"], f"{MODELS}/*", OWN_ACCOUNT),
        "NodeBundle": ("s3:GetObject", statements["NodeBundle"]["Resource"], OWN_ACCOUNT),
        "OperatingSystemPackages": ("s3:GetObject", "arn:aws:s3:::al2023-repos-us-east-1-de612dc2/*", None),
    }
    code = statements["NodeBundle"]["Resource"]
    assert len(set(code)) == 3, "the bundle and the wheels, for CPUs and for GPUs"
    prefix = "arn:aws:s3:::cdk-hnb659fds-assets-<AWS::AccountId>-us-east-1/"
    assert all(re.fullmatch(rf"{re.escape(prefix)}[0-9a-f]{{64}}(\.zip)?", resource) for resource in code)


def test_all_traffic_is_logged(dev: Deployment) -> None:
    (flow_log,) = dev.properties("AWS::EC2::FlowLog").values()
    assert (flow_log["ResourceId"], flow_log["TrafficType"]) == ("<NetworkVpc>", "ALL")
    assert flow_log["LogGroupName"] == "<NetworkFlowLog>"


def test_flow_logs_are_written_by_the_service_for_this_account_only(dev: Deployment) -> None:
    (statement,) = dev.properties("AWS::IAM::Role")["NetworkFlowLogRole"]["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "vpc-flow-logs.amazonaws.com"}
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"}}


def test_only_the_names_of_endpoints_and_file_systems_resolve(dev: Deployment) -> None:
    lists = dev.properties("AWS::Route53Resolver::FirewallDomainList")
    domains = {name: properties["Domains"] for name, properties in lists.items()}
    assert domains == {
        "NetworkAllowedNames": [
            *(f"{service}.us-east-1.<AWS::URLSuffix>" for service in ENDPOINTS),
            *("s3.us-east-1.<AWS::URLSuffix>", "s3.dualstack.us-east-1.<AWS::URLSuffix>", "s3.<AWS::URLSuffix>"),
            *("*.s3.us-east-1.<AWS::URLSuffix>", "*.s3.dualstack.us-east-1.<AWS::URLSuffix>", "*.s3.<AWS::URLSuffix>"),
            "*.efs.us-east-1.<AWS::URLSuffix>",
        ],
        "NetworkEveryName": ["*"],
    }
    (group,) = dev.properties("AWS::Route53Resolver::FirewallRuleGroup").values()
    assert group["FirewallRules"] == [
        {
            "Action": "ALLOW",
            "Priority": 1,
            "FirewallDomainListId": "<NetworkAllowedNames.Id>",
            "FirewallDomainRedirectionAction": "TRUST_REDIRECTION_DOMAIN",
        },
        {
            "Action": "BLOCK",
            "Priority": 2,
            "FirewallDomainListId": "<NetworkEveryName.Id>",
            "BlockResponse": "NXDOMAIN",
        },
    ]


def test_the_name_firewall_is_the_networks(dev: Deployment) -> None:
    (association,) = dev.properties("AWS::Route53Resolver::FirewallRuleGroupAssociation").values()
    assert association["VpcId"] == "<NetworkVpc>"
    assert association["FirewallRuleGroupId"] == "<NetworkNameRules.Id>"
    assert 100 < association["Priority"] < 9000  # AWS keeps the rest
