"""Rules of what runs: instances, images, functions, state machines, sessions."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.kit.posture.model import ACCOUNT, DATA_KEY, Problem, Resource, Templates, expect, wrong
from tests.kit.support import as_list

from holdfast_node.contract.layout import OPERATOR
from holdfast_node.contract.roles import NODE_ROLES, group_name

TEMPLATE = "AWS::EC2::LaunchTemplate"
INFRASTRUCTURE = "AWS::ImageBuilder::InfrastructureConfiguration"
SUBNETS = {"<NetworkVpcNodesSubnet1Subnet>", "<NetworkVpcNodesSubnet2Subnet>"}
#: Where a subnet is named, by type.
_STARTS = {
    "AWS::AutoScaling::AutoScalingGroup": "VPCZoneIdentifier",
    "AWS::EC2::VPCEndpoint": "SubnetIds",
    "AWS::EFS::MountTarget": "SubnetId",
    INFRASTRUCTURE: "SubnetId",
}
#: AWS's own parameters and those that the cluster's image pipelines write.
_IMAGES = re.compile(r"/aws/service/.+|/imagebuilder/holdfast/.+")
#: The bucket of `cdk bootstrap`.
_ASSETS = re.compile(rf"cdk-[a-z0-9]+-assets-{ACCOUNT}-[a-z0-9-]+")
_SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|PRIVATE KEY-----|aws_secret_access_key|(?i:\bpassw(or)?d\s*=)|\{\{resolve:(secretsmanager|ssm)"
)


def _data(template: Resource) -> dict[str, Any]:
    return dict(template.properties["LaunchTemplateData"])


def metadata_needs_a_token_and_ends_at_the_host(templates: Templates) -> Iterator[Problem]:
    for resource in templates.of(TEMPLATE, INFRASTRUCTURE):
        path = ("LaunchTemplateData", "MetadataOptions") if resource.kind == TEMPLATE else ("InstanceMetadataOptions",)
        yield from expect(resource, "required", *path, "HttpTokens")
        yield from expect(resource, 1, *path, "HttpPutResponseHopLimit")
        if resource.kind == TEMPLATE:
            yield from expect(resource, "disabled", *path, "InstanceMetadataTags")


def instances_have_no_public_address(templates: Templates) -> Iterator[Problem]:
    for template in templates.of(TEMPLATE):
        public = [card.get("AssociatePublicIpAddress") for card in _data(template).get("NetworkInterfaces", ())]
        if public != [False]:
            yield wrong(template, "AssociatePublicIpAddress", public, "False on one network interface")


def instances_have_no_key_pair(templates: Templates) -> Iterator[Problem]:
    for template in templates.of(TEMPLATE):
        yield from expect(template, None, "LaunchTemplateData", "KeyName")
    for infrastructure in templates.of(INFRASTRUCTURE):
        yield from expect(infrastructure, None, "KeyPair")


def _volumes(templates: Templates) -> Iterator[tuple[Resource, dict[str, Any]]]:
    """Yield every volume of every launch template and image recipe."""
    for resource in templates.of(TEMPLATE, "AWS::ImageBuilder::ImageRecipe"):
        held = _data(resource) if resource.kind == TEMPLATE else resource.properties
        for mapping in held.get("BlockDeviceMappings") or [{}]:
            yield resource, mapping.get("Ebs", {})


def volumes_are_encrypted(templates: Templates) -> Iterator[Problem]:
    for resource, volume in _volumes(templates):
        if (got := (volume.get("Encrypted"), volume.get("KmsKeyId"))) != (True, DATA_KEY):
            yield wrong(resource, "a volume's encryption", got, f"{(True, DATA_KEY)}")


def instances_leave_nothing(templates: Templates) -> Iterator[Problem]:
    for resource, volume in _volumes(templates):
        if (got := volume.get("DeleteOnTermination")) is not True:
            yield wrong(resource, "DeleteOnTermination", got, "True")
    for template in templates.of(TEMPLATE):
        yield from expect(template, "terminate", "LaunchTemplateData", "InstanceInitiatedShutdownBehavior")
    for infrastructure in templates.of(INFRASTRUCTURE):
        yield from expect(infrastructure, True, "TerminateInstanceOnFailure")


def images_are_known(templates: Templates) -> Iterator[Problem]:
    for template in templates.of(TEMPLATE):
        image = _data(template)["ImageId"]
        found = {f"<{re.sub('[0-9A-F]{8}$', '', name)}>": held for name, held in _parameters(templates, template)}
        source = found.get(image, {}).get("Default", image)
        if not _IMAGES.fullmatch(source):
            yield wrong(template, "ImageId", source, "a public parameter of AWS's or one of the image pipelines'")
    for recipe in templates.of("AWS::ImageBuilder::ImageRecipe"):
        parent = recipe.at("ParentImage")
        if not re.fullmatch(r"ssm:/aws/service/.+", parent):
            yield wrong(recipe, "ParentImage", parent, "a public parameter of AWS's")


def _parameters(templates: Templates, resource: Resource) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, parameter in templates.parts[resource.part].get("Parameters", {}).items():
        if parameter["Type"] == "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>":
            yield name, parameter


def images_are_encrypted(templates: Templates) -> Iterator[Problem]:
    for distribution in templates.of("AWS::ImageBuilder::DistributionConfiguration"):
        for place in distribution.at("Distributions"):
            ami = place["AmiDistributionConfiguration"]
            if (got := (ami.get("KmsKeyId"), ami.get("LaunchPermissionConfiguration"))) != (DATA_KEY, None):
                yield wrong(distribution, "an image's key and launch permissions", got, f"{(DATA_KEY, None)}")


def instances_play_one_role(templates: Templates) -> Iterator[Problem]:
    for template in templates.of(TEMPLATE):
        role = template.name.removesuffix("Template")
        group = "<PredictorSecurityGroup.GroupId>" if role == "PredictorNodes" else f"<{role}Group.GroupId>"
        groups = [card.get("Groups") for card in _data(template).get("NetworkInterfaces", ())]
        got = (_data(template).get("IamInstanceProfile"), groups)
        if got != ({"Arn": f"<{role}Profile.Arn>"}, [[group]]):
            yield wrong(template, "profile and groups", got, f"{role}'s own")
    for fleet in templates.of("AWS::AutoScaling::AutoScalingGroup"):
        own = f"{fleet.name.removesuffix('GroupASG')}Template"
        yield from expect(fleet, f"<{own}>", "LaunchTemplate", "LaunchTemplateId")
        yield from expect(fleet, f"<{own}.LatestVersionNumber>", "LaunchTemplate", "Version")
    for infrastructure in templates.of(INFRASTRUCTURE):
        role = infrastructure.name.removesuffix("Infrastructure")
        yield from expect(infrastructure, f"<{role}Profile>", "InstanceProfileName")
        yield from expect(infrastructure, [f"<{role}SecurityGroup.GroupId>"], "SecurityGroupIds")
    for profile in templates.of("AWS::IAM::InstanceProfile"):
        yield from expect(profile, [f"<{profile.name.removesuffix('Profile')}Role>"], "Roles")


def nothing_runs_at_rest(templates: Templates) -> Iterator[Problem]:
    for group in templates.of("AWS::AutoScaling::AutoScalingGroup"):
        yield from expect(group, "0", "MinSize")
        yield from expect(group, None, "DesiredCapacity")


def everything_starts_in_the_isolated_subnets(templates: Templates) -> Iterator[Problem]:
    for resource in templates.of(*_STARTS):
        if resource.at("VpcEndpointType") == "Gateway":
            continue
        named = as_list(resource.at(_STARTS[resource.kind]))
        if not {*named} <= SUBNETS:
            yield wrong(resource, _STARTS[resource.kind], named, f"of {sorted(SUBNETS)}")


def no_secret_is_in_plain_text(templates: Templates) -> Iterator[Problem]:
    for part, template in templates.parts.items():
        for kind in ("Resources", "Outputs", "Parameters"):
            for name, held in template.get(kind, {}).items():
                # Two texts that a join puts together are one.
                text = re.sub(r'"\s*,\s*"', "", json.dumps(held))
                if found := _SECRETS.search(text):
                    yield Problem(f"{part}/{name}", f"text must hold no secret, got {found[0][:12]!r}…")


def functions_encrypt_environment_and_log(templates: Templates) -> Iterator[Problem]:
    for function in templates.of("AWS::Lambda::Function"):
        yield from expect(function, DATA_KEY, "KmsKeyArn")
        yield from expect(function, "<FoundationEnrolmentLog>", "LoggingConfig", "LogGroup")


def functions_run_published_code(templates: Templates) -> Iterator[Problem]:
    for function in templates.of("AWS::Lambda::Function"):
        yield from expect(function, None, "Layers")
        yield from expect(function, None, "FileSystemConfigs")
        bucket, key = function.at("Code", "S3Bucket"), function.at("Code", "S3Key")
        if not (_ASSETS.fullmatch(str(bucket)) and re.fullmatch(r"[0-9a-f]{64}\.zip", str(key))):
            yield wrong(function, "Code", (bucket, key), "an asset of this account, named by its hash")


def enrolment_admits_the_fleets_roles(templates: Templates) -> Iterator[Problem]:
    for function in templates.of("AWS::Lambda::Function"):
        cluster = function.at("Environment", "Variables", "HOLDFAST_CLUSTER")
        admitted = json.loads(function.at("Environment", "Variables", "HOLDFAST_ROLES"))
        for role, got in admitted.items():
            arn = rf"arn:aws:iam::{ACCOUNT}:role/{cluster}-[a-z0-9-]+-{role}"
            if (
                role not in NODE_ROLES
                or got["group"] != group_name(cluster, role)
                or not re.fullmatch(arn, got["role_arn"])
            ):
                yield wrong(function, f"whom enrolment admits as {role}", got, f"{arn} in its own group")


def state_machines_are_encrypted(templates: Templates) -> Iterator[Problem]:
    for machine in templates.of("AWS::StepFunctions::StateMachine"):
        yield from expect(machine, "CUSTOMER_MANAGED_KMS_KEY", "EncryptionConfiguration", "Type")
        yield from expect(machine, DATA_KEY, "EncryptionConfiguration", "KmsKeyId")


def state_machines_record_steps_and_no_data(templates: Templates) -> Iterator[Problem]:
    for machine in templates.of("AWS::StepFunctions::StateMachine"):
        yield from expect(machine, "ALL", "LoggingConfiguration", "Level")
        yield from expect(machine, False, "LoggingConfiguration", "IncludeExecutionData")
        own = [{"CloudWatchLogsLogGroup": {"LogGroupArn": "<ClusterJobsLog.Arn>"}}]
        yield from expect(machine, own, "LoggingConfiguration", "Destinations")


def events_start_the_job_machine_alone(templates: Templates) -> Iterator[Problem]:
    for rule in templates.of("AWS::Events::Rule"):
        started = [target["Arn"] for target in rule.at("Targets")]
        if started != ["<ClusterJobsStateMachine>"]:
            yield wrong(rule, "targets", started, "the job state machine alone")


def sessions_are_recorded_short_and_unprivileged(templates: Templates) -> Iterator[Problem]:
    for document in templates.of("AWS::SSM::Document"):
        yield from expect(document, "Session", "DocumentType")
        for key, value in {
            "kmsKeyId": "<FoundationSessionsKey.Arn>",
            "cloudWatchLogGroupName": "<FoundationSessionsLog>",
            "cloudWatchEncryptionEnabled": True,
            "cloudWatchStreamingEnabled": True,
            "runAsEnabled": True,
            "runAsDefaultUser": OPERATOR,
            "idleSessionTimeout": "10",
            "maxSessionDuration": "60",
        }.items():
            yield from expect(document, value, "Content", "inputs", key)


RULES = (
    metadata_needs_a_token_and_ends_at_the_host,
    instances_have_no_public_address,
    instances_have_no_key_pair,
    volumes_are_encrypted,
    instances_leave_nothing,
    images_are_known,
    images_are_encrypted,
    instances_play_one_role,
    nothing_runs_at_rest,
    everything_starts_in_the_isolated_subnets,
    no_secret_is_in_plain_text,
    functions_encrypt_environment_and_log,
    functions_run_published_code,
    enrolment_admits_the_fleets_roles,
    state_machines_are_encrypted,
    state_machines_record_steps_and_no_data,
    events_start_the_job_machine_alone,
    sessions_are_recorded_short_and_unprivileged,
)
