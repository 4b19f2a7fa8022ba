"""What ministack lacks and Holdfast's stacks need, added through ministack's own registries.

No file of ministack is changed. Each module handles one subject, names every private name that it relies on through
`seams.seam`, and has an `install` function; importing a module changes nothing.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from holdfast_local.emulator.extension import (
    actions,
    addresses,
    buckets,
    callbacks,
    conditions,
    dns_firewall,
    endpoint_policies,
    endpoints,
    instances,
    log_streams,
    network,
    object_keys,
    own_names,
    parameters,
    properties,
    recorder,
    root,
    tasks,
)
from holdfast_local.emulator.extension.seams import require_version, seam

Application = Callable[[Any, Any, Any], Awaitable[None]]

#: In this order, because some wrap what an earlier one put in place.
_SUBJECTS = (
    recorder,
    root,
    own_names,
    actions,
    conditions,
    log_streams,
    object_keys,
    endpoint_policies,
    network,
    addresses,
    endpoints,
    dns_firewall,
    buckets,
    parameters,
    properties,
    instances,
    tasks,
    callbacks,
)


def install() -> Application:
    """Install every extension and return the ASGI application to serve.

    Raises:
        SeamError: another version of ministack, or one without a name that an extension relies on.
    """
    require_version()
    for subject in _SUBJECTS:
        subject.install()
    application: Application = root.guard(
        endpoint_policies.observe(object_keys.observe(seam("ministack.app", "app").app))
    )
    return application
