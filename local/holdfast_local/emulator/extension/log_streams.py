"""Resource names of CloudWatch Logs requests: AWS evaluates a stream's ARN, ministack the bare group's.

That is why policies name a group as `…:log-group:NAME:*`
(https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/iam-access-control-overview-cwl.html, "ARN formats"): the
form matches on AWS and would match nothing here.
"""

import json
from typing import Any

from holdfast_local.emulator.extension.seams import seam


def install() -> None:
    """Name the log stream (empty for a request that names only a group) in the ARN that policies are matched with."""
    actions = seam("ministack.core.iam_actions", "extract_resource_arn")
    stock = actions.extract_resource_arn

    def extract_resource_arn(
        service: str, method: str, path: str, headers: dict[str, str], body: bytes, *context: Any
    ) -> str:
        arn: str = stock(service, method, path, headers, body, *context)
        if service != "logs" or ":log-group:" not in arn or arn.count(":") != 6:
            return arn
        try:
            stream = json.loads(body).get("logStreamName") or ""
        except (ValueError, AttributeError):
            stream = ""
        return f"{arn}:log-stream:{stream}"

    actions.extract_resource_arn = extract_resource_arn
