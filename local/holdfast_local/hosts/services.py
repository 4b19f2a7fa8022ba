"""What answers inside a VPC beside its hosts: endpoints, mount targets, DNS resolvers, as members of the switch.

They share one network namespace with one interface; the switch's rules tell them apart by their addresses. Behind an
endpoint's address a relay leads to the embedded AWS, from the source address that tells it which endpoint it was.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from holdfast_local.emulator.sources import source_of
from holdfast_local.hosts.endpoints import DNS, NFS, Endpoint, Network
from holdfast_local.hosts.fabric import SERVICES_PORT, Fabric
from holdfast_local.hosts.namespaces import NetworkNamespace, bind_datagrams, listen
from holdfast_local.hosts.nfs import CALL_BYTES, null_reply
from holdfast_local.hosts.relay import Relays
from holdfast_local.hosts.resolver import MAX_MESSAGE_BYTES, Zone, answer
from holdfast_local.hosts.rules import Member


@dataclass
class _Service:
    """What stands at one address."""

    member: Member
    closers: list[Callable[[], None]] = field(default_factory=list)


class Services:
    """The services of the VPCs that hosts live in. `follow` makes them those of AWS's description."""

    def __init__(self, fabric: Fabric, relays: Relays) -> None:
        self._fabric, self._relays = fabric, relays
        self._namespace: NetworkNamespace | None = None
        self._endpoints: dict[tuple[Endpoint, str], _Service] = {}
        self._resolvers: dict[str, _Service] = {}
        self._zones: dict[str, Zone] = {}

    @property
    def members(self) -> list[Member]:
        """The endpoints and mount targets on the switch."""
        return [service.member for service in self._endpoints.values()]

    @property
    def resolvers(self) -> list[Member]:
        """The DNS resolvers on the switch."""
        return [service.member for service in self._resolvers.values()]

    def follow(self, networks: Sequence[Network]) -> None:
        """Add what these VPCs have and the switch lacks, and remove what they no longer have."""
        if self._namespace is None:
            self._namespace = NetworkNamespace()
            self._fabric.plug_services(self._namespace.thread_id)
        wanted = [
            (endpoint, address)
            for network in networks
            for endpoint in network.endpoints
            for address in endpoint.addresses
        ]
        resolvers = [network.resolver for network in networks]
        gone = [self._endpoints.pop(key) for key in set(self._endpoints) - set(wanted)]
        gone += [self._resolvers.pop(address) for address in set(self._resolvers) - set(resolvers)]
        self._remove(gone)
        # What they answer follows at once, whether they are new or not.
        self._zones |= {network.resolver: zone(network) for network in networks}
        new = [key for key in wanted if key not in self._endpoints]
        asked = [address for address in resolvers if address not in self._resolvers]
        if new or asked:
            self._fabric.give(self._namespace.thread_id, [*(address for _, address in new), *asked])
        for endpoint, address in new:
            self._endpoints[endpoint, address] = self._serve(endpoint, address)
        for address in asked:
            self._resolvers[address] = self._resolve(address)

    def close(self) -> None:
        """End all of them, and every connection through them."""
        for service in (*self._endpoints.values(), *self._resolvers.values()):
            for closer in service.closers:
                closer()
        self._relays.close()
        if self._namespace is not None:
            self._namespace.close()

    def _remove(self, services: list[_Service]) -> None:
        for service in services:
            for closer in service.closers:
                closer()
        if services and self._namespace is not None:
            self._fabric.take(self._namespace.thread_id, [service.member.address for service in services])

    def _serve(self, endpoint: Endpoint, address: str) -> _Service:
        assert self._namespace is not None
        service = _Service(Member(port=SERVICES_PORT, address=address, groups=endpoint.groups))
        listener = self._namespace.run(lambda: listen(address, endpoint.port))
        if endpoint.port == NFS:
            server = self._relays.serve(listener, _file_system)
        else:
            server = self._relays.add(listener, source=source_of(endpoint.endpoint_id))
        service.closers.append(lambda: self._relays.remove(server))
        return service

    def _resolve(self, address: str) -> _Service:
        assert self._namespace is not None
        service = _Service(Member(port=SERVICES_PORT, address=address, groups=()))
        datagrams = self._namespace.run(lambda: bind_datagrams(address, DNS))
        transport = self._relays.receive(datagrams, lambda query: answer(query, self._zones[address]))
        service.closers.append(lambda: self._relays.abort(transport))

        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # RFC 1035, section 4.2.2: over TCP a message follows its length.
            length = int.from_bytes(await reader.readexactly(2))
            said = answer(await reader.readexactly(min(length, MAX_MESSAGE_BYTES)), self._zones[address])
            writer.write(len(said).to_bytes(2) + said)
            await writer.drain()

        server = self._relays.serve(self._namespace.run(lambda: listen(address, DNS)), stream)
        service.closers.append(lambda: self._relays.remove(server))
        return service


def zone(network: Network) -> Zone:
    """Return what a VPC's resolver knows: the names of its endpoints and file systems, and its DNS firewall."""
    names: dict[str, list[str]] = {}
    for endpoint in network.endpoints:
        for name in endpoint.names:
            names.setdefault(name, []).extend(endpoint.addresses)
    return Zone(names=names, firewall=network.firewall)


async def _file_system(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the calls by which a host learns whether the file system is there; its files come another way."""
    writer.write(null_reply(await reader.readexactly(CALL_BYTES)))
    await writer.drain()
