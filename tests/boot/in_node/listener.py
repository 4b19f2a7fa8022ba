"""Accepts connections on the addresses that it is given, and says nothing."""

import selectors
import socket
import sys

selector = selectors.DefaultSelector()
for place in sys.argv[1:]:
    host, port = place.split(":")
    channel = socket.create_server((host, int(port)))
    selector.register(channel, selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in selector.select():
        key.fileobj.accept()[0].close()  # type: ignore[union-attr]
