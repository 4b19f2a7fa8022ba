"""What a server of the parameter server does: updates weights, and has native code call Python (the guard)."""

import ctypes

import mxnet as mx

assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda value: value + 1)(41) == 42
weight, gradient = mx.nd.ones((64, 64)), mx.nd.ones((64, 64))
for optimizer in (mx.optimizer.SGD(momentum=0.9), mx.optimizer.Adam()):
    optimizer.update(0, weight, gradient, optimizer.create_state(0, weight))
assert weight.sum().asscalar() < 64 * 64
print("TRAINED", flush=True)
