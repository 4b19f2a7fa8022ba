"""What posture rules judge: the resources of a deployment's templates, flattened, whatever the settings.

Rules say again what they expect instead of taking it from the constructs: else they would follow a mistake there.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.kit.support import as_list, flat

Template = Mapping[str, Any]
ACCOUNT = "<AWS::AccountId>"
ROOT = {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
ANYONE = {"AWS": "*"}
#: The key of everything at rest; the name is contract (holdfast.keys).
DATA_KEY = "<FoundationKeysData.Arn>"
#: What the SSM agent does with its channels, which have no resource to name.
AGENT_CHANNELS = {f"ssmmessages:{verb}{kind}Channel" for verb in ("Create", "Open") for kind in ("Control", "Data")}
_HASH = re.compile(r"[0-9A-F]{8}$")


@dataclass(frozen=True)
class Resource:
    """A resource as its template has it, with CloudFormation's functions as text and without hashes in names."""

    part: str
    name: str
    kind: str
    properties: dict[str, Any]
    deletion_policy: str | None
    replacement_policy: str | None

    @property
    def where(self) -> str:
        """The stack's part and the resource's name."""
        return f"{self.part}/{self.name}"

    def at(self, *path: str) -> Any:
        """Return the property at a path, None where the path ends early."""
        value: Any = self.properties
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True)
class Problem:
    """Something that a rule does not allow: where it is, and what, got, allowed."""

    where: str
    text: str


@dataclass
class Templates:
    """The templates of one deployment, by part (`Foundation`, `Network`, `Training`, `Images`)."""

    parts: Mapping[str, Template]
    resources: list[Resource] = field(init=False)

    def __post_init__(self) -> None:
        self.resources = [
            Resource(
                part,
                _HASH.sub("", logical_id),
                found["Type"],
                flat(found.get("Properties", {})),
                found.get("DeletionPolicy"),
                found.get("UpdateReplacePolicy"),
            )
            for part, template in self.parts.items()
            for logical_id, found in template["Resources"].items()
        ]

    def of(self, *kinds: str, part: str | None = None) -> list[Resource]:
        """Return the resources of these types, in one part or in all."""
        return [r for r in self.resources if r.kind in kinds and part in (None, r.part)]


Rule = Callable[[Templates], Iterable[Problem]]


def rule_name(rule: Rule) -> str:
    """Return the name that reports show: the function's, with hyphens."""
    return rule.__name__.replace("_", "-")


def wrong(resource: Resource, what: str, got: Any, allowed: str) -> Problem:
    """Return the problem that something of a resource is not as it must be."""
    return Problem(resource.where, f"{what} must be {allowed}, got {got!r}")


def expect(resource: Resource, allowed: Any, *path: str) -> Iterable[Problem]:
    """Yield a problem unless the property at a path is exactly `allowed`."""
    if (got := resource.at(*path)) != allowed:
        yield wrong(resource, ".".join(path), got, repr(allowed))


def statements(document: Any) -> list[dict[str, Any]]:
    """Return a policy's statements; none if there is no policy."""
    return as_list(document["Statement"]) if isinstance(document, dict) else []


def allowed(document: Any) -> list[dict[str, Any]]:
    """Return those of a policy's statements that allow something."""
    return [statement for statement in statements(document) if statement["Effect"] == "Allow"]


def actions(statement: dict[str, Any]) -> list[str]:
    """Return the actions of a statement; one that says which it does not mean means `*`."""
    return as_list(statement.get("Action", "*"))


def targets(statement: dict[str, Any]) -> list[str]:
    """Return the resources of a statement; one that says which it does not mean means `*`."""
    return as_list(statement.get("Resource", "*"))


def label(statement: dict[str, Any]) -> str:
    """Return what a message calls a statement."""
    return str(statement.get("Sid", "a statement without a Sid"))


def denies(document: Any, wanted: dict[str, Any]) -> bool:
    """Whether a policy denies something to everybody: a statement with exactly these members, its Sid aside."""
    return any(
        {key: value for key, value in statement.items() if key != "Sid"}
        == {"Effect": "Deny", "Principal": ANYONE, **wanted}
        for statement in statements(document)
    )
