"""Each request takes the permission that it takes on AWS."""

from typing import Any

import pytest

from .conftest import ACCOUNT, Cloud, allow


@pytest.fixture(scope="module")
def function(cloud: Cloud) -> str:
    properties = {
        "Runtime": "python3.11",
        "Handler": "index.handler",
        "Role": f"arn:aws:iam::{ACCOUNT}:role/none",
        "Code": {"ZipFile": "def handler(event, context): return 1"},
    }
    stack = cloud.deploy({"Function": {"Type": "AWS::Lambda::Function", "Properties": properties}})
    return str(cloud.resource(stack, "Function"))


def test_listing_a_functions_urls_takes_its_own_permission(cloud: Cloud, function: str, refused: Any) -> None:
    reader = cloud.client("lambda", cloud.session(allow("lambda:ListFunctionUrlConfigs")))
    assert reader.list_function_url_configs(FunctionName=function)["FunctionUrlConfigs"] == []
    stranger = cloud.client("lambda", cloud.session(allow("lambda:GetFunction")))
    with refused("AccessDeniedException"):
        stranger.list_function_url_configs(FunctionName=function)
