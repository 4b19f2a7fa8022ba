"""The trainer service becomes what the agent prepared, or says in one line why not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast_node.contract.layout import NodePaths

SHOW = "import json, os; m = os.umask(0); print(json.dumps([dict(os.environ), os.getcwd(), m, os.getpid()]))"
LAUNCH: dict[str, Any] = {"argv": [sys.executable, "-I", "-c", SHOW], "env": {"LC_ALL": "C", "ONE": "1"}, "cwd": "/"}
MALFORMED: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "launch.json is not JSON: "),
    "a list": ([], "launch.json must have the keys ['argv', 'cwd', 'env'], got list"),
    "a missing key": ({"argv": ["/x"], "env": {}}, "must have the keys ['argv', 'cwd', 'env'], got ['argv', 'env']"),
    "an unknown key": (LAUNCH | {"user": "root"}, "must have the keys ['argv', 'cwd', 'env'], got ['argv', 'cwd',"),
    "no program": (LAUNCH | {"argv": []}, "argv must be a list of strings, with at least a program"),
    "a number in argv": (LAUNCH | {"argv": ["/x", 1]}, "argv must be a list of strings, with at least a program"),
    "a zero byte": (LAUNCH | {"argv": ["/x\0"]}, "argv must be a list of strings, with at least a program"),
    "a number in env": (LAUNCH | {"env": {"A": 1}}, "env must map names to strings"),
    "a name with =": (LAUNCH | {"env": {"A=B": "1"}}, "env must map names to strings"),
    "a relative directory": (LAUNCH | {"cwd": "work"}, "cwd and the program must be absolute paths"),
    "a relative program": (LAUNCH | {"argv": ["python"]}, "cwd and the program must be absolute paths"),
    "an absent program": (LAUNCH | {"argv": ["/no/such"]}, "trainer: cannot start /no/such: No such file or directory"),
    "an absent directory": (LAUNCH | {"cwd": "/no/such"}, "trainer: cannot start /no/such: No such file or directory"),
}


def run(root: Path, launch: Any) -> subprocess.CompletedProcess[str]:
    path = NodePaths(root).launch
    path.parent.mkdir(parents=True)
    if launch is not None:
        path.write_bytes(launch if isinstance(launch, bytes) else json.dumps(launch).encode())
    return subprocess.run(
        [sys.executable, "-m", "holdfast_node.trainer", "--root", root],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[3] / "node"), "SECRET": "not passed on"},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_trainer_gets_exactly_the_prepared_environment(tmp_path: Path) -> None:
    done = run(tmp_path, LAUNCH)
    assert done.returncode == 0, done.stderr
    environment, directory, mask, _ = json.loads(done.stdout)
    assert environment == LAUNCH["env"]
    assert (directory, mask) == ("/", 0o027)


def test_the_trainer_starts_with_empty_scratch_space_and_nothing_else_is_touched(tmp_path: Path) -> None:
    paths, outside = NodePaths(tmp_path), tmp_path / "outside"
    (paths.work / "model").mkdir(parents=True)
    (paths.work / "model/net.params").write_text("of the generation before")
    (outside / "kept").mkdir(parents=True)
    (paths.work / "link").symlink_to(outside)
    assert run(tmp_path, LAUNCH | {"cwd": str(outside)}).returncode == 0
    assert list(paths.work.iterdir()) == []
    assert (outside / "kept").is_dir()


def test_the_trainer_is_the_same_process(tmp_path: Path) -> None:
    path = NodePaths(tmp_path).launch
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(LAUNCH))
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[3] / "node")}
    command = [sys.executable, "-m", "holdfast_node.trainer", "--root", tmp_path]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=30)
    assert json.loads(output)[3] == process.pid != os.getpid()


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_launch_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    launch, message = MALFORMED[case]
    done = run(tmp_path, launch)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_launch_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, None)
    assert done.stderr == "trainer: cannot read launch.json: No such file or directory; the agent writes it for a job\n"
    assert done.returncode == 1
