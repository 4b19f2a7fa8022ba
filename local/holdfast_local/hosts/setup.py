"""What the hypervisor tells a host's first process, and how the host's directories are made."""

import os
from dataclasses import dataclass
from pathlib import Path

from holdfast_local.hosts.isolation import Mode
from holdfast_node.contract.documents import Document
from holdfast_node.contract.layout import UIDS, NodePaths, User

#: Where things are inside a host that has a mount namespace, relative to its root.
VENV = "opt/holdfast/venv"
HOST_CODE = "opt/holdfast/host"
BUNDLE = "opt/holdfast/bundle"
CA_BUNDLE = "etc/holdfast/ca-bundle.pem"
SETUP_FILE = "run/holdfast-setup.json"
SEPARATE, SHARED = "separate", "shared"


@dataclass(frozen=True, kw_only=True)
class HostSetup(Document):
    """The constants of one host. It holds no secret: the host could read all of it anyway.

    `disk` and `shared_disk` are directories of the machine: the instance's own volume and the file system that
    all hosts mount. `users` is `separate` or `shared`. `metadata_url` is set where the metadata service is not at
    its usual address; `endpoint_url` where AWS is not at its services' own names; `resolver` is the address of who
    knows these; `preload` is the library that maps the overlay where hosts share a loopback interface.
    """

    instance_id: str
    hostname: str
    mode: str
    users: str
    disk: str
    shared_disk: str
    python: str
    endpoint_url: str | None
    region: str
    ca_file: str | None
    metadata_url: str | None = None
    resolver: str | None = None
    preload: str | None = None

    @property
    def namespaces(self) -> bool:
        """Whether the host has a file system tree of its own."""
        return self.mode != Mode.LOOPBACK

    @property
    def paths(self) -> NodePaths:
        """The node's directories as the host's own processes see them."""
        return NodePaths(Path("/") if self.namespaces else Path(self.disk))

    @property
    def uids(self) -> dict[User, int] | None:
        """The ids of the node's users, or None if they share one."""
        return UIDS if self.users == SEPARATE else None

    def aws_environment(self) -> dict[str, str]:
        """Return what a process of the host needs to reach AWS with the host's own identity."""
        environment = {"AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region}
        if self.endpoint_url is not None:
            environment["AWS_ENDPOINT_URL"] = self.endpoint_url
        if self.ca_file is not None:
            environment["AWS_CA_BUNDLE"] = str(self.paths.root / CA_BUNDLE)
        if self.metadata_url is not None:
            environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = self.metadata_url
        return environment


def make_directories(paths: NodePaths, uids: dict[User, int] | None) -> None:
    """Make the node's directories with the owners and modes that `NodePaths` documents.

    With `uids` None everything belongs to the caller; the modes are the same.
    """
    root, agent, tunnel, trainer = None, User.AGENT, User.TUNNEL, User.TRAINER
    table: tuple[tuple[Path, User | None, User | None, int], ...] = (
        (paths.config.parent, root, root, 0o755),
        (paths.root / BUNDLE, root, root, 0o755),
        (paths.state.parent, root, root, 0o755),
        (paths.state, agent, agent, 0o700),
        (paths.tls, agent, tunnel, 0o2750),
        (paths.job, agent, trainer, 0o2750),
        (paths.work, trainer, agent, 0o2750),
        (paths.logs, root, root, 0o755),
        (paths.run, root, root, 0o755),
        (paths.start_request("any").parent, agent, agent, 0o755),
        (paths.reload_request("any").parent, agent, agent, 0o755),
        (paths.alive("any").parent, agent, agent, 0o755),
        (paths.exit_record("any").parent, root, root, 0o755),
        (paths.checkpoints, trainer, trainer, 0o700),
    )
    for directory, owner, group, mode in table:
        directory.mkdir(parents=True, exist_ok=True)
        if uids is not None:
            os.chown(directory, uids[owner] if owner else 0, uids[group] if group else 0)
        directory.chmod(mode)  # after chown, which clears setgid
