"""The lab's network: the local hosts' own switch, with lab hosts on it and security groups between them."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from holdfast_local.hosts.fabric import Drops, Fabric
from holdfast_local.hosts.rules import Member, Permission, SecurityGroup
from holdfast_local.lab.capture import Capture, packet_socket
from holdfast_local.lab.errors import LabError
from holdfast_local.lab.hosts import ROOT, Host, require
from holdfast_node.contract.roles import DEFAULT_PORTS, DIALS, Role

NETWORK = "10.77.0.0/16"
#: A group that allows everything, both ways: the network that MXNet assumes.
OPEN_GROUP = "sg-open"
_DIVERSION = "ip lab_diversion"


def role_group(role: Role) -> str:
    """Return the id of a role's security group."""
    return f"sg-{role}"


def _rule(port: int | None, groups: Iterable[str] = (), ranges: tuple[str, ...] = ()) -> Permission:
    ports = None if port is None else (port, port)
    return Permission(protocol="tcp" if port else "-1", ports=ports, groups=frozenset(groups), ranges=ranges)


def role_groups(ports: dict[Role, int] = DEFAULT_PORTS) -> dict[str, SecurityGroup]:
    """Return the kit's three groups: the six pair rules of `DIALS`, on pinned ports, and nothing else."""
    return {
        role_group(role): SecurityGroup(
            group_id=role_group(role),
            ingress=tuple(_rule(ports[role], [role_group(peer)]) for peer in Role if role in DIALS[peer]),
            egress=tuple(_rule(ports[peer], [role_group(peer)]) for peer in DIALS[role]),
        )
        for role in Role
    }


class Network:
    """A switch and its hosts; a context manager. Nothing is left of it when it ends or when its process does."""

    def __init__(self) -> None:
        """Make the switch, and a directory that hosts can read.

        Raises:
            LabError: this machine cannot hold a lab.
        """
        require()
        self._resources = contextlib.ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="holdfast-lab-"))
        self.directory.chmod(0o755)
        self._resources.callback(_remover(self.directory).communicate)
        self._fabric = Fabric()
        self._resources.callback(self._fabric.close)
        everything = (_rule(None, ranges=("0.0.0.0/0",)),)
        opened = SecurityGroup(group_id=OPEN_GROUP, ingress=everything, egress=everything)
        #: The security groups by id; call `enforce` after a change.
        self.groups: dict[str, SecurityGroup] = {OPEN_GROUP: opened} | role_groups()
        self.hosts: dict[str, Host] = {}
        self._members: dict[str, Member] = {}

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every host with all that runs there, the switch, and the directory."""
        self._resources.close()

    def host(self, name: str, address: str, groups: Iterable[str] = ()) -> Host:
        """Add a host with this address of `NETWORK`; without groups it reaches nobody and nobody reaches it."""
        if name in self.hosts:
            raise LabError(f"a host's name must be new, got {name}, which is there already")
        host = Host(name=name, address=address, directory=self.directory / name, visible=[ROOT])
        self._resources.callback(host.close)
        slot = len(self.hosts) + 1
        port = self._fabric.plug(slot=slot, pid=host.thread_id, address=address, network=NETWORK)
        self.hosts[name] = host
        self._members[name] = Member(port=port, address=address, groups=tuple(groups))
        self.enforce()
        return host

    def regroup(self, name: str, groups: Iterable[str]) -> None:
        """Give a host other security groups."""
        member = self._members[name]
        self._members[name] = Member(port=member.port, address=member.address, groups=tuple(groups))
        self.enforce()

    def enforce(self) -> None:
        """Make the switch's rules those of the hosts and `groups`."""
        self._fabric.enforce(list(self._members.values()), self.groups)

    def drops(self) -> Drops:
        """Return how many packets the switch has dropped."""
        return self._fabric.drops()

    def capture(self, name: str = "capture") -> Capture:
        """Return a capture of everything that passes the switch from now on."""
        return Capture(self._fabric.run(packet_socket), self.directory / f"{name}.pcap")

    def divert(self, *, port: int, to: Host) -> None:
        """Be a hostile network: hand every new connection to `port`, whomever it is for, to the host `to`.

        `to` and everybody must be let through the security groups (`OPEN_GROUP`). What `to` dials is not diverted.
        """
        member = self._members[to.name]
        rule = f'iifname != "{member.port}" tcp dport {port} dnat to {to.address}'
        chain = f"chain prerouting {{ type nat hook prerouting priority dstnat; {rule}; }}"
        self._nft(f"table {_DIVERSION}\ndelete table {_DIVERSION}\ntable {_DIVERSION} {{\n{chain}\n}}\n")

    def restore(self) -> None:
        """End the diversion."""
        self._nft(f"table {_DIVERSION}\ndelete table {_DIVERSION}\n")

    def _nft(self, commands: str) -> None:
        argv = ["nft", "-f", "-"]
        done = self._fabric.run(
            lambda: subprocess.run(argv, input=commands, text=True, capture_output=True, timeout=15, check=False)
        )
        if done.returncode:
            raise LabError(f"nft refused the lab's rules: {done.stderr.strip()}")


def _remover(directory: Path) -> "subprocess.Popen[bytes]":
    """Return a process that removes the directory once its standard input ends: with us, however we end."""
    argv = [shutil.which("sh") or "/bin/sh", "-c", 'read _; rm -rf -- "$1"', "sh", str(directory)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True, cwd="/")
