"""Step Functions' tasks as real API calls: signed with the state machine's role, checked by IAM like any other.

ministack calls its services' functions directly, without a caller, and knows few of their operations.
"""

import json
from datetime import datetime
from typing import Any

from holdfast_local.emulator.extension.execution_role import Execution, RoleError, current
from holdfast_local.emulator.extension.seams import seam

_PREFIX = "arn:aws:states:::"
#: Optimized integrations (Step Functions Developer Guide, "Integrating services"): service and operation.
_OPTIMIZED = {"sns:publish": ("sns", "Publish"), "sqs:sendMessage": ("sqs", "SendMessage")}
#: SDK integrations name a service as the AWS SDK for Java does; boto3's names differ for these.
_SERVICES = {"sfn": "stepfunctions", "cloudwatchlogs": "logs", "eventbridge": "events"}
_ERROR_PREFIXES = {"autoscaling": "AutoScaling", "sfn": "Sfn", "efs": "Efs"}


def install() -> None:
    """Run tasks through the API, in the name of the execution that they belong to."""
    machine = seam(
        "ministack.services.stepfunctions",
        "_AWS_SDK_ERROR_PREFIX",
        "_ExecutionError",
        "_api_name_to_sfn_key",
        "_executions",
        "_invoke_resource",
        "_run_execution",
        "_state_machines",
        "_extract_lambda_ref",
    )
    responses = seam("ministack.core.responses", "get_account_id", "get_region")
    run_execution = machine._run_execution
    runner = _Runner(machine)

    def run_as_role(execution_arn: str) -> Any:
        record = machine._executions.get(execution_arn) or {}
        owner = machine._state_machines.get(record.get("stateMachineArn", "")) or {}
        current.set(
            Execution(
                arn=execution_arn,
                machine_arn=record.get("stateMachineArn", ""),
                role_arn=owner.get("roleArn", ""),
                account=responses.get_account_id(),
                region=responses.get_region(),
            )
        )
        return run_execution(execution_arn)

    machine._run_execution = run_as_role
    machine._invoke_resource = runner.run


class _Runner:
    def __init__(self, machine: Any) -> None:
        self._machine = machine

    def run(self, resource: str, data: Any) -> Any:
        """Return the result of one task.

        Raises:
            _ExecutionError: the call failed or was denied; named as Step Functions names it.
        """
        execution = current.get()
        if execution is None:
            raise self._error("States.Runtime", f"{resource} runs in no execution")
        name = resource.removeprefix(_PREFIX).removesuffix(".waitForTaskToken")
        if name.startswith("lambda:invoke"):
            return self._invoke(execution, data)
        if function := self._machine._extract_lambda_ref(resource):
            return self._invoke(execution, {"FunctionName": function, "Payload": data})["Payload"]
        if name.startswith("aws-sdk:"):
            _, service, action = name.split(":", 2)
            return self._call(execution, service.lower(), action[0].upper() + action[1:], data)
        if name in _OPTIMIZED:
            return self._call(execution, *_OPTIMIZED[name], data)
        raise self._error(
            "States.Runtime",
            f"the embedded AWS runs no {resource} tasks, because it could not check their permissions; "
            f"allowed: {_PREFIX}aws-sdk:<service>:<action>, {_PREFIX}lambda:invoke, "
            + ", ".join(_PREFIX + known for known in _OPTIMIZED),
        )

    def _invoke(self, execution: Execution, data: dict[str, Any]) -> dict[str, Any]:
        known = ("FunctionName", "Qualifier", "InvocationType", "ClientContext")
        request = {name: data[name] for name in known if name in data}
        payload = json.dumps(data.get("Payload", {})).encode()
        answer = self._guarded(execution, "lambda", "Invoke", request | {"Payload": payload})
        raw = answer["Payload"].read()
        result = json.loads(raw) if raw else None
        if "FunctionError" in answer:
            kind = result.get("errorType", "Lambda.Unknown") if isinstance(result, dict) else "Lambda.Unknown"
            raise self._error(kind, raw.decode(errors="replace"))
        return {
            "ExecutedVersion": answer.get("ExecutedVersion", "$LATEST"),
            "Payload": result,
            "StatusCode": answer["StatusCode"],
        }

    def _call(self, execution: Execution, service: str, action: str, data: Any) -> Any:
        model = self._operation(execution, service, action)
        request = self._to_api(data or {}, model.input_shape) if model.input_shape else {}
        answer = self._guarded(execution, service, action, request)
        answer.pop("ResponseMetadata", None)
        return self._from_api(answer, model.output_shape) if model.output_shape else {}

    def _operation(self, execution: Execution, service: str, action: str) -> Any:
        model = self._client(execution, service).meta.service_model
        if action not in model.operation_names:
            raise self._error("States.Runtime", f"AWS has no action {action} in the service {service}")
        return model.operation_model(action)

    def _client(self, execution: Execution, service: str) -> Any:
        unknown = seam("botocore.exceptions").UnknownServiceError
        try:
            return execution.client(_SERVICES.get(service, service))
        except unknown:
            raise self._error("States.Runtime", f"AWS has no service {service}") from None
        except RoleError as error:
            raise self._error("States.Runtime", f"this execution cannot run: {error}") from None

    def _guarded(self, execution: Execution, service: str, action: str, request: dict[str, Any]) -> Any:
        errors = seam("botocore.exceptions")
        client = self._client(execution, service)
        method = getattr(client, seam("botocore").xform_name(action))
        try:
            return method(**request)
        except errors.ClientError as error:
            raise self._named(service, self._operation(execution, service, action), error) from None
        except (errors.ParamValidationError, errors.BotoCoreError) as error:
            raise self._error("States.Runtime", f"{service}:{action}: {error}") from None

    def _named(self, service: str, operation: Any, error: Any) -> Exception:
        """Return the error under the name of the Java SDK's exception class, as Step Functions reports it."""
        prefixes = self._machine._AWS_SDK_ERROR_PREFIX
        prefix = _ERROR_PREFIXES.get(service) or prefixes.get(service, service.capitalize())
        code = error.response.get("Error", {}).get("Code", "")
        modelled = {
            shape.metadata.get("error", {}).get("code", shape.name): shape.name for shape in operation.error_shapes
        }
        if code in modelled or code in modelled.values():
            kind = modelled.get(code, code).removesuffix("Fault").removesuffix("Exception") + "Exception"
        else:
            kind = f"{prefix}Exception"
        return self._error(f"{prefix}.{kind}", str(error))

    def _error(self, name: str, cause: str) -> Exception:
        made: Exception = self._machine._ExecutionError(name, cause)
        return made

    def _to_api(self, value: Any, shape: Any) -> Any:
        """Return a task's parameters in the API's spelling; a blob given as JSON becomes its text."""
        if shape.type_name == "structure" and isinstance(value, dict):
            spelled = {self._machine._api_name_to_sfn_key(name): name for name in shape.members}
            names = {key: spelled.get(self._machine._api_name_to_sfn_key(key), key) for key in value}
            return {
                names[key]: self._to_api(item, shape.members[names[key]]) if names[key] in shape.members else item
                for key, item in value.items()
            }
        if shape.type_name == "list" and isinstance(value, list):
            return [self._to_api(item, shape.member) for item in value]
        if shape.type_name == "map" and isinstance(value, dict):
            return {key: self._to_api(item, shape.value) for key, item in value.items()}
        if shape.type_name == "blob":
            return (value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))).encode()
        return value

    def _from_api(self, value: Any, shape: Any) -> Any:
        """Return an answer in Step Functions' spelling, as JSON."""
        if shape.type_name == "structure" and isinstance(value, dict):
            return {
                self._machine._api_name_to_sfn_key(name): self._from_api(item, shape.members[name])
                for name, item in value.items()
                if name in shape.members
            }
        if shape.type_name == "list":
            return [self._from_api(item, shape.member) for item in value]
        if shape.type_name == "map":
            return {key: self._from_api(item, shape.value) for key, item in value.items()}
        if shape.type_name == "blob":
            return (value if isinstance(value, bytes) else value.read()).decode(errors="replace")
        return value.isoformat() if isinstance(value, datetime) else value
