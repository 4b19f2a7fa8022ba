"""A real MXNet model, signed, verified, loaded and served by the real process."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from predict_support import Authority, Client, client_context

from holdfast_node.contract.roles import Serving
from holdfast_node.predict.places import Places
from holdfast_node.signing import public_key_pem, sign_model

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-node/bin/python"
KEY = ec.generate_private_key(ec.SECP256R1())
PEM = public_key_pem(KEY.public_key())

#: Gluon's export and Module's checkpoint of one network, and what vanilla MXNet says of two inputs.
EXPORT = """
import json, sys, mxnet as mx
mx.random.seed(3)
net = mx.gluon.nn.HybridSequential()
net.add(mx.gluon.nn.Dense(8, activation='relu'), mx.gluon.nn.BatchNorm(), mx.gluon.nn.Dense(3))
net.initialize(mx.init.Xavier()); net.hybridize()
x = mx.nd.array([[0.1, -2, 3, 4], [1, 1, 1, 1]])
for _ in range(3):
    with mx.autograd.record():
        net(x)  # moves BatchNorm's running averages: they are auxiliary states, and must be loaded
out = net(x)
net.export(sys.argv[1] + '/net')
data = mx.sym.var('data')
symbol = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(data, num_hidden=3, name='fc'), name='softmax')
module = mx.mod.Module(symbol, data_names=['data'], label_names=['softmax_label'])
module.bind([('data', (2, 4))], [('softmax_label', (2,))]); module.init_params(mx.init.Xavier())
module.forward(mx.io.DataBatch([x], [mx.nd.zeros(2)]), is_train=False)
module.save_checkpoint(sys.argv[1] + '/module', 0)
print(json.dumps([mx.nd.softmax(out).asnumpy().tolist(), module.get_outputs()[0].asnumpy().tolist()]))
"""
ROWS = [[0.1, -2, 3, 4], [1, 1, 1, 1]]
SERVING = {"version": 1, "symbol": "net-symbol.json", "parameters": "net-0000.params", "input": "data", "shape": [4]}
SERVING |= {"activation": "softmax", "labels": ["cat", "dog", "hen"]}


@dataclass
class Node:
    """A predictor's directories, as its agent leaves them."""

    root: Path
    authority: Authority
    predictions: dict[str, Any]
    serving: dict[str, Any]

    @property
    def places(self) -> Places:
        return Places(self.root / "var/lib/holdfast/job")

    def prepare(self, exported: Path) -> None:
        places = self.places
        shutil.copytree(exported, places.model)
        if self.serving["symbol"]:
            (places.model / "serving.json").write_text(json.dumps(self.serving))
        record = {"version": 1, "job_id": "digits-1", "cluster": "demo"}
        (places.model / "holdfast-model.json").write_text(json.dumps(record))
        sign = sign_model(places.model, "digits-1", lambda m: KEY.sign(m, ec.ECDSA(SHA256())), PEM)
        places.signature.write_bytes(sign)
        places.key.write_bytes(PEM)
        self.authority.issue(places.tls, Serving.PREDICTOR, "i-00000000ff")
        places.denied.write_text("[]")
        (self.root / "etc/holdfast").mkdir(parents=True)
        names = ("jobs_bucket", "models_bucket", "enrolment_function", "job_signing_key", "model_signing_key")
        config = {
            **dict.fromkeys((*names, "log_group", "file_system_id", "access_point_id"), "x"),
            **{"cluster": "demo", "role": "predictor", "region": "us-east-1"},
            "ports": {"scheduler": 9091, "server": 9092, "worker": 9093},
            "bundle": {"bucket": "assets", "key": "bundle.zip", "sha256": "0" * 64},
            "predictions": {"job_id": "digits-1", "batch_rows": 4} | self.predictions,
        }
        (self.root / "etc/holdfast/node.json").write_text(json.dumps(config))

    @contextmanager
    def process(self) -> Iterator[subprocess.Popen[str]]:
        argv = [PYTHON, "-P", "-m", "holdfast_node.predict.service", "--root", self.root, "--listen", "127.0.0.1"]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "node")}
        process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)

    def refusal(self) -> str:
        with self.process() as process:
            assert process.wait(60) == 1
            assert process.stderr is not None
            return process.stderr.read()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    directory = tmp_path_factory.mktemp("exported")
    result = subprocess.run([PYTHON, "-c", EXPORT, directory], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return directory, json.loads(result.stdout)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_node(root: Path, *, serving: dict[str, Any] | None = None, **predictions: Any) -> Node:
    return Node(root, Authority(), {"port": free_port()} | predictions, SERVING | (serving or {}))


def ask(node: Node, process: subprocess.Popen[str], rows: list[Any]) -> tuple[Any, Any]:
    assert process.stderr is not None
    while "serving" not in (line := process.stderr.readline()):
        assert line, "the service ended"
    identity = node.authority.issue(node.root / "client")
    client = Client(node.predictions["port"], client_context(identity, node.places.tls / "ca.pem"))
    status, about, _ = client.request("GET", "/v1/model")
    assert status == 200
    status, value, _ = client.predict(rows)
    assert status == 200, value
    return about, value["predictions"]


def best(row: list[float]) -> str:
    return str(SERVING["labels"][row.index(max(row))])  # type: ignore[index]


def test_a_gluon_model_is_served_as_labels_by_default(exported: tuple[Path, list[Any]], tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.prepare(exported[0])
    with node.process() as process:
        about, answers = ask(node, process, ROWS)
    assert answers == [best(row) for row in exported[1][0]]
    assert about == {
        **{"job_id": "digits-1", "cluster": "demo", "shape": [4], "labels": ["cat", "dog", "hen"]},
        **{"output": "labels", "digits": 2, "top_k": 3},
        **{"batch_rows": 4, "rows_per_minute": 120, "rows_per_day": 1000},
    }


def test_a_modules_probabilities_are_served_rounded(exported: tuple[Path, list[Any]], tmp_path: Path) -> None:
    files = {"symbol": "module-symbol.json", "parameters": "module-0000.params", "activation": "none"}
    node = new_node(tmp_path, serving=files, output="probabilities")
    node.prepare(exported[0])
    with node.process() as process:
        answers = ask(node, process, ROWS)[1]
    assert answers == [
        {label: round(value, 2) for label, value in zip(SERVING["labels"], row, strict=True)}  # type: ignore[call-overload]
        for row in exported[1][1]
    ]


def tamper(node: Node) -> None:
    path = node.places.model / "net-0000.params"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


REFUSED = {
    "a tampered model": (tamper, {}, {}, "predictor: net-0000.params is not what was signed: its SHA-256 must be "),
    "an added file": (
        lambda node: (node.places.model / "x.py").touch(),
        {},
        {},
        "predictor: x.py is not part of the signed model; somebody added it after signing",
    ),
    "another job's model": (
        lambda node: None,
        {},
        {"job_id": "digits-2"},
        "predictor: this model was made by job digits-1, not by digits-2; somebody swapped the models",
    ),
    "a description of another version": (
        lambda node: None,
        {"version": 2},
        {},
        "predictor: the model's serving.json: serving.json version must be 1, got 2",
    ),
    "no description": (
        lambda node: None,
        {"symbol": ""},
        {},
        "predictor: the model of job digits-1 holds no serving.json, which says how to use it; have the script ",
    ),
    "a file that is not there": (
        lambda node: None,
        {"parameters": "../key.pem"},
        {},
        "predictor: the model has no file '../key.pem', it has ",
    ),
    "parameters of another network": (
        lambda node: None,
        {"parameters": "module-0000.params"},
        {},
        "predictor: module-0000.params must hold ",
    ),
    "another shape": (lambda node: None, {"shape": [5]}, {}, "predictor: net-0000.params must hold "),
    "no symbol": (lambda node: None, {"symbol": "net-0000.params"}, {}, "predictor: net-0000.params cannot be loaded"),
    "logits": (lambda node: None, {"activation": "none"}, {}, "predictor: the model's output must be probabilities"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_service_does_not_start_with(case: str, exported: tuple[Path, list[Any]], tmp_path: Path) -> None:
    change, serving, predictions, message = REFUSED[case]
    node = new_node(tmp_path, serving=serving, **predictions)
    node.prepare(exported[0])
    change(node)
    text = node.refusal()
    assert message in text
    assert "Traceback" not in text
