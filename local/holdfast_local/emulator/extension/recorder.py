"""A record of what IAM policies were asked, and which statement allowed it: for proofs of least privilege.

It has a JSON line for each decision, with the names of the condition keys that the request had and not their values. It
is kept where the variable HOLDFAST_RECORD_CALLS names a file, and nowhere otherwise. Root is asked nothing, so there
is none of its calls.
"""

import json
import os
from contextvars import ContextVar
from typing import Any

from holdfast_local.emulator.extension.seams import seam
from holdfast_local.emulator.names import RECORD_VARIABLE

#: Whether it is a resource's own policy that is being evaluated.
_of_resource: ContextVar[bool] = ContextVar("holdfast_of_resource", default=False)


def install() -> None:
    """Record what the identity policies allow, and what is refused in the end, if that is asked for."""
    path = os.environ.get(RECORD_VARIABLE)
    if not path:
        return
    evaluator = seam("ministack.core.iam_evaluator", "EvalResult", "enforce", "evaluate", "evaluate_resource_policy")
    stock, stock_of_resource, stock_enforce = evaluator.evaluate, evaluator.evaluate_resource_policy, evaluator.enforce
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def record(**line: Any) -> None:
        os.write(descriptor, json.dumps(line).encode() + b"\n")  # one write: lines of several threads do not mix

    def evaluate(context: Any, *policies: Any) -> Any:
        result = stock(context, *policies)
        if result.decision == "Allow" and not _of_resource.get():
            keys = sorted(key for key, value in context.service_context.items() if value is not None)
            record(
                principal=context.principal_arn,
                action=context.action,
                resource=context.resource_arn,
                keys=keys,
                decision="Allow",
                sid=result.matched_sid,
            )
        return result

    def evaluate_resource_policy(*arguments: Any, **named: Any) -> Any:
        token = _of_resource.set(True)
        try:
            return stock_of_resource(*arguments, **named)
        finally:
            _of_resource.reset(token)

    def enforce(
        access_key_id: str, action: str, service: str, region: str, resource: str = "*", keys: Any = None
    ) -> Any:
        result = stock_enforce(access_key_id, action, service, region, resource, keys)
        if isinstance(result, evaluator.EvalResult):
            principal, names = result.principal_arn, sorted(keys or ())
            record(principal=principal, action=action, resource=resource, keys=names, decision="Deny", sid="")
        return result

    evaluator.evaluate, evaluator.evaluate_resource_policy, evaluator.enforce = (
        evaluate,
        evaluate_resource_policy,
        enforce,
    )
