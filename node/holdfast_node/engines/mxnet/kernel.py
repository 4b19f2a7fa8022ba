"""Runs one kernel on every GPU that MXNet sees: a driver that answers is not yet a GPU that computes."""

import sys

import mxnet as mx  # type: ignore[import-not-found]

_SIZE = 64


def main() -> int:
    """Multiply on each GPU, and compare; the last line says what is wrong, in one line."""
    count = mx.context.num_gpus()
    if count == 0:
        print("MXNet sees no GPU: this is its build for CPUs, or CUDA's libraries do not fit the driver")
        return 1
    for index in range(count):
        ones = mx.nd.ones((_SIZE, _SIZE), ctx=mx.gpu(index))
        got = float(mx.nd.dot(ones, ones).sum().asscalar())
        if got != _SIZE**3:
            print(f"GPU {index} computes wrongly: the sum must be {_SIZE**3}, got {got}")
            return 1
    print(f"one kernel ran on each of {count} GPUs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
