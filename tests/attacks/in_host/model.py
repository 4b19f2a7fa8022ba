"""Save an array, flip a bit of its file, and load it as vanilla MXNet does: DIRECTORY. Prints what was loaded."""

import json
import sys
from pathlib import Path

import mxnet as mx

path = Path(sys.argv[1]) / "model.params"
mx.nd.save(str(path), {"weight": mx.nd.ones(4)})
data = bytearray(path.read_bytes())
data[data.rindex(b"\x00\x00\x80\x3f") + 2] ^= 0x40  # the exponent of the last 1.0
path.write_bytes(data)
print(json.dumps([float(value) for value in mx.nd.load(str(path))["weight"].asnumpy()]))
