"""Whether policies let a role do something: the part of IAM's evaluation that mounting a file system needs.

An explicit deny wins; otherwise the role's own policies or the resource's must allow it, which is enough within one
account (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html). What this does
not understand, a condition's operator or an element, allows nothing and denies everything.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

Policy = Mapping[str, Any]


def allowed(
    *,
    role: Sequence[Policy],
    resource: Sequence[Policy],
    principal: str,
    action: str,
    arn: str,
    context: Mapping[str, str],
) -> bool:
    """Return whether `principal`, by its `role` policies and the resource's own, may do `action` on `arn`.

    `context` holds the request's condition keys; one that is not in it is not in the request.
    """
    own = [statement for policy in role for statement in _list(policy["Statement"])]
    foreign = [s for policy in resource for s in _list(policy["Statement"]) if _names(s.get("Principal"), principal)]
    fitting = [s for s in (*own, *foreign) if _covers(s, action, arn, s in foreign)]
    if any(s["Effect"] != "Allow" and _holds(s, context) is not False for s in fitting):
        return False
    return any(s["Effect"] == "Allow" and _holds(s, context) is True for s in fitting)


def _covers(statement: Policy, action: str, arn: str, of_resource: bool) -> bool:
    if "NotAction" in statement or "NotResource" in statement or "NotPrincipal" in statement:
        return bool(statement["Effect"] != "Allow")
    resources = _list(statement.get("Resource", [arn] if of_resource else []))
    return _matches(action.lower(), [name.lower() for name in _list(statement.get("Action", []))]) and _matches(
        arn, resources
    )


def _holds(statement: Policy, context: Mapping[str, str]) -> bool | None:
    """Return whether a statement's conditions hold, or None if one is not understood."""
    results = [
        _condition(operator, context.get(key), [str(value) for value in _list(values)])
        for operator, keys in statement.get("Condition", {}).items()
        for key, values in keys.items()
    ]
    return False if False in results else None if None in results else True


def _condition(operator: str, got: str | None, wanted: Sequence[str]) -> bool | None:
    match operator:
        case "Null":
            return str(got is None).lower() in wanted
        case "StringEquals" | "Bool" | "ArnEquals":
            return got in wanted
        case "StringLike" | "ArnLike":
            return got is not None and _matches(got, wanted)
        case _:
            return None


def _names(principal: Any, who: str) -> bool:
    named = principal.get("AWS", []) if isinstance(principal, Mapping) else principal
    account = ":".join(who.split(":")[:5]) + ":root"
    return any(name in ("*", who, account) for name in _list(named or []))


def _matches(text: str, patterns: Iterable[str]) -> bool:
    # A bracket is no wildcard in IAM.
    return any(fnmatchcase(text, pattern.replace("[", "[[]")) for pattern in patterns)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
