"""Imports go one way: contract <- node, kit, CLI; holdfast <- stacks <- app."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kit.support import ROOT

KIT, NODE, CLI, LOCAL = (
    ROOT / folder
    for folder in ("constructs/holdfast", "node/holdfast_node", "cli/holdfast_cli", "local/holdfast_local")
)
CONTRACT = NODE / "contract"


def imports(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (file, absolute module) for every import below a folder, wherever in the file it is."""
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(), filename=name)):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield name, node.module


def top(module: str) -> str:
    return module.partition(".")[0]


FORBIDDEN = {
    "the node never imports the CDK, the kit or the CLI": (
        NODE,
        {"aws_cdk", "constructs", "cdk_nag", "holdfast", "holdfast_cli", "holdfast_local", "stacks"},
    ),
    "the CLI never imports the CDK or the kit": (CLI, {"aws_cdk", "constructs", "cdk_nag", "holdfast", "stacks"}),
    "the kit never imports the deployment, the CLI or the local cluster": (
        KIT,
        {"stacks", "app", "holdfast_cli", "holdfast_local"},
    ),
    "the deployment never imports the CLI or the local cluster": (ROOT / "stacks", {"holdfast_cli", "holdfast_local"}),
}


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_import_goes_one_way(rule: str) -> None:
    folder, forbidden = FORBIDDEN[rule]
    assert [found for found in imports(folder) if top(found[1]) in forbidden] == []


@pytest.mark.parametrize("folder", [KIT, CLI, ROOT / "stacks"], ids=["kit", "cli", "stacks"])
def test_only_the_contract_is_imported_from_the_node(folder: Path) -> None:
    others = [
        found
        for found in imports(folder)
        if top(found[1]) == "holdfast_node" and not (found[1] + ".").startswith("holdfast_node.contract.")
    ]
    # NodeBundle asks the installed package where it is, and imports nothing of it. Operators verify models as nodes do.
    shared = {("constructs/holdfast/bundle.py", "holdfast_node")}
    shared |= {(f"cli/holdfast_cli/{name}.py", "holdfast_node.models") for name in ("main", "models", "verification")}
    shared |= {("cli/holdfast_cli/models.py", "holdfast_node.fetching")}
    assert [found for found in others if found not in shared] == []


def test_contract_imports_only_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"holdfast_node"}
    assert [found for found in imports(CONTRACT) if top(found[1]) not in allowed] == []
    assert [m for _, m in imports(CONTRACT) if top(m) == "holdfast_node" and "contract" not in m] == []


@pytest.mark.parametrize("folder", [KIT, NODE, CLI, LOCAL, ROOT / "stacks", ROOT / "tests"], ids=lambda f: f.name)
def test_nobody_imports_the_kit_through_its_source_root(folder: Path) -> None:
    assert [found for found in imports(folder) if found[1].startswith("constructs.")] == []


def test_source_root_of_the_kit_is_not_a_package() -> None:
    assert not (ROOT / "constructs/__init__.py").exists()
