"""Flood a port: ADDRESS PORT KIND COUNT SECONDS [CREDENTIALS]; prints `{"opened": …, "refused": …}`.

Kinds: `idle` opens COUNT connections and holds them; `half-tls` sends the beginning of a TLS record on each and no
more; `slow` sends one byte of a ZMTP greeting at a time on each; `garbage` sends random bytes on one after the other;
`oversize` sends a ZMTP frame that says it has 2^64-1 bytes, and one of 1 GiB; `certified` opens TLS connections with
CREDENTIALS one after the other and sends nothing.
"""

import contextlib
import json
import os
import resource
import select
import socket
import ssl
import sys
import time
from pathlib import Path

address, port, kind, count, seconds, *credentials = sys.argv[1:]
GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + bytes(16) + bytes(32)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
READY = b"\x04" + bytes([len(READY)]) + READY
#: A long frame's header (ZMTP 3.0): flags, then its length in eight bytes.
OVERSIZE = {"2^64-1": b"\x02" + b"\xff" * 8, "1 GiB": b"\x02" + (1 << 30).to_bytes(8, "big")}
until = time.monotonic() + float(seconds)
told = {"opened": 0, "refused": 0}


def hold() -> None:
    """Open COUNT connections, keep them for SECONDS, and send on them as their kind does."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, int(count) + 100), hard))
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(int(count)):
        one = socket.socket()
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.connect_ex((address, int(port)))
        sockets[one.fileno()] = one
        poll.register(one, select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP | select.EPOLLONESHOT)
    opened: list[socket.socket] = []
    sent, rounds = 0, 0
    while time.monotonic() < until:
        rounds += 1
        if rounds % 5 == 0:
            print("HOLDING", len(opened), flush=True)
        began = time.monotonic()
        for descriptor, _ in poll.poll(0.2):
            one = sockets[descriptor]
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                told["refused"] += 1
            else:
                opened.append(one)
                if kind == "half-tls":
                    with contextlib.suppress(OSError):
                        one.send(b"\x16\x03\x01\x02\x00\x01")
        if kind == "slow":
            for one in opened:
                with contextlib.suppress(OSError):
                    one.send(GREETING[sent % 64 : sent % 64 + 1])
            sent += 1
        time.sleep(max(0.0, 0.2 - (time.monotonic() - began)))
    told["opened"] = len(opened)
    told["refused"] = int(count) - len(opened)


def repeat() -> None:
    """Make one connection after the other, COUNT of them or until SECONDS are over."""
    for number in range(int(count)):
        if time.monotonic() > until:
            break
        try:
            with socket.create_connection((address, int(port)), timeout=1) as one:
                use(one, number)
                told["opened"] += 1
        except OSError:
            told["refused"] += 1


def use(one: socket.socket, number: int) -> None:
    if kind == "certified":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(Path(credentials[0], "cert.pem"), Path(credentials[0], "key.pem"))
        with context.wrap_socket(one) as secured:
            secured.settimeout(1)
            secured.recv(1)  # the trainer's greeting: it got through
    elif kind == "garbage":
        one.sendall(os.urandom(512))
        with contextlib.suppress(TimeoutError):
            one.settimeout(0.2)
            one.recv(64)
    else:
        one.sendall(GREETING)
        one.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            one.recv(64)
        one.sendall(READY + list(OVERSIZE.values())[number % len(OVERSIZE)] + bytes(1 << 20))
        with contextlib.suppress(TimeoutError):
            one.recv(64)


repeat() if kind in ("garbage", "oversize", "certified") else hold()
print(json.dumps(told))
