"""Nothing dynamic is pickled: not in our sources, and not in a server that trains, saves and loads."""

import ast
from pathlib import Path

import pytest
from tests.node.engine.conftest import ROOT

TREES = ("node", "cli", "constructs", "local", "stacks", "examples", "app.py")
FORBIDDEN = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
)


def sources() -> list[Path]:
    files = [
        file for tree in TREES for file in ([ROOT / tree] if tree.endswith(".py") else (ROOT / tree).rglob("*.py"))
    ]
    assert len(files) > 80
    return files


def offences(source: str) -> list[str]:
    """The imports and calls in this source that could unpickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            allowed = [keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle"]
            safe = [isinstance(value, ast.Constant) and value.value is False for value in allowed]
            if not all(safe) or (ast.unparse(node.func) in ("np.load", "numpy.load") and not safe):
                found.append(ast.unparse(node.func))
    return found


def test_no_source_imports_a_pickle_or_lets_numpy_load_one() -> None:
    assert {str(file): found for file in sources() if (found := offences(file.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from _pickle import loads",
        "import dill.session",
        "import marshal as m",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "load(path, allow_pickle=flag)",
    ],
)
def test_the_check_finds_each_way_to_unpickle(source: str) -> None:
    assert len(offences(source)) == 1
