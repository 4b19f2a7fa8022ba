"""Two workers, as threads of one process, save and restore together while one of them fails. Prints JSON."""

import json
import os
import sys
import threading
from pathlib import Path

import mxnet as mx

from holdfast_node import checkpoints
from holdfast_node.checkpointing import Checkpoints
from holdfast_node.engines.mxnet.trained import Workers

root = Path(json.load(sys.stdin))
barrier = threading.Barrier(2, timeout=20)


class Store:
    """The part of a distributed KVStore that `Workers` needs."""

    type, num_workers = "dist_sync", 2

    def __init__(self, rank):
        self.rank = rank

    def _barrier(self):
        barrier.wait()


class Trained:
    """Something that is trained: two arrays, and states in a file. `fails` names the method that raises."""

    def __init__(self, rank, fails=""):
        self.workers, self.fails = Workers(Store(rank), mx), fails

    def _maybe(self, name):
        if self.fails == name:
            raise OSError(28, os.strerror(28))

    def parameters(self):
        self._maybe("parameters")
        return {"weight": mx.nd.ones(3)}

    def own_parameters(self):
        self._maybe("own_parameters")
        return {"mean": mx.nd.full(3, self.workers.rank)}

    def save_states(self, path, token):
        self._maybe("save_states")
        path.write_text(token)

    def settings(self):
        return {}


def together(act):
    """Run `act(rank)` for both ranks at once; return what each said."""
    said = [None, None]

    def run(rank):
        try:
            said[rank] = str(act(rank))
        except Exception as error:
            said[rank] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return said


both = [Checkpoints(root, seed="1") for _ in range(2)]


def saving(step, fails_on=None, fails=""):
    def act(rank):
        return both[rank].save(Trained(rank, fails if rank == fails_on else ""), step, mx).name

    return together(act)


def finding(count=2):
    def act(rank):
        trained = Trained(rank)
        trained.workers.count = count
        found = both[rank].find(trained.workers)
        return None if found is None else [found.step, sorted(found.arrays(f"worker{rank}.params", mx))]

    return together(act)


result = {"nothing": finding(), "first": saving(1), "found": finding()}
result["files"] = sorted(checkpoints.verify(root / "step-00000001").files)
result["worker 1 fails"] = saving(2, 1, "own_parameters")
result["worker 0 fails"] = saving(2, 0, "save_states")
result["worker 0 fails early"] = saving(2, 0, "parameters")
result["taken"] = saving(1)
result["still there"] = checkpoints.latest(root).name
result["afterwards"] = saving(2)
(root / "step-00000002/parameters.params").write_bytes(b"")
result["damaged"] = finding()
result["more workers"] = finding(count=3)
result["left"] = sorted(path.name for path in root.iterdir() if path.name.startswith((".tmp-", ".part-")))
print(json.dumps(result), flush=True)
os._exit(0)
