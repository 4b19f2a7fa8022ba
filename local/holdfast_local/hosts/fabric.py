"""The switch between the hosts: a network namespace that forwards packets by the instances' security groups."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from holdfast_local.hosts.errors import HostsError
from holdfast_local.hosts.namespaces import NetworkNamespace, run_in, write_setting
from holdfast_local.hosts.rules import REFUSED, SPOOFED, TABLE, Member, SecurityGroup, ruleset

METADATA_ADDRESS = "169.254.169.254"
#: A host's own interface; Amazon Linux's primary interface is ens5 or eth0 by instance type.
HOST_INTERFACE = "eth0"
#: The switch's port to the VPCs' own services.
SERVICES_PORT = "services"
_SERVICES_MAC = "02:00:00:01:00:00"
_SECONDS = 15

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Drops:
    """Packets that the fabric has dropped since it started: refused by security groups, and with a false source."""

    refused: int
    spoofed: int


class Fabric:
    """A switch that routes between its members and lets through only what their security groups allow."""

    def __init__(self) -> None:
        self._namespace = NetworkNamespace()
        self._loaded = ""
        self._namespace.run(self._prepare)

    def plug(self, *, slot: int, pid: int, address: str, network: str, routes: Sequence[str] = ()) -> str:
        """Give the process `pid`'s network namespace the address on the switch and return its port's name.

        The host gets `address` as a /32, a route to `network` (the VPC's range), those to `routes` (what gateway
        endpoints serve) and none elsewhere, all of 127.0.0.0/8, and the metadata service's address on its loopback
        interface.
        """
        port = f"sw{slot}"
        self._namespace.run(lambda: self._add_port(port, pid, mac_address(slot)))
        self._namespace.run(lambda: _batch(_leading(address, port, mac_address(slot))))
        run_in(pid, lambda: _configure_host(address, (network, *routes)))
        return port

    def plug_services(self, pid: int) -> None:
        """Put the process `pid`'s network namespace on the switch as `SERVICES_PORT`, without an address yet."""
        self._namespace.run(lambda: self._add_port(SERVICES_PORT, pid, _SERVICES_MAC))
        run_in(pid, _configure_services)

    def give(self, pid: int, addresses: Sequence[str]) -> None:
        """Give the services' namespace more addresses."""
        run_in(pid, lambda: _batch([f"address add {address}/32 dev {HOST_INTERFACE}" for address in addresses]))
        self._namespace.run(
            lambda: _batch([line for each in addresses for line in _leading(each, SERVICES_PORT, _SERVICES_MAC)])
        )

    def take(self, pid: int, addresses: Sequence[str]) -> None:
        """Take addresses from the services' namespace."""
        self._namespace.run(lambda: _batch([f"route delete {address}/32 dev {SERVICES_PORT}" for address in addresses]))
        run_in(pid, lambda: _batch([f"address delete {address}/32 dev {HOST_INTERFACE}" for address in addresses]))

    def unplug(self, port: str) -> None:
        """Remove a port; does nothing if the kernel has removed it with its host."""
        self._namespace.run(
            lambda: subprocess.run(["ip", "link", "delete", port], capture_output=True, timeout=_SECONDS, check=False)
        )

    def enforce(
        self,
        members: Sequence[Member],
        groups: Mapping[str, SecurityGroup],
        *,
        prefix_lists: Mapping[str, Sequence[str]] = MappingProxyType({}),
        resolvers: Sequence[Member] = (),
    ) -> bool:
        """Make the rules those of these members and groups; return whether they changed."""
        rules = ruleset(members, groups, prefix_lists=prefix_lists, resolvers=resolvers)
        if rules == self._loaded:
            return False
        self._namespace.run(lambda: _run(["nft", "-f", "-"], rules))
        self._loaded = rules
        return True

    def drops(self) -> Drops:
        """Return the drop counters."""
        listed = self._namespace.run(lambda: _run(["nft", "--json", "list", "counters", "table", *TABLE.split()]))
        packets = {
            entry["counter"]["name"]: int(entry["counter"]["packets"])
            for entry in json.loads(listed)["nftables"]
            if "counter" in entry
        }
        return Drops(refused=packets.get(REFUSED, 0), spoofed=packets.get(SPOOFED, 0))

    def run(self, function: Callable[[], T]) -> T:
        """Return what `function` returns when it is called inside the switch, where every packet passes."""
        return self._namespace.run(function)

    def close(self) -> None:
        """Let go of the switch; its namespace and interfaces vanish."""
        self._namespace.close()

    def _prepare(self) -> None:
        # The rules come before forwarding: the switch is never open.
        _run(["nft", "-f", "-"], ruleset((), {}))
        write_setting("ipv6/conf/all/disable_ipv6", "1")
        write_setting("ipv4/ip_forward", "1")

    def _add_port(self, port: str, pid: int, host_mac: str) -> None:
        _ip(f"link add {port} type veth peer name {HOST_INTERFACE} address {host_mac} netns {pid}")
        _ip(f"link set {port} up")
        # The switch answers for every other member, at once: the default delays proxied answers by up to 0.8 s.
        write_setting(f"ipv4/conf/{port}/proxy_arp", "1")
        write_setting(f"ipv4/neigh/{port}/proxy_delay", "0")


def _leading(address: str, port: str, host_mac: str) -> list[str]:
    return [
        f"route add {address}/32 dev {port}",
        f"neighbour replace {address} lladdr {host_mac} dev {port} nud permanent",
    ]


def _configure_host(address: str, networks: Sequence[str]) -> None:
    write_setting("ipv6/conf/all/disable_ipv6", "1")
    _batch(
        [
            "link set lo up",
            f"address add {METADATA_ADDRESS}/32 dev lo",
            f"address add {address}/32 dev {HOST_INTERFACE}",
            f"link set {HOST_INTERFACE} up",
            *(f"route add {network} dev {HOST_INTERFACE} src {address}" for network in networks),
        ]
    )


def _configure_services() -> None:
    write_setting("ipv6/conf/all/disable_ipv6", "1")
    # It answers members of every VPC here; what may leave it is the switch's to say.
    _batch(["link set lo up", f"link set {HOST_INTERFACE} up", f"route add default dev {HOST_INTERFACE}"])


def mac_address(slot: int) -> str:
    """Return a locally administered MAC address (IEEE 802, second bit of the first octet) for a slot."""
    return f"02:00:00:00:{slot >> 8:02x}:{slot & 255:02x}"


def _ip(arguments: str) -> None:
    _run(["ip", *arguments.split()])


def _batch(lines: Sequence[str]) -> None:
    _run(["ip", "-batch", "-"], "".join(f"{line}\n" for line in lines))


def _run(argv: list[str], text: str | None = None) -> str:
    try:
        result = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise HostsError(f"`{' '.join(argv)}` did not end within {_SECONDS} s") from None
    if result.returncode:
        raise HostsError(f"`{' '.join(argv)}` failed: {result.stderr.strip()}")
    return result.stdout
