"""Print what answers at these addresses, seen as root of this host: SOURCE TCP-PORTS UDP-PORTS ADDRESS…

TCP is scanned with SYN packets past this host's own firewall and connection tracking: what an attacker who owns the
node could send. Prints JSON: by address, the ports that answered by protocol, with `open` or `closed`.
"""

import errno
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

INTERFACE = "eth0"
SOURCE_PORT = 47001
SEQUENCE = 0x484F4C44
BURST = 400
QUIET_SECONDS = 1.5
#: A DNS query for a name that nobody has: resolvers answer it, and it is as good as any other datagram.
DATAGRAM = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + b"\x07example\x07invalid\0" + struct.pack("!HH", 1, 1)


def ports(text: str) -> list[int]:
    ranges = [[int(end) for end in part.split("-")] for part in text.split(",") if part]
    return [port for ends in ranges for port in range(ends[0], ends[-1] + 1)]


def total(data: bytes) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def checksum(value: int) -> int:
    value = (value >> 16) + (value & 0xFFFF)
    return ~(value + (value >> 16)) & 0xFFFF


def syns(source: bytes, target: bytes, wanted: list[int]) -> Iterator[bytes]:
    """Yield a SYN packet for each port; only the port and the sums over it differ."""
    pseudo = source + target + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20)
    tcp = struct.pack("!HHIIBBHHH", SOURCE_PORT, 0, SEQUENCE, 0, 5 << 4, 2, 1024, 0, 0)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, socket.IPPROTO_TCP, 0, source, target)
    packet = bytearray(ip[:10] + struct.pack("!H", checksum(total(ip))) + ip[12:] + tcp)
    base = total(pseudo + tcp)
    for port in wanted:
        struct.pack_into("!H", packet, 22, port)
        struct.pack_into("!H", packet, 36, checksum(base + port))
        yield bytes(packet)


def neighbour(address: str) -> bytes | None:
    """Return the link address that packets for an address go to, after asking for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.sendto(b"", (address, 9))
        except OSError:
            return None
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        for line in Path("/proc/net/arp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[0] == address and int(fields[2], 16) & 2:
                return bytes.fromhex(fields[3].replace(":", ""))
        time.sleep(0.02)
    return None


def scan_tcp(source: str, addresses: list[str], wanted: list[int]) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {address: {} for address in addresses}
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
    wire.bind((INTERFACE, 0x0800))
    wire.setblocking(False)
    mine = socket.inet_aton(source)

    def drain() -> bool:
        heard = False
        while True:
            try:
                packet, where = wire.recvfrom(128)
            except BlockingIOError:
                return heard
            if where[2] == socket.PACKET_OUTGOING or packet[9] != socket.IPPROTO_TCP:
                continue
            start = (packet[0] & 15) * 4
            port, here, _, acknowledged = struct.unpack_from("!HHII", packet, start)
            address = socket.inet_ntoa(packet[12:16])
            if here == SOURCE_PORT and acknowledged == SEQUENCE + 1 and address in found:
                found[address][port] = "closed" if packet[start + 13] & 4 else "open"
                heard = True

    for address in addresses:
        link = neighbour(address)
        if link is None:
            continue
        for number, packet in enumerate(syns(mine, socket.inet_aton(address), wanted)):
            while True:
                try:
                    wire.sendto(packet, (INTERFACE, 0x0800, 0, 0, link))
                    break
                except (BlockingIOError, OSError) as error:
                    if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                        raise
                    select.select([wire], [wire], [], 0.05)
                    drain()
            if number % BURST == 0:
                drain()
    quiet = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < quiet:
        select.select([wire], [], [], 0.1)
        if drain():
            quiet = time.monotonic() + QUIET_SECONDS
    return found


def scan_udp(addresses: list[str], wanted: list[int]) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {address: {} for address in addresses}
    waiting: dict[int, tuple[socket.socket, str, int]] = {}
    poll = select.epoll()
    for address in addresses:
        for port in wanted:
            probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            probe.setblocking(False)
            try:
                probe.connect((address, port))
                probe.send(DATAGRAM)
            except OSError:
                probe.close()
                continue
            waiting[probe.fileno()] = (probe, address, port)
            poll.register(probe, select.EPOLLIN | select.EPOLLERR)
    deadline = time.monotonic() + QUIET_SECONDS
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left):
            probe, address, port = waiting.pop(descriptor)
            try:
                probe.recv(2048)
                found[address][port] = "open"
            except ConnectionRefusedError:
                found[address][port] = "closed"
            except OSError:
                pass
            probe.close()
    return found


def main() -> None:
    source, tcp, udp, *addresses = sys.argv[1:]
    by_tcp, by_udp = scan_tcp(source, addresses, ports(tcp)), scan_udp(addresses, ports(udp))
    print(json.dumps({address: {"tcp": by_tcp[address], "udp": by_udp[address]} for address in addresses}))


if __name__ == "__main__":
    main()
