"""The embedded account with the kit in it, as tests see it."""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from holdfast_node.contract.documents import Control
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role

WAIT_SECONDS = 60
CLUSTER = "local"
_CONFIG = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 2})
EMPTY = dict.fromkeys((f"{CLUSTER}-{role}" for role in Role), 0)


class Account:
    """The embedded account with the kit in it."""

    def __init__(self, environment: dict[str, str], outputs: dict[str, str]) -> None:
        self.outputs = outputs
        self._endpoint, self._ca = environment["AWS_ENDPOINT_URL"], environment["AWS_CA_BUNDLE"]
        self.session = boto3.Session(
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_REGION"],
        )

    def client(self, service: str, session: boto3.Session | None = None) -> Any:
        return (session or self.session).client(service, endpoint_url=self._endpoint, verify=self._ca, config=_CONFIG)

    def assume(self, role_arn: str, name: str) -> boto3.Session:
        keys = self.client("sts").assume_role(RoleArn=role_arn, RoleSessionName=name)["Credentials"]
        return boto3.Session(
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys["SessionToken"],
            region_name=self.session.region_name,
        )

    def node(self, role: Role) -> boto3.Session:
        return self.assume(self.node_role(role), "i-0123456789abcdef0")

    def node_role(self, role: Role) -> str:
        account = self.client("sts").get_caller_identity()["Account"]
        return f"arn:aws:iam::{account}:role/{CLUSTER}-us-east-1-{role}"

    def endpoint(self) -> dict[str, str]:
        """Return the environment in which a program of its own finds the account; it holds no credentials."""
        return {"AWS_ENDPOINT_URL": self._endpoint, "AWS_CA_BUNDLE": self._ca}

    def start(self, **job: Any) -> str:
        execution = self.client("stepfunctions").start_execution(
            stateMachineArn=self.outputs["StateMachine"], name=uuid.uuid4().hex, input=json.dumps(job)
        )
        return str(execution["executionArn"])

    def ended(self, execution: str) -> dict[str, Any]:
        states = self.client("stepfunctions")
        return dict(
            until(lambda: (d := states.describe_execution(executionArn=execution))["status"] != "RUNNING" and d)
        )

    def desired(self) -> dict[str, int]:
        groups = self.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        return {group["AutoScalingGroupName"]: group["DesiredCapacity"] for group in groups}

    def lock(self) -> str | None:
        """Return the execution that holds the cluster."""
        try:
            body = self.client("s3").get_object(Bucket=self.outputs["JobsBucket"], Key=JobsBucket.LOCK)["Body"]
        except ClientError:
            return None
        return str(json.loads(body.read())["execution"])

    def executions(self) -> set[str]:
        found = self.client("stepfunctions").list_executions(stateMachineArn=self.outputs["StateMachine"])
        return {execution["executionArn"] for execution in found["executions"]}

    def at_rest(self) -> bool:
        return (self.desired(), self.control(), self.lock()) == (EMPTY, None, None)

    def control(self) -> Control | None:
        try:
            body = self.client("s3").get_object(Bucket=self.outputs["JobsBucket"], Key=JobsBucket.CONTROL)["Body"]
        except ClientError:
            return None
        return Control.parse(body.read())


def sweep_of(account: "Account", ended: str) -> str | None:
    """The execution that an event started to lower what `ended` left; None if there is none yet."""
    states = account.client("stepfunctions")
    for arn in account.executions():
        if json.loads(states.describe_execution(executionArn=arn)["input"]).get("lower") == ended:
            return arn
    return None


def until(condition: Callable[[], Any]) -> Any:
    """Return the condition's first true value; fail after a minute."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
    return value
