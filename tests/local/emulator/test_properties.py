"""What encrypts and what is logged: given to stacks and requests, and read back."""

from typing import Any

import pytest

from .conftest import ACCOUNT, REGION, Cloud, unique
from .test_instances import resources as fleet

KEY, OTHER = (f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{name}" for name in ("first", "second"))
LOG = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/machines:*"


def volume(name: str, **more: Any) -> dict[str, Any]:
    return {"DeviceName": name, "Ebs": {"VolumeSize": 8, "Encrypted": True, **more}}


def keys(cloud: Cloud, template: str) -> list[str | None]:
    (version,) = cloud.client("ec2").describe_launch_template_versions(LaunchTemplateId=template, Versions=["$Latest"])[
        "LaunchTemplateVersions"
    ]
    return [mapping["Ebs"].get("KmsKeyId") for mapping in version["LaunchTemplateData"]["BlockDeviceMappings"]]


def test_a_stacks_launch_template_tells_each_volumes_key(cloud: Cloud) -> None:
    volumes = [volume("/dev/xvda", KmsKeyId=KEY), volume("/dev/sdb"), volume("/dev/sdc", KmsKeyId=OTHER)]
    properties = {"LaunchTemplateData": {"BlockDeviceMappings": volumes}}
    stack = cloud.deploy({"Template": {"Type": "AWS::EC2::LaunchTemplate", "Properties": properties}})
    assert keys(cloud, cloud.resource(stack, "Template")) == [KEY, None, OTHER]


def test_a_requested_launch_template_tells_its_volumes_key(cloud: Cloud) -> None:
    made = cloud.client("ec2").create_launch_template(
        LaunchTemplateName=unique("template"),
        LaunchTemplateData={"BlockDeviceMappings": [volume("/dev/xvda", KmsKeyId=KEY), volume("/dev/sdb")]},
    )
    assert keys(cloud, made["LaunchTemplate"]["LaunchTemplateId"]) == [KEY, None]


def test_an_instance_of_a_group_tells_its_templates_metadata_options(cloud: Cloud) -> None:
    name, ec2 = unique("fleet"), cloud.client("ec2")
    parts = fleet(name, DesiredCapacity="1")
    data = parts["Template"]["Properties"]["LaunchTemplateData"]
    data["MetadataOptions"] = {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    cloud.deploy(parts)
    (group,) = cloud.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[name])[
        "AutoScalingGroups"
    ]
    (instance,) = [member["InstanceId"] for member in group["Instances"]]

    def options() -> tuple[str, int]:
        (reservation,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        found = reservation["Instances"][0]["MetadataOptions"]
        return found["HttpTokens"], found["HttpPutResponseHopLimit"]

    assert options() == ("required", 1)
    ec2.modify_instance_metadata_options(InstanceId=instance, HttpTokens="optional")
    assert options() == ("optional", 1)


def function(**properties: Any) -> dict[str, Any]:
    code = {"ZipFile": "def handler(event, context): return 1"}
    role = f"arn:aws:iam::{ACCOUNT}:role/none"
    given = {"Runtime": "python3.11", "Handler": "index.handler", "Role": role, "Code": code, **properties}
    return {"Function": {"Type": "AWS::Lambda::Function", "Properties": given}}


def test_a_function_tells_the_key_of_its_environment(cloud: Cloud) -> None:
    stack = cloud.deploy(function(KmsKeyArn=KEY))
    client, name = cloud.client("lambda"), cloud.resource(stack, "Function")
    assert client.get_function_configuration(FunctionName=name)["KMSKeyArn"] == KEY
    cloud.update(stack, function(KmsKeyArn=OTHER))
    assert client.get_function_configuration(FunctionName=name)["KMSKeyArn"] == OTHER


@pytest.mark.parametrize("data", [True, False])
def test_a_state_machine_tells_where_it_logs(cloud: Cloud, data: bool) -> None:
    logging = {
        "Level": "ALL",
        "IncludeExecutionData": data,
        "Destinations": [{"CloudWatchLogsLogGroup": {"LogGroupArn": LOG}}],
    }
    properties = {
        "RoleArn": f"arn:aws:iam::{ACCOUNT}:role/none",
        "DefinitionString": '{"StartAt": "End", "States": {"End": {"Type": "Succeed"}}}',
        "LoggingConfiguration": logging,
    }
    stack = cloud.deploy({"Machine": {"Type": "AWS::StepFunctions::StateMachine", "Properties": properties}})
    described = cloud.client("stepfunctions").describe_state_machine(stateMachineArn=cloud.resource(stack, "Machine"))
    assert described["loggingConfiguration"] == {
        "level": "ALL",
        "includeExecutionData": data,
        "destinations": [{"cloudWatchLogsLogGroup": {"logGroupArn": LOG}}],
    }
