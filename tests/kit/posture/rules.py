"""What holds for the templates of every deployment: the rules, and judging by all of them.

A rule looks at every resource of a kind, not at the first, and at plain template dictionaries, so that it also judges
what a construct's own checks do not see: property overrides, generic resources, a template that somebody edited.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kit.posture import compute, identity, keys, network, storage
from tests.kit.posture.model import Problem, Rule, Template, Templates, rule_name, wrong

#: Everything that the stacks may hold. What is not here is a way in or out (a gateway, a route, an address, a URL of a
#: function, a permission for a stranger), an identity with keys of its own, or something that no rule looks at.
KINDS = {
    *("AWS::AutoScaling::AutoScalingGroup", "AWS::Events::Rule", "AWS::Lambda::Function", "AWS::SSM::Document"),
    *("AWS::EC2::FlowLog", "AWS::EC2::LaunchTemplate", "AWS::EC2::VPCEndpoint"),
    *("AWS::EC2::VPC", "AWS::EC2::Subnet", "AWS::EC2::RouteTable", "AWS::EC2::SubnetRouteTableAssociation"),
    *("AWS::EC2::SecurityGroup", "AWS::EC2::SecurityGroupEgress", "AWS::EC2::SecurityGroupIngress"),
    *("AWS::EFS::AccessPoint", "AWS::EFS::FileSystem", "AWS::EFS::MountTarget"),
    *("AWS::IAM::InstanceProfile", "AWS::IAM::ManagedPolicy", "AWS::IAM::Role"),
    *("AWS::ImageBuilder::Component", "AWS::ImageBuilder::ImagePipeline", "AWS::ImageBuilder::ImageRecipe"),
    *("AWS::ImageBuilder::DistributionConfiguration", "AWS::ImageBuilder::InfrastructureConfiguration"),
    *("AWS::KMS::Alias", "AWS::KMS::Key", "AWS::Logs::LogGroup", "AWS::Logs::MetricFilter"),
    *("AWS::Route53Resolver::FirewallDomainList", "AWS::Route53Resolver::FirewallRuleGroup"),
    *("AWS::Route53Resolver::FirewallRuleGroupAssociation", "AWS::StepFunctions::StateMachine"),
    *("AWS::S3::Bucket", "AWS::S3::BucketPolicy"),
}


def stacks_hold_known_kinds(templates: Templates) -> Iterator[Problem]:
    for resource in templates.resources:
        if resource.kind not in KINDS:
            yield wrong(resource, "a resource's type", resource.kind, "one that rules judge (KINDS)")


RULES: tuple[Rule, ...] = (
    stacks_hold_known_kinds,
    *network.RULES,
    *compute.RULES,
    *storage.RULES,
    *identity.RULES,
    *keys.RULES,
)


@dataclass(frozen=True)
class Finding:
    """A rule that something in the templates breaks."""

    rule: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.text}"


def judge(templates: Templates) -> list[Finding]:
    """Return what the rules find, in their order; what is no valid CloudFormation may end in any exception instead."""
    return [Finding(rule_name(rule), found.where, found.text) for rule in RULES for found in rule(templates)]


def read(folder: Path) -> dict[str, Template]:
    """Return the templates in a folder by part, the last word of a stack's name."""
    paths = sorted(folder.glob("Holdfast-*.template.json"))
    return {path.name.removesuffix(".template.json").rsplit("-", 1)[1]: json.loads(path.read_text()) for path in paths}
