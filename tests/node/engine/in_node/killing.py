"""Dies at every step and at every byte of writing a checkpoint, and looks at what is there after each. Prints JSON.

A step is what Python's audit hook sees (open, mkdir, rename, remove, …): the process ends just before it. A byte is
where RLIMIT_FSIZE ends the process, within a write of any file, MXNet's included.
"""

import itertools
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

from holdfast_node import checkpoints
from holdfast_node.contract.documents import Retention

spec = json.load(sys.stdin)
root = Path(spec["root"])
STEPS = ("open", "os.", "shutil.", "fcntl.")


def plain(directory):
    """Checkpoints of two small files, so that the manifest is the largest and is cut, too."""

    def content(number):
        return f"{number:08d}" * 5

    def save(number):
        def write(folder):
            (folder / "sub").mkdir()
            (folder / "weights").write_text(content(number))
            (folder / "sub/states").write_text(content(number))

        checkpoints.save(directory, f"step-{number:08d}", write, retention=Retention(keep_last=2))

    def check(path, number):
        assert (path / "weights").read_text() == (path / "sub/states").read_text() == content(number)

    return save, check


def gluon(directory):
    """Checkpoints of a network and its trainer, whose weights say which step they are of."""
    import mxnet as mx

    from holdfast_node.checkpointing import Checkpoints

    net = mx.gluon.nn.Dense(2, in_units=3)
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.0, "momentum": 0.9})
    with mx.autograd.record():
        loss = net(mx.nd.ones((1, 3))).sum()
    loss.backward()
    trainer.step(1)
    training = Checkpoints(directory, seed="1", keep_last=2).for_gluon(net, trainer)

    def save(number):
        net.weight.set_data(mx.nd.full((2, 3), number))
        trainer._init_kvstore()
        training.save(number)

    def check(path, number):
        loaded = mx.nd.load(str(path / "parameters.params"))
        assert (loaded["weight"].asnumpy() == number).all()
        assert json.loads((path / "training.json").read_text())["step"] == number

    return save, check


directory, before = root / spec["kind"], root / "before"
save, check = {"plain": plain, "gluon": gluon}[spec["kind"]](directory)
for done in (1, 2):
    save(done)
shutil.copytree(directory, before, symlinks=True)
kept, moved, steps, cut = 0, 0, 0, 0


def dies(prepare):
    """Save in a child that `prepare` dooms; return whether it died of that."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
            prepare()
            save(3)
            os._exit(0)
        except BaseException:
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9, -signal.SIGXFSZ), f"the writer ended with {code}"
    return code != 0


def look():
    """Check what a reader finds now: the checkpoint before, or the new one, and nothing else; then go back."""
    global kept, moved
    found = checkpoints.latest(directory)
    got = int(found.name.removeprefix("step-"))
    assert got in (2, 3), f"{got} was found, expected 2 or 3"
    check(found, got)
    kept, moved = kept + (got == 2), moved + (got == 3)
    shutil.rmtree(directory)
    shutil.copytree(before, directory, symlinks=True)


def doomed_at_step(last):
    count = itertools.count()

    def hook(event, _):
        if event.startswith(STEPS) and next(count) == last:
            os._exit(9)

    return lambda: sys.addaudithook(hook)


def doomed_at_byte(limit):
    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return prepare


for step in itertools.count():
    died = dies(doomed_at_step(step))
    look()
    if not died:
        break
    steps += 1
for limit in range(0, spec["bytes"], spec["stride"]):
    cut += dies(doomed_at_byte(limit))
    look()
dies(doomed_at_byte(20))
save(3)
left = sorted(path.name for path in directory.iterdir() if path.name.startswith((".tmp-", ".part-")))
size = (directory / "step-00000003/manifest.json").stat().st_size
look()
print(
    json.dumps({"steps": steps, "cut": cut, "kept": kept, "moved": moved, "left": left, "manifest": size}), flush=True
)
os._exit(0)
