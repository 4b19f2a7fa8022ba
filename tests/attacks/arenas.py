"""Where attacks happen: one Holdfast job that must survive all of them, and vanilla clusters that need not.

An arena is made once and used by many attacks; what it starts, it starts when the first attack asks for it.
"""

import contextlib
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast_local.lab import (
    NODE_PYTHON,
    OPEN_GROUP,
    Authority,
    Cluster,
    HoldfastCluster,
    Host,
    LabError,
    Network,
    Process,
    VanillaCluster,
    python_environment,
    role_group,
)
from holdfast_node.contract.layout import User
from holdfast_node.contract.roles import Role

IN_HOST = Path(__file__).parent / "in_host"
#: A gradient whose bytes nothing else has: four float32 of it are 16 bytes that random data holds once in 2^128.
GRADIENT = 1.2345678
GRADIENT_BYTES = struct.pack("<f", GRADIENT) * 4
INTRUDER, OUTSIDER = "10.77.2.66", "10.77.9.66"


def program(name: str) -> str:
    """Return the path of a program for hosts."""
    return str(IN_HOST / f"{name}.py")


def tell(host: Host, name: str, *arguments: str, seconds: float = 60) -> Any:
    """Return the JSON that a program prints last on a host, as root: the strongest that an attacker there can be."""
    done = host.run([NODE_PYTHON, program(name), *arguments], env=python_environment(), seconds=seconds)
    if done.returncode:
        raise LabError(f"{name} on {host.name} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Job:
    """The job of `in_host/job.py` on a cluster: it steps on until it is told to stop, and its result is known."""

    def __init__(
        self, kind: type[Cluster], network: Network, *, workers: int = 2, env: Mapping[str, str] | None = None
    ) -> None:
        self.network, self.stop_file = network, network.directory / "stop"
        settings = {"ATTACK_GRADIENT": str(GRADIENT), "ATTACK_STOP": str(self.stop_file), **(env or {})}
        self.cluster = kind(network, script=Path(program("job")).read_text(), workers=workers, env=settings)

    def steps(self, name: str = "worker0") -> list[tuple[int, float]]:
        """Return the number of each step of a worker and the weight after it."""
        lines = [line.split() for line in self.cluster.log(name).splitlines() if line.startswith("STEP ")]
        return [(int(line[1]), float(line[3])) for line in lines if len(line) == 4]

    def await_steps(self, more: int = 3, seconds: float = 30) -> int:
        """Return the last step's number once every started worker has made `more` steps from now."""
        workers = [name for name in self.cluster.processes if name.startswith("worker")]
        before = {name: len(self.steps(name)) for name in workers}
        deadline = time.monotonic() + seconds
        while any(len(self.steps(name)) < before[name] + more for name in workers):
            if time.monotonic() > deadline:
                raise LabError(f"the job made no {more} steps within {seconds:g} s:\n{self.cluster.logs()}")
            time.sleep(0.02)
        return len(self.steps())

    def finish(self) -> int:
        """Have the job stop and return how many steps it made.

        Raises:
            LabError: a process did not end with 0, or the weights are not what the steps come to.
        """
        last = len(self.steps()) + 40
        temporary = self.stop_file.with_suffix(".new")
        temporary.write_text(str(last))
        temporary.chmod(0o644)
        temporary.rename(self.stop_file)
        if any(status := self.cluster.wait().values()):
            raise LabError(f"the job ended with {list(status)}:\n{self.cluster.logs()}")
        for name in (name for name in self.cluster.peers if name.startswith("worker")):
            steps, weight = self.steps(name)[-1]
            wanted = -GRADIENT * self.cluster.workers * steps
            if steps != last or abs(weight - wanted) > 1e-4 * abs(wanted):
                raise LabError(f"{name} has weight {weight} after {steps} of {last} steps, wanted {wanted}")
        return last


class HoldfastJob(Job):
    """The Holdfast job, with an intruder in all of the cluster's security groups and an outsider in none."""

    cluster: HoldfastCluster

    def __init__(self, network: Network, *, workers: int = 2) -> None:
        super().__init__(HoldfastCluster, network, workers=workers)
        # The intruder has what only the account's owner could give it: so that the wire is tried, not the groups.
        self.intruder = network.host("intruder", INTRUDER, [role_group(role) for role in Role])
        self.outsider = network.host("outsider", OUTSIDER)
        self.instance_id = "i-0badbad0"

    def credentials(self, name: str, **changes: Any) -> Path:
        """Return a directory with a key and certificate; by default the ones that worker 1 would get, now."""
        peer = self.cluster.peers["worker1"]
        settings: dict[str, Any] = {"role": peer.role, "instance_id": peer.instance_id, "address": peer.address}
        authority: Authority = changes.pop("authority", self.cluster.authority)
        directory = self.network.directory / "credentials" / name
        authority.issue(directory, **settings | changes)
        return directory

    def dial(self, host: Host, target: str, credentials: Path | str = "") -> tuple[bool, str]:
        """Return whether a node's trainer answers this host, and why not, in the words of dialler and tunnel."""
        peer, log = self.cluster.peers[target], self.cluster.tunnels[target].log_path
        before = log.stat().st_size
        told = tell(
            host, "dial", peer.address, str(self.cluster.ports[peer.role]), *([str(credentials)] if credentials else [])
        )
        said = log.read_bytes()[before:].decode(errors="replace")
        return bool(told["admitted"]), f"{told['why']}; the tunnel: {complaint(said)}"


#: What `complaint` returns where a tunnel refused nothing.
NO_COMPLAINT = ("accepted it", "was not reached")


def complaint(said: str) -> str:
    """Return the first complaint in a stunnel log, without its prefix, or what the log says instead."""
    texts = [line.partition("]: ")[2] for line in said.splitlines() if "]: " in line]
    complaints = [
        t for t in texts if any(w in t for w in ("ejected", "checks failed", "verif", "error:", "peer did not"))
    ]
    if complaints:
        return complaints[0][:160]
    return NO_COMPLAINT[0] if any("new session negotiated" in text for text in texts) else NO_COMPLAINT[1]


class Arena:
    """All that the attacks of one run share. `small` is the size inside `make test`."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self._resources = contextlib.ExitStack()
        self._known: dict[str, Any] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> "Arena":
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returned the first time: an observation that several rows rest on."""
        with self._lock:
            if name not in self._known:
                self._known[name] = make()
            return self._known[name]

    @cached_property
    def holdfast(self) -> HoldfastJob:
        """The running Holdfast job."""
        network = self._resources.enter_context(Network())
        job = HoldfastJob(network)
        with network.capture("wire") as capture:
            job.cluster.start()
            job.await_steps(10, seconds=90)
        self._known["holdfast capture"] = capture
        admitted, why = job.dial(job.cluster.host("worker1"), "server0", job.cluster.paths["worker1"].tls)
        if not admitted:
            raise LabError(f"the job's own worker must be admitted, or no refusal proves anything; {why}")
        return job

    @cached_property
    def vanilla(self) -> Job:
        """A running vanilla job that only reads: no attack harms it."""
        network = self._resources.enter_context(Network())
        job = Job(VanillaCluster, network)
        network.host("outsider", OUTSIDER, [OPEN_GROUP])
        with network.capture("wire") as capture:
            job.cluster.start()
            job.await_steps(10, seconds=90)
        self._known["vanilla capture"] = capture
        return job


@contextlib.contextmanager
def vanilla(**settings: Any) -> Iterator[tuple[Job, Host]]:
    """A vanilla job of its own, not started, and an outsider on the same open network."""
    with Network() as network:
        job = Job(VanillaCluster, network, **settings)
        yield job, network.host("outsider", OUTSIDER, [OPEN_GROUP])


def join_as(job: Job, host: Host, role: Role, address: str, name: str, **env: str) -> Process:
    """Start a program on a host that joins a vanilla job with MXNet's own means."""
    assert isinstance(job.cluster, VanillaCluster)
    environment = job.cluster.environment(role, address) | env
    return host.start([NODE_PYTHON, program(name)], name=f"rogue-{role}", user=65534, env=environment)


def rogue_peer(cluster: Cluster, kind: str, trigger: Path) -> Process:
    """Start a program on worker 1's host that joins as worker 1 and attacks the server once `trigger` is there."""
    names = ("scheduler0", "worker1", "server0")
    if isinstance(cluster, HoldfastCluster):
        cluster.start_tunnel("worker1")
        peers = [f"{cluster.peers[name].overlay}:{cluster.ports[cluster.peers[name].role]}" for name in names]
    else:
        peers = [f"{cluster.peers[name].address}:{cluster.ports[cluster.peers[name].role]}" for name in names]
    argv = [NODE_PYTHON, program("rogue_peer"), kind, trigger, *peers]
    return cluster.host("worker1").start(argv, name="rogue", user=User.TRAINER, env=python_environment())
