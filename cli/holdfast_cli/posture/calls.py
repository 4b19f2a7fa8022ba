"""Every AWS call that a check may make, by the permission that it takes, and the policy made of them.

`Reader` makes no call that is not here, and a test holds that a run makes every one. Most of these actions have no
resource-level scope (Service Authorization Reference), and none reads an object, a log line or a secret.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """A boto3 service and method, and the field of the answer that holds the list, if it is one."""

    service: str
    method: str
    items: str = ""


#: By IAM action. Names differ from the API's where S3's do (Amazon S3 User Guide, "Policy actions for Amazon S3").
CALLS = {
    "autoscaling:DescribeAutoScalingGroups": Call("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups"),
    "cloudformation:DescribeStacks": Call("cloudformation", "describe_stacks", "Stacks"),
    "cloudformation:ListStackResources": Call("cloudformation", "list_stack_resources", "StackResourceSummaries"),
    "ec2:DescribeEgressOnlyInternetGateways": Call(
        "ec2", "describe_egress_only_internet_gateways", "EgressOnlyInternetGateways"
    ),
    "ec2:DescribeFlowLogs": Call("ec2", "describe_flow_logs", "FlowLogs"),
    "ec2:DescribeImages": Call("ec2", "describe_images", "Images"),
    "ec2:DescribeInstances": Call("ec2", "describe_instances", "Reservations"),
    "ec2:DescribeInternetGateways": Call("ec2", "describe_internet_gateways", "InternetGateways"),
    "ec2:DescribeLaunchTemplateVersions": Call("ec2", "describe_launch_template_versions", "LaunchTemplateVersions"),
    "ec2:DescribeManagedPrefixLists": Call("ec2", "describe_managed_prefix_lists", "PrefixLists"),
    "ec2:DescribeNatGateways": Call("ec2", "describe_nat_gateways", "NatGateways"),
    "ec2:DescribeNetworkInterfaces": Call("ec2", "describe_network_interfaces", "NetworkInterfaces"),
    "ec2:DescribeRouteTables": Call("ec2", "describe_route_tables", "RouteTables"),
    "ec2:DescribeSecurityGroups": Call("ec2", "describe_security_groups", "SecurityGroups"),
    "ec2:DescribeSubnets": Call("ec2", "describe_subnets", "Subnets"),
    "ec2:DescribeVpcEndpoints": Call("ec2", "describe_vpc_endpoints", "VpcEndpoints"),
    "elasticfilesystem:DescribeAccessPoints": Call("efs", "describe_access_points", "AccessPoints"),
    "elasticfilesystem:DescribeFileSystemPolicy": Call("efs", "describe_file_system_policy"),
    "elasticfilesystem:DescribeFileSystems": Call("efs", "describe_file_systems", "FileSystems"),
    "elasticfilesystem:DescribeMountTargetSecurityGroups": Call(
        "efs", "describe_mount_target_security_groups", "SecurityGroups"
    ),
    "elasticfilesystem:DescribeMountTargets": Call("efs", "describe_mount_targets", "MountTargets"),
    "events:DescribeRule": Call("events", "describe_rule"),
    "events:ListTargetsByRule": Call("events", "list_targets_by_rule", "Targets"),
    "iam:GetPolicy": Call("iam", "get_policy"),
    "iam:GetPolicyVersion": Call("iam", "get_policy_version"),
    "iam:GetRole": Call("iam", "get_role"),
    "iam:ListAttachedRolePolicies": Call("iam", "list_attached_role_policies", "AttachedPolicies"),
    "iam:ListInstanceProfilesForRole": Call("iam", "list_instance_profiles_for_role", "InstanceProfiles"),
    "iam:ListRolePolicies": Call("iam", "list_role_policies", "PolicyNames"),
    "kms:DescribeKey": Call("kms", "describe_key"),
    "kms:GetKeyPolicy": Call("kms", "get_key_policy"),
    "kms:GetKeyRotationStatus": Call("kms", "get_key_rotation_status"),
    "kms:ListGrants": Call("kms", "list_grants", "Grants"),
    "kms:ListAliases": Call("kms", "list_aliases", "Aliases"),
    "lambda:GetFunctionConfiguration": Call("lambda", "get_function_configuration"),
    "lambda:GetPolicy": Call("lambda", "get_policy"),
    "lambda:ListFunctionUrlConfigs": Call("lambda", "list_function_url_configs", "FunctionUrlConfigs"),
    "logs:DescribeLogGroups": Call("logs", "describe_log_groups", "logGroups"),
    "logs:DescribeSubscriptionFilters": Call("logs", "describe_subscription_filters", "subscriptionFilters"),
    "route53resolver:GetFirewallConfig": Call("route53resolver", "get_firewall_config"),
    "route53resolver:ListFirewallDomains": Call("route53resolver", "list_firewall_domains", "Domains"),
    "route53resolver:ListFirewallRuleGroupAssociations": Call(
        "route53resolver", "list_firewall_rule_group_associations", "FirewallRuleGroupAssociations"
    ),
    "route53resolver:ListFirewallRules": Call("route53resolver", "list_firewall_rules", "FirewallRules"),
    "s3:GetBucketLogging": Call("s3", "get_bucket_logging"),
    "s3:GetBucketOwnershipControls": Call("s3", "get_bucket_ownership_controls"),
    "s3:GetBucketPolicy": Call("s3", "get_bucket_policy"),
    "s3:GetBucketPublicAccessBlock": Call("s3", "get_public_access_block"),
    "s3:GetBucketVersioning": Call("s3", "get_bucket_versioning"),
    "s3:GetEncryptionConfiguration": Call("s3", "get_bucket_encryption"),
    "s3:GetReplicationConfiguration": Call("s3", "get_bucket_replication"),
    "states:DescribeStateMachine": Call("stepfunctions", "describe_state_machine"),
    "states:ListExecutions": Call("stepfunctions", "list_executions", "executions"),
}


def policy() -> dict[str, Any]:
    """Return the IAM policy that `holdfast verify` needs: these actions, which read, and no other."""
    return {
        "Version": "2012-10-17",
        "Statement": [{"Sid": "HoldfastVerify", "Effect": "Allow", "Action": sorted(CALLS), "Resource": "*"}],
    }
