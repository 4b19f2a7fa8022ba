"""What a host is given from outside: an address on the switch, a metadata service, a resolver that knows AWS."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from holdfast_local.hosts.cloud import Cloud
from holdfast_local.hosts.endpoints import resolver_address
from holdfast_local.hosts.fabric import METADATA_ADDRESS, Fabric, mac_address
from holdfast_local.hosts.host import Host, Setup
from holdfast_local.hosts.isolation import Isolation
from holdfast_local.hosts.machines.bake import layers
from holdfast_local.hosts.machines.machine import Machine
from holdfast_local.hosts.machines.mounts import MountTarget
from holdfast_local.hosts.machines.setup import MachineSetup
from holdfast_local.hosts.metadata import Leaf, Metadata, MetadataServer, leaves
from holdfast_local.hosts.namespaces import listen, run_in
from holdfast_local.hosts.overlay import overlay_library
from holdfast_local.hosts.setup import SEPARATE, SHARED, HostSetup

METADATA_PORT = 80


class Equipment:
    """Equips hosts. What a host gets is let go of when its `resources` are closed."""

    def __init__(
        self,
        *,
        isolation: Isolation,
        cloud: Cloud,
        fabric: Fabric | None,
        state_dir: Path,
        node_python: Path,
        endpoint: str,
        log: Callable[[str], None],
    ) -> None:
        self._isolation, self._cloud, self._fabric, self._log = isolation, cloud, fabric, log
        self._state_dir, self._endpoint = state_dir, endpoint
        # Not resolved: the interpreter finds its virtual environment by the name it is called by.
        self._node_python = Path(os.path.abspath(node_python))  # noqa: PTH100
        self._account = ""
        self._shared_disk = state_dir / "efs"
        self._shared_disk.mkdir(parents=True, exist_ok=True)

    def setup(self, host: Host) -> Setup:
        """Return a host's constants; on shared loopback, equip it before its first process starts."""
        if isinstance(host, Machine):
            return self._machine_setup(host)
        setup = HostSetup(
            instance_id=host.instance.instance_id,
            hostname=f"ip-{host.instance.address.replace('.', '-')}",
            mode=self._isolation.mode.value,
            users=SEPARATE if self._isolation.separate_users else SHARED,
            disk=str(host.disk),
            shared_disk=str(self._shared_disk),
            python=str(self._node_python),
            endpoint_url=self._endpoint if self._fabric is None else None,
            resolver=None if self._fabric is None else resolver_address(host.instance.network),
            region=self._cloud.region,
            ca_file=os.environ.get("AWS_CA_BUNDLE"),
        )
        if self._fabric is not None:
            return setup
        listener = listen(host.address, 0)
        self._serve_metadata(host, listener)
        library = overlay_library(host.slot, self._state_dir / "overlay")
        url = f"http://{host.address}:{listener.getsockname()[1]}"
        return replace(setup, metadata_url=url, preload=str(library))

    def equip(self, host: Host) -> Setup:
        """Give a host in namespaces its network and its metadata service; return its constants."""
        assert self._fabric is not None
        fabric, pid, instance = self._fabric, host.launcher_pid, host.instance
        port = fabric.plug(slot=host.slot, pid=pid, address=host.address, network=instance.network, routes=host.routes)
        host.resources.callback(fabric.unplug, port)
        self._serve_metadata(host, run_in(pid, lambda: listen(METADATA_ADDRESS, METADATA_PORT)))
        if isinstance(host, Machine):
            self._serve_mounts(host)
        return self.setup(host)

    def _machine_setup(self, host: Machine) -> MachineSetup:
        return MachineSetup(
            instance_id=host.instance.instance_id,
            hostname=f"ip-{host.instance.address.replace('.', '-')}",
            directory=str(host.directory),
            layers=tuple(str(layer) for layer in layers()),
            resolver=resolver_address(host.instance.network),
            shared_disk=str(self._shared_disk),
            mount_socket=str(host.mount_socket),
            cgroup=host.cgroup,
            python=str(self._node_python),
            ca_file=os.environ["AWS_CA_BUNDLE"],
        )

    def _serve_mounts(self, host: Machine) -> None:
        profile = self._cloud.profile(host.instance)
        target = MountTarget(
            host.mount_socket,
            systems=self._cloud.file_systems(),
            role=profile["Roles"][0]["Arn"] if profile else "",
            disk=self._shared_disk,
            log=lambda text: self._log(f"{host.instance.instance_id} {text}"),
        )
        host.resources.callback(target.close)

    def _serve_metadata(self, host: Host, listener: socket.socket) -> None:
        instance = host.instance
        profile = self._cloud.profile(instance)
        if not self._account:
            self._account = self._cloud.account()
        known: dict[str, Leaf] = dict(
            leaves(
                instance=instance.description,
                address=host.address,
                region=self._cloud.region,
                account=self._account,
                profile=profile,
                mac=mac_address(host.slot) if self._fabric is not None else None,
            )
        )
        if user_data := self._cloud.user_data(instance.instance_id):
            known["user-data"] = user_data
        for role in profile["Roles"] if profile else ():
            credentials = self._cloud.credentials(role["Arn"], instance.instance_id)
            known[f"meta-data/iam/security-credentials/{role['RoleName']}"] = credentials.document

        def on_error(text: str) -> None:
            self._log(f"{instance.instance_id} metadata {text}")

        server = MetadataServer(listener, Metadata(leaves=known, on_error=on_error))
        host.resources.callback(server.close)
