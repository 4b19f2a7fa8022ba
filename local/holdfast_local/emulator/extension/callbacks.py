"""Step Functions' waiting: task tokens, heartbeats, deadlines, and who may answer.

Amazon States Language, "Timeouts and heartbeats": a task without a heartbeat for HeartbeatSeconds has failed with
States.HeartbeatTimeout, which `States.Timeout` catches too; both times can come from a path.
"""

import json
import threading
import time
from typing import Any

from holdfast_local.emulator.extension.execution_role import current
from holdfast_local.emulator.extension.seams import seam

#: Step Functions' own limit of an execution is one year.
_FOREVER_SECONDS = 366 * 24 * 3600.0
_TIMES = ("TimeoutSeconds", "HeartbeatSeconds")
_ANSWERS = ("SendTaskSuccess", "SendTaskFailure", "SendTaskHeartbeat")


class _Aborted(SystemExit):
    """Ends the thread of an execution that someone stopped; no Retry or Catch sees it."""


def install() -> None:
    """Replace ministack's waiting for a task token, and its check of who may answer one."""
    machine = seam(
        "ministack.services.stepfunctions",
        "_ExecutionError",
        "_error_matches",
        "_execute_task",
        "_executions",
        "_invoke_resource",
        "_invoke_with_callback",
        "_resolve_path_or_ctx",
        "_send_task_heartbeat",
        "_stop_execution",
        "_task_tokens",
    )
    machine._invoke_with_callback = _Waiter(machine).wait
    _install_times(machine)
    _install_heartbeat(machine)
    _install_stop(machine)
    _install_resource_arns(machine)


class _Waiter:
    def __init__(self, machine: Any) -> None:
        self._machine = machine

    def wait(self, resource: str, data: Any, token: str, state: dict[str, Any]) -> Any:
        """Run the task, then return what is sent for its token.

        Raises:
            _ExecutionError: the task failed, a failure was sent, or a deadline or heartbeat passed.
        """
        execution = current.get()
        if execution is None:
            raise self._machine._ExecutionError("States.Runtime", f"{resource} runs in no execution")
        answered = threading.Event()
        record: dict[str, Any] = {
            "event": answered,
            "result": None,
            "error": None,
            "beat": time.monotonic(),
            "execution": execution.arn,
            "machine": execution.machine_arn,
        }
        self._machine._task_tokens[token] = record
        try:
            self._machine._invoke_resource(resource.removesuffix(".waitForTaskToken"), data)
            self._await(answered, record, state)
        finally:
            self._machine._task_tokens.pop(token, None)
        if self._machine._executions[execution.arn]["status"] != "RUNNING":
            raise _Aborted
        if record["error"]:
            raise self._machine._ExecutionError(record["error"]["Error"], record["error"]["Cause"])
        return _json(record["result"])

    def _await(self, answered: threading.Event, record: dict[str, Any], state: dict[str, Any]) -> None:
        deadline = time.monotonic() + float(state.get("TimeoutSeconds", _FOREVER_SECONDS))
        limit = float(state.get("HeartbeatSeconds", _FOREVER_SECONDS))
        while not answered.is_set():
            now, late = time.monotonic(), record["beat"] + limit
            if now >= deadline:
                raise self._machine._ExecutionError("States.Timeout", "no answer within TimeoutSeconds")
            if now >= late:
                raise self._machine._ExecutionError("States.HeartbeatTimeout", "no heartbeat within HeartbeatSeconds")
            answered.wait(min(deadline, late) - now)


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _install_times(machine: Any) -> None:
    execute_task, error_matches = machine._execute_task, machine._error_matches

    def execute(state: dict[str, Any], given: Any, execution: Any, context: Any) -> Any:
        named = {field: state[f"{field}Path"] for field in _TIMES if f"{field}Path" in state}
        times = {field: machine._resolve_path_or_ctx(path, given, context) for field, path in named.items()}
        for field, value in times.items():
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                cause = f"{field}Path {named[field]} must name a positive integer, got {value!r}"
                raise machine._ExecutionError("States.Runtime", cause)
        return execute_task(state | times, given, execution, context)

    def matches(names: list[str], error: str) -> bool:
        return bool(
            error_matches(names, error)
            or (error == "States.HeartbeatTimeout" and error_matches(names, "States.Timeout"))
        )

    machine._execute_task, machine._error_matches = execute, matches


def _install_heartbeat(machine: Any) -> None:
    stock = machine._send_task_heartbeat

    def send_task_heartbeat(request: dict[str, Any]) -> Any:
        record = machine._task_tokens.get(request.get("taskToken"))
        if record:
            record["beat"] = time.monotonic()
        return stock(request)

    machine._send_task_heartbeat = send_task_heartbeat


def _install_stop(machine: Any) -> None:
    stock = machine._stop_execution

    def stop_execution(request: dict[str, Any]) -> Any:
        answer = stock(request)
        for record in list(machine._task_tokens.values()):
            if record.get("execution") == request.get("executionArn"):
                record["event"].set()
        return answer

    machine._stop_execution = stop_execution


def _install_resource_arns(machine: Any) -> None:
    """Evaluate an answer to a token against the state machine that issued it; an unknown token belongs to none."""
    actions = seam("ministack.core.iam_actions", "extract_resource_arn")
    stock = actions.extract_resource_arn

    def extract_resource_arn(
        service: str, method: str, path: str, headers: dict[str, str], body: bytes, *more: Any
    ) -> str:
        action = headers.get("x-amz-target", "").rpartition(".")[2]
        if service == "states" and action in _ANSWERS:
            request = _json(body)
            token = request.get("taskToken") if isinstance(request, dict) else None
            return str((machine._task_tokens.get(token) or {}).get("machine", "*"))
        return str(stock(service, method, path, headers, body, *more))

    actions.extract_resource_arn = extract_resource_arn
