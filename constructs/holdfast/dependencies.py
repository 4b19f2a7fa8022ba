"""Order between resources that no reference implies."""

from aws_cdk import CfnResource
from constructs import Construct


def depend(resource: Construct, policy: Construct) -> None:
    """Make `resource` only after `policy`, so that it never runs without its permissions.

    Between the two CloudFormation resources alone: a dependency of constructs would repeat the reference to the
    role that is already there.
    """
    first, then = (
        construct if isinstance(construct, CfnResource) else construct.node.default_child
        for construct in (policy, resource)
    )
    assert isinstance(first, CfnResource) and isinstance(then, CfnResource)
    then.add_resource_dependency(first)
