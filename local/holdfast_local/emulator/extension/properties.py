"""Properties that ministack takes and does not give back: volumes' keys, functions' keys, state machines' logs.

Launch templates lose a volume's key in requests and in what they say of themselves; CloudFormation drops a function's
key, and stores a state machine's logging under names that no client reads.
"""

from collections.abc import Callable, Iterator
from typing import Any

from holdfast_local.emulator.extension.seams import seam


def install() -> None:
    """Keep these properties, and tell them as the APIs do."""
    handlers = seam("ministack.services.cloudformation.provisioners", "_RESOURCE_HANDLERS")._RESOURCE_HANDLERS
    _install_volume_keys(seam("ministack.services.ec2", "_esc", "_lt_data_xml", "_p", "_parse_lt_data"))
    functions = seam("ministack.services.lambda_svc", "_functions")
    _after(
        handlers["AWS::Lambda::Function"],
        lambda name, properties: _encrypt(functions._functions.get(name), properties),
    )
    machines = seam("ministack.services.stepfunctions", "_state_machines")
    _after(
        handlers["AWS::StepFunctions::StateMachine"],
        lambda arn, properties: _log(machines._state_machines.get(arn), properties),
    )


def _install_volume_keys(ec2: Any) -> None:
    parse, render = ec2._parse_lt_data, ec2._lt_data_xml

    def parse_data(request: dict[str, Any], *more: Any, **named: Any) -> Any:
        data = parse(request, *more, **named)
        prefix = str(more[0] if more else named.get("prefix", "LaunchTemplateData"))
        for number, mapping in enumerate(data.get("BlockDeviceMappings", ()), start=1):
            if key := ec2._p(request, f"{prefix}.BlockDeviceMapping.{number}.Ebs.KmsKeyId"):
                mapping.setdefault("Ebs", {})["KmsKeyId"] = key
        return data

    def data_xml(data: dict[str, Any]) -> str:
        first, *rest = str(render(data)).split("<ebs>")
        volumes = [mapping["Ebs"] for mapping in data.get("BlockDeviceMappings", ()) if "Ebs" in mapping]
        return first + "".join(_volumes(ec2, volumes, rest))

    ec2._parse_lt_data, ec2._lt_data_xml = parse_data, data_xml


def _volumes(ec2: Any, volumes: list[dict[str, Any]], texts: list[str]) -> Iterator[str]:
    for volume, text in zip(volumes, texts, strict=True):
        key = volume.get("KmsKeyId")
        yield "<ebs>" + (f"<kmsKeyId>{ec2._esc(key)}</kmsKeyId>" if key else "") + text


def _after(handlers: dict[str, Any], complete: Callable[[str, dict[str, Any]], None]) -> None:
    """Call `complete` with the resource's name and properties after a stack has made or changed it."""
    create, update = handlers["create"], handlers["update"]

    def created(logical_id: str, properties: dict[str, Any], stack: str) -> Any:
        result = create(logical_id, properties, stack)
        complete(result[0], properties)
        return result

    def updated(physical_id: str, old: dict[str, Any], new: dict[str, Any], *more: Any, **named: Any) -> Any:
        result = update(physical_id, old, new, *more, **named)
        complete(result[0] if result else physical_id, new)
        return result

    handlers["create"], handlers["update"] = created, updated


def _encrypt(function: dict[str, Any] | None, properties: dict[str, Any]) -> None:
    if function is not None:
        function["config"]["KMSKeyArn"] = properties.get("KmsKeyArn", "")


def _log(machine: dict[str, Any] | None, properties: dict[str, Any]) -> None:
    given = properties.get("LoggingConfiguration")
    if machine is None or given is None:
        return
    machine["loggingConfiguration"] = {
        "level": given.get("Level", "OFF"),
        "includeExecutionData": str(given.get("IncludeExecutionData", False)).lower() == "true",
        "destinations": [
            {"cloudWatchLogsLogGroup": {"logGroupArn": place["CloudWatchLogsLogGroup"]["LogGroupArn"]}}
            for place in given.get("Destinations", ())
        ],
    }
