"""The job state machine's definition in the Amazon States Language: a function from names to JSON.

  ┌───────────────────────────────┐
Check ─► Plan ─► Raise ─► Run ─► Lower ─► Succeeded
  │                │       │
  ▼                └───────┴─► LowerAfterFailure ─► Failed
Refused

An execution that is stopped, or that Step Functions itself ends, runs no further state: an event then starts another
one, with `LOWER_ONLY` as its input, which goes straight to `Lower`.
"""

from collections.abc import Mapping
from typing import Any

from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role

#: The input of an execution that only lowers the groups.
LOWER_ONLY = {"lower": True}
_CALL_TIMEOUT_SECONDS = 60
#: A raise that cannot work should fail soon; a lowering is worth minutes of trying.
_RAISE_ATTEMPTS = 3
_LOWER_ATTEMPTS = 8


def job_definition(
    *,
    partition: str,
    groups: Mapping[Role, str],
    jobs_bucket: str,
    max_workers: int,
    max_servers: int,
    max_seconds: int,
    heartbeat_seconds: int,
) -> dict[str, Any]:
    """Return the definition.

    Input: `{"job_id": str, "workers": int, "servers": int, "timeout_seconds": int}`. There is no `TimeoutSeconds`
    for the whole machine: it would end an execution without lowering the groups. `Run` carries the deadline, and
    every other state ends by itself.
    """
    raised: dict[Role, int | str] = {Role.SCHEDULER: 1, Role.SERVER: "$.servers", Role.WORKER: "$.workers"}
    to_failure = [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.failure", "Next": "LowerAfterFailure"}]
    return {
        "Comment": "Raises the cluster for one job and always lowers it again.",
        "StartAt": "Check",
        "States": {
            "Check": _check(max_workers, max_servers, heartbeat_seconds, max_seconds),
            "Refused": {
                "Type": "Fail",
                "Error": "Holdfast.JobRefused",
                "Cause": f"job_id must be a string, workers 1 to {max_workers}, servers 1 to {max_servers} and "
                f"timeout_seconds {heartbeat_seconds + 1} to {max_seconds}; the settings hold these limits",
            },
            "Plan": {
                "Type": "Pass",
                "Comment": "Whole numbers only: States.ALL does not catch a deadline that Run could not read.",
                "Parameters": {
                    "job_id.$": "$.job_id",
                    "workers.$": "States.MathAdd($.workers, 0)",
                    "servers.$": "States.MathAdd($.servers, 0)",
                    "timeout_seconds.$": "States.MathAdd($.timeout_seconds, 0)",
                },
                "Next": "Raise",
            },
            "Raise": {
                "Type": "Parallel",
                "Branches": [_scale("Raise", role, groups[role], partition, raised[role]) for role in Role],
                "ResultPath": None,
                "Catch": to_failure,
                "Next": "Run",
            },
            "Run": {
                "Type": "Task",
                "Comment": "The scheduler takes the token from the object, reports that it lives, and how it ended.",
                "Resource": f"arn:{partition}:states:::aws-sdk:s3:putObject.waitForTaskToken",
                "Parameters": {
                    "Bucket": jobs_bucket,
                    "Key": JobsBucket.CONTROL,
                    "ContentType": "application/json",
                    "Body": {
                        "job_id.$": "$.job_id",
                        "started_at.$": "$$.Execution.StartTime",
                        "task_token.$": "$$.Task.Token",
                    },
                },
                "TimeoutSecondsPath": "$.timeout_seconds",
                "HeartbeatSeconds": heartbeat_seconds,
                "ResultPath": "$.result",
                "Catch": to_failure,
                "Next": "Lower",
            },
            "Lower": _lower("Lower", groups, partition, jobs_bucket, after="Succeeded"),
            "Succeeded": {"Type": "Succeed"},
            "LowerAfterFailure": _lower("LowerAfterFailure", groups, partition, jobs_bucket, after="Failed"),
            "Failed": {"Type": "Fail", "ErrorPath": "$.failure.Error", "CausePath": "$.failure.Cause"},
        },
    }


def _check(max_workers: int, max_servers: int, heartbeat_seconds: int, max_seconds: int) -> dict[str, Any]:
    """The limits hold here too: whoever starts an execution by another way than the CLI meets the same ones.

    The deadline is longer than one heartbeat, which the Amazon States Language asks of a task.
    """
    bounds = {
        "$.workers": (1, max_workers),
        "$.servers": (1, max_servers),
        "$.timeout_seconds": (heartbeat_seconds + 1, max_seconds),
    }
    rules: list[dict[str, Any]] = [
        {"Variable": "$.job_id", "IsPresent": True},
        {"Variable": "$.job_id", "IsString": True},
    ]
    for variable, (least, most) in bounds.items():
        rules += [
            {"Variable": variable, "IsPresent": True},
            {"Variable": variable, "IsNumeric": True},
            {"Variable": variable, "NumericGreaterThanEquals": least},
            {"Variable": variable, "NumericLessThanEquals": most},
        ]
    sweep = {"Variable": "$.lower", "IsPresent": True, "Next": "Lower"}
    return {"Type": "Choice", "Choices": [sweep, {"And": rules, "Next": "Plan"}], "Default": "Refused"}


def _scale(prefix: str, role: Role, group: str, partition: str, desired: int | str) -> dict[str, Any]:
    count = {"DesiredCapacity.$": desired} if isinstance(desired, str) else {"DesiredCapacity": desired}
    return _branch(
        f"{prefix}{role.title()}",
        f"arn:{partition}:states:::aws-sdk:autoscaling:setDesiredCapacity",
        {"AutoScalingGroupName": group, **count},
        attempts=_RAISE_ATTEMPTS if desired else _LOWER_ATTEMPTS,
    )


def _lower(prefix: str, groups: Mapping[Role, str], partition: str, jobs_bucket: str, *, after: str) -> dict[str, Any]:
    """Lower every group and take the token away.

    A failed branch would stop the others, but it gives up only after minutes of retries and they need a moment.
    """
    forget = _branch(
        f"{prefix}Control",
        f"arn:{partition}:states:::aws-sdk:s3:deleteObject",
        {"Bucket": jobs_bucket, "Key": JobsBucket.CONTROL},
        attempts=_LOWER_ATTEMPTS,
    )
    return {
        "Type": "Parallel",
        "Branches": [*(_scale(prefix, role, groups[role], partition, 0) for role in Role), forget],
        "ResultPath": None,
        "Next": after,
    }


def _branch(name: str, resource: str, parameters: dict[str, Any], *, attempts: int) -> dict[str, Any]:
    return {
        "StartAt": name,
        "States": {
            name: {
                "Type": "Task",
                "Resource": resource,
                "Parameters": parameters,
                "TimeoutSeconds": _CALL_TIMEOUT_SECONDS,
                "Retry": [
                    {
                        "ErrorEquals": ["States.ALL"],
                        "IntervalSeconds": 2,
                        "BackoffRate": 2,
                        "MaxAttempts": attempts,
                        "MaxDelaySeconds": 60,
                        "JitterStrategy": "FULL",
                    }
                ],
                "End": True,
            }
        },
    }
