"""How a node's part of a job is started: arguments and a complete, minimal environment.

Environment variables: https://mxnet.apache.org/versions/1.9.1/api/faq/distributed_training and ps-lite's
`Postoffice::InitEnvironment`. `DMLC_NODE_HOST` and `PORT` are what a node binds and advertises.
"""

import os
import sys
from pathlib import Path

import holdfast_node
from holdfast_node.contract.documents import DEFAULT_RETENTION, JobDocument, Peer, Rendezvous, Retention
from holdfast_node.contract.roles import Role, overlay_address
from holdfast_node.contract.seeds import derive
from holdfast_node.engines.base import DEFAULT_HEARTBEAT_SECONDS, Launch
from holdfast_node.engines.mxnet import shipped

#: All that a launch takes from the agent's own environment: what its interpreter needs to start again.
INHERITED = ("PYTHONHOME", "LD_PRELOAD", "LD_LIBRARY_PATH")
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


class MXNetEngine:
    """Apache MXNet's parameter server: one scheduler, servers that hold the weights, workers that train."""

    def launch(
        self,
        *,
        job: JobDocument,
        rendezvous: Rendezvous,
        me: Peer,
        ports: dict[Role, int],
        code: Path,
        work: Path,
        checkpoints: Path,
        retention: Retention = DEFAULT_RETENTION,
        heartbeat_seconds: int = DEFAULT_HEARTBEAT_SECONDS,
    ) -> Launch:
        """Return how this node's part of the job is started; it binds and dials overlay addresses only."""
        env = python_environment() | {
            "HOME": str(work),
            "TMPDIR": str(work),
            "OMP_NUM_THREADS": str(_threads()),
            "CHECKPOINT_DIR": str(checkpoints / job.job_id),
            "MODEL_DIR": str(work / job.model_dir),
            shipped.CODE: str(code),
            "HOLDFAST_RETENTION": retention.to_json().decode(),
            "HOLDFAST_GENERATION": str(rendezvous.generation),
            "HOLDFAST_HEARTBEAT_SECONDS": str(heartbeat_seconds),
            # Every process beats once a second. Without PS_HEARTBEAT_TIMEOUT ps-lite never replaces one in a running
            # job, which skips its barriers: a lost process ends the generation instead.
            "PS_HEARTBEAT_INTERVAL": "1",
            "DMLC_PS_ROOT_URI": overlay_address(Role.SCHEDULER, 0),
            "DMLC_PS_ROOT_PORT": str(ports[Role.SCHEDULER]),
            "DMLC_NUM_SERVER": str(_count(rendezvous, Role.SERVER)),
            "DMLC_NUM_WORKER": str(_count(rendezvous, Role.WORKER)),
            "DMLC_NODE_HOST": me.overlay,
            "PORT": str(ports[me.role]),
        }
        if job.seed is not None:
            env["HOLDFAST_SEED"] = derive(job.seed, me.role.value, me.rank)
        # -P: the working directory, which the job's code can write, is not where modules come from.
        python = (sys.executable, "-P", "-m")
        if me.role is Role.WORKER:
            env["DMLC_ROLE"] = me.role.value
            argv = (*python, "holdfast_node.engines.mxnet.worker", str(code / job.entry), *job.args)
        else:
            # Without DMLC_ROLE: with it, `import mxnet` starts MXNet's own server, which unpickles what it is sent.
            argv = (*python, "holdfast_node.engines.mxnet.server", me.role.value)
        return Launch(argv=argv, env=env, cwd=work)


def python_environment() -> dict[str, str]:
    """Return the environment that the node's interpreter needs to start again, and nothing else of the agent's."""
    package_root = str(Path(holdfast_node.__file__).resolve().parent.parent)
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = [package_root, *(entry for entry in inherited if entry != package_root)]
    return {name: os.environ[name] for name in INHERITED if name in os.environ} | {
        "PATH": os.environ.get("PATH", _DEFAULT_PATH),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
    }


def _count(rendezvous: Rendezvous, role: Role) -> int:
    return sum(peer.role is role for peer in rendezvous.peers)


def _threads() -> int:
    """Half the CPUs this process may use: one per core where a core is two hardware threads, as on EC2."""
    return max(1, len(os.sched_getaffinity(0)) // 2)
