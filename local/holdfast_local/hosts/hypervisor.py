"""The hypervisor: watches the embedded AWS and keeps one host on this machine for every instance of the cluster.

`python -m holdfast_local.hosts.hypervisor --state-dir DIR --node-python PATH [--isolation MODE] [--cluster NAME]`,
with the embedded AWS's environment (`AWS_ENDPOINT_URL`, credentials, region). It runs until SIGTERM, SIGINT or its
parent's end, and publishes what it knows in `DIR/hosts.json`. However it ends, its hosts end with it.
"""

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from holdfast_local.hosts.cloud import Cloud, Instance
from holdfast_local.hosts.endpoints import Network
from holdfast_local.hosts.equipment import Equipment
from holdfast_local.hosts.errors import HostsError
from holdfast_local.hosts.fabric import Drops, Fabric
from holdfast_local.hosts.host import Host
from holdfast_local.hosts.isolation import Isolation, Mode, detect, isolation, user_namespace_argv
from holdfast_local.hosts.machines.machine import Machine
from holdfast_local.hosts.namespaces import end_with_parent
from holdfast_local.hosts.overlay import MAX_HOSTS, host_address
from holdfast_local.hosts.relay import Relays
from holdfast_local.hosts.rules import Member, SecurityGroup
from holdfast_local.hosts.services import Services
from holdfast_local.hosts.state import LOCK_FILE, StateFile
from holdfast_node.contract.errors import HoldfastError

POLL_SECONDS = 0.7
_GROUPS_EVERY_SECONDS = 2.0
_NETWORKS_EVERY_SECONDS = 5.0
_LOOPBACK = ("127.0.0.1", "localhost")
_LOCK_SECONDS = 0.5


class Hypervisor:
    """Turns instances into hosts. `run` is its whole life."""

    def __init__(
        self, *, state_dir: Path, isolation: Isolation, cloud: Cloud, node_python: Path, endpoint: str
    ) -> None:
        self._isolation, self._cloud = isolation, cloud
        self._state_dir = state_dir
        self._state = StateFile(state_dir)
        self._fabric = Fabric() if isolation.namespaces else None
        self._services = Services(self._fabric, Relays(_target(endpoint))) if self._fabric else None
        self._equipment = Equipment(
            isolation=isolation,
            cloud=cloud,
            fabric=self._fabric,
            state_dir=state_dir,
            node_python=node_python,
            endpoint=endpoint,
            log=log,
        )
        self._hosts: dict[str, Host] = {}
        self._groups: dict[str, SecurityGroup] = {}
        self._groups_at = self._networks_at = float("-inf")
        self._networks: dict[str, Network] = {}
        self._error = ""
        self._changed = threading.Event()
        self._stopping = False

    def stop(self) -> None:
        """Make `run` return soon; safe in a signal handler."""
        self._stopping = True
        self._changed.set()

    def run(self) -> None:
        """Keep the hosts those that AWS says, until `stop`; then end all of them and clean up."""
        log(f"isolation {self._isolation.mode}")
        for line in self._isolation.not_stronger:
            log(f"not stronger, {line}")
        for line in self._isolation.not_enforced:
            log(f"not enforced: {line}")
        try:
            next_poll = 0.0
            while not self._stopping:
                if time.monotonic() >= next_poll:
                    self._poll()
                    next_poll = time.monotonic() + POLL_SECONDS
                self._publish()
                self._changed.wait(max(0.0, next_poll - time.monotonic()))
                self._changed.clear()
        finally:
            self._shut_down()

    def _poll(self) -> None:
        try:
            self._follow(self._cloud.instances())
            error = ""
        except (BotoCoreError, ClientError, HoldfastError, OSError) as caught:
            error = str(caught)
        if error != self._error:
            log(f"cannot follow AWS: {error}" if error else "following AWS again")
            self._error = error

    def _follow(self, instances: list[Instance]) -> None:
        wanted = {instance.instance_id: instance for instance in instances}
        for gone in [host for name, host in self._hosts.items() if name not in wanted]:
            log(f"{gone.instance.instance_id} terminated")
            self._end(gone)
        for machine in [host for host in self._hosts.values() if isinstance(host, Machine) and host.powered_off]:
            log(f"{machine.instance.instance_id} has powered itself off")
            self._cloud.terminate(machine.instance.instance_id)
        new = [instance for name, instance in wanted.items() if name not in self._hosts]
        self._follow_networks(instances, force=bool(new))
        hosts = [self._make(instance) for instance in new]
        try:
            # The rules first: a host never runs before the switch knows it.
            self._enforce(force=bool(hosts))
            for host in hosts:
                log(f"{host.instance.instance_id} starts as a {host.instance.role} at {host.address}")
                host.start(self._equipment.setup(host), self._equipment.equip, self._changed.set)
        except BaseException:
            # The next poll tries again those that have not started.
            for host in [host for host in hosts if not host.launcher_pid]:
                self._end(host)
            raise

    def _follow_networks(self, instances: list[Instance], *, force: bool) -> None:
        """Bring the VPCs' own services up to date. With no instance left they stay for the next ones."""
        vpc_ids = {instance.vpc_id for instance in instances}
        if self._services is None or not vpc_ids:
            return
        if force or time.monotonic() >= self._networks_at + _NETWORKS_EVERY_SECONDS:
            networks = self._cloud.networks(vpc_ids)
            self._services.follow(networks)
            self._networks = {network.vpc_id: network for network in networks}
            self._networks_at = time.monotonic()

    def _make(self, instance: Instance) -> Host:
        slot = min(set(range(1, MAX_HOSTS + 1)) - {host.slot for host in self._hosts.values()}, default=0)
        if not slot:
            raise HostsError(f"this machine holds at most {MAX_HOSTS} hosts; lower the groups' sizes")
        address = instance.address if self._isolation.namespaces else host_address(slot)
        directory = self._state_dir / "hosts" / instance.instance_id
        network = self._networks.get(instance.vpc_id)
        routes = network.routes if network else ()
        kind = Machine if self._isolation.mode is Mode.BOOT else Host
        host = kind(instance=instance, slot=slot, address=address, directory=directory, routes=routes)
        self._hosts[instance.instance_id] = host
        return host

    def _enforce(self, *, force: bool) -> None:
        """Bring the switch's rules up to date; before a new host starts, and whenever AWS's groups change."""
        if self._fabric is None or self._services is None:
            return
        members = [
            Member(port=f"sw{host.slot}", address=host.address, groups=host.instance.groups)
            for host in self._hosts.values()
        ] + self._services.members
        if force or time.monotonic() >= self._groups_at + _GROUPS_EVERY_SECONDS:
            self._groups = self._cloud.security_groups({group for member in members for group in member.groups or ()})
            self._groups_at = time.monotonic()
        prefix_lists = {
            name: ranges for network in self._networks.values() for name, ranges in network.prefix_lists.items()
        }
        self._fabric.enforce(members, self._groups, prefix_lists=prefix_lists, resolvers=self._services.resolvers)

    def _end(self, host: Host) -> None:
        host.kill()
        del self._hosts[host.instance.instance_id]

    def _publish(self) -> None:
        drops = self._fabric.drops() if self._fabric else Drops(refused=0, spoofed=0)
        hosts = [host.describe() for host in self._hosts.values()]
        self._state.publish(isolation=self._isolation, hosts=hosts, drops=drops, error=self._error)

    def _shut_down(self) -> None:
        for host in list(self._hosts.values()):
            with contextlib.suppress(Exception):
                self._end(host)
        if self._services is not None and self._fabric is not None:
            self._services.close()
            self._fabric.close()
        self._state.remove()
        log("ended, with all hosts")


def _target(endpoint: str) -> tuple[str, int]:
    url = urlsplit(endpoint)
    if url.hostname not in _LOOPBACK:
        raise HostsError(f"the embedded AWS must listen on {_LOOPBACK[0]}, got {endpoint}")
    return str(url.hostname), int(url.port or 0)


def log(line: str) -> None:
    """Write a line of the hypervisor's log."""
    print(f"hypervisor: {line}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the hypervisor until a signal ends it; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m holdfast_local.hosts.hypervisor", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--cluster", help="only this cluster's instances; by default those of every cluster")
    parser.add_argument("--node-python", type=Path, required=True)
    parser.add_argument("--isolation", default="auto", help="auto, boot, process, root, userns or loopback")
    parser.add_argument("--inside", choices=("separate", "shared"), help=argparse.SUPPRESS)
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    try:
        found = isolation(Mode.USERNS, separate_users=options.inside == "separate") if options.inside else None
        found = found or detect(options.isolation)
        if found.mode is Mode.USERNS and not options.inside:
            inside = "separate" if found.separate_users else "shared"
            argv = user_namespace_argv(separate_users=found.separate_users)
            argv += [sys.executable, "-m", "holdfast_local.hosts.hypervisor", *given, "--inside", inside]
            os.execvp(argv[0], argv)  # noqa: S606 - the same program, as root of a namespace of its own
        return _serve(options, found, os.environ)
    except HoldfastError as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception as error:
        traceback.print_exc()  # for the log; who waits for the hypervisor shows the line below
        print(f"error: the hosts' process failed: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


def _serve(options: argparse.Namespace, found: Isolation, environment: Mapping[str, str]) -> int:
    endpoint = environment.get("AWS_ENDPOINT_URL", "")
    if not urlsplit(endpoint).port or urlsplit(endpoint).hostname is None:
        raise HostsError(f"AWS_ENDPOINT_URL must be the embedded AWS's URL with its port, got {endpoint!r}")
    if not os.access(options.node_python, os.X_OK):
        raise HostsError(f"--node-python must be a Python interpreter, got {options.node_python}; run make setup")
    state_dir = options.state_dir.resolve()
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / LOCK_FILE).open("w") as lock:
        if not _lock(lock):
            raise HostsError(f"a hypervisor runs already in {state_dir}; end it first, or use another --state-dir")
        hypervisor = Hypervisor(
            state_dir=state_dir,
            isolation=found,
            cloud=Cloud(options.cluster),
            node_python=options.node_python,
            endpoint=endpoint,
        )

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            hypervisor.stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, on_signal)
        end_with_parent()
        hypervisor.run()
    return 0


def _lock(file: IO[str]) -> bool:
    """Return whether the lock could be taken; who only asks whether it is held has it for an instant."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
