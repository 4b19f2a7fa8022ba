"""Tamper with checkpoints of a tiny network and load them: `vanilla` or `holdfast`, DIRECTORY, MARK.

MARK is a directory that a pickle makes if it is loaded. Prints what happened as JSON.
"""

import contextlib
import json
import sys
from pathlib import Path

import mxnet as mx

kind, directory, mark = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
PICKLE = f"cos\nmkdir\n(V{mark}\ntR.".encode()


def untrained():
    net = mx.gluon.nn.Dense(1, in_units=2, prefix="net_")
    net.initialize(mx.init.One())
    return net, mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1, "momentum": 0.9}, kvstore=None)


def network():
    net, trainer = untrained()
    with mx.autograd.record():
        loss = net(mx.nd.ones((1, 2))).sum()
    loss.backward()
    trainer.step(1)
    return net, trainer


def flip(path, net):
    """Flip a bit of a weight in a file of parameters; return the file's bytes before."""
    before = path.read_bytes()
    data = bytearray(before)
    data[data.index(net.weight.data().asnumpy().tobytes()) + 2] ^= 0x40
    path.write_bytes(data)
    return before


def vanilla():
    net, trainer = network()
    states, parameters = directory / "trainer.states", directory / "net.params"
    trainer.save_states(str(states))
    net.save_parameters(str(parameters))
    flip(parameters, net)
    net.load_parameters(str(parameters))
    states.write_bytes(PICKLE)
    with contextlib.suppress(Exception):  # what MXNet says once the pickle has run
        trainer.load_states(str(states))
    return {"loaded": [float(value) for value in net.weight.data().asnumpy().ravel()]}


def holdfast():
    from holdfast_node.checkpointing import CheckpointError, Checkpoints, latest, verify
    from holdfast_node.contract.errors import HoldfastError
    from holdfast_node.manifests import MANIFEST, Manifest, describe

    net, trainer = network()
    checkpoints = Checkpoints(directory).for_gluon(net, trainer)
    first, second = checkpoints.save(1), checkpoints.save(2)
    told = {}
    before = flip(second / "parameters.params", net)
    try:
        verify(second)
    except CheckpointError as error:
        told["flipped"] = str(error)
    told["resumed"] = latest(directory) == first
    (second / "parameters.params").write_bytes(before)
    # Whoever may write the directory can write a manifest that fits: then a pickle as the optimizer's states.
    states = next(path for path in second.iterdir() if "states" in path.name)
    states.write_bytes(PICKLE)
    manifest = Manifest.of(second)
    files = {name: describe(second / name) for name in manifest.files}
    forged = Manifest(name=manifest.name, sequence=9, created=manifest.created, metrics=manifest.metrics, files=files)
    (second / MANIFEST).write_bytes(forged.to_json())
    verify(second)
    try:
        net, trainer = untrained()
        Checkpoints(directory).for_gluon(net, trainer).restore()
    except HoldfastError as error:
        told["forged"] = f"{type(error).__name__}: {error}"
    return told


print(json.dumps(vanilla() if kind == "vanilla" else holdfast()))
