"""What a node's services may do, as a page: `python -m tests.boot.reach` tries it and writes docs/evidence/reach.md."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.boot.systemd_node import ROOT, a_node
from tests.boot.test_sandbox import prepare, probe, unconfined

from holdfast_node.contract.roles import Role

PAGE = ROOT / "docs/evidence/reach.md"
COLUMNS = ("root", "agent", "tunnel", "trainer of a server", "trainer of a worker")


def page(found: Mapping[str, Mapping[str, str]]) -> str:
    """Return the page from what each column's process found."""
    lines = [
        "# What the node's services can do, tried from inside",
        "",
        "Written by `python -m tests.boot.reach`: nodes with the real systemd 252 and the units of `node/units`, in",
        "which `tests/boot/in_node/probe.py` runs in each service's place, and once as root outside any sandbox, where",
        "all of it works. A scheduler's trainer has the sandbox of a server's. A test holds this page to what it",
        "finds.",
        "",
        f"| try to | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for name in found["root"]:
        cells = ("yes" if found[column][name] == "ok" else "no" for column in COLUMNS)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def columns(on_server: Mapping[str, Mapping[str, str]], on_worker: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """Return what each column's process found."""
    found = {name: on_server[name] for name in ("root", "agent", "tunnel")}
    return {**found, "trainer of a server": on_server["trainer"], "trainer of a worker": on_worker}


def main() -> None:
    """Boot a server and a worker, try, and write the page."""
    with tempfile.TemporaryDirectory() as directory:
        with a_node(Path(directory) / "server", Role.SERVER) as node:
            prepare(node)
            on_server = {name: probe(node, name) for name in ("agent", "tunnel", "trainer")} | {
                "root": unconfined(node)
            }
        with a_node(Path(directory) / "worker", Role.WORKER) as node:
            prepare(node)
            on_worker = probe(node, "trainer")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    text = page(columns(on_server, on_worker))
    PAGE.write_text(text)
    print(text, f"wrote {PAGE}", sep="\n")


if __name__ == "__main__":
    main()
