"""Ways in which somebody could change a deployed cluster by hand, each with its undoing and the checks that find it."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.kit.deployed import CLUSTER, Account

from holdfast_cli.posture.inventory import ENDPOINTS, Inventory
from holdfast_node.contract.roles import Role

EVERYBODY = "0.0.0.0/0"
STRANGER = "arn:aws:iam::111122223333:root"


@dataclass(frozen=True)
class Scene:
    """The account as root, and where the cluster's parts are."""

    account: Account
    parts: Inventory

    def client(self, service: str) -> Any:
        return self.account.client(service)

    @property
    def jobs(self) -> str:
        return self.account.outputs["JobsBucket"]

    @property
    def data_key(self) -> str:
        return self.account.outputs["DataKey"]

    @property
    def worker_role(self) -> str:
        return self.parts.role_name(Role.WORKER)


Tampering = Callable[[Scene], Iterator[None]]
#: By what somebody did: how, and which checks fail of it.
CASES: dict[str, tuple[Tampering, set[str]]] = {}


def found_by(*checks: str) -> Callable[[Tampering], Tampering]:
    def register(tampering: Tampering) -> Tampering:
        CASES[tampering.__name__.replace("_", " ")] = (tampering, set(checks))
        return tampering

    return register


# Network


def rule(port: int, **peer: Any) -> list[dict[str, Any]]:
    return [{"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **peer}]


def with_ingress(scene: Scene, permissions: list[dict[str, Any]]) -> Iterator[None]:
    group, ec2 = scene.parts.group_id(Role.WORKER), scene.client("ec2")
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=permissions)
    yield
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=permissions)


@found_by("security-group-rules")
def ssh_is_opened_to_everybody(scene: Scene) -> Iterator[None]:
    yield from with_ingress(scene, rule(22, IpRanges=[{"CidrIp": EVERYBODY}]))


@found_by("security-group-rules")
def a_port_is_opened_to_everybody_over_ipv6(scene: Scene) -> Iterator[None]:
    yield from with_ingress(scene, rule(9093, Ipv6Ranges=[{"CidrIpv6": "::/0"}]))


@found_by("security-group-rules")
def workers_are_opened_to_workers(scene: Scene) -> Iterator[None]:
    yield from with_ingress(scene, rule(9093, UserIdGroupPairs=[{"GroupId": scene.parts.group_id(Role.WORKER)}]))


@found_by("security-group-rules")
def the_endpoints_group_is_opened_to_the_network(scene: Scene) -> Iterator[None]:
    group, ec2 = scene.parts.group_id(ENDPOINTS), scene.client("ec2")
    permissions = rule(443, IpRanges=[{"CidrIp": "10.77.0.0/24"}])
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=permissions)
    yield
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=permissions)


@found_by("security-group-rules")
def workers_may_reach_any_address(scene: Scene) -> Iterator[None]:
    group, ec2 = scene.parts.group_id(Role.WORKER), scene.client("ec2")
    permissions = rule(443, IpRanges=[{"CidrIp": EVERYBODY}])
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=permissions)
    yield
    ec2.revoke_security_group_egress(GroupId=group, IpPermissions=permissions)


@found_by("security-group-rules")
def a_rule_that_training_needs_is_revoked(scene: Scene) -> Iterator[None]:
    group, ec2 = scene.parts.group_id(Role.SERVER), scene.client("ec2")
    worker = scene.parts.group_id(Role.WORKER)
    rules = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])["SecurityGroupRules"]
    (found,) = [
        item for item in rules if not item["IsEgress"] and item.get("ReferencedGroupInfo", {}).get("GroupId") == worker
    ]
    ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[found["SecurityGroupRuleId"]])
    yield
    ec2.authorize_security_group_ingress(
        GroupId=group, IpPermissions=rule(9092, UserIdGroupPairs=[{"GroupId": worker}])
    )


@found_by("no-way-out")
def an_internet_gateway_is_attached(scene: Scene) -> Iterator[None]:
    ec2, vpc = scene.client("ec2"), scene.parts.vpc
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    yield
    ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    ec2.delete_internet_gateway(InternetGatewayId=gateway)


@found_by("no-way-out")
def a_route_leads_to_another_network(scene: Scene) -> Iterator[None]:
    ec2, table = scene.client("ec2"), scene.parts.of("EC2::RouteTable")[0]
    ec2.create_route(
        RouteTableId=table, DestinationCidrBlock="10.99.0.0/16", VpcPeeringConnectionId="pcx-0123456789abcdef0"
    )
    yield
    ec2.delete_route(RouteTableId=table, DestinationCidrBlock="10.99.0.0/16")


@found_by("no-public-address")
def a_subnet_gives_out_public_addresses(scene: Scene) -> Iterator[None]:
    ec2, subnet = scene.client("ec2"), scene.parts.of("EC2::Subnet")[0]
    ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
    yield
    ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": False})


@found_by("no-public-address")
def an_interface_with_the_default_group_is_in_the_network(scene: Scene) -> Iterator[None]:
    ec2 = scene.client("ec2")
    groups = ec2.describe_security_groups(Filters=scene.parts.in_vpc)["SecurityGroups"]
    default = next(group["GroupId"] for group in groups if group["GroupName"] == "default")
    made = ec2.create_network_interface(SubnetId=scene.parts.of("EC2::Subnet")[0], Groups=[default])
    yield
    ec2.delete_network_interface(NetworkInterfaceId=made["NetworkInterface"]["NetworkInterfaceId"])


def make_flow_log(scene: Scene, traffic: str = "ALL") -> str:
    made = scene.client("ec2").create_flow_logs(
        ResourceIds=[scene.parts.vpc],
        ResourceType="VPC",
        TrafficType=traffic,
        LogDestinationType="cloud-watch-logs",
        LogGroupName=f"/holdfast/{CLUSTER}/flows",
        DeliverLogsPermissionArn="arn:aws:iam::000000000000:role/flows",
    )
    return str(made["FlowLogIds"][0])


def delete_flow_logs(scene: Scene) -> None:
    ec2 = scene.client("ec2")
    found = [log["FlowLogId"] for log in ec2.describe_flow_logs()["FlowLogs"]]
    ec2.delete_flow_logs(FlowLogIds=found)


@found_by("flow-log")
def the_flow_log_is_deleted(scene: Scene) -> Iterator[None]:
    delete_flow_logs(scene)
    yield
    make_flow_log(scene)


@found_by("flow-log")
def the_flow_log_holds_refused_traffic_only(scene: Scene) -> Iterator[None]:
    delete_flow_logs(scene)
    make_flow_log(scene, "REJECT")
    yield
    delete_flow_logs(scene)
    make_flow_log(scene)


@found_by("endpoints")
def an_endpoints_policy_is_opened(scene: Scene) -> Iterator[None]:
    ec2 = scene.client("ec2")
    found = ec2.describe_vpc_endpoints(Filters=scene.parts.in_vpc)["VpcEndpoints"]
    endpoint = next(item for item in found if item["ServiceName"].endswith(".kms"))
    ec2.modify_vpc_endpoint(VpcEndpointId=endpoint["VpcEndpointId"], ResetPolicy=True)
    every = {"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}]}
    ec2.modify_vpc_endpoint(VpcEndpointId=endpoint["VpcEndpointId"], PolicyDocument=json.dumps(every))
    yield
    ec2.modify_vpc_endpoint(VpcEndpointId=endpoint["VpcEndpointId"], PolicyDocument=endpoint["PolicyDocument"])


@found_by("endpoints")
def an_endpoint_for_another_service_is_added(scene: Scene) -> Iterator[None]:
    ec2 = scene.client("ec2")
    made = ec2.create_vpc_endpoint(
        VpcEndpointType="Interface",
        VpcId=scene.parts.vpc,
        ServiceName="com.amazonaws.us-east-1.sts",
        SubnetIds=[scene.parts.of("EC2::Subnet")[0]],
        SecurityGroupIds=[scene.parts.group_id(ENDPOINTS)],
    )
    yield
    ec2.delete_vpc_endpoints(VpcEndpointIds=[made["VpcEndpoint"]["VpcEndpointId"]])


@found_by("remote-access", "endpoints")
def an_endpoint_for_sessions_is_added(scene: Scene) -> Iterator[None]:
    ec2 = scene.client("ec2")
    made = ec2.create_vpc_endpoint(
        VpcEndpointType="Interface",
        VpcId=scene.parts.vpc,
        ServiceName="com.amazonaws.us-east-1.ssmmessages",
        SubnetIds=[scene.parts.of("EC2::Subnet")[0]],
        SecurityGroupIds=[scene.parts.group_id(ENDPOINTS)],
    )
    yield
    ec2.delete_vpc_endpoints(VpcEndpointIds=[made["VpcEndpoint"]["VpcEndpointId"]])


@found_by("dns-firewall")
def the_dns_firewall_is_detached(scene: Scene) -> Iterator[None]:
    resolver, vpc = scene.client("route53resolver"), scene.parts.vpc
    (found,) = resolver.list_firewall_rule_group_associations(VpcId=vpc)["FirewallRuleGroupAssociations"]
    resolver.disassociate_firewall_rule_group(FirewallRuleGroupAssociationId=found["Id"])
    yield
    resolver.associate_firewall_rule_group(
        CreatorRequestId="undo",
        FirewallRuleGroupId=found["FirewallRuleGroupId"],
        VpcId=vpc,
        Priority=1000,
        Name="names",
    )


@found_by("dns-firewall")
def the_dns_firewall_fails_open(scene: Scene) -> Iterator[None]:
    resolver, vpc = scene.client("route53resolver"), scene.parts.vpc
    resolver.update_firewall_config(ResourceId=vpc, FirewallFailOpen="ENABLED")
    yield
    resolver.update_firewall_config(ResourceId=vpc, FirewallFailOpen="DISABLED")


# Nodes


def with_template(scene: Scene, *, default: bool = False, **data: Any) -> Iterator[None]:
    """Make a version of the workers' launch template with these changes; nobody can delete one here, so mend it."""
    ec2, name = scene.client("ec2"), f"{CLUSTER}-{Role.WORKER}"
    source = ec2.describe_launch_template_versions(LaunchTemplateName=name, Versions=["$Default"])
    first = str(source["LaunchTemplateVersions"][0]["VersionNumber"])

    def make(changes: dict[str, Any]) -> str:
        made = ec2.create_launch_template_version(
            LaunchTemplateName=name, SourceVersion=first, LaunchTemplateData=changes
        )
        return str(made["LaunchTemplateVersion"]["VersionNumber"])

    number = make(data)
    if default:
        make({"EbsOptimized": True})
        ec2.modify_launch_template(LaunchTemplateName=name, DefaultVersion=number)
    yield
    ec2.modify_launch_template(LaunchTemplateName=name, DefaultVersion=first)
    make({"EbsOptimized": True})


def metadata(**changes: Any) -> dict[str, Any]:
    return {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled", **changes}


def volumes(**changes: Any) -> list[dict[str, Any]]:
    volume = {"VolumeSize": 30, "VolumeType": "gp3", "DeleteOnTermination": True, **changes}
    return [{"DeviceName": "/dev/xvda", "Ebs": volume}]


@found_by("launch-templates")
def a_template_answers_metadata_without_a_token(scene: Scene) -> Iterator[None]:
    yield from with_template(scene, MetadataOptions=metadata(HttpTokens="optional"))


@found_by("launch-templates")
def a_templates_default_version_answers_metadata_without_a_token(scene: Scene) -> Iterator[None]:
    yield from with_template(scene, default=True, MetadataOptions=metadata(HttpTokens="optional"))


@found_by("launch-templates")
def a_template_answers_metadata_over_two_hops(scene: Scene) -> Iterator[None]:
    yield from with_template(scene, MetadataOptions=metadata(HttpPutResponseHopLimit=2))


@found_by("launch-templates")
def a_template_has_a_key_pair(scene: Scene) -> Iterator[None]:
    yield from with_template(scene, KeyName="mine")


@found_by("launch-templates")
def a_template_gives_a_public_address(scene: Scene) -> Iterator[None]:
    group = scene.parts.group_id(Role.WORKER)
    interface = {"DeviceIndex": 0, "AssociatePublicIpAddress": True, "Groups": [group]}
    yield from with_template(scene, NetworkInterfaces=[interface])


@found_by("launch-templates")
def a_template_has_another_roles_security_group(scene: Scene) -> Iterator[None]:
    groups = [scene.parts.group_id(role) for role in (Role.WORKER, Role.SERVER)]
    interface = {"DeviceIndex": 0, "AssociatePublicIpAddress": False, "Groups": groups}
    yield from with_template(scene, NetworkInterfaces=[interface])


@found_by("volumes")
def a_templates_volume_is_not_encrypted(scene: Scene) -> Iterator[None]:
    yield from with_template(scene, BlockDeviceMappings=volumes())


@found_by("volumes")
def a_templates_volume_is_under_another_key(scene: Scene) -> Iterator[None]:
    yield from with_template(scene, BlockDeviceMappings=volumes(Encrypted=True, KmsKeyId="alias/aws/ebs"))


@found_by("images")
def a_template_boots_a_strangers_image(scene: Scene) -> Iterator[None]:
    yield from with_template(scene, ImageId="ami-0123456789abcdef0")  # one of ministack's that is not Amazon's


@found_by("instance-profiles")
def a_template_has_another_roles_profile(scene: Scene) -> Iterator[None]:
    yield from with_template(scene, IamInstanceProfile={"Arn": scene.parts.profiles[Role.SCHEDULER][0]})


# What nodes install, and whether Session Manager was asked for, are in the user data: both are unknown without it.
@found_by("node-software", "remote-access", "role-policies", "role-trust")
def a_template_runs_another_script(scene: Scene) -> Iterator[None]:
    yield from with_template(scene, UserData="IyEvYmluL3NoCnNodXRkb3duCg==")


def run_instance(scene: Scene, **more: Any) -> str:
    made = scene.client("ec2").run_instances(
        ImageId="ami-0c2023a1b2c3d4e5f", InstanceType="m7i.large", MinCount=1, MaxCount=1, **more
    )
    return str(made["Instances"][0]["InstanceId"])


# ministack gives every instance that somebody runs a public address.
@found_by("no-stray-node", "no-public-address")
def a_node_is_added_by_hand(scene: Scene) -> Iterator[None]:
    node = run_instance(
        scene,
        SubnetId=scene.parts.of("EC2::Subnet")[0],
        SecurityGroupIds=[scene.parts.group_id(Role.WORKER)],
        IamInstanceProfile={"Arn": scene.parts.profiles[Role.WORKER][0]},
    )
    yield
    scene.client("ec2").terminate_instances(InstanceIds=[node])


@found_by("no-stray-node")
def a_workers_profile_is_used_outside_the_network(scene: Scene) -> Iterator[None]:
    node = run_instance(scene, IamInstanceProfile={"Arn": scene.parts.profiles[Role.WORKER][0]})
    yield
    scene.client("ec2").terminate_instances(InstanceIds=[node])


@found_by("at-rest")
def a_group_is_raised_by_hand(scene: Scene) -> Iterator[None]:
    scaling, name = scene.client("autoscaling"), f"{CLUSTER}-worker"
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=1)
    yield
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=0)


@found_by("at-rest", "running-nodes")
def a_running_node_answers_metadata_without_a_token(scene: Scene) -> Iterator[None]:
    scaling, name = scene.client("autoscaling"), f"{CLUSTER}-worker"
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=1)
    (group,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    node = group["Instances"][0]["InstanceId"]
    scene.client("ec2").modify_instance_metadata_options(InstanceId=node, HttpTokens="optional")
    yield
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=0)


@found_by("groups")
def a_group_may_have_more_than_jobs_do(scene: Scene) -> Iterator[None]:
    scaling, name = scene.client("autoscaling"), f"{CLUSTER}-worker"
    scaling.update_auto_scaling_group(AutoScalingGroupName=name, MaxSize=50)
    yield
    scaling.update_auto_scaling_group(AutoScalingGroupName=name, MaxSize=2)


@found_by("groups")
def a_group_launches_into_another_subnet(scene: Scene) -> Iterator[None]:
    scaling, name = scene.client("autoscaling"), f"{CLUSTER}-worker"
    scaling.update_auto_scaling_group(AutoScalingGroupName=name, VPCZoneIdentifier="subnet-0123456789abcdef0")
    yield
    subnets = ",".join(scene.parts.of("EC2::Subnet"))
    scaling.update_auto_scaling_group(AutoScalingGroupName=name, VPCZoneIdentifier=subnets)


# Keys


@found_by("data-key")
def the_data_key_is_disabled(scene: Scene) -> Iterator[None]:
    scene.client("kms").disable_key(KeyId=scene.data_key)
    yield
    scene.client("kms").enable_key(KeyId=scene.data_key)


@found_by("data-key")
def the_data_key_is_about_to_be_deleted(scene: Scene) -> Iterator[None]:
    scene.client("kms").schedule_key_deletion(KeyId=scene.data_key, PendingWindowInDays=7)
    yield
    scene.client("kms").cancel_key_deletion(KeyId=scene.data_key)
    scene.client("kms").enable_key(KeyId=scene.data_key)


@found_by("data-key")
def the_data_key_is_rotated_no_more(scene: Scene) -> Iterator[None]:
    scene.client("kms").disable_key_rotation(KeyId=scene.data_key)
    yield
    scene.client("kms").enable_key_rotation(KeyId=scene.data_key)


@found_by("data-key")
def the_alias_of_the_data_key_leads_elsewhere(scene: Scene) -> Iterator[None]:
    kms, alias = scene.client("kms"), f"alias/holdfast/{CLUSTER}/data"
    other = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.update_alias(AliasName=alias, TargetKeyId=other)
    yield
    kms.update_alias(AliasName=alias, TargetKeyId=scene.data_key.rpartition("/")[2])


def with_key_policy(scene: Scene, key: str, change: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    kms = scene.client("kms")
    before = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    document = json.loads(before)
    document["Statement"] = change(document["Statement"])
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(document))
    yield
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=before)


def decrypting(principal: Any) -> dict[str, Any]:
    return {"Sid": "Mine", "Effect": "Allow", "Principal": principal, "Action": "kms:Decrypt", "Resource": "*"}


@found_by("data-key")
def the_data_key_is_opened_to_everybody(scene: Scene) -> Iterator[None]:
    yield from with_key_policy(scene, scene.data_key, lambda statements: [*statements, decrypting({"AWS": "*"})])


@found_by("data-key")
def the_data_key_is_opened_to_another_account(scene: Scene) -> Iterator[None]:
    yield from with_key_policy(scene, scene.data_key, lambda statements: [*statements, decrypting({"AWS": STRANGER})])


@found_by("data-key")
def a_condition_of_the_data_keys_policy_is_dropped(scene: Scene) -> Iterator[None]:
    def bare(statements: list[Any]) -> list[Any]:
        return [{k: v for k, v in item.items() if k != "Condition"} for item in statements]

    yield from with_key_policy(scene, scene.data_key, bare)


def without(*sids: str) -> Callable[[list[Any]], list[Any]]:
    return lambda statements: [item for item in statements if item.get("Sid") not in sids]


@found_by("signing-keys")
def others_than_workers_may_sign_models(scene: Scene) -> Iterator[None]:
    yield from with_key_policy(scene, scene.account.outputs["ModelSigningKey"], without("DenyOtherSigners"))


@found_by("signing-keys")
def the_key_that_signs_jobs_is_disabled(scene: Scene) -> Iterator[None]:
    key = scene.account.outputs["JobSigningKey"]
    scene.client("kms").disable_key(KeyId=key)
    yield
    scene.client("kms").enable_key(KeyId=key)


@found_by("signing-keys")
def a_grant_lets_somebody_sign_jobs(scene: Scene) -> Iterator[None]:
    kms, key = scene.client("kms"), scene.account.outputs["JobSigningKey"]
    made = kms.create_grant(KeyId=key, GranteePrincipal=STRANGER, Operations=["Sign"])
    yield
    kms.revoke_grant(KeyId=key, GrantId=made["GrantId"])


@found_by("authority-key")
def others_than_the_function_may_sign_certificates(scene: Scene) -> Iterator[None]:
    yield from with_key_policy(scene, f"alias/holdfast/{CLUSTER}/ca", without("DenyOtherSigners"))


@found_by("authority-key")
def the_authority_may_sign_more_than_digests(scene: Scene) -> Iterator[None]:
    yield from with_key_policy(scene, f"alias/holdfast/{CLUSTER}/ca", without("DenyOtherMessages"))


# Storage


@found_by("bucket-encryption")
def a_buckets_encryption_is_removed(scene: Scene) -> Iterator[None]:
    s3 = scene.client("s3")
    before = s3.get_bucket_encryption(Bucket=scene.jobs)["ServerSideEncryptionConfiguration"]
    s3.delete_bucket_encryption(Bucket=scene.jobs)
    yield
    s3.put_bucket_encryption(Bucket=scene.jobs, ServerSideEncryptionConfiguration=before)


@found_by("bucket-encryption")
def a_bucket_is_encrypted_with_s3s_own_key(scene: Scene) -> Iterator[None]:
    s3 = scene.client("s3")
    before = s3.get_bucket_encryption(Bucket=scene.jobs)["ServerSideEncryptionConfiguration"]
    own = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
    s3.put_bucket_encryption(Bucket=scene.jobs, ServerSideEncryptionConfiguration=own)
    yield
    s3.put_bucket_encryption(Bucket=scene.jobs, ServerSideEncryptionConfiguration=before)


@found_by("bucket-access")
def a_buckets_public_access_block_is_removed(scene: Scene) -> Iterator[None]:
    s3 = scene.client("s3")
    before = s3.get_public_access_block(Bucket=scene.jobs)["PublicAccessBlockConfiguration"]
    s3.delete_public_access_block(Bucket=scene.jobs)
    yield
    s3.put_public_access_block(Bucket=scene.jobs, PublicAccessBlockConfiguration=before)


@found_by("bucket-access")
def access_control_lists_are_back(scene: Scene) -> Iterator[None]:
    s3 = scene.client("s3")
    for ownership in ("ObjectWriter", "BucketOwnerEnforced"):
        s3.put_bucket_ownership_controls(
            Bucket=scene.jobs, OwnershipControls={"Rules": [{"ObjectOwnership": ownership}]}
        )
        if ownership == "ObjectWriter":
            yield


def with_bucket_policy(scene: Scene, change: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    s3 = scene.client("s3")
    before = s3.get_bucket_policy(Bucket=scene.jobs)["Policy"]
    document = json.loads(before)
    document["Statement"] = change(document["Statement"])
    s3.put_bucket_policy(Bucket=scene.jobs, Policy=json.dumps(document))
    yield
    s3.put_bucket_policy(Bucket=scene.jobs, Policy=before)


def reading(scene: Scene, principal: Any) -> dict[str, Any]:
    place = f"arn:aws:s3:::{scene.jobs}/*"
    return {"Effect": "Allow", "Principal": principal, "Action": "s3:GetObject", "Resource": place}


@found_by("bucket-access")
def a_bucket_is_copied_elsewhere(scene: Scene) -> Iterator[None]:
    s3 = scene.client("s3")
    s3.create_bucket(Bucket="elsewhere")
    s3.put_bucket_versioning(Bucket="elsewhere", VersioningConfiguration={"Status": "Enabled"})
    rule = {
        "ID": "copy",
        "Priority": 1,
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "DeleteMarkerReplication": {"Status": "Disabled"},
        "Destination": {"Bucket": "arn:aws:s3:::elsewhere"},
    }
    role = "arn:aws:iam::000000000000:role/copy"
    s3.put_bucket_replication(Bucket=scene.jobs, ReplicationConfiguration={"Role": role, "Rules": [rule]})
    yield
    s3.delete_bucket_replication(Bucket=scene.jobs)
    s3.delete_bucket(Bucket="elsewhere")


@found_by("bucket-access")
def another_account_may_read_a_bucket(scene: Scene) -> Iterator[None]:
    yield from with_bucket_policy(scene, lambda statements: [*statements, reading(scene, {"AWS": STRANGER})])


@found_by("bucket-access")
def a_role_of_the_account_may_read_a_bucket_by_its_policy(scene: Scene) -> Iterator[None]:
    principal = {"AWS": "arn:aws:iam::000000000000:role/other"}
    yield from with_bucket_policy(scene, lambda statements: [*statements, reading(scene, principal)])


@found_by("bucket-tls", "bucket-encryption")
def a_buckets_policy_is_deleted(scene: Scene) -> Iterator[None]:
    s3 = scene.client("s3")
    before = s3.get_bucket_policy(Bucket=scene.jobs)["Policy"]
    s3.delete_bucket_policy(Bucket=scene.jobs)
    yield
    s3.put_bucket_policy(Bucket=scene.jobs, Policy=before)


@found_by("bucket-tls")
def a_bucket_answers_without_tls(scene: Scene) -> Iterator[None]:
    def plain(statements: list[Any]) -> list[Any]:
        return [item for item in statements if "Bool" not in item.get("Condition", {})]

    yield from with_bucket_policy(scene, plain)


@found_by("bucket-encryption")
def a_bucket_takes_uploads_under_other_keys(scene: Scene) -> Iterator[None]:
    yield from with_bucket_policy(scene, without("DenyOtherKey"))


@found_by("bucket-history")
def a_bucket_keeps_no_versions(scene: Scene) -> Iterator[None]:
    s3 = scene.client("s3")
    s3.put_bucket_versioning(Bucket=scene.jobs, VersioningConfiguration={"Status": "Suspended"})
    yield
    s3.put_bucket_versioning(Bucket=scene.jobs, VersioningConfiguration={"Status": "Enabled"})


@found_by("bucket-history")
def a_buckets_requests_are_not_recorded(scene: Scene) -> Iterator[None]:
    s3 = scene.client("s3")
    before = s3.get_bucket_logging(Bucket=scene.jobs)["LoggingEnabled"]
    s3.put_bucket_logging(Bucket=scene.jobs, BucketLoggingStatus={})
    yield
    s3.put_bucket_logging(Bucket=scene.jobs, BucketLoggingStatus={"LoggingEnabled": before})


@found_by("file-system-policy")
def the_file_systems_policy_is_deleted(scene: Scene) -> Iterator[None]:
    efs, name = scene.client("efs"), scene.account.outputs["FileSystem"]
    before = efs.describe_file_system_policy(FileSystemId=name)["Policy"]
    efs.delete_file_system_policy(FileSystemId=name)
    yield
    efs.put_file_system_policy(FileSystemId=name, Policy=before)


@found_by("file-system-policy")
def the_file_system_takes_plaintext(scene: Scene) -> Iterator[None]:
    efs, name = scene.client("efs"), scene.account.outputs["FileSystem"]
    before = efs.describe_file_system_policy(FileSystemId=name)["Policy"]
    document = json.loads(before)
    document["Statement"] = without("DenyPlaintext")(document["Statement"])
    efs.put_file_system_policy(FileSystemId=name, Policy=json.dumps(document))
    yield
    efs.put_file_system_policy(FileSystemId=name, Policy=before)


@found_by("file-system-policy")
def an_access_point_for_root_is_added(scene: Scene) -> Iterator[None]:
    efs, name = scene.client("efs"), scene.account.outputs["FileSystem"]
    made = efs.create_access_point(ClientToken="root", FileSystemId=name, PosixUser={"Uid": 0, "Gid": 0})
    yield
    efs.delete_access_point(AccessPointId=made["AccessPointId"])


NODES_LOG = f"/holdfast/{CLUSTER}/nodes"


@found_by("log-groups")
def a_log_never_forgets(scene: Scene) -> Iterator[None]:
    logs = scene.client("logs")
    logs.delete_retention_policy(logGroupName=NODES_LOG)
    yield
    logs.put_retention_policy(logGroupName=NODES_LOG, retentionInDays=1)


@found_by("log-groups")
def a_log_is_made_anew_without_a_key(scene: Scene) -> Iterator[None]:
    logs, name = scene.client("logs"), f"/holdfast/{CLUSTER}/flows"

    def make(**key: str) -> None:
        logs.delete_log_group(logGroupName=name)
        logs.create_log_group(logGroupName=name, **key)
        logs.put_retention_policy(logGroupName=name, retentionInDays=1)

    make()
    yield
    make(kmsKeyId=scene.data_key)


@found_by("log-groups")
def a_log_is_copied_elsewhere(scene: Scene) -> Iterator[None]:
    logs, place = scene.client("logs"), "arn:aws:lambda:us-east-1:000000000000:function:copy"
    logs.put_subscription_filter(logGroupName=NODES_LOG, filterName="copy", filterPattern="", destinationArn=place)
    yield
    logs.delete_subscription_filter(logGroupName=NODES_LOG, filterName="copy")


# Permissions


def with_policy(scene: Scene, change: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    """Change the worker's policy by a new default version."""
    iam = scene.client("iam")
    (attached,) = iam.list_attached_role_policies(RoleName=scene.worker_role)["AttachedPolicies"]
    arn = attached["PolicyArn"]
    before = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    document = iam.get_policy_version(PolicyArn=arn, VersionId=before)["PolicyVersion"]["Document"]
    changed = {**document, "Statement": change(document["Statement"])}
    made = iam.create_policy_version(PolicyArn=arn, PolicyDocument=json.dumps(changed), SetAsDefault=True)
    yield
    # ministack knows no SetDefaultPolicyVersion.
    iam.create_policy_version(PolicyArn=arn, PolicyDocument=json.dumps(document), SetAsDefault=True)
    for version in (before, made["PolicyVersion"]["VersionId"]):
        iam.delete_policy_version(PolicyArn=arn, VersionId=version)


def allowing(action: str, resource: str, **more: Any) -> Callable[[list[Any]], list[Any]]:
    added = {"Effect": "Allow", "Action": action, "Resource": resource, **more}
    return lambda statements: [*statements, added]


@found_by("role-policies")
def a_policy_allows_everything(scene: Scene) -> Iterator[None]:
    yield from with_policy(scene, allowing("*", "*"))


@found_by("role-policies")
def a_policy_allows_a_service(scene: Scene) -> Iterator[None]:
    yield from with_policy(scene, allowing("s3:*", f"arn:aws:s3:::{scene.jobs}/*"))


@found_by("role-policies")
def a_policy_lets_workers_write_jobs(scene: Scene) -> Iterator[None]:
    yield from with_policy(scene, allowing("s3:PutObject", f"arn:aws:s3:::{scene.jobs}/jobs/*"))


@found_by("role-policies")
def a_policy_lets_workers_read_every_bucket(scene: Scene) -> Iterator[None]:
    yield from with_policy(scene, allowing("s3:GetObject", "arn:aws:s3:::*"))


@found_by("role-policies")
def a_policy_lets_workers_sign_jobs(scene: Scene) -> Iterator[None]:
    yield from with_policy(scene, allowing("kms:Sign", scene.account.outputs["JobSigningKey"]))


@found_by("role-policies")
def a_policy_lets_workers_decrypt_whatever_they_like(scene: Scene) -> Iterator[None]:
    yield from with_policy(scene, allowing("kms:Decrypt", scene.data_key))


@found_by("role-policies")
def a_policy_lets_workers_mount_past_the_access_point(scene: Scene) -> Iterator[None]:
    place = f"arn:aws:elasticfilesystem:us-east-1:000000000000:file-system/{scene.account.outputs['FileSystem']}"
    yield from with_policy(scene, allowing("elasticfilesystem:ClientMount", place))


@found_by("role-policies")
def another_policy_is_attached(scene: Scene) -> Iterator[None]:
    iam = scene.client("iam")
    document = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"}],
    }
    arn = iam.create_policy(PolicyName="extra", PolicyDocument=json.dumps(document))["Policy"]["Arn"]
    iam.attach_role_policy(RoleName=scene.worker_role, PolicyArn=arn)
    yield
    iam.detach_role_policy(RoleName=scene.worker_role, PolicyArn=arn)
    iam.delete_policy(PolicyArn=arn)


@found_by("role-policies")
def an_inline_policy_is_added(scene: Scene) -> Iterator[None]:
    iam = scene.client("iam")
    document = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"}],
    }
    iam.put_role_policy(RoleName=scene.worker_role, PolicyName="extra", PolicyDocument=json.dumps(document))
    yield
    iam.delete_role_policy(RoleName=scene.worker_role, PolicyName="extra")


def with_trust(scene: Scene, *statements: dict[str, Any]) -> Iterator[None]:
    iam = scene.client("iam")
    before = iam.get_role(RoleName=scene.worker_role)["Role"]["AssumeRolePolicyDocument"]
    changed = {**before, "Statement": [*before["Statement"], *statements]}
    iam.update_assume_role_policy(RoleName=scene.worker_role, PolicyDocument=json.dumps(changed))
    yield
    iam.update_assume_role_policy(RoleName=scene.worker_role, PolicyDocument=json.dumps(before))


@found_by("role-trust")
def a_roles_trust_admits_another_account(scene: Scene) -> Iterator[None]:
    yield from with_trust(scene, {"Effect": "Allow", "Principal": {"AWS": STRANGER}, "Action": "sts:AssumeRole"})


@found_by("role-trust")
def a_roles_trust_admits_its_own_account(scene: Scene) -> Iterator[None]:
    own = {"AWS": "arn:aws:iam::000000000000:root"}
    yield from with_trust(scene, {"Effect": "Allow", "Principal": own, "Action": "sts:AssumeRole"})


@found_by("instance-profiles")
def a_second_profile_holds_a_workers_role(scene: Scene) -> Iterator[None]:
    iam = scene.client("iam")
    iam.create_instance_profile(InstanceProfileName="mine")
    iam.add_role_to_instance_profile(InstanceProfileName="mine", RoleName=scene.worker_role)
    yield
    iam.remove_role_from_instance_profile(InstanceProfileName="mine", RoleName=scene.worker_role)
    iam.delete_instance_profile(InstanceProfileName="mine")


# Services


@found_by("enrolment-callers")
def the_enrolment_function_has_a_url(scene: Scene) -> Iterator[None]:
    functions, name = scene.client("lambda"), f"{CLUSTER}-enrolment"
    functions.create_function_url_config(FunctionName=name, AuthType="NONE")
    yield
    functions.delete_function_url_config(FunctionName=name)


@found_by("enrolment-callers")
def everybody_may_call_the_enrolment_function(scene: Scene) -> Iterator[None]:
    functions, name = scene.client("lambda"), f"{CLUSTER}-enrolment"
    functions.add_permission(FunctionName=name, StatementId="all", Action="lambda:InvokeFunction", Principal="*")
    yield
    functions.remove_permission(FunctionName=name, StatementId="all")


@found_by("enrolment-code")
def the_function_runs_another_handler(scene: Scene) -> Iterator[None]:
    functions, name = scene.client("lambda"), f"{CLUSTER}-enrolment"
    functions.update_function_configuration(FunctionName=name, Handler="mine.handler")
    yield
    functions.update_function_configuration(FunctionName=name, Handler="handler.handler")


@found_by("enrolment-code")
def the_function_loads_a_layer(scene: Scene) -> Iterator[None]:
    functions, name = scene.client("lambda"), f"{CLUSTER}-enrolment"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("python/mine.py", "")
    made = functions.publish_layer_version(LayerName="mine", Content={"ZipFile": content.getvalue()})
    functions.update_function_configuration(FunctionName=name, Layers=[made["LayerVersionArn"]])
    yield
    functions.update_function_configuration(FunctionName=name, Layers=[])
    functions.delete_layer_version(LayerName="mine", VersionNumber=made["Version"])


@found_by("sweep-rule")
def nothing_lowers_a_job_that_was_cut_off(scene: Scene) -> Iterator[None]:
    events, (name,) = scene.client("events"), scene.parts.of("Events::Rule")
    events.disable_rule(Name=name)
    yield
    events.enable_rule(Name=name)


@found_by("sweep-rule")
def a_job_that_was_cut_off_starts_something_else_too(scene: Scene) -> Iterator[None]:
    events, (name,) = scene.client("events"), scene.parts.of("Events::Rule")
    other = "arn:aws:lambda:us-east-1:000000000000:function:other"
    events.put_targets(Rule=name, Targets=[{"Id": "other", "Arn": other}])
    yield
    events.remove_targets(Rule=name, Ids=["other"])


@found_by("enrolment-encryption")
def the_functions_environment_is_under_no_key(scene: Scene) -> Iterator[None]:
    functions, name = scene.client("lambda"), f"{CLUSTER}-enrolment"
    functions.update_function_configuration(FunctionName=name, KMSKeyArn="")
    yield
    functions.update_function_configuration(FunctionName=name, KMSKeyArn=scene.data_key)


def with_machine(scene: Scene, **changes: Any) -> Iterator[None]:
    states, arn = scene.client("stepfunctions"), scene.account.outputs["StateMachine"]
    before = states.describe_state_machine(stateMachineArn=arn)
    definition = before["definition"]
    states.update_state_machine(stateMachineArn=arn, definition=definition, **changes)
    yield
    states.update_state_machine(stateMachineArn=arn, definition=definition, **{name: before[name] for name in changes})


@found_by("state-machine")
def executions_are_not_logged(scene: Scene) -> Iterator[None]:
    yield from with_machine(scene, loggingConfiguration={"level": "OFF"})


@found_by("state-machine")
def executions_are_logged_with_their_data(scene: Scene) -> Iterator[None]:
    arn = scene.account.outputs["StateMachine"]
    before = scene.client("stepfunctions").describe_state_machine(stateMachineArn=arn)["loggingConfiguration"]
    yield from with_machine(scene, loggingConfiguration={**before, "includeExecutionData": True})


@found_by("state-machine")
def executions_are_under_no_key(scene: Scene) -> Iterator[None]:
    yield from with_machine(scene, encryptionConfiguration={"type": "AWS_OWNED_KEY"})
