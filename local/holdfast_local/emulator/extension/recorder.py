"""A record of what IAM policies were asked, and which statement allowed it: for proofs of least privilege.

It has a JSON line for each decision, with the names of the condition keys that the request had and not their values. It
is kept where the variable HOLDFAST_RECORD_CALLS names a file, and nowhere otherwise. Root is asked nothing, so there
is none of its calls.
"""

import json
import os
from typing import Any

from holdfast_local.emulator.extension.seams import seam
from holdfast_local.emulator.names import RECORD_VARIABLE


def install() -> None:
    """Record every decision of the identity policies, if that is asked for."""
    path = os.environ.get(RECORD_VARIABLE)
    if not path:
        return
    evaluator = seam("ministack.core.iam_evaluator", "evaluate")
    stock = evaluator.evaluate
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def evaluate(context: Any, policies: Any, *limits: Any) -> Any:
        result = stock(context, policies, *limits)
        line = {
            "principal": context.principal_arn,
            "action": context.action,
            "resource": context.resource_arn,
            "keys": sorted(key for key, value in context.service_context.items() if value is not None),
            "decision": result.decision,
            "sid": result.matched_sid,
        }
        os.write(descriptor, json.dumps(line).encode() + b"\n")  # one write: lines of several threads do not mix
        return result

    evaluator.evaluate = evaluate
