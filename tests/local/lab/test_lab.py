"""The lab itself: clusters train in it, it shows what is on the wire, and nothing outlives it."""

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_local.lab import HoldfastCluster, LabError, Network, VanillaCluster, require, role_group
from holdfast_node.contract.layout import User
from holdfast_node.contract.roles import Role

ROOT = Path(__file__).parents[3]
#: Trains with a gradient whose bytes can be recognised.
TRAIN = """
import mxnet as mx
kv = mx.kv.create("dist_sync")
kv.init(0, mx.nd.zeros(64))
kv.set_optimizer(mx.optimizer.SGD(learning_rate=1.0))
out = mx.nd.zeros(64)
for _ in range(3):
    kv.push(0, mx.nd.full(64, 1.2345678e20))
    kv.pull(0, out=out)
    out.wait_to_read()
print("RANK", kv.rank, "WEIGHT", out[0].asscalar(), flush=True)
"""
GRADIENT = struct.pack("<f", 1.2345678e20) * 4


@pytest.fixture(autouse=True)
def lab_works_here() -> None:
    try:
        require()
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.mark.parametrize(("kind", "readable"), [(VanillaCluster, True), (HoldfastCluster, False)])
def test_a_cluster_trains_and_a_capture_shows_what_passed(
    network: Network, kind: type[VanillaCluster] | type[HoldfastCluster], readable: bool
) -> None:
    cluster = kind(network, script=TRAIN, workers=2, servers=2)
    with network.capture() as capture:
        cluster.start()
        assert set(cluster.wait().values()) == {0}, cluster.logs()
    for rank in (0, 1):
        assert f"RANK {rank} WEIGHT -7.407" in cluster.log(f"worker{rank}")  # 3 pushes of 2 workers
    assert (capture.count(GRADIENT) > 0) is readable
    assert capture.payload_bytes() > 3 * 2 * 2 * 64 * 4
    assert network.drops().spoofed == 0


def test_security_groups_hold_in_the_lab(network: Network) -> None:
    server = network.host("server", "10.77.1.5", [role_group(Role.SERVER)])
    worker = network.host("worker", "10.77.2.5", [role_group(Role.WORKER)])
    outsider = network.host("outsider", "10.77.9.66")
    listener = server.start([sys.executable, "-m", "http.server", "--bind", "10.77.1.5", "9092"])
    server.await_listener("10.77.1.5", 9092)
    dial = (
        "import socket,sys\nsocket.create_connection(('10.77.1.5', int(sys.argv[1])), timeout=1).close()\nprint('in')"
    )
    assert worker.python(dial, "9092") == "in"
    for host, port in ((worker, "9093"), (outsider, "9092")):
        with pytest.raises(LabError, match=r"TimeoutError|timed out"):
            host.python(dial, port)
    assert network.drops().refused > 0
    listener.kill()


def test_a_host_s_users_are_not_root_and_cannot_become_it(network: Network) -> None:
    host = network.host("alone", "10.77.9.1")
    code = "import os\nprint(os.getuid(), open('/proc/self/status').read().count('CapEff:\\t0000000000000000'))"
    assert host.python(code, user=User.TRAINER) == "64103 1"
    assert host.python(code, user=1234) == "1234 1"


def test_nothing_is_left_when_the_driver_is_killed(tmp_path: Path) -> None:
    driver = """
import sys, time
from holdfast_local.lab import HoldfastCluster, Network
network = Network()
cluster = HoldfastCluster(network, script="import time\\ntime.sleep(600)")
cluster.start()
loose = network.host("other", "10.77.9.1").start(["sh", "-c", "setsid sleep 600 & sleep 600"])
pids = [p.popen.pid for p in (*cluster.processes.values(), *cluster.tunnels.values(), loose)]
print(network.directory, *pids, flush=True)
time.sleep(600)
"""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("local", "node"))
    argv = [sys.executable, "-c", driver]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as process:
        assert process.stdout is not None
        directory, *pids = process.stdout.readline().split()
        assert len(pids) == 7
        inside = {namespace(pid) for pid in pids}
        assert len(inside) == 4  # the hosts
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(directory).exists() or inside & {namespace(entry.name) for entry in Path("/proc").glob("[0-9]*")}:
        assert time.monotonic() < deadline, "the lab outlives its driver"
        time.sleep(0.05)


def namespace(pid: str) -> int:
    """The network namespace that a process is in; 0 if it has ended."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0
