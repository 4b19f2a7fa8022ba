"""Workers that train a step; then the last one sends every server raw commands: `command.py HEAD BODY [BODY…]`.

It runs under a launcher or plain Python. `--kvstore dist_async` and `--dtype float16` choose how the job trains;
with float16 the others' next gradients are under way when the commands come.
"""

import argparse
import time

import mxnet as mx

parser = argparse.ArgumentParser()
parser.add_argument("head", type=int)
parser.add_argument("body", nargs="+")
parser.add_argument("--kvstore", default="dist_sync")
parser.add_argument("--dtype", default="float32")
arguments = parser.parse_args()

kv = mx.kv.create(arguments.kvstore)
attacks = kv.rank == kv.num_workers - 1
ones, out = mx.nd.ones(4, dtype=arguments.dtype), mx.nd.zeros(4, dtype=arguments.dtype)
kv.init(0, mx.nd.zeros(4, dtype=arguments.dtype))
kv.set_optimizer(mx.optimizer.SGD(learning_rate=1.0))
kv.push(0, ones)
kv.pull(0, out=out)
mx.nd.waitall()
if arguments.dtype == "float16" and not attacks:
    kv.push(0, ones)
    time.sleep(1)
kv._barrier()
if attacks:
    print("SENDING", flush=True)
    for body in arguments.body:
        kv._send_command_to_servers(arguments.head, body)
    print("ACKNOWLEDGED", flush=True)
kv._barrier()
if not attacks or arguments.kvstore == "dist_sync":
    kv.push(0, ones)
    kv.pull(0, out=out)
    print("WEIGHTS", out.asnumpy().tolist(), flush=True)
