"""The mutants: templates with one security property changed each, by name."""

import json
from collections.abc import Mapping
from typing import Any

from tests.mutants import compute, identity, network, storage
from tests.mutants.edits import Mutant

MUTANTS: tuple[Mutant, ...] = (*network.MUTANTS, *compute.MUTANTS, *storage.MUTANTS, *identity.MUTANTS)


def mutated(mutant: Mutant, templates: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mutant's template; `templates` are those of its deployment, by part, and stay as they are.

    Raises:
        NoSuchPlaceError: what it changes is not there.
    """
    copy: dict[str, Any] = json.loads(json.dumps(templates[mutant.part]))
    mutant.edit(copy)
    return copy
