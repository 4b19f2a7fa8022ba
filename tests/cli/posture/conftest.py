"""A cluster whose AWS answers what a test says, call by call."""

import base64
from collections.abc import Callable
from typing import Any

import pytest

from holdfast_cli.aws import Aws, Cluster
from holdfast_cli.posture.inventory import Inventory
from holdfast_cli.posture.reading import Unreadable

ACCOUNT, REGION = "000000000000", "us-east-1"
VPC, DATA_KEY = "vpc-1", f"arn:aws:kms:{REGION}:{ACCOUNT}:key/data"


def made_cluster() -> Cluster:
    return Cluster(
        aws=Aws(),
        name="demo",
        jobs_bucket="jobs",
        models_bucket="models",
        job_signing_key="job-key",
        model_signing_key="model-key",
        state_machine=f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:demo-jobs",
        log_group="/holdfast/demo/nodes",
        max_workers=2,
        max_servers=2,
        min_job_seconds=121,
        max_job_seconds=3600,
        max_restarts=2,
        engine="mxnet",
        node_boot="ec2",
    )


class Answers:
    """Stands for the reader: the answer to each action, whatever its arguments; a callable gets them."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers

    def _answer(self, action: str, arguments: dict[str, Any]) -> Any:
        if action not in self._answers:
            raise Unreadable(f"the permission {action} is missing")
        answer = self._answers[action]
        return answer(**arguments) if callable(answer) else answer

    def get(self, action: str, *, absent: tuple[str, ...] = (), **arguments: Any) -> Any:
        return self._answer(action, arguments)

    def every(self, action: str, *, fresh: bool = False, **arguments: Any) -> list[Any]:
        return list(self._answer(action, arguments))


@pytest.fixture
def inventory() -> Callable[[dict[str, Any]], Inventory]:
    def make(answers: dict[str, Any]) -> Inventory:
        made = Inventory(made_cluster())
        made.reader = Answers(answers)  # type: ignore[assignment] # it answers as a reader does
        return made

    return make


def resources(**kinds: str) -> Callable[..., list[dict[str, str]]]:
    """Answer `ListStackResources`: the training stack holds one resource of each type."""

    def answer(StackName: str) -> list[dict[str, str]]:  # noqa: N803 (boto3's name)
        if not StackName.endswith("-Training"):
            return []
        return [
            {
                "ResourceType": f"AWS::{kind.replace('_', '::')}",
                "PhysicalResourceId": name,
                "ResourceStatus": "CREATE_COMPLETE",
            }
            for kind, names in kinds.items()
            for name in names.split()
        ]

    return answer


def user_data(config: str) -> str:
    script = f"#!/bin/bash\ncat > /etc/node.json <<'HOLDFAST_NODE_JSON'\n{config}\nHOLDFAST_NODE_JSON\n"
    return base64.b64encode(script.encode()).decode()
