"""Has the node's firewall admit the peers of a job: the agent asks, root does it (`firewall --admit-peers`)."""

import time
from typing import Protocol

from holdfast_node.contract.documents import Rendezvous
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.tunnel import write_private

SERVICE = "peers"
ADMISSION_SECONDS = 20.0


class Services(Protocol):
    """What starts services and hears how they ended."""

    def start(self, service: str) -> None:
        """Have the service started."""

    def exit_status(self, service: str) -> int | None:
        """Return how it ended since it was last asked for, or None."""


def admit_peers(services: Services, paths: NodePaths, rendezvous: Rendezvous) -> None:
    """Return once the firewall leads the job's peers, and nobody else, to the tunnel.

    Raises:
        HoldfastError: it does not; the node must not go on.
    """
    write_private(paths.peers, rendezvous.to_json().decode())
    services.start(SERVICE)
    deadline = time.monotonic() + ADMISSION_SECONDS
    while (status := services.exit_status(SERVICE)) is None:
        if time.monotonic() > deadline:
            raise HoldfastError(f"the firewall did not admit the job's peers within {ADMISSION_SECONDS:g} s")
        time.sleep(0.05)
    if status:
        raise HoldfastError(
            f"the firewall did not admit the job's peers: the {SERVICE} service ended with status {status}; "
            f"root finds the reason in {paths.log(SERVICE)}"
        )
