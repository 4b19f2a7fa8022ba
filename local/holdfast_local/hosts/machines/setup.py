"""What the hypervisor tells a machine's launcher."""

from dataclasses import dataclass

from holdfast_node.contract.documents import Document


@dataclass(frozen=True, kw_only=True)
class MachineSetup(Document):
    """The constants of one booted machine.

    `layers` are the read-only directories of its disk, top first; `directory` holds what the machine writes.
    `resolver` is its VPC's DNS server, `shared_disk` what a mount of the shared file system shows, `mount_socket` where
    its mounts are asked for.
    """

    instance_id: str
    hostname: str
    directory: str
    layers: tuple[str, ...]
    resolver: str
    shared_disk: str
    mount_socket: str
    cgroup: str
    python: str
    ca_file: str

    @property
    def namespaces(self) -> bool:
        """Whether the host has a file system tree of its own."""
        return True
