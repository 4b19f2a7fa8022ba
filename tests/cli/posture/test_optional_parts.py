"""What the local deployment does not have, or nobody can change there: predictors, sessions, a group's template."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.cli.posture.conftest import DATA_KEY, VPC, resources, user_data

from holdfast_cli.posture import endpoints, instances, network, nodes, storage
from holdfast_cli.posture.inventory import Inventory
from holdfast_cli.posture.reading import Unreadable
from holdfast_node.contract.documents import Bundle, NodeConfig, Output, Predictions, RemoteAccess
from holdfast_node.contract.roles import DEFAULT_PORTS, NODE_ROLES, NodeRole, Role, Serving

Make = Callable[[dict[str, Any]], Inventory]
OWNERS = (*map(str, NODE_ROLES), "interface endpoints", "checkpoint mount targets")


def config(role: NodeRole, **changes: Any) -> NodeConfig:
    predictions = Predictions(job_id="digits-1") if role is Serving.PREDICTOR else None
    made = NodeConfig(
        cluster="demo",
        role=role,
        region="us-east-1",
        ports=dict(DEFAULT_PORTS),
        jobs_bucket="jobs",
        models_bucket="models",
        enrolment_function="demo-enrolment",
        job_signing_key="",
        model_signing_key="model-key",
        log_group="/holdfast/demo/nodes",
        file_system_id="",
        access_point_id="",
        bundle=Bundle(bucket="code", key="bundle.zip", sha256="0" * 64),
        predictions=predictions,
    )
    return dataclasses.replace(made, **changes)


def described(**configs: NodeConfig) -> Callable[..., list[dict[str, Any]]]:
    """Answer `DescribeLaunchTemplateVersions` for every role."""

    def answer(LaunchTemplateName: str, Versions: list[str]) -> list[dict[str, Any]]:  # noqa: N803 (boto3's names)
        role = LaunchTemplateName.removeprefix("demo-")
        text = configs[role].to_json().decode()
        return [{"VersionNumber": 1, "LaunchTemplateData": {"UserData": user_data(text)}}]

    return answer


def group(owner: str, inward: list[Any], outward: list[Any]) -> dict[str, Any]:
    return {
        "GroupId": f"sg-{OWNERS.index(owner)}",
        "Description": f"Holdfast demo: {owner}",
        "IpPermissions": inward,
        "IpPermissionsEgress": outward,
    }


def answers(outputs: dict[str, str] | None = None, **configs: NodeConfig) -> dict[str, Any]:
    everybody = {str(role): config(role) for role in NODE_ROLES} | configs
    return {
        "cloudformation:ListStackResources": resources(
            EC2_VPC=VPC,
            EC2_SecurityGroup=" ".join(f"sg-{number}" for number in range(len(OWNERS))),
            AutoScaling_AutoScalingGroup=" ".join(f"demo-{role}" for role in NODE_ROLES),
            EC2_LaunchTemplate="lt-1",
            EC2_Subnet="subnet-1",
            EFS_FileSystem="fs-1",
        ),
        "cloudformation:DescribeStacks": [
            {
                "Outputs": [
                    {"OutputKey": k, "OutputValue": v} for k, v in {"DataKey": DATA_KEY, **(outputs or {})}.items()
                ]
            }
        ],
        "autoscaling:DescribeAutoScalingGroups": [],
        "ec2:DescribeLaunchTemplateVersions": described(**everybody),
        "ec2:DescribeManagedPrefixLists": [{"PrefixListId": "pl-1"}],
        "ec2:DescribeSecurityGroups": [group(owner, [], []) for owner in OWNERS],
    }


def predictor_problems(found: tuple[str, ...]) -> list[str]:
    return [problem for problem in found if "predictor: in" in problem]


CLIENTS = {"IpProtocol": "tcp", "FromPort": 9094, "ToPort": 9094, "IpRanges": [{"CidrIp": "10.20.0.0/16"}]}


def with_clients(given: dict[str, Any]) -> dict[str, Any]:
    groups = [group(owner, [CLIENTS] if owner == "predictor" else [], []) for owner in OWNERS]
    return {**given, "ec2:DescribeSecurityGroups": groups}


def test_clients_of_a_predictor_that_were_deployed_may_connect(inventory: Make) -> None:
    outcome = network.look_at_rules(inventory(with_clients(answers({"PredictorClients": "10.20.0.0/16"}))))
    assert predictor_problems(outcome.problems) == []


def test_clients_of_a_predictor_that_nobody_deployed_are_too_much(inventory: Make) -> None:
    outcome = network.look_at_rules(inventory(with_clients(answers())))
    assert predictor_problems(outcome.problems) == ["too much: predictor: in, tcp, port 9094 from 10.20.0.0/16"]


def test_clients_of_a_predictor_that_are_missing_are_said(inventory: Make) -> None:
    outcome = network.look_at_rules(inventory(answers({"PredictorClients": "10.20.0.0/16"})))
    assert predictor_problems(outcome.problems) == ["missing: predictor: in, tcp, port 9094 from 10.20.0.0/16"]


#: (what leaves, whether it passes)
LEAVING = {
    "labels": (Predictions(job_id="digits-1"), True),
    "labels, whatever the digits": (Predictions(job_id="digits-1", digits=3), True),
    "two digits": (Predictions(job_id="digits-1", output=Output.PROBABILITIES, digits=2), True),
    "three digits": (Predictions(job_id="digits-1", output=Output.PROBABILITIES, digits=3), False),
    "three digits of the most probable": (Predictions(job_id="digits-1", output=Output.TOP_K, digits=3), False),
}


@pytest.mark.parametrize("case", LEAVING)
def test_predictions_give_no_more_than_two_digits(inventory: Make, case: str) -> None:
    predictions, passes = LEAVING[case]
    outcome = nodes.look_at_predictions(
        inventory(answers(predictor=config(Serving.PREDICTOR, predictions=predictions)))
    )
    assert outcome.problems == (() if passes else ("demo-predictor version 1: probabilities leave with 3 digits",))


def endpoint(service: str) -> dict[str, Any]:
    return {"VpcEndpointId": f"vpce-{service}", "ServiceName": f"com.amazonaws.us-east-1.{service}"}


def test_sessions_that_were_asked_for_may_have_their_endpoints(inventory: Make) -> None:
    asked = {str(role): config(role, remote_access=RemoteAccess.SESSION_MANAGER) for role in NODE_ROLES}
    given = {**answers(**asked), "ec2:DescribeVpcEndpoints": [endpoint("ssm"), endpoint("ssmmessages")]}
    assert endpoints.look_at_remote_access(inventory(given)).problems == ()
    assert endpoints.services(inventory(given)) == {*endpoints.SERVICES, "ssm", "ssmmessages"}


def test_roles_that_differ_in_remote_access_are_found(inventory: Make) -> None:
    given = answers(worker=config(Role.WORKER, remote_access=RemoteAccess.SESSION_MANAGER))
    outcome = endpoints.look_at_remote_access(inventory({**given, "ec2:DescribeVpcEndpoints": []}))
    (problem,) = outcome.problems
    assert problem.startswith("the roles' nodes differ: scheduler none")


def scaling_group(**changes: Any) -> dict[str, Any]:
    return {
        "AutoScalingGroupName": "demo-worker",
        "LaunchTemplate": {"LaunchTemplateName": "demo-worker", "LaunchTemplateId": "lt-1", "Version": "1"},
        "VPCZoneIdentifier": "subnet-1",
        "MinSize": 0,
        "MaxSize": 2,
        **changes,
    }


#: (what is another than deployed, what is said of it); None: nothing is
GROUPS: dict[str, tuple[dict[str, Any], str | None]] = {
    "as deployed": ({}, None),
    "another template": ({"LaunchTemplate": {"LaunchTemplateName": "mine"}}, "it launches mine"),
    "another template of the same name": (
        {"LaunchTemplate": {"LaunchTemplateName": "demo-worker", "LaunchTemplateId": "lt-2"}},
        "it launches lt-2, which is not the cluster's",
    ),
    "a launch configuration": (
        {"LaunchTemplate": {}, "LaunchConfigurationName": "old"},
        "it launches old",
    ),
    "several templates": (
        {"MixedInstancesPolicy": {"LaunchTemplate": {}}},
        "it has a mixed instances policy, which can name other templates",
    ),
    "instances that stay": ({"MinSize": 1}, "it keeps at least 1 instances without a job"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_a_group_launches_its_roles_template_alone(inventory: Make, case: str) -> None:
    changes, said = GROUPS[case]
    given = {**answers(), "autoscaling:DescribeAutoScalingGroups": [scaling_group(**changes)]}
    found = [text for text in instances.look_at_groups(inventory(given)).problems if "demo-worker" in text]
    assert found == ([] if said is None else [f"group demo-worker: {said}"])


def test_a_group_that_is_gone_is_found(inventory: Make) -> None:
    outcome = instances.look_at_groups(inventory(answers()))
    assert "group demo-worker: it does not exist" in outcome.problems


def instance(name: str, **more: Any) -> dict[str, Any]:
    return {"InstanceId": name, "State": {"Name": "running"}, "VpcId": VPC, **more}


def test_an_instance_that_a_group_has_just_launched_is_no_stray(inventory: Make) -> None:
    launched = scaling_group(Instances=[{"InstanceId": "i-1"}])
    groups = iter([[scaling_group(Instances=[])], [launched]])
    given = {
        **answers(),
        "autoscaling:DescribeAutoScalingGroups": lambda **asked: next(groups),
        "ec2:DescribeInstances": [{"Instances": [instance("i-1")]}],
        "iam:ListInstanceProfilesForRole": [],
    }
    assert instances.look_for_strays(inventory(given)).problems == ()


STRAYS: dict[str, dict[str, Any]] = {
    "an address in its VPC": {},
    "the security group of worker": {"VpcId": "vpc-2", "SecurityGroups": [{"GroupId": "sg-2"}]},
    "the instance profile of scheduler": {"VpcId": "vpc-2", "IamInstanceProfile": {"Arn": "arn:profile"}},
    "its tag": {"VpcId": "vpc-2", "Tags": [{"Key": "holdfast:cluster", "Value": "demo"}]},
}


@pytest.mark.parametrize("mark", STRAYS)
def test_an_instance_with_any_part_of_the_clusters_is_a_stray(inventory: Make, mark: str) -> None:
    def profiles(RoleName: str) -> list[dict[str, str]]:  # noqa: N803 (boto3's name)
        return [{"Arn": "arn:profile"}] if RoleName.endswith("-scheduler") else []

    given = {
        **answers(),
        "ec2:DescribeInstances": [{"Instances": [instance("i-1", **STRAYS[mark])]}],
        "iam:ListInstanceProfilesForRole": profiles,
    }
    outcome = instances.look_for_strays(inventory(given))
    assert outcome.problems == (f"i-1 is in none of the cluster's groups and has {mark}",)


def test_an_instance_of_somebody_elses_is_no_stray(inventory: Make) -> None:
    given = {
        **answers(),
        "ec2:DescribeInstances": [
            {"Instances": [instance("i-1", VpcId="vpc-2"), instance("i-2", State={"Name": "terminated"})]}
        ],
        "iam:ListInstanceProfilesForRole": [],
    }
    assert instances.look_for_strays(inventory(given)).problems == ()


FILE_SYSTEMS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "encrypted with the data key": ({"Encrypted": True, "KmsKeyId": DATA_KEY}, ()),
    "encrypted with another": (
        {"Encrypted": True, "KmsKeyId": "arn:other"},
        ("fs-1 is encrypted with arn:other",),
    ),
    "not encrypted": ({"Encrypted": False}, ("fs-1 is encrypted with no key",)),
}


@pytest.mark.parametrize("case", FILE_SYSTEMS)
def test_checkpoints_are_encrypted_with_the_data_key(inventory: Make, case: str) -> None:
    fields, problems = FILE_SYSTEMS[case]
    given = {**answers(), "elasticfilesystem:DescribeFileSystems": [{"FileSystemId": "fs-1", **fields}]}
    assert storage.look_at_file_system(inventory(given)).problems == problems


def test_a_configuration_that_is_not_there_is_unreadable(inventory: Make) -> None:
    given = answers()
    given["ec2:DescribeLaunchTemplateVersions"] = lambda **asked: [
        {"VersionNumber": 4, "LaunchTemplateData": {"UserData": user_data(json.dumps({"cluster": "demo"}))}}
    ]
    with pytest.raises(Unreadable, match="launch template demo-worker version 4 holds no node configuration"):
        inventory(given).config(Role.WORKER)
