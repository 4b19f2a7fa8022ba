"""Checks of what runs beside the nodes: the enrolment function and the job state machine."""

from typing import Any

from holdfast_cli.posture.inventory import Inventory
from holdfast_cli.posture.report import Check, Outcome
from holdfast_cli.posture.statements import parse, said


def _function(inventory: Inventory) -> tuple[str, dict[str, Any]]:
    (name,) = inventory.of("Lambda::Function")
    return name, inventory.reader.get("lambda:GetFunctionConfiguration", FunctionName=name) or {}


def look_at_callers(inventory: Inventory) -> Outcome:
    """Look for any way to call the enrolment function but by the permission of a role's own policy."""
    name, _ = _function(inventory)
    urls = inventory.reader.every("lambda:ListFunctionUrlConfigs", FunctionName=name)
    problems = [f"{name} has the URL {item['FunctionUrl']}" for item in urls]
    answer = inventory.reader.get("lambda:GetPolicy", absent=("ResourceNotFoundException",), FunctionName=name)
    statements = () if answer is None else parse(answer["Policy"], f"the policy of {name}")
    problems += [
        f"{name}: {said(item)} lets {', '.join(item.principals)} call it" for item in statements if item.allows
    ]
    return Outcome(f"{name}: no URL, no resource policy" if not problems else name, tuple(problems))


def look_at_code(inventory: Inventory) -> Outcome:
    """Look whether the function runs its own handler and nothing beside it."""
    name, config = _function(inventory)
    problems = [f"{name} loads the layer {item['Arn']}" for item in config.get("Layers", ())]
    if config["Handler"] != "handler.handler":
        problems.append(f"{name} runs {config['Handler']}")
    return Outcome(f"{name}, code with the SHA-256 {config['CodeSha256']}", tuple(problems))


def look_at_sweep(inventory: Inventory) -> Outcome:
    """Look whether a job that ends without its own last states still has its groups lowered."""
    machine, problems = inventory.cluster.state_machine, []
    (name,) = inventory.of("Events::Rule")
    rule = inventory.reader.get("events:DescribeRule", absent=("ResourceNotFoundException",), Name=name)
    if rule is None:
        return Outcome(name, (f"rule {name} does not exist",))
    if rule["State"] != "ENABLED":
        problems.append(f"rule {name} is {rule['State']}")
    targets = [item["Arn"] for item in inventory.reader.every("events:ListTargetsByRule", Rule=name)]
    if targets != [machine]:
        problems.append(f"rule {name} starts {', '.join(targets) or 'nothing'} and not the state machine alone")
    return Outcome(name, tuple(problems))


def look_at_enrolment_data(inventory: Inventory) -> Outcome:
    """Look whether the function's environment is encrypted with the data key, and where it logs."""
    name, config = _function(inventory)
    key, log = inventory.data_key, f"/holdfast/{inventory.name}/enrolment"
    problems = []
    if config.get("KMSKeyArn") != key:
        problems.append(
            f"{name}: its environment is encrypted with {config.get('KMSKeyArn') or 'no key of the account'}"
        )
    if (place := config.get("LoggingConfig", {}).get("LogGroup")) != log:
        problems.append(f"{name} logs to {place or 'a log group of its own'}")
    return Outcome(f"{name}; {key}", tuple(problems))


def look_at_machine(inventory: Inventory) -> Outcome:
    """Look whether executions are encrypted with the data key and all logged, without their data."""
    arn = inventory.cluster.state_machine
    # Its definition is under the key too, which nobody needs to read here.
    described = (
        inventory.reader.get("states:DescribeStateMachine", stateMachineArn=arn, includedData="METADATA_ONLY") or {}
    )
    encryption, logging = described.get("encryptionConfiguration", {}), described.get("loggingConfiguration", {})
    problems = []
    kind, key = encryption.get("type"), encryption.get("kmsKeyId")
    if (kind, key) != ("CUSTOMER_MANAGED_KMS_KEY", inventory.data_key):
        problems.append(f"executions are encrypted with {key or kind or 'no key of the account'}")
    if logging.get("level") != "ALL":
        problems.append(f"executions are logged at level {logging.get('level', 'OFF')}")
    if logging.get("includeExecutionData"):
        problems.append("executions are logged with their data")
    group = f":log-group:/aws/vendedlogs/states/{inventory.name}-jobs:*"
    places = [item["cloudWatchLogsLogGroup"]["logGroupArn"] for item in logging.get("destinations", ())]
    if len(places) != 1 or not places[0].endswith(group):
        problems.append(f"executions are logged to {', '.join(places) or 'nowhere'}")
    return Outcome(f"{arn}; {key}", tuple(problems))


CHECKS = (
    Check(
        name="enrolment-callers",
        row="T1",
        claim="only a role whose own policy allows it calls the enrolment function: it has no URL, no resource policy",
        remedy="delete the function's URL and remove the permission, and see in its log who enrolled meanwhile",
        look=look_at_callers,
    ),
    Check(
        name="enrolment-code",
        row="T1",
        claim="the enrolment function runs its own handler, with no layer beside it",
        remedy="put the function's configuration back as the foundation stack has it, compare its code's SHA-256 with "
        "that of a fresh deployment, and rotate the CA if it is another (docs/ca-rotation.md)",
        look=look_at_code,
    ),
    Check(
        name="sweep-rule",
        row="T1",
        claim="the groups of a job that was cut off are lowered by the rule that starts the state machine",
        remedy="enable the rule, with the state machine as its one target",
        look=look_at_sweep,
    ),
    Check(
        name="enrolment-encryption",
        row="B4",
        claim="the enrolment function's environment is encrypted with the data key, and its log is the cluster's",
        remedy="put the function's key and log group back as the foundation stack has them",
        look=look_at_enrolment_data,
    ),
    Check(
        name="state-machine",
        row="B4",
        claim="jobs' executions are encrypted with the data key and logged without their data",
        remedy="put the state machine's encryption and logging back as the training stack has them",
        look=look_at_machine,
    ),
)
