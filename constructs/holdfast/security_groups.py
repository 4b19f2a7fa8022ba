"""Security groups that allow nothing, and rules that name peers and ports."""

from aws_cdk import aws_ec2 as ec2
from constructs import Construct

HTTPS = 443
NFS = 2049


def closed_security_group(scope: Construct, construct_id: str, *, vpc: ec2.IVpc, description: str) -> ec2.SecurityGroup:
    """Return a security group that admits nothing and lets nothing out until rules are added as resources.

    AWS gives a group without an egress rule one that allows everything; the placeholder, a loopback address that no
    packet on a network carries, takes its place.
    """
    group = ec2.SecurityGroup(scope, construct_id, vpc=vpc, description=description, allow_all_outbound=False)
    resource = group.node.default_child
    assert isinstance(resource, ec2.CfnSecurityGroup)
    resource.add_property_override(
        "SecurityGroupEgress",
        [
            {
                "CidrIp": "127.0.0.1/32",
                "IpProtocol": "tcp",
                "FromPort": 65535,
                "ToPort": 65535,
                "Description": "Nothing: stands in for the default rule, which allows everything",
            }
        ],
    )
    return group


def allow_between(
    scope: Construct,
    name: str,
    *,
    source: ec2.ISecurityGroup,
    target: ec2.ISecurityGroup,
    port: int,
    description: str,
) -> None:
    """Let `source` open TCP connections to `target` on one port: a rule at each end, each a resource in `scope`."""
    ec2.CfnSecurityGroupEgress(
        scope,
        f"{name}Out",
        group_id=source.security_group_id,
        destination_security_group_id=target.security_group_id,
        ip_protocol="tcp",
        from_port=port,
        to_port=port,
        description=description,
    )
    ec2.CfnSecurityGroupIngress(
        scope,
        f"{name}In",
        group_id=target.security_group_id,
        source_security_group_id=source.security_group_id,
        ip_protocol="tcp",
        from_port=port,
        to_port=port,
        description=description,
    )


def allow_s3(scope: Construct, name: str, *, source: ec2.ISecurityGroup, prefix_list_id: str, description: str) -> None:
    """Let `source` open connections to S3 through the gateway endpoint: one rule, a resource in `scope`.

    The way back needs none: security groups are stateful, and a gateway endpoint has no group of its own.
    """
    ec2.CfnSecurityGroupEgress(
        scope,
        f"{name}Out",
        group_id=source.security_group_id,
        destination_prefix_list_id=prefix_list_id,
        ip_protocol="tcp",
        from_port=HTTPS,
        to_port=HTTPS,
        description=description,
    )
