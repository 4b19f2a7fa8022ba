"""What passes the switch, kept as a pcap file: every packet once, as it comes in, before any rule.

Format: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html, link type 1 (Ethernet). It reads a packet
socket (packet(7)), so that the machine needs no tcpdump.
"""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast_local.lab.errors import LabError

_ETH_P_ALL = 3  # <linux/if_ether.h>
_SOL_PACKET, _PACKET_STATISTICS, _SO_RCVBUFFORCE = 263, 6, 33
_BUFFER_BYTES = 256 << 20
_SNAP_BYTES = 262144
_ETHERNET = 14
_IPV4, _TCP = 0x0800, 6


@dataclass(frozen=True)
class Segment:
    """The payload of one TCP segment (of up to 64 KiB: the hosts' interfaces pass them whole) and whose it is."""

    source: tuple[str, int]
    target: tuple[str, int]
    payload: bytes


class Capture:
    """Packets of the switch from the moment it is made until `close`; a context manager."""

    def __init__(self, packets: socket.socket, path: Path) -> None:
        """Write what `packets` (a packet socket) receives to `path`."""
        self.path = path
        self._socket = packets
        packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        packets.settimeout(0.1)
        self._file = path.open("wb")
        self._file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, _SNAP_BYTES, 1))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="capture", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Capture":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what has come and stop.

        Raises:
            LabError: the kernel dropped packets, so the file proves nothing.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._thread.join()
        _, dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._socket.close()
        self._file.close()
        if dropped:
            raise LabError(f"the capture lost {dropped} packets: the machine was too busy; run it again")

    def segments(self) -> Iterator[Segment]:
        """Yield the TCP segments that hold bytes, in order; call it after `close`."""
        with self.path.open("rb") as file:
            file.read(24)
            while header := file.read(16):
                packet = file.read(struct.unpack("<IIII", header)[2])
                if (segment := _segment(packet)) is not None:
                    yield segment

    def count(self, pattern: bytes) -> int:
        """Return how often these bytes occur in the segments; call it after `close`."""
        return sum(segment.payload.count(pattern) for segment in self.segments())

    def payload_bytes(self) -> int:
        """Return how many bytes of TCP payload there are; call it after `close`."""
        return sum(len(segment.payload) for segment in self.segments())

    def _read(self) -> None:
        until = float("inf")
        while time.monotonic() < until:
            if self._stopping.is_set() and until == float("inf"):
                until = time.monotonic() + 1  # what is in the buffer; a busy network would never fall silent
            try:
                packet, address = self._socket.recvfrom(_SNAP_BYTES)
            except TimeoutError:
                if self._stopping.is_set():
                    return
                continue
            if address[2] == socket.PACKET_OUTGOING:  # seen already, on the port where it came in
                continue
            seconds, rest = divmod(time.time_ns(), 10**9)
            self._file.write(struct.pack("<IIII", seconds, rest // 1000, len(packet), len(packet)) + packet)


def packet_socket() -> socket.socket:
    """Return a socket that sees every packet of the caller's network namespace."""
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))


def _segment(packet: bytes) -> Segment | None:
    """Return the TCP segment in an Ethernet frame (RFC 791 section 3.1, RFC 9293 section 3.1), if it holds bytes."""
    if len(packet) < _ETHERNET + 20 or struct.unpack("!H", packet[12:14])[0] != _IPV4:
        return None
    ip = packet[_ETHERNET:]
    length = (ip[0] & 15) * 4
    if ip[9] != _TCP or len(ip) < length + 20:
        return None
    tcp = ip[length : struct.unpack("!H", ip[2:4])[0] or None]
    payload = tcp[(tcp[12] >> 4) * 4 :]
    if not payload:
        return None
    ports = struct.unpack("!HH", tcp[:4])
    return Segment((socket.inet_ntoa(ip[12:16]), ports[0]), (socket.inet_ntoa(ip[16:20]), ports[1]), payload)
