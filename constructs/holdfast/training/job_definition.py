"""The job state machine's definition in the Amazon States Language: a function from names to JSON.

Check ─► Plan ─► Lock ─► Raise ─► Run ─► Lower ─► Unlock ─► Succeeded
  │               │        │       │
  ▼               ▼        └───────┴─► LowerAfterFailure ─► UnlockAfterFailure ─► Failed
Refused         Busy

One job holds the cluster: the lock is an object that only the first of two conditional writes makes (S3 user guide,
"Conditional writes"), and it names its execution.

An execution that is stopped, that Step Functions ends, or whose lowering fails runs no further state. An event then
starts a sweep, with `{"lower": <ARN of the ended execution>}` as its input. It lowers only what that execution left:

Check ─► FindLock ─► Found ─► ReadLock ─► Whose ─► Lower ─► …
                       └────────────────────┴─► NothingToLower
"""

from collections.abc import Mapping
from typing import Any

from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role

#: Processes of a group that would end a job's instances though they work (EC2 Auto Scaling user guide, "Suspend-resume
#: processes"). They stay suspended: a group is used by jobs alone. Unhealthy instances are replaced: a job goes on with
#: the new one (docs/failure.md).
SUSPENDED = ("AZRebalance",)
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
                "Next": "Lock",
            },
            "Lock": {
                "Type": "Task",
                "Comment": "No retry: a write whose answer was lost would find its own lock. The sweep removes that.",
                "Resource": f"arn:{partition}:states:::aws-sdk:s3:putObject",
                "Parameters": {
                    "Bucket": jobs_bucket,
                    "Key": JobsBucket.LOCK,
                    "IfNoneMatch": "*",
                    "ContentType": "application/json",
                    "Body": {"execution.$": "$$.Execution.Id"},
                },
                "TimeoutSeconds": _CALL_TIMEOUT_SECONDS,
                "ResultPath": None,
                "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.failure", "Next": "Busy"}],
                "Next": "Raise",
            },
            "Busy": {
                "Type": "Fail",
                "Error": "Holdfast.ClusterBusy",
                "CausePath": "States.Format('another job holds the cluster, or its lock could not be written: {}', "
                "$.failure.Cause)",
            },
            "Raise": {
                "Type": "Parallel",
                "Branches": [_raise(role, groups[role], partition, raised[role]) for role in Role],
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
            "Lower": _lower("Lower", groups, partition, jobs_bucket, after="Unlock"),
            "Unlock": _unlock(partition, jobs_bucket, after="Succeeded"),
            "Succeeded": {"Type": "Succeed"},
            "LowerAfterFailure": _lower(
                "LowerAfterFailure", groups, partition, jobs_bucket, after="UnlockAfterFailure"
            ),
            "UnlockAfterFailure": _unlock(partition, jobs_bucket, after="Failed"),
            "Failed": {"Type": "Fail", "ErrorPath": "$.failure.Error", "CausePath": "$.failure.Cause"},
            **_sweep(partition, jobs_bucket),
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
    sweep = {"Variable": "$.lower", "IsPresent": True, "Next": "FindLock"}
    return {"Type": "Choice", "Choices": [sweep, {"And": rules, "Next": "Plan"}], "Default": "Refused"}


def _sweep(partition: str, jobs_bucket: str) -> dict[str, Any]:
    """Lower what the execution in `$.lower` left, if it still holds the lock.

    It lists before it reads: S3 answers a read of a missing object with an error that could mean anything.
    """
    return {
        "FindLock": {
            **_task(
                f"arn:{partition}:states:::aws-sdk:s3:listObjectsV2",
                {"Bucket": jobs_bucket, "Prefix": JobsBucket.LOCK, "MaxKeys": 1},
                attempts=_LOWER_ATTEMPTS,
            ),
            "ResultSelector": {"locks.$": "$.KeyCount"},
            "ResultPath": "$.found",
            "Next": "Found",
        },
        "Found": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.found.locks", "NumericGreaterThan": 0, "Next": "ReadLock"}],
            "Default": "NothingToLower",
        },
        "ReadLock": {
            **_task(
                f"arn:{partition}:states:::aws-sdk:s3:getObject",
                {"Bucket": jobs_bucket, "Key": JobsBucket.LOCK},
                attempts=_LOWER_ATTEMPTS,
            ),
            "ResultSelector": {"holder.$": "States.StringToJson($.Body)"},
            "ResultPath": "$.lock",
            "Next": "Whose",
        },
        "Whose": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.lock.holder.execution", "StringEqualsPath": "$.lower", "Next": "Lower"}],
            "Default": "NothingToLower",
        },
        "NothingToLower": {"Type": "Succeed"},
    }


def _raise(role: Role, group: str, partition: str, desired: int | str) -> dict[str, Any]:
    """Set a group's capacity, after stopping what would end instances that work under a running job.

    Rebalancing between zones ends instances that work. Stopping it protects a job and is no condition of one, so a
    refusal leads on; the execution's log holds it.
    """
    suspend, scale = f"Steady{role.title()}", f"Raise{role.title()}"
    return {
        "StartAt": suspend,
        "States": {
            suspend: {
                "Type": "Task",
                "Resource": f"arn:{partition}:states:::aws-sdk:autoscaling:suspendProcesses",
                "Parameters": {"AutoScalingGroupName": group, "ScalingProcesses": list(SUSPENDED)},
                "TimeoutSeconds": _CALL_TIMEOUT_SECONDS,
                "ResultPath": None,
                "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": scale}],
                "Next": scale,
            },
            scale: {**_scale(group, partition, desired, attempts=_RAISE_ATTEMPTS), "End": True},
        },
    }


def _lower(prefix: str, groups: Mapping[Role, str], partition: str, jobs_bucket: str, *, after: str) -> dict[str, Any]:
    """Lower every group and take the token away.

    A failed branch would stop the others, but it gives up only after minutes of retries and they need a moment.
    """
    states = {f"{prefix}{role.title()}": _scale(groups[role], partition, 0, attempts=_LOWER_ATTEMPTS) for role in Role}
    states[f"{prefix}Control"] = _delete(JobsBucket.CONTROL, partition, jobs_bucket)
    return {
        "Type": "Parallel",
        "Branches": [{"StartAt": name, "States": {name: {**state, "End": True}}} for name, state in states.items()],
        "ResultPath": None,
        "Next": after,
    }


def _unlock(partition: str, jobs_bucket: str, *, after: str) -> dict[str, Any]:
    return {**_delete(JobsBucket.LOCK, partition, jobs_bucket), "ResultPath": None, "Next": after}


def _delete(key: str, partition: str, jobs_bucket: str) -> dict[str, Any]:
    return _task(
        f"arn:{partition}:states:::aws-sdk:s3:deleteObject",
        {"Bucket": jobs_bucket, "Key": key},
        attempts=_LOWER_ATTEMPTS,
    )


def _scale(group: str, partition: str, desired: int | str, *, attempts: int) -> dict[str, Any]:
    count = {"DesiredCapacity.$": desired} if isinstance(desired, str) else {"DesiredCapacity": desired}
    return _task(
        f"arn:{partition}:states:::aws-sdk:autoscaling:setDesiredCapacity",
        {"AutoScalingGroupName": group, **count},
        attempts=attempts,
    )


def _task(resource: str, parameters: dict[str, Any], *, attempts: int) -> dict[str, Any]:
    return {
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
    }
