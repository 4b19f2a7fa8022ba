"""What a controller does with each command, with the real optimizers and no network. Prints JSON."""

import json
import os
import pickle  # noqa: TID251 - it is the attack
import sys
import tempfile
from pathlib import Path

import mxnet as mx
import numpy as np

from holdfast_node.engines.mxnet import optimizer as codec
from holdfast_node.engines.mxnet import pickles, states
from holdfast_node.engines.mxnet.controller import Controller

os.environ["CHECKPOINT_DIR"] = tempfile.mkdtemp()
BASE = Path(os.environ["CHECKPOINT_DIR"])
MARKER = BASE / "executed"


class Exploit:
    def __reduce__(self):
        return os.mkdir, (str(MARKER),)


PICKLE = pickle.dumps(Exploit(), 0)
SGD = codec.encode(mx.optimizer.SGD(learning_rate=0.1, momentum=0.9), mx).encode()
ADAM = codec.encode(mx.optimizer.Adam(), mx).encode()


def rate(sequence, value, name="learning_rate"):
    return codec.change_command(sequence, name, value).encode()


def state(op, path, token="t"):
    return states.StateCommand(op, path, token).serialise().encode()


class Store:
    rank = 0
    updater = None

    def _set_updater(self, updater):
        self.updater = updater


class Server:
    def __init__(self, *commands):
        self.reports, self.ended, self.installed, self.store = [], 0, [], Store()
        self.controller = Controller(
            self.store,
            mx,
            report=lambda reason, **fields: self.reports.append({"reason": reason, **fields}),
            installed=lambda name, _: self.installed.append(name),
            end=self.end,
        )
        for command in commands:
            self.send(command)

    def end(self):
        self.ended += 1

    def send(self, command):
        head, body = command if isinstance(command, tuple) else (0, command)
        self.controller(head, body)

    def train(self, weight, steps=3):
        for step in range(steps):
            self.store.updater(0, mx.nd.ones(4) * (step + 1), weight)
        return weight.asnumpy().tolist()

    def outcome(self):
        return {"reports": self.reports, "ended": self.ended, "installed": self.installed, "ran": MARKER.exists()}


def saved_and_loaded(command):
    """Training on after a restart from saved states gives what training on without it gives."""
    whole = Server(command)
    expected = whole.train(mx.nd.zeros(4), 6)
    first = Server(command)
    weight = mx.nd.zeros(4)
    first.train(weight, 3)
    first.send(state("save_states", "s"))
    second = Server(command, state("load_states", "s"))
    for step in range(3, 6):
        second.store.updater(0, mx.nd.ones(4) * (step + 1), weight)
    assert not first.reports and not second.reports, (first.reports, second.reports)
    return weight.asnumpy().tolist() == expected


def hostile_states():
    np.savez(states.server_file(BASE / "evil", 0), manifest=np.array([Exploit()], dtype=object))
    states.server_file(BASE / "junk", 0).write_bytes(b"PK junk")
    (BASE / "out").symlink_to("/tmp")
    return {
        name: Server(SGD, state("load_states", name)).outcome() for name in ("evil", "junk", "absent", "out/file")
    } | {"dots": Server(SGD, b'{"op":"load_states","path":"../x","token":"t"}').outcome()}


ftml = mx.optimizer.Nadam(learning_rate=0.05)
scheduled = mx.optimizer.Adam(lr_scheduler=mx.lr_scheduler.FactorScheduler(2, 0.5))
pickle_before, pickle_after = Server(PICKLE), Server(SGD, PICKLE)
learning = Server(SGD, rate(1, 0.5), rate(1, 0.5), rate(2, 0.25), rate(3, 0.125, "rescale_grad"), rate(1, 0.5))
optimizer = learning.controller._updater.optimizer
SCHEDULED = codec.encode(scheduled, mx).encode()
conflicts = {
    "optimizer": Server(SGD, ADAM).outcome(),
    "rate": Server(SGD, rate(1, 0.5), rate(1, 0.4)).outcome(),
    "gap": Server(SGD, rate(2, 0.5)).outcome(),
}
broken = Server(codec.encode(mx.optimizer.DCASGD(momentum=0.5), mx).encode())
broken.train(mx.nd.ones(4), 1)
failed_save = Server(SGD)
failed_save.train(mx.nd.zeros(4))
failed_save.send(state("save_states", "missing-folder/s"))
result = {
    "pickle before": pickle_before.outcome(),
    "pickle after": pickle_after.outcome(),
    "still trains": np.isfinite(failed_save.train(mx.nd.zeros(4))).all(),
    "identical": Server(SGD, SGD, SGD).outcome(),
    "conflicts": conflicts,
    "other head": Server(SGD, (5, b"{}")).outcome(),
    "unknown op": Server(SGD, b'{"op":"profile"}').outcome(),
    "rate before": Server(rate(1, 0.5)).outcome(),
    "rate": learning.outcome() | {"lr": optimizer.lr, "rescale_grad": optimizer.rescale_grad},
    "a rate beside a scheduler": Server(SCHEDULED, rate(1, 0.5)).outcome(),
    "another change": Server(SGD, b'{"op":"change","sequence":1,"name":"momentum","value":1}').outcome(),
    "states": [
        saved_and_loaded(codec.encode(o, mx).encode()) for o in (mx.optimizer.SGD(momentum=0.9), ftml, scheduled)
    ],
    "hostile": hostile_states(),
    "failing update": broken.outcome(),
    "failed save": failed_save.outcome(),
}
pickles.disable()
from pickle import loads  # noqa: E402, TID251 - it is the attack


def attempt(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return "ran"


result["disabled"] = {
    "loads": attempt(lambda: loads(PICKLE)),
    "pickle.loads": attempt(lambda: pickle.loads(PICKLE)),
    "Unpickler": attempt(lambda: pickle.Unpickler(None)),
    "mxnet": attempt(lambda: mx.optimizer.get_updater(mx.optimizer.SGD()).set_states(PICKLE)),
    "system": attempt(lambda: os.system("true")),
    "fork": attempt(os.fork),
}
result["ran"] = MARKER.exists()
print(json.dumps(result, default=bool))
sys.stdout.flush()
os._exit(0)
