"""Registers resource types that ministack's CloudFormation refuses; an update replaces the resource."""

from collections.abc import Callable
from typing import Any

from holdfast_local.emulator.extension.seams import seam

#: From logical id, properties and stack name to physical id and attributes.
Create = Callable[[str, dict[str, Any], str], tuple[str, dict[str, str]]]
Delete = Callable[[str, dict[str, Any]], None]


def register(kind: str, create: Create, delete: Delete) -> None:
    """Let stacks hold resources of type `kind`.

    Raises:
        RuntimeError: ministack has the type already, so that ours would hide a better one.
    """
    handlers = seam("ministack.services.cloudformation.provisioners", "_RESOURCE_HANDLERS")._RESOURCE_HANDLERS
    if kind in handlers:
        raise RuntimeError(f"ministack handles {kind} itself; remove the extension's handler")

    def update(
        physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str, logical_id: str | None = None
    ) -> tuple[str, dict[str, str]]:
        delete(physical_id, old)
        return create(logical_id or physical_id, new, stack)

    handlers[kind] = {"create": create, "delete": delete, "update": update, "update_with_logical_id": True}
