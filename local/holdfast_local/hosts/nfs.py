"""The least of NFS: the call that does nothing, by which a client learns that a file system answers at all.

ONC RPC version 2 over TCP (RFC 5531, sections 9 and 11), NFS version 4, procedure NULL (RFC 8881, section 17.1).
"""

import secrets
import socket
import struct

from holdfast_local.hosts.errors import BootError

NFS_PORT = 2049
_PROGRAM, _VERSION, _NULL = 100003, 4, 0
_CALL, _REPLY, _RPC_VERSION = 0, 1, 2
#: A record's last fragment says so in the highest bit of its length.
_LAST = 0x80000000
_CALL_FORM, _REPLY_FORM = struct.Struct("!I10I"), struct.Struct("!I6I")
CALL_BYTES = _CALL_FORM.size


def null_call(identity: int) -> bytes:
    """Return a NULL call with the transaction id `identity`."""
    fields = (identity, _CALL, _RPC_VERSION, _PROGRAM, _VERSION, _NULL, 0, 0, 0, 0)
    return _CALL_FORM.pack(_LAST | (_CALL_FORM.size - 4), *fields)


def null_reply(call: bytes) -> bytes:
    """Return the answer to a NULL call; empty if it is none."""
    if len(call) != CALL_BYTES or call != null_call(struct.unpack_from("!I", call, 4)[0]):
        return b""
    return _REPLY_FORM.pack(_LAST | (_REPLY_FORM.size - 4), struct.unpack_from("!I", call, 4)[0], _REPLY, 0, 0, 0, 0)


def ping(host: str, seconds: float) -> None:
    """Ask the file system at `host` whether it answers.

    Raises:
        BootError: it does not, within `seconds`.
    """
    call = null_call(secrets.randbits(32))
    try:
        with socket.create_connection((host, NFS_PORT), timeout=seconds) as connection:
            connection.sendall(call)
            reply = connection.recv(_REPLY_FORM.size, socket.MSG_WAITALL)
    except OSError as error:
        raise BootError(
            f"the file system {host} does not answer on port {NFS_PORT} ({error}); the security groups of this role "
            "and of the mount targets must let it through"
        ) from None
    if reply != null_reply(call):
        raise BootError(f"the file system {host} answered something else than NFS version {_VERSION}")
