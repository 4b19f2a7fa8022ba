"""Dial a role port, plainly or with a certificate, and say whether a trainer answers: ADDRESS PORT [CREDENTIALS]."""

import json
import socket
import ssl
import sys
from pathlib import Path

#: How every ZeroMQ peer begins (ZMTP 3.0, https://rfc.zeromq.org/spec/23): the trainer behind the port speaks it.
SIGNATURE = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"


def main(address: str, port: str, credentials: str = "") -> dict[str, object]:
    told = {"admitted": False, "why": ""}
    try:
        with socket.create_connection((address, int(port)), timeout=1.5) as raw:
            connection = raw
            if credentials:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                if credentials != "none":
                    context.load_cert_chain(Path(credentials, "cert.pem"), Path(credentials, "key.pem"))
                connection = context.wrap_socket(raw)
            connection.settimeout(3)
            connection.sendall(SIGNATURE + b"\x03")
            answer = connection.recv(64)
            told["admitted"] = answer.startswith(SIGNATURE[:1])
            told["why"] = "the trainer's ZMTP greeting" if told["admitted"] else "closed without an answer"
    except TimeoutError:
        told["why"] = "timed out"
    except OSError as error:
        told["why"] = getattr(error, "reason", "") or error.strerror or str(error)
    return told


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
