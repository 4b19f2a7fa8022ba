"""One embedded AWS for all tests of this folder, on a free port; every test uses names of its own."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from holdfast_local.emulator.process import Emulator

ROOT = Path(__file__).parents[3]
AWS_PYTHON = ROOT / ".venv-aws/bin/python"
ACCOUNT = "000000000000"
REGION = "us-east-1"

_numbers = itertools.count(1)


def unique(word: str) -> str:
    return f"{word}-{next(_numbers)}"


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    made = Emulator(tmp_path_factory.mktemp("emulator"), AWS_PYTHON, port=0, region=REGION)
    made.start()
    yield made
    # Shown with a failed test only.
    sys.stderr.write("".join(made.log.read_text().splitlines(keepends=True)[-40:]))
    made.stop()


class Cloud:
    """Clients of the embedded AWS: root's, or those of a role with exactly the given statements."""

    def __init__(self, emulator: Emulator) -> None:
        self.environment = emulator.environment()

    def client(self, service: str, credentials: dict[str, str] | None = None, **more: Any) -> Any:
        root = {name: self.environment[f"AWS_{name.upper()}"] for name in ("access_key_id", "secret_access_key")}
        given = credentials or root
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            verify=self.environment["AWS_CA_BUNDLE"],
            **{f"aws_{name}": value for name, value in given.items()},
            **more,
        )

    def role(self, *statements: dict[str, Any], trust: dict[str, Any] | None = None) -> str:
        """Make a role with these statements; by default root may assume it. Return its ARN."""
        iam, name = self.client("iam"), unique("role")
        principal = trust or {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
        document = {"Version": "2012-10-17", "Statement": [allow("sts:AssumeRole", None) | {"Principal": principal}]}
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(document))["Role"]["Arn"]
        if statements:
            policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
            iam.put_role_policy(RoleName=name, PolicyName="only", PolicyDocument=policy)
        return str(arn)

    def session(self, *statements: dict[str, Any]) -> dict[str, str]:
        """Return the credentials of a new role's session."""
        given = self.client("sts").assume_role(RoleArn=self.role(*statements), RoleSessionName="test")["Credentials"]
        return {
            "access_key_id": given["AccessKeyId"],
            "secret_access_key": given["SecretAccessKey"],
            "session_token": given["SessionToken"],
        }

    def deploy(self, resources: dict[str, Any], **parts: Any) -> str:
        """Create a stack and return its name."""
        name = unique("stack")
        cloudformation = self.client("cloudformation")
        cloudformation.create_stack(
            StackName=name,
            TemplateBody=json.dumps({"Resources": resources, **parts}),
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        waiter = cloudformation.get_waiter("stack_create_complete")
        waiter.wait(StackName=name, WaiterConfig={"Delay": 0.1, "MaxAttempts": 100})
        return name

    def update(self, stack: str, resources: dict[str, Any]) -> None:
        cloudformation = self.client("cloudformation")
        cloudformation.update_stack(StackName=stack, TemplateBody=json.dumps({"Resources": resources}))
        waiter = cloudformation.get_waiter("stack_update_complete")
        waiter.wait(StackName=stack, WaiterConfig={"Delay": 0.1, "MaxAttempts": 100})

    def delete(self, stack: str) -> None:
        cloudformation = self.client("cloudformation")
        cloudformation.delete_stack(StackName=stack)
        waiter = cloudformation.get_waiter("stack_delete_complete")
        waiter.wait(StackName=stack, WaiterConfig={"Delay": 0.1, "MaxAttempts": 100})

    def resource(self, stack: str, logical_id: str) -> str:
        found = self.client("cloudformation").describe_stack_resource(StackName=stack, LogicalResourceId=logical_id)
        return str(found["StackResourceDetail"]["PhysicalResourceId"])


def allow(actions: str | list[str], resource: str | None = "*", **condition: Any) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": "Allow", "Action": actions}
    if resource is not None:
        statement["Resource"] = resource
    if condition:
        statement["Condition"] = condition
    return statement


@pytest.fixture(scope="session")
def cloud(emulator: Emulator) -> Cloud:
    return Cloud(emulator)


@pytest.fixture
def refused() -> Callable[..., Any]:
    """Return a context that expects AWS to answer with one of these error codes."""
    from botocore.exceptions import ClientError

    def expect(*codes: str) -> Any:
        return pytest.raises(ClientError, match="|".join(rf"\({code}\)" for code in codes))

    return expect
