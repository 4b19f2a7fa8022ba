"""Push and pull as fast as it goes: prints one JSON line for each size, with its start, end and bytes.

The worker of rank 0 tells; `bytes` are those of all workers, both ways. Rounds of a warm-up come first.
"""

import json
import sys
import time

import mxnet as mx

#: Name, keys, 4-byte floats in a key, rounds.
SIZES = (("1 MB", 1, 262_144, 40), ("64 MB", 1, 16_777_216, 4), ("200 x 4 KB", 200, 1024, 12))


def main():
    kv = mx.kv.create("dist_sync")
    first_key = 0
    for name, keys, floats, rounds in SIZES:
        values = [mx.nd.random.uniform(shape=(floats,)) for _ in range(min(keys, 4))]
        outs = [mx.nd.zeros((floats,)) for _ in range(keys)]
        numbers = list(range(first_key, first_key + keys))
        first_key += keys
        kv.init(numbers, [mx.nd.zeros((floats,)) for _ in numbers])
        exchange(kv, numbers, values, outs)
        kv._barrier()
        start = time.time()
        for _ in range(rounds):
            exchange(kv, numbers, values, outs)
        end = time.time()
        kv._barrier()
        if kv.rank == 0:
            moved = 2 * keys * floats * 4 * rounds * kv.num_workers
            print(json.dumps({"phase": name, "start": start, "end": end, "bytes": moved}), flush=True)
    sys.stdout.flush()


def exchange(kv, numbers, values, outs):
    for index, number in enumerate(numbers):
        kv.push(number, values[index % len(values)], priority=-index)
        kv.pull(number, out=outs[index], priority=-index)
    mx.nd.waitall()


if __name__ == "__main__":
    main()
