"""The documentation's examples run, on a laptop: plain MXNet, a directory, no cluster."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.node.engine.conftest import PYTHON, ROOT, node_environment

BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/checkpoints.md").read_text(), re.M | re.S)


def run(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, *map(str, arguments)],
        cwd=folder,
        env=node_environment(OMP_NUM_THREADS="1", **environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The page's examples, run one after the other in one folder."""
    folder = tmp_path_factory.mktemp("laptop")
    done = run(folder, "-c", "\n".join(BLOCKS))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_examples_write_the_checkpoints_that_they_promise(documented: tuple[Path, str]) -> None:
    folder, output = documented
    assert len(BLOCKS) == 3
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == [
        "step-00000008",
        "step-00000009",
        "step-00000010",
    ]
    assert float(output.splitlines()[-1]) < 5
    training = json.loads((folder / "checkpoints/latest/training.json").read_text())
    assert (training["step"], training["extra"]) == (10, {"note": "any JSON"})


def test_the_documented_files_are_those_of_a_checkpoint(documented: tuple[Path, str]) -> None:
    folder, _ = documented
    page = (ROOT / "docs/checkpoints.md").read_text()
    for name in {path.name for path in folder.glob("*checkpoints/step-*/*")}:
        assert f"`{re.sub('[0-9]+', '<rank>', name)}`" in page


def test_the_example_goes_on_on_a_laptop(tmp_path: Path) -> None:
    def train(where: str, epochs: int) -> list[str]:
        done = run(
            tmp_path,
            *(ROOT / "examples/resume/train.py", "--kvstore", "local", "--checkpoints", where),
            *("--seed", "42", "--epochs", epochs),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[:-1]

    whole = train("whole", 4)
    assert train("cut", 2) + train("cut", 4) == [line.replace("/4", "/2") for line in whole[:2]] + whole[2:]
    ends = [tmp_path / where / "latest/parameters.params" for where in ("whole", "cut")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


REFUSED: dict[str, tuple[str, dict[str, str], str]] = {
    "no directory": ("Checkpoints()", {}, "checkpoints need a directory: Checkpoints('DIR'), or set CHECKPOINT_DIR"),
    "an impossible rule": ("Checkpoints('x', keep_last=0)", {}, "keep_last must be at least 1, got 0"),
    "rules that are none": (
        "Checkpoints('x')",
        {"HOLDFAST_RETENTION": "{"},
        "Retention is not valid JSON: ",
    ),
    "a step before the first": ("gluon().save(0)", {}, "step must be a whole number from 1, how many are done, got 0"),
    "half a step": ("gluon().save(1.5)", {}, "step must be a whole number from 1, how many are done, got 1.5"),
    "a metric in words": (
        "gluon().save(1, metrics={'loss': 'low'})",
        {},
        "checkpoint step-00000001 was not written: metrics must be numbers by name, got {'loss': 'low'}",
    ),
    "a save before training": (
        "gluon(trained=False).save(1)",
        {},
        "save() must come after the first trainer.step(…): there is nothing to save before",
    ),
    "a restore after training": (
        "gluon().restore()",
        {},
        "restore() must come before the first trainer.step(…), which fixes the weights",
    ),
    "words that are no JSON": ("gluon().save(1, extra={1j})", {}, "extra must be JSON (text, finite numbers, lists"),
    "an optimizer with a state of its own": (
        "gluon(MyOptimizer()).save(1)",
        {},
        "optimizer attribute seen.0 must hold arrays and numbers, in lists, tuples or dicts, for it to be saved; got ",
    ),
    "a scheduler of its own": (
        "gluon(mx.optimizer.SGD(lr_scheduler=MyScheduler())).save(1)",
        {},
        "lr_scheduler must be one of ['CosineScheduler', ",
    ),
    "another network": (
        "gluon().save(1); gluon(units=3, trained=False).restore()",
        {},
        "step-00000001 does not fit this network: ",
    ),
    "other generators": (
        "gluon().save(1); gluon(trained=False, generators={'data': np.random.default_rng(1)}).restore()",
        {},
        "generators must be [], as when the checkpoint was written, got ['data']",
    ),
    "a module of modules": (
        "Checkpoints('x').for_module(mx.mod.SequentialModule())",
        {},
        "module must be a mx.mod.Module, got SequentialModule",
    ),
}
HELPERS = """
import mxnet as mx, numpy as np
from holdfast_node.checkpointing import CheckpointError, Checkpoints
class MyOptimizer(mx.optimizer.SGD):
    def __init__(self):
        super().__init__()
        self.seen = [object()]
class MyScheduler(mx.lr_scheduler.LRScheduler):
    def __call__(self, num_update):
        return 0.1
def gluon(optimizer="sgd", units=2, trained=True, generators=None):
    net = mx.gluon.nn.Dense(units, in_units=2)
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), optimizer)
    if trained:
        with mx.autograd.record():
            loss = net(mx.nd.ones((1, 2))).sum()
        loss.backward()
        trainer.step(1)
    return Checkpoints("x", generators=generators).for_gluon(net, trainer)
"""
CASES = """
import json, os, shutil, sys
for name, (code, environment) in json.loads(sys.argv[1]).items():
    shutil.rmtree("x", ignore_errors=True)
    os.environ.update(environment)
    try:
        exec(code)
        said = "accepted"
    except CheckpointError as error:
        said = str(error)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    for key in environment:
        del os.environ[key]
    print(json.dumps([name, said]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cases = {name: case[:2] for name, case in REFUSED.items()}
    done = run(tmp_path_factory.mktemp("refusals"), "-c", HELPERS + CASES, json.dumps(cases))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("case", REFUSED)
def test_a_users_mistake_is_one_clear_error(refusals: dict[str, Any], case: str) -> None:
    assert REFUSED[case][2] in refusals[case]
    assert "Traceback" not in refusals[case]
