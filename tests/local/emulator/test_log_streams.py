from typing import Any

import pytest

from .conftest import Cloud, allow, unique

ARN = "arn:aws:logs:us-east-1:000000000000:log-group:"


@pytest.fixture
def group(cloud: Cloud) -> str:
    name = unique("/test/nodes")
    cloud.client("logs").create_log_group(logGroupName=name)
    return name


def test_a_group_s_policy_in_its_documented_form_allows_its_streams(cloud: Cloud, group: str) -> None:
    logs = cloud.client("logs", cloud.session(allow(["logs:CreateLogStream", "logs:PutLogEvents"], f"{ARN}{group}:*")))
    logs.create_log_stream(logGroupName=group, logStreamName="job/worker")
    event = {"timestamp": 1700000000000, "message": "hello"}
    logs.put_log_events(logGroupName=group, logStreamName="job/worker", logEvents=[event])


NOT_ENOUGH = {
    "the bare group": "{arn}{group}",
    "another group": "{arn}{group}-other:*",
    "another stream": "{arn}{group}:log-stream:other/*",
}


@pytest.mark.parametrize("resource", NOT_ENOUGH.values(), ids=NOT_ENOUGH)
def test_other_resources_do_not_allow_a_stream(cloud: Cloud, refused: Any, group: str, resource: str) -> None:
    policy = allow("logs:CreateLogStream", resource.format(arn=ARN, group=group))
    with refused("AccessDeniedException"):
        cloud.client("logs", cloud.session(policy)).create_log_stream(logGroupName=group, logStreamName="job/worker")
