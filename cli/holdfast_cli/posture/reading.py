"""Reading from AWS for the checks: listed calls only, each once, and failures that name the missing permission."""

import json
from typing import TYPE_CHECKING, Any

from holdfast_cli.aws_errors import code_of, denied, explain
from holdfast_cli.errors import CliError
from holdfast_cli.posture.calls import CALLS

if TYPE_CHECKING:
    from holdfast_cli.aws import Cluster


class Unreadable(CliError):  # noqa: N818
    """A check cannot read what it needs; the message says which action or value, and what AWS said."""


class Reader:
    """Makes the calls of `CALLS` and remembers their answers for the other checks of this run."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self._answers: dict[str, Any] = {}

    def get(self, action: str, *, absent: tuple[str, ...] = (), **arguments: Any) -> dict[str, Any] | None:
        """Return the answer to one call, or None where AWS answers with one of the error codes `absent`.

        Raises:
            Unreadable: AWS refused, or could not be reached.
        """
        found = self._remembered(action, arguments, absent, fresh=False)
        return None if found is None else dict(found)

    def every(self, action: str, *, fresh: bool = False, **arguments: Any) -> list[Any]:
        """Return the items of a list, from all of its pages; `fresh` asks again.

        Raises:
            Unreadable: AWS refused, or could not be reached.
        """
        return list(self._remembered(action, arguments, (), fresh=fresh))

    def _remembered(self, action: str, arguments: dict[str, Any], absent: tuple[str, ...], *, fresh: bool) -> Any:
        key = json.dumps([action, arguments], sort_keys=True)
        if fresh or key not in self._answers:
            self._answers[key] = self._ask(action, arguments, absent)
        return self._answers[key]

    def _ask(self, action: str, arguments: dict[str, Any], absent: tuple[str, ...]) -> Any:
        call = CALLS[action]
        try:
            client = self._cluster.client(call.service)
            if not call.items:
                return getattr(client, call.method)(**arguments)
            if client.can_paginate(call.method):
                pages = client.get_paginator(call.method).paginate(**arguments)
                return [item for page in pages for item in page.get(call.items, ())]
            return getattr(client, call.method)(**arguments).get(call.items, [])
        except Exception as error:
            if code_of(error) in absent:
                return None
            known = explain(error)
            if known is None:
                raise
            missing = f"the permission {action} is missing" if denied(error) else f"{action}: {known}"
            raise Unreadable(missing) from None
