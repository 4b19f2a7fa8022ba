"""Edits of a template, as small functions that fail if what they change is not there."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Template = dict[str, Any]
Edit = Callable[[Template], None]
Step = str | int
_HASH = re.compile(r"[0-9A-F]{8}$")
_NAMES = ("Sid", "Id", "DeviceName")


class NoSuchPlaceError(LookupError):
    """A template has no such resource or property, or has already what an edit would write."""


@dataclass(frozen=True)
class Like:
    """The value at another place of the same template."""

    name: str
    path: tuple[Step, ...]


@dataclass(frozen=True)
class Ref:
    """A reference to another resource of the same template."""

    name: str


def like(name: str, *path: Step) -> Like:
    return Like(name, path)


def logical_id(template: Template, name: str) -> str:
    """Return the logical id of the one resource whose name, without its hash, is `name`.

    Raises:
        NoSuchPlaceError: there is none, or more than one.
    """
    found: list[str] = [key for key in template["Resources"] if _HASH.sub("", key) == name]
    if len(found) != 1:
        raise NoSuchPlaceError(f"{name} must be one resource of the template, got {found}")
    return found[0]


def _step(value: Any, step: Step, path: tuple[Step, ...]) -> Step:
    """Return the key or index that a step means: in a list, a text is the name of an item."""
    if isinstance(value, list) and isinstance(step, str):
        named = [n for n, item in enumerate(value) if isinstance(item, dict) and step in map(item.get, _NAMES)]
        if len(named) == 1:
            return named[0]
    elif step in (value if isinstance(value, dict) else range(len(value))):
        return step
    raise NoSuchPlaceError(f"{step!r} of {'.'.join(map(str, path))} is not there")


def _at(template: Template, name: str, path: tuple[Step, ...]) -> Any:
    value = template["Resources"][logical_id(template, name)]["Properties"]
    for step in path:
        value = value[_step(value, step, path)]
    return value


def _resolved(template: Template, value: Any) -> Any:
    match value:
        case Like(name, path):
            return json.loads(json.dumps(_at(template, name, path)))
        case Ref(name):
            return {"Ref": logical_id(template, name)}
        case dict():
            return {key: _resolved(template, item) for key, item in value.items()}
        case list():
            return [_resolved(template, item) for item in value]
        case _:
            return value


def put(name: str, *path: Step, to: Any) -> Edit:
    """Replace a property that is there."""

    def edit(template: Template) -> None:
        parent, value = _at(template, name, path[:-1]), _resolved(template, to)
        key = _step(parent, path[-1], path)
        if parent[key] == value:
            raise NoSuchPlaceError(f"{'.'.join(map(str, path))} of {name} is already {value!r}")
        parent[key] = value

    return edit


def give(name: str, *path: Step, to: Any) -> Edit:
    """Add a property that is not there."""

    def edit(template: Template) -> None:
        parent = _at(template, name, path[:-1])
        if path[-1] in parent:
            raise NoSuchPlaceError(f"{'.'.join(map(str, path))} of {name} is already there: {parent[path[-1]]!r}")
        parent[path[-1]] = _resolved(template, to)

    return edit


def drop(name: str, *path: Step) -> Edit:
    """Take a property away, an item of a list, or without a path the resource."""

    def edit(template: Template) -> None:
        if not path:
            gone = logical_id(template, name)
            del template["Resources"][gone]
            for resource in template["Resources"].values():
                waits = resource.get("DependsOn", [])
                if gone in waits:
                    resource["DependsOn"] = [other for other in waits if other != gone]
            return
        parent = _at(template, name, path[:-1])
        del parent[_step(parent, path[-1], path)]

    return edit


def add(name: str, *path: Step, item: Any) -> Edit:
    """Append an item to a list that is there."""

    def edit(template: Template) -> None:
        _at(template, name, path).append(_resolved(template, item))

    return edit


def allow(name: str, document: str, **statement: Any) -> Edit:
    """Append an allowing statement to a policy; `NotAction=` and the like are its members."""
    return add(name, document, "Statement", item={"Sid": "Mutant", "Effect": "Allow", **statement})


def replace(name: str, *path: Step, old: str, new: str) -> Edit:
    """Replace a text wherever it is in a property."""

    def edit(template: Template) -> None:
        parent = _at(template, name, path[:-1])
        key = _step(parent, path[-1], path)
        text = json.dumps(parent[key])
        if old not in text:
            raise NoSuchPlaceError(f"{old!r} is not in {'.'.join(map(str, path))} of {name}")
        parent[key] = json.loads(text.replace(old, new))

    return edit


def new(kind: str, **properties: Any) -> Edit:
    """Add a resource."""

    def edit(template: Template) -> None:
        template["Resources"]["Mutant"] = {"Type": kind, "Properties": _resolved(template, properties)}

    return edit


def on_deletion(name: str, *, now: str, then: str) -> Edit:
    """Change what a stack's deletion does to a resource, from `now`."""

    def edit(template: Template) -> None:
        resource = template["Resources"][logical_id(template, name)]
        if resource.get("DeletionPolicy") != now:
            raise NoSuchPlaceError(f"DeletionPolicy of {name} must be {now}, got {resource.get('DeletionPolicy')}")
        resource["DeletionPolicy"] = then

    return edit


@dataclass(frozen=True)
class Mutant:
    """A template with one security property changed.

    `part` is the stack, `what` says the change in words, `of` is the deployment (see `deployments.py`).
    """

    name: str
    part: str
    what: str
    edit: Edit
    of: str = "dev"
