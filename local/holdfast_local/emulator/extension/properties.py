"""Properties that ministack takes and does not give back: metadata options, keys of volumes and functions, logging.

Launch templates lose a volume's key in requests and in what they say of themselves, and instances do not say how they
answer metadata requests; CloudFormation drops a function's key, and stores a state machine's logging under names that
no client reads.
"""

from collections.abc import Callable, Iterator
from typing import Any

from holdfast_local.emulator.extension.seams import seam


def install() -> None:
    """Keep these properties, and tell them as the APIs do."""
    handlers = seam("ministack.services.cloudformation.provisioners", "_RESOURCE_HANDLERS")._RESOURCE_HANDLERS
    ec2 = seam(
        "ministack.services.ec2",
        "_ACTION_MAP",
        "_error",
        "_esc",
        "_instance_xml",
        "_instances",
        "_lt_data_xml",
        "_p",
        "_parse_lt_data",
        "_xml",
    )
    _install_volume_keys(ec2)
    _install_metadata_options(ec2)
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


_METADATA_OPTIONS = ("HttpTokens", "HttpPutResponseHopLimit", "HttpEndpoint", "InstanceMetadataTags")


def _install_metadata_options(ec2: Any) -> None:
    render = ec2._instance_xml

    def options_xml(record: dict[str, Any]) -> str:
        given = record.get("MetadataOptions") or {}
        tags = {name: f"{name[0].lower()}{name[1:]}" for name in _METADATA_OPTIONS if name in given}
        return "".join(f"<{tag}>{ec2._esc(str(given[name]))}</{tag}>" for name, tag in tags.items())

    def instance_xml(record: dict[str, Any]) -> str:
        text = str(render(record)).removesuffix("</item>")
        return f"{text}<metadataOptions><state>applied</state>{options_xml(record)}</metadataOptions></item>"

    def modify(request: dict[str, Any]) -> Any:
        record = ec2._instances.get(ec2._p(request, "InstanceId"))
        if record is None:
            return ec2._error("InvalidInstanceID.NotFound", "The instance ID does not exist", 400)
        given = {name: ec2._p(request, name) for name in _METADATA_OPTIONS}
        record["MetadataOptions"] = {
            **(record.get("MetadataOptions") or {}),
            **{name: value for name, value in given.items() if value},
        }
        inner = f"<instanceMetadataOptions><state>pending</state>{options_xml(record)}</instanceMetadataOptions>"
        return ec2._xml(200, "ModifyInstanceMetadataOptionsResponse", inner)

    ec2._instance_xml = instance_xml
    ec2._ACTION_MAP["ModifyInstanceMetadataOptions"] = modify


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
