"""What the instances of a cluster call: plain data, from which a network makes its endpoints."""

from dataclasses import dataclass

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam

#: What the SSM agent does with its channels; AWS offers no resource to scope these to (Service Authorization Reference,
#: "Amazon Message Gateway Service").
AGENT_CHANNELS = (
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
)


@dataclass(frozen=True, kw_only=True)
class ServiceAccess:
    """One AWS service that nodes call, with what they may do there.

    `name` becomes the endpoint's construct id. `actions` and `resources` become its policy, together with `also`:
    statements without principals, which the network allows to this account's principals only.
    """

    name: str
    service: ec2.InterfaceVpcEndpointAwsService
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    also: tuple[iam.PolicyStatement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeAccess:
    """All that nodes reach outside the cluster: services by interface endpoints, objects by the S3 gateway.

    `objects` are statements without principals: the network allows them to this account's principals only. `public`
    are ARNs of objects in buckets of AWS's own that are read without credentials, so by anybody in the network.
    """

    services: tuple[ServiceAccess, ...]
    objects: tuple[iam.PolicyStatement, ...]
    public: tuple[str, ...] = ()


def agent_services(instances: str) -> tuple[ServiceAccess, ...]:
    """Return the services that the SSM agent calls, for agents on the instances of an ARN."""
    services = ec2.InterfaceVpcEndpointAwsService
    return (
        ServiceAccess(
            name="Ssm", service=services.SSM, actions=("ssm:UpdateInstanceInformation",), resources=(instances,)
        ),
        ServiceAccess(name="SsmMessages", service=services.SSM_MESSAGES, actions=AGENT_CHANNELS, resources=("*",)),
    )
