"""What is mended in MXNet's own memory: the order of its messages, and a flag that it never initialises.

Layouts are those of the builds that `native.py` pins, the same in both.
"""

import ctypes
import os

from holdfast_node.engines.errors import EngineError
from holdfast_node.engines.mxnet import messages

#: Where these builds' objects have `KVStoreDist::server_` and `KVStoreDistServer::multi_precision_`, by `objdump -d` of
#: `RunServer` and `CommandHandle`.
_SERVER_AT, _MULTI_PRECISION_AT = 0x1D8, 0x1B9


class Line:
    """Has MXNet follow messages in the order in which they were checked, which is what the check goes by.

    ps-lite hands them on through a heap (threadsafe_pqueue.h): by the priority that the sender chose, and in no order
    among equals. So each is given a lower priority than the one before it.
    """

    def __init__(self, length: int = messages.PRIORITIES) -> None:
        """Be empty, with room for as many messages as there are priorities."""
        self._left = length

    def join(self, address: int) -> None:
        """Put the message at this address behind those before it; after the last one, end the process."""
        if not self._left:
            os.write(2, b"\nEngineError: a node takes 2^32 messages, and this was one more: it must start anew\n")
            os.abort()  # a crash to the agent, which starts the job's next generation
        self._left -= 1
        messages.set_priority(address, messages.LEAST_PRIORITY + self._left)


def unset_multi_precision(store: int) -> None:
    """Have the server of the KVStore at this address keep no 32-bit copies, until command 1 asks for them.

    MXNet never initialises this flag (kvstore_dist_server.h): by what its memory held before, float16 and float64
    weights are updated as float32. Do it once there is a server, before its first message.

    Raises:
        EngineError: there is no server yet.
    """
    server = ctypes.c_void_p.from_address(store + _SERVER_AT).value
    if not server:
        raise EngineError("the KVStore must have its server before messages are received")
    ctypes.c_uint8.from_address(server + _MULTI_PRECISION_AT).value = 0
