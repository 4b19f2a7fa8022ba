"""MXNet clusters on a lab network: as MXNet's own documentation starts them, and as Holdfast's nodes do."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from holdfast_local.hosts.setup import make_directories
from holdfast_local.lab.authority import Authority
from holdfast_local.lab.errors import LabError
from holdfast_local.lab.hosts import NODE_PYTHON, Host, Process, python_environment
from holdfast_local.lab.network import OPEN_GROUP, Network, role_group
from holdfast_node.contract.documents import CodeArchive, JobDocument, Peer, Rendezvous
from holdfast_node.contract.layout import UIDS, NodePaths, User
from holdfast_node.contract.roles import DEFAULT_PORTS, Role
from holdfast_node.firewall import admission, ruleset
from holdfast_node.tunnel import stunnel_config, write_private

CLUSTER = "lab"
JOB_ID = "lab-job"
_THIRD_OCTET = {Role.SCHEDULER: 0, Role.SERVER: 1, Role.WORKER: 2}
_CODES = {Role.SCHEDULER: 1, Role.SERVER: 2, Role.WORKER: 3}


def address_of(role: Role, rank: int) -> str:
    """Return a node's address: falling with its rank, so that MXNet's rank, by address string, is the same."""
    return f"10.77.{_THIRD_OCTET[role]}.{249 - rank}"


def peers_of(*, workers: int, servers: int) -> tuple[Peer, ...]:
    """Return the nodes of a lab job: one scheduler, and these."""
    counts = {Role.SCHEDULER: 1, Role.SERVER: servers, Role.WORKER: workers}
    return tuple(
        Peer(role=role, rank=rank, instance_id=f"i-{_CODES[role]:08x}{rank:04x}", address=address_of(role, rank))
        for role, count in counts.items()
        for rank in range(count)
    )


class Cluster:
    """What both kinds have in common; nodes have names like `scheduler0`, `server1`, `worker0`.

    The job is a plain script (its text) or a folder with an entry. `processes` has the trainer of each started node.
    """

    #: The security groups of a role's hosts.
    groups: Mapping[Role, tuple[str, ...]]

    def __init__(
        self,
        network: Network,
        *,
        script: str | None = None,
        code: Path | None = None,
        entry: str = "train.py",
        args: tuple[str, ...] = (),
        workers: int = 1,
        servers: int = 1,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Put the job's nodes on the network, and start nothing. `env` is added to every trainer's environment."""
        self.network, self.entry, self.args, self.env = network, entry, args, dict(env or {})
        self.workers, self.servers, self.ports = workers, servers, dict(DEFAULT_PORTS)
        self.code = network.directory / "code"
        if code is not None:
            shutil.copytree(code, self.code)
        else:
            self.code.mkdir()
            (self.code / entry).write_text(script or "")
        self.checkpoints = network.directory / "checkpoints"
        self.checkpoints.mkdir(mode=0o700)
        os.chown(self.checkpoints, UIDS[User.TRAINER], UIDS[User.TRAINER])
        self.peers = {f"{peer.role}{peer.rank}": peer for peer in peers_of(workers=workers, servers=servers)}
        self.processes: dict[str, Process] = {}
        self.paths: dict[str, NodePaths] = {}
        for name, peer in self.peers.items():
            host = network.host(name, peer.address, self.groups[peer.role])
            self.paths[name] = NodePaths(host.directory / "root")
            make_directories(self.paths[name], UIDS)

    def host(self, name: str) -> Host:
        """Return a node's host."""
        return self.network.hosts[name]

    def start(self, *names: str) -> None:
        """Start the trainers of these nodes, or of all."""
        for name in names or self.peers:
            self.processes[name] = self.start_trainer(name)

    def start_trainer(self, name: str) -> Process:
        """Start one node's trainer."""
        raise NotImplementedError

    def log(self, name: str) -> str:
        """Return what a node's trainer has written."""
        return self.processes[name].log()

    def logs(self) -> str:
        """Return the ends of all trainers' logs."""
        return "\n".join(f"--- {name}\n{process.log()[-3000:]}" for name, process in self.processes.items())

    def wait(self, *names: str, seconds: float = 120) -> dict[str, int]:
        """Return the exit statuses of these nodes' trainers (or all); raise LabError if one still runs after that."""
        deadline = time.monotonic() + seconds
        return {name: self.processes[name].wait(max(0.1, deadline - time.monotonic())) for name in names or self.peers}

    def stop(self) -> None:
        """Kill the trainers; hosts, tunnels and rules stay."""
        for process in self.processes.values():
            process.kill()


class VanillaCluster(Cluster):
    """MXNet as documented: `import mxnet` on scheduler and servers, the plain script on workers, an open network.

    https://mxnet.apache.org/versions/1.9.1/api/faq/distributed_training
    """

    groups = dict.fromkeys(Role, (OPEN_GROUP,))

    def environment(self, role: Role, address: str) -> dict[str, str]:
        """Return what MXNet needs to join with this role and address."""
        return python_environment(
            DMLC_ROLE=role.value,
            DMLC_PS_ROOT_URI=self.peers["scheduler0"].address,
            DMLC_PS_ROOT_PORT=str(self.ports[Role.SCHEDULER]),
            DMLC_NUM_SERVER=str(self.servers),
            DMLC_NUM_WORKER=str(self.workers),
            DMLC_NODE_HOST=address,
            PORT=str(self.ports[role]),
            CHECKPOINT_DIR=str(self.checkpoints),
            OMP_NUM_THREADS="1",
            PYTHONUNBUFFERED="1",
            **self.env,
        )

    def start_trainer(self, name: str) -> Process:
        """Start one node as MXNet's documentation does."""
        peer, paths = self.peers[name], self.paths[name]
        script = (str(self.code / self.entry), *self.args)
        argv = (str(NODE_PYTHON), *(script if peer.role is Role.WORKER else ("-c", "import mxnet")))
        env = self.environment(peer.role, peer.address) | {
            "HOME": str(paths.work),
            "MODEL_DIR": str(paths.work / "model"),
        }
        return self.host(name).start(argv, name=f"trainer-{name}", user=User.TRAINER, env=env, cwd=paths.work)


class HoldfastCluster(Cluster):
    """The same parts as a node's, minus agent and AWS: certificates, nftables rules, stunnel, the engine's launch.

    Every part runs as the user that runs it on a node. The rendezvous is made here instead of by the scheduler's
    agent, and the CA is the lab's (`Authority`).
    """

    groups = {role: (role_group(role),) for role in Role}  # noqa: RUF012 - never changed

    def __init__(self, network: Network, **settings: Any) -> None:
        """Put the job's nodes on the network with their rules and certificates, and start nothing."""
        super().__init__(network, **settings)
        self.authority = Authority(CLUSTER)
        self.rendezvous = Rendezvous(job_id=JOB_ID, generation=1, peers=tuple(self.peers.values()))
        self.tunnels: dict[str, Process] = {}
        self.launches = self._launches()
        for name, peer in self.peers.items():
            self.firewall(name)
            tls = self.paths[name].tls
            self.authority.issue(tls, role=peer.role, instance_id=peer.instance_id, address=peer.address)

    def start(self, *names: str) -> None:
        """Start the tunnels of these nodes (or all) that have none, then their trainers."""
        for name in names or self.peers:
            if name not in self.tunnels:
                self.start_tunnel(name)
        for name in names or self.peers:
            self.host(name).await_listener(self.peers[name].address, self.ports[self.peers[name].role])
        super().start(*names)

    def firewall(self, name: str) -> None:
        """Set a node's rules and admit its peers, as its firewall and peers services do."""
        role = self.peers[name].role
        rules = ruleset(role=role, ports=self.ports, uids=UIDS) + admission(role=role, rendezvous=self.rendezvous)
        done = self.host(name).run(["nft", "-f", "-"], stdin=rules)
        if done.returncode:
            raise LabError(f"nft refused the rules of {name}: {done.stderr}")

    def start_tunnel(self, name: str) -> Process:
        """Write a node's tunnel configuration and start its tunnel."""
        paths = self.paths[name]
        config = stunnel_config(
            cluster=CLUSTER, me=self.peers[name], rendezvous=self.rendezvous, ports=self.ports, paths=paths
        )
        write_private(paths.stunnel_config, config)
        os.chown(paths.stunnel_config, UIDS[User.AGENT], UIDS[User.TUNNEL])
        argv = ["stunnel", str(paths.stunnel_config)]
        self.tunnels[name] = self.host(name).start(argv, name=f"tunnel-{name}", user=User.TUNNEL)
        return self.tunnels[name]

    def start_trainer(self, name: str) -> Process:
        """Start one node's trainer service on the prepared launch."""
        paths = self.paths[name]
        paths.launch.write_text(json.dumps(self.launches[name]))
        argv = [str(NODE_PYTHON), "-P", "-m", "holdfast_node.trainer", "--root", str(paths.root)]
        return self.host(name).start(argv, name=f"trainer-{name}", user=User.TRAINER, env=python_environment())

    def _launches(self) -> dict[str, dict[str, Any]]:
        job = JobDocument(
            job_id=JOB_ID,
            cluster=CLUSTER,
            engine="mxnet",
            entry=self.entry,
            args=self.args,
            workers=self.workers,
            servers=self.servers,
            model_dir="model",
            timeout_seconds=600,
            code=CodeArchive(sha256="0" * 64, size=1),
        )
        spec = {
            "job": asdict(job),
            "rendezvous": asdict(self.rendezvous),
            "ports": self.ports,
            "code": str(self.code),
            "work": {name: str(paths.work) for name, paths in self.paths.items()},
            "checkpoints": str(self.checkpoints),
        }
        done = subprocess.run(
            [NODE_PYTHON, "-m", "holdfast_local.lab.launches"],
            input=json.dumps(spec),
            env=python_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise LabError(f"the engine cannot launch the job: {done.stderr[-2000:]}")
        launches: dict[str, dict[str, Any]] = json.loads(done.stdout)
        for launch in launches.values():
            launch["env"] |= self.env
        return launches
