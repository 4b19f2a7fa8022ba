"""Print which of these TCP ports of an address answer: ADDRESS FIRST-LAST…"""

import contextlib
import json
import resource
import select
import socket
import sys
import time

BATCH = 4000
SECONDS = 1.0


def scan(address: str, ports: list[int]) -> list[int]:
    found: list[int] = []
    for start in range(0, len(ports), BATCH):
        waiting: dict[int, tuple[socket.socket, int]] = {}
        poll = select.epoll()
        for port in ports[start : start + BATCH]:
            probe = socket.socket()
            probe.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                probe.connect_ex((address, port))
            waiting[probe.fileno()] = (probe, port)
            poll.register(probe, select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP)
        deadline = time.monotonic() + SECONDS
        while waiting and (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left):
                probe, port = waiting.pop(descriptor)
                if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    found.append(port)
                probe.close()
        for probe, _ in waiting.values():
            probe.close()
        poll.close()
    return sorted(found)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * BATCH), hard))
    wanted = [port for text in sys.argv[2:] for port in range(*[int(n) + i for i, n in enumerate(text.split("-"))])]
    print(json.dumps(scan(sys.argv[1], wanted)))
