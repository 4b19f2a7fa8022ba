"""The job state machine: who may run it, what it checks, and that it always lowers the groups."""

import json
from typing import Any

import pytest
from tests.kit.support import Deployment

from holdfast.training.job_definition import SUSPENDED, job_definition
from holdfast_node.contract.documents import Control
from holdfast_node.contract.layout import JobsBucket
from holdfast_node.contract.roles import Role

BUCKET = "jobs-bucket"
GROUPS = {role: f"group-{role}" for role in Role}
SCALE = "arn:aws:states:::aws-sdk:autoscaling:setDesiredCapacity"


@pytest.fixture(scope="module")
def states() -> dict[str, Any]:
    definition = job_definition(
        partition="aws",
        groups=GROUPS,
        jobs_bucket=BUCKET,
        max_workers=4,
        max_servers=2,
        max_seconds=3600,
        heartbeat_seconds=60,
    )
    return dict(definition["States"])


def tasks(parallel: dict[str, Any]) -> list[dict[str, Any]]:
    return [task for branch in parallel["Branches"] for task in branch["States"].values()]


def scaled(parallel: dict[str, Any]) -> dict[str, Any]:
    return {
        task["Parameters"]["AutoScalingGroupName"]: task["Parameters"].get("DesiredCapacity")
        if "DesiredCapacity" in task["Parameters"]
        else task["Parameters"]["DesiredCapacity.$"]
        for task in tasks(parallel)
        if task["Resource"] == SCALE
    }


def test_a_job_raises_one_scheduler_and_what_it_asked_for(states: dict[str, Any]) -> None:
    assert scaled(states["Raise"]) == {
        "group-scheduler": 1,
        "group-server": "$.servers",
        "group-worker": "$.workers",
    }


@pytest.mark.parametrize("state", ["Lower", "LowerAfterFailure"])
def test_lowering_empties_every_group_and_takes_the_token_away(states: dict[str, Any], state: str) -> None:
    assert scaled(states[state]) == dict.fromkeys(GROUPS.values(), 0)
    (forget,) = [task for task in tasks(states[state]) if task["Resource"] != SCALE]
    assert forget["Resource"] == "arn:aws:states:::aws-sdk:s3:deleteObject"
    assert forget["Parameters"] == {"Bucket": BUCKET, "Key": JobsBucket.CONTROL}


@pytest.mark.parametrize("role", Role)
def test_rebalancing_is_stopped_before_a_group_is_raised(states: dict[str, Any], role: Role) -> None:
    branch = next(b for b in states["Raise"]["Branches"] if b["StartAt"] == f"Steady{role.title()}")
    steady = branch["States"][branch["StartAt"]]
    assert steady["Resource"] == "arn:aws:states:::aws-sdk:autoscaling:suspendProcesses"
    assert steady["Parameters"] == {"AutoScalingGroupName": GROUPS[role], "ScalingProcesses": list(SUSPENDED)}
    assert SUSPENDED == ("AZRebalance",)
    assert (steady["Next"], steady["ResultPath"]) == (f"Raise{role.title()}", None)


@pytest.mark.parametrize("role", Role)
def test_a_group_that_cannot_be_steadied_is_raised_all_the_same(states: dict[str, Any], role: Role) -> None:
    branch = next(b for b in states["Raise"]["Branches"] if b["StartAt"] == f"Steady{role.title()}")
    (catch,) = branch["States"][branch["StartAt"]]["Catch"]
    assert catch == {"ErrorEquals": ["States.ALL"], "ResultPath": None, "Next": f"Raise{role.title()}"}
    assert branch["States"][f"Raise{role.title()}"]["End"] is True


def test_a_job_takes_the_lock_before_it_raises_anything(states: dict[str, Any]) -> None:
    lock = states["Lock"]
    assert states["Plan"]["Next"] == "Lock"
    assert lock["Resource"] == "arn:aws:states:::aws-sdk:s3:putObject"
    assert lock["Parameters"] == {
        "Bucket": BUCKET,
        "Key": JobsBucket.LOCK,
        "IfNoneMatch": "*",
        "ContentType": "application/json",
        "Body": {"execution.$": "$$.Execution.Id"},
    }
    assert (lock["Next"], lock["ResultPath"]) == ("Raise", None)
    assert "Retry" not in lock


def test_a_job_that_finds_the_lock_taken_changes_nothing(states: dict[str, Any]) -> None:
    (catch,) = states["Lock"]["Catch"]
    assert (catch["ErrorEquals"], catch["Next"]) == (["States.ALL"], "Busy")
    assert (states["Busy"]["Type"], states["Busy"]["Error"]) == ("Fail", "Holdfast.ClusterBusy")
    assert states["Busy"]["CausePath"].startswith("States.Format('another job holds the cluster")


@pytest.mark.parametrize(("state", "end"), [("Unlock", "Succeeded"), ("UnlockAfterFailure", "Failed")])
def test_the_lock_goes_after_the_groups_were_lowered(states: dict[str, Any], state: str, end: str) -> None:
    assert states[state.replace("Unlock", "Lower")]["Next"] == state
    assert states[state]["Resource"] == "arn:aws:states:::aws-sdk:s3:deleteObject"
    assert states[state]["Parameters"] == {"Bucket": BUCKET, "Key": JobsBucket.LOCK}
    assert (states[state]["Next"], states[state]["ResultPath"]) == (end, None)


@pytest.mark.parametrize("state", ["Unlock", "UnlockAfterFailure", "FindLock", "ReadLock"])
def test_a_step_of_lowering_is_tried_for_minutes(states: dict[str, Any], state: str) -> None:
    (retry,) = states[state]["Retry"]
    assert (retry["ErrorEquals"], retry["MaxAttempts"]) == (["States.ALL"], 8)


@pytest.mark.parametrize("state", ["Lower", "LowerAfterFailure"])
def test_lowering_is_tried_for_minutes(states: dict[str, Any], state: str) -> None:
    for task in tasks(states[state]):
        (retry,) = task["Retry"]
        assert (retry["ErrorEquals"], retry["MaxAttempts"]) == (["States.ALL"], 8)


def test_everything_after_a_raise_leads_to_lowering(states: dict[str, Any]) -> None:
    ends = {"Lower", "LowerAfterFailure"}
    reached, queue = set(), ["Raise"]
    while queue:
        name = queue.pop()
        if name in ends or name in reached:
            continue
        reached.add(name)
        state = states[name]
        assert "End" not in state, name
        (catch,) = state["Catch"]
        assert (catch["ErrorEquals"], catch["Next"]) == (["States.ALL"], "LowerAfterFailure")
        queue += [state["Next"], catch["Next"]]
    assert reached == {"Raise", "Run"}


def test_a_success_is_told_from_a_failure_after_lowering(states: dict[str, Any]) -> None:
    assert states["Unlock"]["Next"] == "Succeeded"
    assert states["UnlockAfterFailure"]["Next"] == "Failed"
    assert states["Failed"] == {"Type": "Fail", "ErrorPath": "$.failure.Error", "CausePath": "$.failure.Cause"}


def test_the_whole_machine_has_no_deadline_that_would_skip_lowering(dev: Deployment) -> None:
    (machine,) = dev.properties("AWS::StepFunctions::StateMachine").values()
    assert "TimeoutSeconds" not in json.loads(machine["DefinitionString"])


def test_scheduler_gets_the_token_as_a_control_document(states: dict[str, Any]) -> None:
    run = states["Run"]
    assert run["Resource"] == "arn:aws:states:::aws-sdk:s3:putObject.waitForTaskToken"
    assert (run["Parameters"]["Bucket"], run["Parameters"]["Key"]) == (BUCKET, JobsBucket.CONTROL)
    body = {key.removesuffix(".$"): value for key, value in run["Parameters"]["Body"].items()}
    assert body == {
        "job_id": "$.job_id",
        "started_at": "$$.Execution.StartTime",
        "task_token": "$$.Task.Token",
    }
    assert Control.parse(json.dumps({**body, "job_id": "sample", "started_at": "2026-01-01T00:00:00Z"}))


def test_a_run_has_the_jobs_deadline_and_a_heartbeat(states: dict[str, Any]) -> None:
    assert (states["Run"]["TimeoutSecondsPath"], states["Run"]["HeartbeatSeconds"]) == ("$.timeout_seconds", 60)


def test_steps_keep_the_jobs_input(states: dict[str, Any]) -> None:
    assert {states[name]["ResultPath"] for name in ("Lock", "Raise", "Lower", "LowerAfterFailure")} == {None}


def test_a_job_that_did_not_succeed_is_swept_by_another_execution(dev: Deployment, states: dict[str, Any]) -> None:
    (rule,) = dev.properties("AWS::Events::Rule").values()
    assert rule["EventPattern"] == {
        "source": ["aws.states"],
        "detail-type": ["Step Functions Execution Status Change"],
        "detail": {
            "stateMachineArn": ["arn:aws:states:us-east-1:<AWS::AccountId>:stateMachine:dev-jobs"],
            "status": ["ABORTED", "FAILED", "TIMED_OUT"],
        },
    }
    (target,) = rule["Targets"]
    assert target["Arn"] == "<ClusterJobsStateMachine>"
    assert "Input" not in target
    assert target["InputTransformer"] == {
        "InputPathsMap": {"execution": "$.detail.executionArn"},
        "InputTemplate": '{"lower": <execution>}',
    }
    sweep, _ = states["Check"]["Choices"]
    assert sweep == {"Variable": "$.lower", "IsPresent": True, "Next": "FindLock"}


def test_a_sweep_lowers_only_what_the_ended_execution_still_holds(states: dict[str, Any]) -> None:
    assert states["FindLock"]["Parameters"] == {"Bucket": BUCKET, "Prefix": JobsBucket.LOCK, "MaxKeys": 1}
    assert states["ReadLock"]["Parameters"] == {"Bucket": BUCKET, "Key": JobsBucket.LOCK}
    assert states["ReadLock"]["ResultSelector"] == {"holder.$": "States.StringToJson($.Body)"}
    assert states["Whose"]["Choices"] == [
        {"Variable": "$.lock.holder.execution", "StringEqualsPath": "$.lower", "Next": "Lower"}
    ]
    assert [states[name]["Default"] for name in ("Found", "Whose")] == ["NothingToLower"] * 2
    assert states["NothingToLower"] == {"Type": "Succeed"}


def test_the_abort_rule_may_only_start_the_machine(dev: Deployment) -> None:
    (statement,) = dev.statements("ClusterJobsAbortPolicy").values()
    assert (statement["Action"], statement["Resource"]) == ("states:StartExecution", "<ClusterJobsStateMachine>")


LIMITS = {"$.workers": (1, 4), "$.servers": (1, 2), "$.timeout_seconds": (61, 3600)}


@pytest.mark.parametrize("variable", LIMITS)
def test_limits_are_checked_before_anything_is_raised(states: dict[str, Any], variable: str) -> None:
    _, choice = states["Check"]["Choices"]
    rules = [rule for rule in choice["And"] if rule["Variable"] == variable]
    least, most = LIMITS[variable]
    assert rules == [
        {"Variable": variable, "IsPresent": True},
        {"Variable": variable, "IsNumeric": True},
        {"Variable": variable, "NumericGreaterThanEquals": least},
        {"Variable": variable, "NumericLessThanEquals": most},
    ]
    assert states["Check"]["Default"] == "Refused"


def test_a_refusal_says_what_is_allowed(states: dict[str, Any]) -> None:
    assert states["Refused"]["Cause"] == (
        "job_id must be a string, workers 1 to 4, servers 1 to 2 and timeout_seconds 61 to 3600; "
        "the settings hold these limits"
    )


def test_executions_are_encrypted_and_logged_without_their_data(dev: Deployment) -> None:
    (machine,) = dev.properties("AWS::StepFunctions::StateMachine").values()
    assert machine["EncryptionConfiguration"] == {
        "Type": "CUSTOMER_MANAGED_KMS_KEY",
        "KmsKeyId": "<FoundationKeysData.Arn>",
        "KmsDataKeyReusePeriodSeconds": 300,
    }
    assert machine["LoggingConfiguration"]["Level"] == "ALL"
    assert machine["LoggingConfiguration"]["IncludeExecutionData"] is False
    assert (machine["StateMachineName"], machine["StateMachineType"]) == ("dev-jobs", "STANDARD")


DATA_KEY, JOBS = "<FoundationKeysData.Arn>", "<FoundationBucketsJobs.Arn>"
GENERATE = ["kms:Decrypt", "kms:GenerateDataKey"]
MACHINE = "arn:aws:states:us-east-1:<AWS::AccountId>:stateMachine:dev-jobs"
#: Sid: (actions, resources, condition)
MACHINE_GRANTS: dict[str, tuple[Any, Any, Any]] = {
    "Scale": (
        ["autoscaling:SetDesiredCapacity", "autoscaling:SuspendProcesses"],
        [f"<Cluster{role.title()}GroupASG.AutoScalingGroupARN>" for role in Role],
        None,
    ),
    "HandOver": (
        ["s3:DeleteObject", "s3:PutObject"],
        [f"{JOBS}/control/current.json", f"{JOBS}/control/lock.json"],
        None,
    ),
    "ReadLock": ("s3:GetObject", f"{JOBS}/control/lock.json", None),
    "FindLock": ("s3:ListBucket", JOBS, {"StringEquals": {"s3:prefix": "control/lock.json"}}),
    "EncryptedObjects": (
        GENERATE,
        DATA_KEY,
        {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}},
    ),
    "EncryptedHistory": (
        GENERATE,
        DATA_KEY,
        {"StringEquals": {"kms:EncryptionContext:aws:states:stateMachineArn": MACHINE}},
    ),
    "EncryptedLogDelivery": (
        "kms:GenerateDataKey",
        DATA_KEY,
        {"StringLike": {"kms:EncryptionContext:SourceArn": "arn:aws:logs:us-east-1:<AWS::AccountId>:*"}},
    ),
}


def test_state_machine_may_do_this_and_nothing_else(dev: Deployment) -> None:
    statements = dev.statements("ClusterJobsPolicy")
    delivery = statements.pop("LogDelivery")
    assert {sid: (s["Action"], s["Resource"], s.get("Condition")) for sid, s in statements.items()} == MACHINE_GRANTS
    assert delivery["Resource"] == "*"
    assert {action.partition(":")[0] for action in delivery["Action"]} == {"logs"}


def test_only_step_functions_of_this_account_takes_the_machines_role(dev: Deployment) -> None:
    (statement,) = dev.properties("AWS::IAM::Role")["ClusterJobsRole"]["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "states.amazonaws.com"}
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"}}
