"""The local hosts: a hypervisor that acts as EC2 and turns each instance into a host on this machine.

`detect` says how well hosts can be kept apart here; `python -m holdfast_local.hosts.hypervisor` runs them;
`status`, `exec_in_host` and `connections` look at them; `purge` removes what a killed hypervisor left on disk.
"""

from holdfast_local.hosts.client import Connection, connections, exec_in_host, purge, status
from holdfast_local.hosts.errors import BootError, HostNotFoundError, HostsError, IsolationError
from holdfast_local.hosts.isolation import Isolation, Mode, detect

__all__ = [
    "BootError",
    "Connection",
    "HostNotFoundError",
    "HostsError",
    "Isolation",
    "IsolationError",
    "Mode",
    "connections",
    "detect",
    "exec_in_host",
    "purge",
    "status",
]
