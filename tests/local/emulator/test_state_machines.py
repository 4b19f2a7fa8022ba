import io
import json
import time
import zipfile
from typing import Any

import pytest

from .conftest import ACCOUNT, REGION, Cloud, allow, unique
from .test_instances import Fleet

STATES = {"Service": "states.amazonaws.com"}
LAMBDA = {"Service": "lambda.amazonaws.com"}
PREFIX = "arn:aws:states:::"


class Machine:
    """A state machine whose role has exactly the given statements."""

    def __init__(
        self, cloud: Cloud, definition: dict[str, Any], *statements: dict[str, Any], trust: dict[str, Any] = STATES
    ) -> None:
        self.states = cloud.client("stepfunctions")
        role = cloud.role(*statements, trust=trust)
        made = self.states.create_state_machine(name=unique("m"), definition=json.dumps(definition), roleArn=role)
        self.arn = made["stateMachineArn"]

    def start(self, data: Any = None) -> str:
        started = self.states.start_execution(stateMachineArn=self.arn, input=json.dumps(data or {}))
        return str(started["executionArn"])

    def wait(self, execution: str, seconds: float = 20) -> dict[str, Any]:
        """Poll, as the API offers nothing else, until the execution has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.states.describe_execution(executionArn=execution)
            if found["status"] != "RUNNING":
                return found
            time.sleep(0.02)
        raise AssertionError(f"{execution} still runs after {seconds} s")

    def run(self, data: Any = None) -> dict[str, Any]:
        return self.wait(self.start(data))


def one(resource: str, parameters: Any = None, **state: Any) -> dict[str, Any]:
    """A state machine of one task; `parameters` may use paths."""
    task = {"Type": "Task", "Resource": PREFIX + resource, "Parameters": parameters or {}, "End": True, **state}
    return {"StartAt": "Only", "States": {"Only": task}}


@pytest.fixture(scope="module")
def bucket(cloud: Cloud) -> str:
    name = unique("machines")
    cloud.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="module")
def fleet(cloud: Cloud) -> Fleet:
    return Fleet(cloud)


def content(cloud: Cloud, bucket: str, key: str) -> bytes:
    data: bytes = cloud.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    return data


# --- the machine's role --------------------------------------------------------------------------------------------


def raise_fleet(fleet: Fleet, count: int) -> dict[str, Any]:
    parameters = {"AutoScalingGroupName": fleet.name, "DesiredCapacity": count}
    return one("aws-sdk:autoscaling:setDesiredCapacity", parameters)


def test_machine_raises_and_lowers_a_group_with_its_roles_permission(cloud: Cloud, fleet: Fleet) -> None:
    resource = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:*:autoScalingGroupName/{fleet.name}"
    for count in (2, 0):
        machine = Machine(cloud, raise_fleet(fleet, count), allow("autoscaling:SetDesiredCapacity", resource))
        assert machine.run()["status"] == "SUCCEEDED"
        assert len(fleet.instances()) == count


def test_machine_without_permission_fails(cloud: Cloud, fleet: Fleet) -> None:
    ended = Machine(cloud, raise_fleet(fleet, 2), allow("s3:*")).run()
    assert (ended["status"], ended["error"]) == ("FAILED", "AutoScaling.AutoScalingException")
    assert "not authorized to perform: autoscaling:SetDesiredCapacity" in ended["cause"]
    assert fleet.instances() == []


def test_machine_outside_the_groups_bounds_fails(cloud: Cloud, fleet: Fleet) -> None:
    ended = Machine(cloud, raise_fleet(fleet, 9), allow("autoscaling:*")).run()
    assert ended["status"] == "FAILED"
    assert "9 is above max value 4" in ended["cause"]


def test_role_that_does_not_trust_step_functions_is_not_used(cloud: Cloud, fleet: Fleet) -> None:
    ended = Machine(cloud, raise_fleet(fleet, 1), allow("autoscaling:*"), trust=LAMBDA).run()
    assert ended["status"] == "FAILED"
    assert "does not let states.amazonaws.com assume it" in ended["cause"]
    assert fleet.instances() == []


def test_role_can_be_bound_to_its_account_and_machine(cloud: Cloud, bucket: str) -> None:
    iam, states = cloud.client("iam"), cloud.client("stepfunctions")
    for source, status in ((f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:*", "SUCCEEDED"), ("arn:other", "FAILED")):
        machine = Machine(cloud, one("aws-sdk:s3:listObjectsV2", {"Bucket": bucket}), allow("s3:*"))
        role = states.describe_state_machine(stateMachineArn=machine.arn)["roleArn"].rpartition("/")[2]
        condition = {"ArnLike": {"aws:SourceArn": source}, "StringEquals": {"aws:SourceAccount": ACCOUNT}}
        trust = allow("sts:AssumeRole", None, **condition) | {"Principal": STATES}
        document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
        iam.update_assume_role_policy(RoleName=role, PolicyDocument=document)
        assert machine.run()["status"] == status


def test_denial_can_be_caught(cloud: Cloud, fleet: Fleet) -> None:
    definition = raise_fleet(fleet, 1)
    definition["States"]["Only"]["Catch"] = [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "Lower"}]
    definition["States"]["Lower"] = {"Type": "Pass", "End": True}
    ended = Machine(cloud, definition).run({"job": "a"})
    assert ended["status"] == "SUCCEEDED"
    assert json.loads(ended["output"])["error"]["Error"] == "AutoScaling.AutoScalingException"


def test_branches_use_the_role_too(cloud: Cloud, bucket: str) -> None:
    def branch(key: str) -> dict[str, Any]:
        return one("aws-sdk:s3:putObject", {"Bucket": bucket, "Key": key, "Body": {"key": key}})

    branches = [branch("left/1"), branch("right/1")]
    definition = {"StartAt": "Both", "States": {"Both": {"Type": "Parallel", "Branches": branches, "End": True}}}
    whole = Machine(cloud, definition, allow("s3:PutObject", f"arn:aws:s3:::{bucket}/*"))
    assert whole.run()["status"] == "SUCCEEDED"
    half = Machine(cloud, definition, allow("s3:PutObject", f"arn:aws:s3:::{bucket}/left/*"))
    assert half.run()["status"] == "FAILED"


def test_unknown_integration_says_what_is_allowed(cloud: Cloud) -> None:
    ended = Machine(cloud, one("ecs:runTask"), allow("*")).run()
    assert "runs no arn:aws:states:::ecs:runTask tasks" in ended["cause"]
    assert "allowed: arn:aws:states:::aws-sdk:<service>:<action>" in ended["cause"]


# --- objects -------------------------------------------------------------------------------------------------------


def test_object_body_is_stored_as_json(cloud: Cloud, bucket: str) -> None:
    body = {"job_id.$": "$.job", "started_at.$": "$$.Execution.StartTime"}
    definition = one("aws-sdk:s3:putObject", {"Bucket": bucket, "Key": "control/current.json", "Body": body})
    machine = Machine(cloud, definition, allow("s3:PutObject", f"arn:aws:s3:::{bucket}/control/*"))
    assert machine.run({"job": "digits"})["status"] == "SUCCEEDED"
    stored = json.loads(content(cloud, bucket, "control/current.json"))
    assert stored["job_id"] == "digits"
    assert stored["started_at"]


def test_object_is_deleted_with_permission_only(cloud: Cloud, bucket: str, refused: Any) -> None:
    cloud.client("s3").put_object(Bucket=bucket, Key="old", Body=b"x")
    definition = one("aws-sdk:s3:deleteObject", {"Bucket": bucket, "Key": "old"})
    ended = Machine(cloud, definition, allow("s3:PutObject")).run()
    assert (ended["status"], ended["error"]) == ("FAILED", "S3.S3Exception")
    assert content(cloud, bucket, "old") == b"x"
    assert Machine(cloud, definition, allow("s3:DeleteObject")).run()["status"] == "SUCCEEDED"
    with refused("NoSuchKey"):
        content(cloud, bucket, "old")


def test_missing_object_is_named_as_step_functions_does(cloud: Cloud, bucket: str) -> None:
    definition = one("aws-sdk:s3:getObject", {"Bucket": bucket, "Key": "none"})
    assert Machine(cloud, definition, allow("s3:*")).run()["error"] == "S3.NoSuchKeyException"


def test_encrypted_bucket_needs_the_machines_key_permission(cloud: Cloud) -> None:
    name, s3 = unique("encrypted"), cloud.client("s3")
    key = cloud.client("kms").create_key()["KeyMetadata"]["Arn"]
    s3.create_bucket(Bucket=name)
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}}
    s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": [rule]})
    definition = one("aws-sdk:s3:putObject", {"Bucket": name, "Key": "control", "Body": {"a": 1}})
    ended = Machine(cloud, definition, allow("s3:PutObject")).run()
    assert ended["status"] == "FAILED"
    assert "kms:GenerateDataKey" in ended["cause"]
    assert Machine(cloud, definition, allow("s3:PutObject"), allow("kms:GenerateDataKey", key)).run()["status"] == (
        "SUCCEEDED"
    )
    assert s3.head_object(Bucket=name, Key="control")["SSEKMSKeyId"] == key


# --- functions -----------------------------------------------------------------------------------------------------

CODE = """
import os, sys, boto3
def handler(event, context):
    if event.get("fail"):
        raise ValueError("refused")
    caller = boto3.client("sts").get_caller_identity()["Arn"]
    # The interpreter's own packages may lie in a checkout that is called holdfast.
    paths = [path for path in sys.path if not path.startswith(sys.prefix + "/")
             and ("holdfast" in path or path.rstrip("/").endswith(("/local", "/node")))]
    return {"caller": caller, "event": event, "pid": os.getpid(), "ppid": os.getppid(), "paths": paths,
            "key": os.environ["AWS_ACCESS_KEY_ID"], "pythonpath": os.environ.get("PYTHONPATH")}
"""


@pytest.fixture(scope="module")
def function(cloud: Cloud) -> str:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("index.py", CODE)
    made = cloud.client("lambda").create_function(
        FunctionName=unique("function"),
        Runtime="python3.11",
        Handler="index.handler",
        Role=cloud.role(trust=LAMBDA),
        Code={"ZipFile": archive.getvalue()},
        Timeout=20,
    )
    return str(made["FunctionArn"])


def invoke(function: str, payload: Any = None) -> dict[str, Any]:
    return one("lambda:invoke", {"FunctionName": function, "Payload": payload or {"n": 1}}, OutputPath="$.Payload")


def test_machine_invokes_a_function_with_permission(cloud: Cloud, function: str) -> None:
    ended = Machine(cloud, invoke(function), allow("lambda:InvokeFunction", function)).run()
    assert ended["status"] == "SUCCEEDED"
    assert json.loads(ended["output"])["event"] == {"n": 1}


def test_machine_without_permission_invokes_nothing(cloud: Cloud, function: str) -> None:
    ended = Machine(cloud, invoke(function), allow("lambda:InvokeFunction", function + "-other")).run()
    assert ended["status"] == "FAILED"
    assert "lambda:InvokeFunction" in ended["cause"]


def test_failed_function_fails_the_task_under_its_own_name(cloud: Cloud, function: str) -> None:
    ended = Machine(cloud, invoke(function, {"fail": True}), allow("lambda:InvokeFunction", function)).run()
    assert ended["status"] == "FAILED"
    assert "refused" in ended["cause"]


def test_role_invokes_a_function_with_permission_only(cloud: Cloud, function: str, refused: Any) -> None:
    allowed = cloud.client("lambda", cloud.session(allow("lambda:InvokeFunction", function)))
    assert allowed.invoke(FunctionName=function, Payload=b"{}")["StatusCode"] == 200
    with refused("AccessDeniedException"):
        cloud.client("lambda", cloud.session(allow("kms:*"))).invoke(FunctionName=function, Payload=b"{}")


def test_function_runs_as_its_role_and_sees_only_its_own_code(cloud: Cloud, function: str, emulator: Any) -> None:
    seen = json.loads(cloud.client("lambda").invoke(FunctionName=function, Payload=b"{}")["Payload"].read())
    assert ":assumed-role/role-" in seen["caller"]
    assert seen["key"] != cloud.environment["AWS_ACCESS_KEY_ID"]
    assert (seen["paths"], seen["pythonpath"]) == ([], None)
    assert seen["ppid"] == emulator.pid


# --- waiting -------------------------------------------------------------------------------------------------------


class Waiting:
    """A machine that stores its task token and waits; `answer` speaks as a role of its own."""

    def __init__(self, cloud: Cloud, bucket: str, **state: Any) -> None:
        self.cloud, self.bucket, self.key = cloud, bucket, unique("token")
        body = {"job_id": "digits", "task_token.$": "$$.Task.Token"}
        parameters = {"Bucket": bucket, "Key": self.key, "Body": body}
        definition = one("aws-sdk:s3:putObject.waitForTaskToken", parameters, **state)
        self.machine = Machine(cloud, definition, allow("s3:PutObject", f"arn:aws:s3:::{bucket}/*"))

    def begin(self, data: Any = None) -> str:
        """Start an execution and return its ARN once its token is stored."""
        execution = self.machine.start(data)
        waiter = self.cloud.client("s3").get_waiter("object_exists")
        waiter.wait(Bucket=self.bucket, Key=self.key, WaiterConfig={"Delay": 0.05, "MaxAttempts": 200})
        return execution

    def token(self) -> str:
        return str(json.loads(content(self.cloud, self.bucket, self.key))["task_token"])

    def answerer(self, machine_arn: str | None = None) -> Any:
        actions = [f"states:SendTask{kind}" for kind in ("Success", "Failure", "Heartbeat")]
        return self.cloud.client("stepfunctions", self.cloud.session(allow(actions, machine_arn or self.machine.arn)))


def test_sent_success_is_the_tasks_result(cloud: Cloud, bucket: str) -> None:
    waiting = Waiting(cloud, bucket)
    execution = waiting.begin()
    waiting.answerer().send_task_success(taskToken=waiting.token(), output='{"accuracy": 0.97}')
    ended = waiting.machine.wait(execution)
    assert (ended["status"], json.loads(ended["output"])) == ("SUCCEEDED", {"accuracy": 0.97})


def test_sent_failure_fails_the_task(cloud: Cloud, bucket: str) -> None:
    waiting = Waiting(cloud, bucket)
    execution = waiting.begin()
    waiting.answerer().send_task_failure(taskToken=waiting.token(), error="Job.Failed", cause="exit status 3")
    ended = waiting.machine.wait(execution)
    assert (ended["status"], ended["error"], ended["cause"]) == ("FAILED", "Job.Failed", "exit status 3")


def test_answer_needs_permission_for_the_tokens_machine(cloud: Cloud, bucket: str, refused: Any) -> None:
    waiting = Waiting(cloud, bucket)
    execution = waiting.begin()
    other = waiting.answerer(waiting.machine.arn + "-other")
    with refused("AccessDeniedException"):
        other.send_task_success(taskToken=waiting.token(), output="{}")
    with refused("AccessDeniedException"):
        other.send_task_failure(taskToken=waiting.token())
    with refused("AccessDeniedException"):
        other.send_task_heartbeat(taskToken=waiting.token())
    waiting.answerer().send_task_success(taskToken=waiting.token(), output="{}")
    assert waiting.machine.wait(execution)["status"] == "SUCCEEDED"


def test_unknown_token_is_refused(cloud: Cloud, bucket: str, refused: Any) -> None:
    with refused("AccessDeniedException"):
        Waiting(cloud, bucket).answerer().send_task_success(taskToken="guessed", output="{}")
    with refused("TaskDoesNotExist"):
        cloud.client("stepfunctions").send_task_success(taskToken="guessed", output="{}")


def test_missing_heartbeat_ends_the_task(cloud: Cloud, bucket: str) -> None:
    waiting = Waiting(cloud, bucket, HeartbeatSeconds=1, TimeoutSeconds=30)
    began = time.monotonic()
    ended = waiting.machine.wait(waiting.begin())
    assert (ended["status"], ended["error"]) == ("FAILED", "States.HeartbeatTimeout")
    assert 0.9 < time.monotonic() - began < 5


def test_heartbeats_keep_the_task_alive(cloud: Cloud, bucket: str) -> None:
    waiting = Waiting(cloud, bucket, HeartbeatSeconds=1, TimeoutSeconds=30)
    execution = waiting.begin()
    answerer, token = waiting.answerer(), waiting.token()
    until = time.monotonic() + 1.8
    while time.monotonic() < until:
        answerer.send_task_heartbeat(taskToken=token)
        time.sleep(0.3)
    answerer.send_task_success(taskToken=token, output='"done"')
    assert waiting.machine.wait(execution)["output"] == '"done"'


CAUGHT = [{"ErrorEquals": ["States.Timeout"], "Next": "Caught"}]


@pytest.mark.parametrize(
    ("times", "data"),
    [
        ({"TimeoutSeconds": 1}, {}),
        ({"TimeoutSecondsPath": "$.limit"}, {"limit": 1}),
        ({"TimeoutSeconds": 30, "HeartbeatSecondsPath": "$.beat"}, {"beat": 1}),
    ],
    ids=["deadline", "deadline from a path", "heartbeat from a path"],
)
def test_timeout_is_caught(cloud: Cloud, bucket: str, times: dict[str, Any], data: dict[str, int]) -> None:
    waiting = Waiting(cloud, bucket, **times, Catch=CAUGHT)
    description = waiting.machine.states.describe_state_machine(stateMachineArn=waiting.machine.arn)
    definition = json.loads(description["definition"])
    definition["States"]["Caught"] = {"Type": "Pass", "Result": "caught", "End": True}
    waiting.machine.states.update_state_machine(stateMachineArn=waiting.machine.arn, definition=json.dumps(definition))
    ended = waiting.machine.wait(waiting.begin(data))
    assert (ended["status"], ended["output"]) == ("SUCCEEDED", '"caught"')


def test_time_that_is_no_number_fails_with_its_path(cloud: Cloud, bucket: str) -> None:
    ended = Waiting(cloud, bucket, TimeoutSecondsPath="$.limit").machine.run({"limit": "soon"})
    assert ended["status"] == "FAILED"
    assert "TimeoutSecondsPath $.limit must name a positive integer, got 'soon'" in ended["cause"]


def test_stopped_execution_stops_waiting_and_retries_nothing(cloud: Cloud, bucket: str, refused: Any) -> None:
    retry = [{"ErrorEquals": ["States.ALL"], "IntervalSeconds": 1, "MaxAttempts": 3}]
    waiting = Waiting(cloud, bucket, Retry=retry, Catch=[{"ErrorEquals": ["States.ALL"], "Next": "Only"}])
    execution = waiting.begin()
    token = waiting.token()
    waiting.machine.states.stop_execution(executionArn=execution, cause="operator")
    assert waiting.machine.wait(execution)["status"] == "ABORTED"
    deadline = time.monotonic() + 5
    with refused("TaskDoesNotExist"):
        while time.monotonic() < deadline:
            waiting.machine.states.send_task_heartbeat(taskToken=token)
    assert waiting.token() == token
