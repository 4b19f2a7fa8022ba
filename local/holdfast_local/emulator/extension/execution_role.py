"""The session in which an execution's tasks call AWS: its state machine's role, assumed as Step Functions does."""

import json
import secrets
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from holdfast_local.emulator.extension.seams import seam

_SESSION_SECONDS = 24 * 3600
_PRINCIPAL = "states.amazonaws.com"


class RoleError(Exception):
    """The state machine's role cannot be assumed."""


@dataclass
class Execution:
    """A running execution: its own and its machine's ARN, the machine's role, and clients in that role's name."""

    arn: str
    machine_arn: str
    role_arn: str
    account: str
    region: str
    _credentials: dict[str, str] | None = None
    _clients: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, service: str) -> Any:
        """Return a client of `service` that calls this server, signed in the role's name.

        Raises:
            RoleError: the role does not exist, or does not trust Step Functions.
        """
        # Making clients is not thread-safe in boto3, and the branches of a Parallel state are threads.
        with self._lock:
            if self._credentials is None:
                self._credentials = _assume(self)
            if service not in self._clients:
                self._clients[service] = _session().client(
                    service,
                    region_name=self.region,
                    config=seam("botocore.config", "Config").Config(
                        connect_timeout=5, read_timeout=900, retries={"total_max_attempts": 1}
                    ),
                    **self._credentials,
                )
            return self._clients[service]


#: The execution that this thread works for.
current: ContextVar[Execution | None] = ContextVar("holdfast_execution", default=None)


def _session() -> Any:
    return _shared.setdefault("session", seam("boto3", "Session").Session())


#: One session for all clients: it keeps the service models in memory.
_shared: dict[str, Any] = {}


def _assume(execution: Execution) -> dict[str, str]:
    name = execution.role_arn.rpartition("/")[2]
    role = seam("ministack.services.iam", "_roles")._roles.get_scoped(execution.account, None, name)
    if role is None or role["Arn"] != execution.role_arn:
        raise RoleError(f"the role {execution.role_arn} does not exist")
    if not _trusts(role.get("AssumeRolePolicyDocument") or "{}", execution):
        raise RoleError(f"the role {execution.role_arn} does not let {_PRINCIPAL} assume it")
    key, secret, token = f"ASIA{secrets.token_hex(8).upper()}", secrets.token_hex(32), secrets.token_hex(64)
    session_name = execution.arn.rpartition(":")[2][:64]
    seam("ministack.services.sts", "register_session").register_session(
        key,
        {
            "Arn": f"arn:aws:sts::{execution.account}:assumed-role/{name}/{session_name}",
            "UserId": f"{role.get('RoleId', name)}:{session_name}",
            "SecretAccessKey": secret,
            "SessionToken": token,
            "Expiration": time.time() + _SESSION_SECONDS,
        },
    )
    return {"aws_access_key_id": key, "aws_secret_access_key": secret, "aws_session_token": token}


def _trusts(document: str | dict[str, Any], execution: Execution) -> bool:
    """Return whether a trust policy lets Step Functions assume its role on behalf of this state machine."""
    evaluator = seam(
        "ministack.core.iam_evaluator",
        "EvalContext",
        "_action_matches",
        "_conditions_met",
        "_service_principal_matches",
    )
    context = evaluator.EvalContext(
        principal_arn=_PRINCIPAL,
        principal_type="Service",
        principal_account=execution.account,
        action="sts:AssumeRole",
        resource_arn=execution.role_arn,
        region=execution.region,
        service_context={"aws:sourcearn": execution.machine_arn, "aws:sourceaccount": execution.account},
    )
    policy = json.loads(document) if isinstance(document, str) else document
    statements = policy.get("Statement", [])
    effects = {
        statement.get("Effect")
        for statement in (statements if isinstance(statements, list) else [statements])
        if evaluator._action_matches(context.action, _list(statement.get("Action")), _list(statement.get("NotAction")))
        and evaluator._service_principal_matches(statement.get("Principal"), _PRINCIPAL)
        and evaluator._conditions_met(statement.get("Condition", {}), context)
    }
    return effects == {"Allow"}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
