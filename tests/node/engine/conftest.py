"""A whole cluster of MXNet launchers on this machine's overlay addresses, with no wire between them."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
#: The node environment under test: `make gpu-test` names the one with MXNet's CUDA build.
ENVIRONMENT = ROOT / os.environ.get("HOLDFAST_TEST_ENVIRONMENT", ".venv-node")
PYTHON = ENVIRONMENT / "bin/python"
PREPARE = """
import dataclasses, json, sys
from pathlib import Path
from holdfast_node.contract.documents import CodeArchive, JobDocument, Peer, Rendezvous
from holdfast_node.contract.roles import Role
from holdfast_node.engines import get_engine
spec = json.loads(sys.argv[1])
root, code = Path(spec["root"]), Path(spec["code"])
counts = {Role.SCHEDULER: 1, Role.SERVER: spec["servers"], Role.WORKER: spec["workers"]}
peers = [Peer(role=role, rank=rank, instance_id=f"i-{index:08x}{rank:04x}", address="10.0.0.1")
         for index, (role, count) in enumerate(counts.items()) for rank in range(count)]
job = JobDocument(job_id="test-job", cluster="test", engine="mxnet", entry=spec["entry"], args=tuple(spec["args"]),
    workers=spec["workers"], servers=spec["servers"], model_dir="model", timeout_seconds=60,
    code=CodeArchive(sha256="0" * 64, size=1), seed=spec["seed"])
ports = {Role(name): port for name, port in spec["ports"].items()}
launches = {}
for peer in peers:
    launch = get_engine("mxnet").launch(job=job, rendezvous=Rendezvous(job_id="test-job", generation=1,
        peers=tuple(peers)), me=peer, ports=ports, code=code, work=root / f"{peer.role}{peer.rank}",
        checkpoints=root / "checkpoints")
    launches[f"{peer.role}{peer.rank}"] = {"argv": launch.argv, "env": launch.env, "cwd": str(launch.cwd)}
print(json.dumps(launches))
"""


def node_environment(**extra: str) -> dict[str, str]:
    """The environment of a node's interpreter here."""
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT / "node"), **extra}


def run_node(
    script: str, *arguments: str, stdin: str = "", timeout: float = 120, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in the node's interpreter to its end."""
    return subprocess.run(
        [PYTHON, "-c", script, *arguments],
        input=stdin,
        env=node_environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


#: First ports, three apart: no two clusters of a test run share one before both have started.
_FIRST_PORTS = itertools.cycle(random.sample(range(20000, 30000, 3), 3334))


def free_ports() -> dict[str, int]:
    """Three neighbouring ports at which nobody on this machine listens, whatever the address."""
    while True:
        ports = range(first := next(_FIRST_PORTS), first + 3)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in ports:
                held.enter_context(socket.socket()).bind(("", port))
            return dict(zip(("scheduler", "server", "worker"), ports, strict=True))


@dataclass
class Cluster:
    """The launches of a job, started one by one; every process is ended by `stop`."""

    root: Path
    code: Path
    entry: str = "train.py"
    args: tuple[str, ...] = ()
    workers: int = 2
    servers: int = 2
    seed: str | None = None
    ports: dict[str, int] = field(default_factory=free_ports)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    launches: dict[str, dict[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = ("root", "code", "entry", "args", "workers", "servers", "seed", "ports")
        spec = json.dumps({key: value for key, value in self.__dict__.items() if key in keys}, default=str)
        done = run_node(PREPARE, spec, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        self.launches = json.loads(done.stdout)
        for name in self.launches:
            (self.root / name).mkdir(parents=True)

    def start(self, *names: str) -> None:
        """Start these nodes, or all of them."""
        for name in names or self.launches:
            launch = self.launches[name]
            with self.log_path(name).open("wb") as log:
                self.processes[name] = subprocess.Popen(
                    launch["argv"], env=launch["env"], cwd=launch["cwd"], stdout=log, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip

    def start_raw(self, name: str, argv: list[str], **env: str) -> None:
        """Start another program in place of a node's launcher."""
        launch = dict(self.launches[name])
        self.launches[name] = launch | {"argv": argv, "env": {**launch["env"], **env}}
        self.start(name)

    def start_vanilla(self, *names: str, **env: str) -> None:
        """Start these nodes, or all of them, on MXNet as it is: no launcher, no guard."""
        for name in names or tuple(self.launches):
            role = name.rstrip("0123456789")
            script = [str(self.code / self.entry), *self.args] if role == "worker" else ["-c", "import mxnet"]
            self.start_raw(name, [str(PYTHON), *script], DMLC_ROLE=role, **env)

    def log_path(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def log(self, name: str) -> str:
        return self.log_path(name).read_text(errors="replace")

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{self.log(name)}" for name in self.processes)

    def events(self, name: str, event: str) -> list[dict[str, object]]:
        lines = [line for line in self.log(name).splitlines() if line.startswith('{"event"')]
        return [parsed for parsed in map(json.loads, lines) if parsed["event"] == event]

    def wait(self, *names: str, timeout: float = 90) -> dict[str, int]:
        """Return the exit statuses of these nodes (or all) once they have ended."""
        deadline = time.monotonic() + timeout
        try:
            return {
                name: self.processes[name].wait(max(0.1, deadline - time.monotonic()))
                for name in names or self.processes
            }
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {timeout} s:\n{self.logs()}") from None

    def wait_for(self, name: str, text: str, timeout: float = 90) -> None:
        """Return once a node's log holds this text."""
        deadline = time.monotonic() + timeout
        while text not in self.log(name):
            assert time.monotonic() < deadline, f"{text!r} is not in the log of {name}:\n{self.logs()}"
            time.sleep(0.05)

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Make clusters; their processes end with the test. `script` is the job's code, else `code` is its folder."""
    made: list[Cluster] = []

    def make(*, script: str | None = None, code: Path | None = None, **settings: object) -> Cluster:
        root = tmp_path / f"cluster{len(made)}"
        root.mkdir()
        if code is None:
            code = root / "code"
            code.mkdir()
            if script is not None:
                (code / "train.py").write_text(script)
        made.append(Cluster(root=root, code=code, **settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="session")
def in_node() -> Callable[..., dict[str, object]]:
    """Run a script of `in_node/` in the node's interpreter; return the JSON on its last line."""

    def run(name: str, argument: object = None) -> dict[str, object]:
        script = (Path(__file__).parent / "in_node" / name).read_text()
        done = run_node(script, stdin=json.dumps(argument))
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(result, dict)
        return result

    return run
