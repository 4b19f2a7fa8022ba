"""Real jobs of real MXNet processes: what trains, what is refused, what ends how."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.node.engine.conftest import PYTHON, run_node

ROOT = Path(__file__).resolve().parents[3]

DIGITS = ROOT / "examples/digits"
EXIT_REFUSED, EXIT_PORT = 77, 69

MakeCluster = Callable[..., Any]

TINY = "import mxnet as mx\nkv = mx.kv.create('dist_sync')\n"


def test_digits_trains_on_a_whole_cluster_to_the_accuracy_it_promises(cluster: MakeCluster) -> None:
    job = cluster(code=DIGITS)
    job.start()
    assert set(job.wait(timeout=150).values()) == {0}, job.logs()
    for rank in (0, 1):
        (joined,) = job.events(f"worker{rank}", "joined")
        assert joined["rank"] == rank  # ps-lite's rank is the job's
        (first,) = job.events(f"worker{rank}", "first_step")
        assert first["time"] > 1_600_000_000
        assert job.events(f"worker{rank}", "done")
    saved = sorted(path.name for path in (job.root / "checkpoints/test-job").iterdir())
    assert saved == [f"epoch-{epoch:03d}.params" for epoch in range(1, 31)]
    assert not (job.root / "worker1/model").exists()
    done = subprocess.run(
        [PYTHON, DIGITS / "evaluate.py", job.root / "worker0/model"], capture_output=True, text=True, timeout=60
    )
    report = json.loads(done.stdout)
    assert report["samples"] == 360
    assert report["accuracy"] >= 0.95


def test_the_digits_file_is_what_its_maker_makes(tmp_path: Path) -> None:
    (tmp_path / "make_data.py").write_bytes((DIGITS / "make_data.py").read_bytes())
    subprocess.run([sys.executable, tmp_path / "make_data.py"], check=True, timeout=60)
    assert (tmp_path / "digits.csv.gz").read_bytes() == (DIGITS / "digits.csv.gz").read_bytes()


#: A server's launcher in a process that ends with 99 where anything unpickles, whatever catches errors.
PICKLE_IS_FATAL = """
import importlib, os, pickle, sys
from holdfast_node.engines.mxnet import pickles, server
def fatal(*_, **__):
    os._exit(99)
disable = pickles.disable
def disable_and_watch():
    sys.addaudithook(lambda event, _: fatal() if event == "pickle.find_class" else None)
    disable()
    for module in map(importlib.import_module, ("pickle", "_pickle")):
        for name in ("load", "loads", "Unpickler", "_load", "_loads", "_Unpickler"):
            setattr(module, name, fatal)
data, loads, original = pickle.dumps(os.getcwd), pickle.loads, pickle.Unpickler
pickles.disable = disable_and_watch
if sys.argv[1] == "control":
    disable_and_watch()
    pickle.loads(data) if sys.argv[2] == "function" else loads(data)
sys.exit(server.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("way", ["function", "kept from before"])
def test_the_watch_on_pickle_ends_a_process_that_unpickles(way: str) -> None:
    assert run_node(PICKLE_IS_FATAL, "control", way).returncode == 99


def test_training_on_the_servers_equals_training_alone_and_nothing_is_unpickled(cluster: MakeCluster) -> None:
    script = (Path(__file__).parent / "in_node/fidelity.py").read_text()
    job = cluster(script=script, workers=1)
    for name, role in (("scheduler0", "scheduler"), ("server0", "server"), ("server1", "server")):
        job.start_raw(name, [str(PYTHON), "-P", "-c", PICKLE_IS_FATAL, role])
    job.start("worker0")
    assert set(job.wait().values()) == {0}, job.logs()
    (line,) = (line for line in job.log("worker0").splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    assert [result[f"same at {rate}"] for rate in (0.05, 0.02, 0.01)] == [True, True, True]
    assert result["moved"]
    assert result["index"] == ["servers", "token", "version"]
    assert result["parts"] == ["trainer.states.server0.npz", "trainer.states.server1.npz"]
    assert result["outside"].startswith("StateError: optimizer states must be below $CHECKPOINT_DIR")
    assert result["absent"].startswith("StateError: cannot load optimizer states from ")
    assert result["second optimizer"].startswith("ConflictError: this job's servers hold another optimizer already")
    assert result["own optimizer"].startswith("SpecError: optimizer must be one of")
    assert result["momentum"].startswith(
        "EngineError: optimizer.momentum must not change after training has begun, got 0.5 instead of 0.9"
    )


def test_module_fit_trains_unchanged_with_a_scheduler_and_checkpoints(cluster: MakeCluster) -> None:
    script = """
import os
import mxnet as mx, numpy as np
data = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=2, name="fc")
module = mx.mod.Module(mx.sym.SoftmaxOutput(data, name="softmax"))
points = np.random.RandomState(0).randn(64, 4).astype("float32")
batches = mx.io.NDArrayIter(points, (points[:, 0] > 0).astype("float32"), batch_size=16)
settings = {"learning_rate": 1.0, "lr_scheduler": mx.lr_scheduler.FactorScheduler(8, 0.5, base_lr=1.0)}
module.fit(batches, num_epoch=10, kvstore="dist_sync", optimizer="sgd", optimizer_params=settings,
           epoch_end_callback=mx.callback.do_checkpoint(os.environ["CHECKPOINT_DIR"] + "/fit"))
print("ACCURACY", module.score(batches, "acc")[0][1] > 0.9, flush=True)
"""
    job = cluster(script=script, workers=1)
    job.start()
    assert set(job.wait().values()) == {0}, job.logs()
    assert "ACCURACY True" in job.log("worker0")
    saved = {path.name for path in (job.root / "checkpoints/test-job").iterdir()}
    assert saved == {"fit-symbol.json"} | {f"fit-{epoch:04d}.params" for epoch in range(1, 11)}


def test_workers_with_different_optimizers_end_the_job(cluster: MakeCluster) -> None:
    script = TINY + "kv.set_optimizer(mx.optimizer.SGD(learning_rate=0.1 * (1 + kv.rank)))\nkv._barrier()\n"
    job = cluster(script=script, servers=1)
    job.start()
    assert job.wait("server0") == {"server0": EXIT_REFUSED}, job.logs()
    (event,) = job.events("server0", "command_refused")
    assert event["reason"].startswith("ConflictError: this job's workers disagree about the optimizer")


@pytest.mark.parametrize("name", ["scheduler0", "server0", "worker0"])
def test_a_taken_port_is_named_and_ends_the_launcher(cluster: MakeCluster, name: str) -> None:
    job = cluster(script=TINY, workers=1, servers=1)
    env = job.launches[name]["env"]
    with socket.create_server((env["DMLC_NODE_HOST"], int(env["PORT"]))):
        job.start(name)
        assert job.wait(name) == {name: EXIT_PORT}
    last = job.log(name).splitlines()[-1]
    assert last.startswith(f"PortError: port {env['PORT']} on {env['DMLC_NODE_HOST']} must be free for the trainer")


def test_a_script_that_fails_ends_its_worker_at_once_with_its_own_message(cluster: MakeCluster) -> None:
    script = TINY + "def f():\n    raise RuntimeError('no such luck')\nif kv.rank == 0:\n    f()\nkv._barrier()\n"
    job = cluster(script=script, servers=1)
    job.start()
    assert job.wait("worker0") == {"worker0": 1}, job.logs()
    log = job.log("worker0")
    assert log.splitlines()[-1] == "RuntimeError: no such luck"
    assert "train.py" in log.split("Traceback")[1]
    assert "runpy" not in log
    assert not job.events("worker0", "done")
    for name in ("scheduler0", "server0", "worker1"):  # they wait for ever; ending them is the agent's part
        assert job.processes[name].poll() is None
        os.kill(job.processes[name].pid, signal.SIGTERM)
    assert set(job.wait("scheduler0", "server0", "worker1").values()) == {-signal.SIGTERM}


@pytest.mark.parametrize(
    ("script", "status", "last"),
    [
        ("import sys\nsys.exit(3)\n", 3, ""),
        ("import sys\nsys.exit('no data')\n", 1, "no data"),
        ("def broken(:\n", 1, "SyntaxError: invalid syntax"),
        ("import absent_module\n", 1, "ModuleNotFoundError: No module named 'absent_module'"),
        (None, 1, "EngineError: entry must be a file of the job's code, got train.py, which is not there"),
    ],
    ids=["exit status", "exit message", "syntax", "import", "no entry"],
)
def test_a_script_that_never_joins_ends_with_its_cause(
    cluster: MakeCluster, script: str | None, status: int, last: str
) -> None:
    job = cluster(script=script, workers=1, servers=1)
    job.start("worker0")
    assert job.wait("worker0") == {"worker0": status}
    assert (job.log("worker0").splitlines() or [""])[-1] == last


def test_a_launch_carries_nothing_of_the_agents_environment(cluster: MakeCluster, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "secret")
    launches = cluster(script=TINY).launches
    allowed = {
        *("PATH", "LANG", "HOME", "TMPDIR", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"),
        *("PYTHONNOUSERSITE", "OMP_NUM_THREADS", "CHECKPOINT_DIR", "MODEL_DIR", "HOLDFAST_CODE"),
        *("DMLC_PS_ROOT_URI",),
        *("DMLC_PS_ROOT_PORT", "DMLC_NUM_SERVER", "DMLC_NUM_WORKER", "DMLC_NODE_HOST", "PORT", "HOLDFAST_RETENTION"),
        *("HOLDFAST_GENERATION", "HOLDFAST_HEARTBEAT_SECONDS", "PS_HEARTBEAT_INTERVAL"),
    }
    for name, launch in launches.items():
        role = {"DMLC_ROLE"} if name.startswith("worker") else set()
        assert set(launch["env"]) == allowed | role
        assert launch["env"]["DMLC_NODE_HOST"].startswith("127.77.")
