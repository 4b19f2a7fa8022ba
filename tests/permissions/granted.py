"""What the synthesized templates grant, and what a recorded life used of it."""

import fnmatch
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kit.support import Deployment, as_list

from holdfast_node.contract.roles import Role, Serving

#: In place of a statement's name, in the record of mounts.
MOUNT = "mount"
NODES = tuple(str(role) for role in (*Role, Serving.PREDICTOR))


@dataclass(frozen=True, order=True)
class Grant:
    """One action that one statement allows to one role."""

    role: str
    statement: str
    action: str


@dataclass(frozen=True)
class Call:
    """One decision as the embedded AWS recorded it."""

    role: str
    statement: str
    action: str
    resource: str
    keys: tuple[str, ...]
    allowed: bool


def granted(deployment: Deployment) -> list[Grant]:
    """Return what the policies of the deployment's roles allow, an entry for each action."""
    found = [
        Grant(_role(reference), statement["Sid"], action)
        for kind in ("AWS::IAM::ManagedPolicy", "AWS::IAM::Policy")
        for properties in deployment.properties(kind).values()
        for reference in properties.get("Roles", [])
        for statement in properties["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Allow"
        for action in as_list(statement["Action"])
    ]
    return sorted(set(found))


def recorded(path: Path, roles: Iterable[str]) -> Iterator[Call]:
    """Yield the calls in a record that these roles made."""
    names = sorted(roles, key=len, reverse=True)
    for line in path.read_text().splitlines():
        entry: dict[str, Any] = json.loads(line)
        name = entry["principal"].split("/")[1] if ":assumed-role/" in entry["principal"] else ""
        role = (
            name.rpartition("-")[2] if name.rpartition("-")[2] in NODES else next((n for n in names if n in name), "")
        )
        if role in names:
            yield Call(
                role=role,
                statement=entry["sid"],
                action=entry["action"],
                resource=entry["resource"],
                keys=tuple(entry["keys"]),
                allowed=entry["decision"] == "Allow",
            )


def uses(grants: Iterable[Grant], calls: Iterable[Call]) -> dict[Grant, list[Call]]:
    """Return the allowed calls that needed each grant: those that its statement was the first to allow."""
    found: dict[Grant, list[Call]] = {grant: [] for grant in grants}
    for call in calls:
        for grant in found:
            # A mount is decided elsewhere, where statements have no names.
            same = grant.role == call.role and call.statement in (grant.statement, MOUNT)
            if call.allowed and same and fnmatch.fnmatchcase(call.action.lower(), grant.action.lower()):
                found[grant].append(call)
    return found


def refused(calls: Iterable[Call]) -> Counter[tuple[str, str]]:
    """Return how often an action was refused to a role."""
    return Counter((call.role, call.action) for call in calls if not call.allowed)


def _role(reference: str) -> str:
    """Return a node's role by its own name, another by its construct's."""
    name = reference.strip("<>").removesuffix("Role")
    return next((role for role in NODES if name in (f"Cluster{role.title()}", f"{role.title()}Nodes")), name)
