"""How the engine starts each node of a job: run by the node's interpreter, as the agent is.

Reads `{"job": …, "rendezvous": …, "ports": …, "code": …, "work": {name: …}, "checkpoints": …}` from standard input
and prints `{name: {"argv": […], "env": {…}, "cwd": …}}`, with names like `server0`.
"""

import json
import sys
from pathlib import Path

from holdfast_node.contract.documents import JobDocument, Rendezvous
from holdfast_node.contract.roles import Role
from holdfast_node.engines import get_engine


def main() -> None:
    """Print the launches."""
    spec = json.load(sys.stdin)
    job, rendezvous = (
        kind.parse(json.dumps(spec[name])) for kind, name in ((JobDocument, "job"), (Rendezvous, "rendezvous"))
    )
    assert isinstance(job, JobDocument) and isinstance(rendezvous, Rendezvous)
    launches = {}
    for peer in rendezvous.peers:
        name = f"{peer.role}{peer.rank}"
        launch = get_engine(job.engine).launch(
            job=job,
            rendezvous=rendezvous,
            me=peer,
            ports={Role(role): port for role, port in spec["ports"].items()},
            code=Path(spec["code"]),
            work=Path(spec["work"][name]),
            checkpoints=Path(spec["checkpoints"]),
        )
        launches[name] = {"argv": launch.argv, "env": launch.env, "cwd": str(launch.cwd)}
    print(json.dumps(launches))


if __name__ == "__main__":
    main()
