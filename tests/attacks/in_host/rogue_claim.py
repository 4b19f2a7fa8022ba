"""A compromised worker without MXNet: it says that it is another node of the job, before that node has connected.

CLAIM SCHEDULER OWN SERVER PLACE, the last four as ADDRESS:PORT; it listens at PLACE's port. Claims: `worker` dials the
server with worker 0's identity, then joins as itself; `server` joins at the scheduler as a server at PLACE; `scheduler`
dials the server with the scheduler's identity, and gives it a list of nodes that leads everybody to this worker.
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


def entry(role: int, place: tuple[str, int], **more: int) -> bytes:
    return peer.node(role=role, hostname=place[0].encode(), port=place[1], is_recovery=0, customer_id=0, **more)


claim = sys.argv[1]
scheduler, own, server, place = map(address, sys.argv[2:])
if claim == "worker":
    claims = peer.once_it_listens(server, own[0], identity=b"ps9")
    print("CLAIMED", flush=True)
    peer.RogueWorker(scheduler, own, 1)
    print("JOINED", flush=True)
else:
    # As a server it is dialled by the scheduler and both workers, as the scheduler by the server.
    dials = 3 if claim == "server" else 1
    listener = peer.socket.create_server((own[0], place[1]))
    if claim == "server":
        claims = peer.once_it_listens(scheduler, own[0])
        nodes = [entry(0, place)]
    else:
        claims = peer.once_it_listens(server, own[0], identity=b"ps1")
        nodes = [entry(2, own, id=1), entry(0, server, id=8), entry(1, own, id=9), entry(1, own, id=11)]
    with contextlib.suppress(OSError):  # the connection alone may have been refused
        claims.send(peer.meta(control=peer.control(peer.ADD_NODE, *nodes)))
    print("CLAIMED", flush=True)
    dialled = {listener.accept()[1][0] for _ in range(dials)}
    print("DIALLED", " and ".join(sorted(dialled)), flush=True)
time.sleep(600)
