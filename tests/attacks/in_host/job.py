"""The job under attack: steps whose result can be computed, until the step that a file names."""

import os
import time
from pathlib import Path

import mxnet as mx

SIZE = 64
gradient = float(os.environ["ATTACK_GRADIENT"])
stop = Path(os.environ["ATTACK_STOP"])
kv = mx.kv.create(os.environ.get("ATTACK_STORE", "dist_sync"))
print(f"RANK {kv.rank} OF {kv.num_workers}", flush=True)
kv.init(0, mx.nd.zeros(SIZE))
kv.set_optimizer(mx.optimizer.SGD(learning_rate=1.0))
out = mx.nd.zeros(SIZE)
step = 0
while not stop.exists() or step < int(stop.read_text()):
    kv.push(0, mx.nd.full(SIZE, gradient))
    kv.pull(0, out=out)
    step += 1
    print(f"STEP {step} WEIGHT {out.asnumpy()[0]:.6g}", flush=True)
    time.sleep(0.05)
print("FINISHED", flush=True)
