"""Policy documents as the checks read them: statements with lists everywhere, and what is wide about each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from holdfast_cli.posture.reading import Unreadable

#: Condition keys that hold a caller to an account, and the operators that can.
_HOLDING = {"aws:principalaccount", "aws:sourceaccount", "kms:calleraccount"}
_OPERATORS = {"StringEquals", "StringLike", "ArnEquals", "ArnLike"}


@dataclass(frozen=True)
class Statement:
    """One statement; action names are as written, and condition keys are lower case."""

    allows: bool
    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    principals: tuple[str, ...]
    conditions: dict[tuple[str, str], tuple[str, ...]]
    #: NotAction, NotResource or NotPrincipal: it names what it leaves out, and so reaches what nobody has listed.
    inverted: bool

    @property
    def public(self) -> bool:
        """Whether anybody is a principal."""
        return "*" in self.principals

    def holds_to(self, account: str) -> bool:
        """Whether a condition admits callers of this account only."""
        return any(
            operator in _OPERATORS and key in _HOLDING and values == (account,)
            for (operator, key), values in self.conditions.items()
        )

    def has_condition(self, operator: str, key: str, *values: str) -> bool:
        """Whether the statement has exactly this condition."""
        return self.conditions.get((operator, key.lower())) == values

    def names(self, key: str) -> bool:
        """Whether any condition of the statement is on this key."""
        return any(name == key.lower() for _, name in self.conditions)


def parse(document: Any, where: str) -> tuple[Statement, ...]:
    """Return the statements of a policy document, given as JSON or decoded.

    Raises:
        Unreadable: it is no policy document.
    """
    try:
        decoded = json.loads(document) if isinstance(document, str) else document
        return tuple(_statement(item) for item in _list(decoded["Statement"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Unreadable(f"{where} is no policy document") from None


def strangers(statement: Statement, account: str) -> Iterator[str]:
    """Yield the principals of an allowing statement that are neither this account's nor held to it by a condition."""
    if not statement.allows:
        return
    if statement.inverted:
        yield "everybody but those it names"
    for principal in statement.principals:
        if principal == account or f"::{account}:" in principal or statement.holds_to(account):
            continue
        yield "everybody" if principal == "*" else principal


def said(statement: Statement) -> str:
    """Return how messages name a statement."""
    return f"statement {statement.sid or ', '.join(statement.actions)}"


def _statement(item: dict[str, Any]) -> Statement:
    named = item.get("Principal", item.get("NotPrincipal", {}))
    principals = ["*"] if named == "*" else [text for values in named.values() for text in _texts(values)]
    return Statement(
        allows=item["Effect"] == "Allow",
        sid=str(item.get("Sid", "")),
        actions=_texts(item.get("Action", item.get("NotAction", ()))),
        resources=_texts(item.get("Resource", item.get("NotResource", ()))),
        principals=tuple(principals),
        conditions={
            (operator, key.lower()): _texts(values)
            for operator, keys in item.get("Condition", {}).items()
            for key, values in keys.items()
        },
        inverted=any(name in item for name in ("NotAction", "NotResource", "NotPrincipal")),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(str(item).lower() if isinstance(item, bool) else str(item) for item in items)
