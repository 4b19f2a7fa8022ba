"""A man in the middle: ADDRESS PORT TARGET OLD NEW [CREDENTIALS]; replaces bytes (hex) in what workers send.

With credentials it ends TLS itself; without, it passes bytes on as they are but for those that it replaces.
"""

import contextlib
import socket
import ssl
import sys
import threading
from pathlib import Path

address, port, target, old, new, *credentials = sys.argv[1:]
OLD, NEW = bytes.fromhex(old), bytes.fromhex(new)


def pump(source: socket.socket, sink: socket.socket, change: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            if change and OLD in data:
                print("CHANGED", data.count(OLD), flush=True)
                data = data.replace(OLD, NEW)
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def serve(client: socket.socket) -> None:
    try:
        if credentials:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(Path(credentials[0], "cert.pem"), Path(credentials[0], "key.pem"))
            client = context.wrap_socket(client, server_side=True)
            client.recv(1)  # TLS 1.3: the client's refusal comes after our handshake is done
            print("ACCEPTED", flush=True)
        server = socket.create_connection((target, int(port)), timeout=5)
        server.settimeout(None)
    except OSError as error:
        print("REFUSED", getattr(error, "reason", "") or error, flush=True)
        client.close()
        return
    print("PASSING", flush=True)
    threading.Thread(target=pump, args=(client, server, True), daemon=True).start()
    pump(server, client, False)


with socket.create_server((address, int(port))) as listener:
    print("LISTENING", flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
