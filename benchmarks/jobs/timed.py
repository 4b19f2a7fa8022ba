"""Run an unchanged training script and say how fast it trained: `timed.py SCRIPT ARGUMENTS…`.

The script lies beside this file.

Prints one JSON line: when the first counted step ended, when the last one did, and the samples in between. The first
tenth of the steps is a warm-up. Vanilla MXNet now and then loses the first push of a network that has run before its
first step, and hangs; copies of the first values avoid that, as Holdfast's launcher does, so vanilla gets them too.
"""

import json
import runpy
import sys
import time
from pathlib import Path

import mxnet as mx
from mxnet import gluon


def copied(value):
    return [copied(item) for item in value] if isinstance(value, list | tuple) else mx.nd.array(value.asnumpy())


def main():
    ends, sizes = [], []
    step, init, broadcast = gluon.Trainer.step, mx.kv.KVStore.init, mx.kv.KVStore.broadcast

    def timed_step(self, batch_size, *args, **kwargs):
        step(self, batch_size, *args, **kwargs)
        ends.append(time.time())
        sizes.append(batch_size)

    gluon.Trainer.step = timed_step
    mx.kv.KVStore.init = lambda self, key, value: init(self, key, copied(value))
    mx.kv.KVStore.broadcast = lambda self, key, value, out, priority=0: broadcast(
        self, key, copied(value), out, priority
    )
    here = Path(__file__).resolve().parent
    sys.argv = [str(here / sys.argv[1]), *sys.argv[2:]]
    sys.path.insert(0, str(here))
    runpy.run_path(sys.argv[0], run_name="__main__")
    first = len(ends) // 10
    told = {"phase": "training", "start": ends[first], "end": ends[-1], "samples": sum(sizes[first + 1 :])}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
