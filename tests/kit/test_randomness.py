"""Nothing of security draws from a generator that can be predicted: a rule on the source, with its exceptions."""

import ast
from pathlib import Path

import pytest
from tests.kit.support import ROOT

TREES = ("app.py", "benchmarks", "cli", "constructs", "local", "node", "stacks")
#: Modules, and folders, that may name these generators, and why.
ALLOWED = {
    "benchmarks/": "made-up data, the same in every measurement; nothing of Holdfast runs from there",
    "node/holdfast_node/engines/mxnet/randomness.py": "seeds, saves and restores the training script's generators",
}
#: `random.SystemRandom` is the operating system's generator, as `secrets` is.
SYSTEM = "SystemRandom"
PREDICTABLE = ("random", "default_rng", "RandomState")


def uses(source: str) -> list[str]:
    """Return every use of Python's, NumPy's or MXNet's generators in a source text, by line."""
    found = []
    tree = ast.parse(source)
    allowed = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == SYSTEM}
    # Where a module comes as a parameter it has these names here.
    modules = {"np", "numpy", "mx", "mxnet"} | {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    strings = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "getattr", "__import__"))
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if ".random" in alias.name]
            names += [f"random as {alias.asname}" for alias in node.names if alias.name == "random" and alias.asname]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            inside = module == "random" or module.endswith(".random") or ".random." in module
            names = [
                f"{module}.{alias.name}"
                for alias in node.names
                if alias.name in ("random", "default_rng") or (inside and alias.name != SYSTEM)
            ]
        elif isinstance(node, ast.Attribute) and node.attr in PREDICTABLE and root(node.value) in modules:
            names = [f".{node.attr}"]
        elif isinstance(node, ast.Name) and node.id == "random" and id(node) not in allowed:
            names = ["random"]
        elif isinstance(node, ast.Constant) and id(node) in strings and str(node.value).split(".")[-1] == "random":
            names = [repr(node.value)]
        else:
            names = []
        found += [f"line {node.lineno}: {name}" for name in names if isinstance(node, ast.stmt | ast.expr)]
    return found


def root(node: ast.expr) -> str:
    """Return the name that a chain of attributes starts with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def sources() -> list[Path]:
    return sorted(
        path
        for tree in TREES
        if (ROOT / tree).exists()
        for path in ([ROOT / tree] if (ROOT / tree).is_file() else (ROOT / tree).rglob("*.py"))
    )


def test_only_the_listed_modules_use_generators_that_can_be_predicted() -> None:
    using = {path.relative_to(ROOT).as_posix(): found for path in sources() if (found := uses(path.read_text()))}
    assert {name: found for name, found in using.items() if not name.startswith(tuple(ALLOWED))} == {}
    for exception in ALLOWED:
        assert any(name.startswith(exception) for name in using), f"{exception} is no exception any more"


CAUGHT = {
    "python's": "import random\nrandom.random()",
    "a function of python's": "from random import choice",
    "python's under another name": "import random as r\nr.choice([1])",
    "numpy's": "import numpy as np\nnp.random.rand()",
    "numpy's module": "import numpy.random",
    "numpy's new one": "from numpy.random import default_rng",
    "numpy's by name": "from numpy import random",
    "mxnet's": "import mxnet as mx\nmx.random.uniform()",
    "mxnet's arrays": "import mxnet as mx\nmx.nd.random.uniform()",
    "by a string": "import importlib\nimportlib.import_module('random')",
    "by getattr": "import numpy\ngetattr(numpy, 'random')",
    "handed on": "import random\ndraw = random",
}


@pytest.mark.parametrize("case", CAUGHT)
def test_the_rule_catches(case: str) -> None:
    assert uses(CAUGHT[case]) != []


@pytest.mark.parametrize(
    "source", ["import random\nrandom.SystemRandom().random()", "from random import SystemRandom", "import secrets"]
)
def test_the_operating_systems_generator_is_allowed(source: str) -> None:
    assert uses(source) == []


def test_everything_that_is_loaded_by_numpy_is_loaded_without_pickles() -> None:
    """`np.load` unpickles where `allow_pickle` is true: every call says that it is false."""
    calls = [
        (path.relative_to(ROOT).as_posix(), ast.unparse(node))
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "load"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("np", "numpy")
    ]
    assert calls and all("allow_pickle=False" in call for _, call in calls), calls
