"""A run that was killed and went on ends with the parameters of one that was not, bit by bit."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.node.engine.conftest import ROOT

EXAMPLE = ROOT / "examples/resume"
SEED = "5eed" * 16

MakeCluster = Callable[..., Any]


def saved(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("step-*"))


def digests(directory: Path, step: int) -> dict[str, str]:
    """SHA-256 of every parameter file of a checkpoint."""
    files = (directory / f"step-{step:08d}").glob("*.params")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def losses(log: str) -> dict[int, str]:
    return {int(epoch): loss for epoch, loss in re.findall(r"epoch (\d+)/\d+ loss (\S+)", log)}


def finish(job: Any) -> None:
    job.start()
    assert set(job.wait(timeout=60).values()) == {0}, job.logs()


def interrupted_and_whole(cluster: MakeCluster, **settings: Any) -> tuple[Any, Any, Any, int]:
    """Run a job, kill all of it after its second epoch, let another job go on for three more; then a whole one."""
    killed = cluster(args=("--epochs", "1000"), seed=SEED, **settings)
    killed.start()
    killed.wait_for("worker0", "step-00000002")
    killed.stop()
    kept = killed.root / "checkpoints/test-job"
    last = int(saved(kept)[-1].removeprefix("step-"))
    arguments = ("--epochs", str(last + 3))
    resumed, whole = (cluster(args=arguments, seed=SEED, **settings) for _ in range(2))
    shutil.copytree(kept, resumed.root / "checkpoints/test-job", symlinks=True)
    finish(resumed)
    finish(whole)
    return killed, resumed, whole, last


def test_a_killed_job_resumes_to_the_same_parameters_and_losses(cluster: MakeCluster) -> None:
    """The example: Adam on two servers, a schedule; each worker has its own running means, dropout and order."""
    killed, resumed, whole, last = interrupted_and_whole(cluster, code=EXAMPLE)
    directories = [job.root / "checkpoints/test-job" for job in (resumed, whole)]
    ends = [digests(directory, last + 3) for directory in directories]
    assert ends[0] == ends[1] and set(ends[0]) == {"parameters.params", "worker1.params"}
    for rank in (0, 1):
        first, second, uncut = (losses(job.log(f"worker{rank}")) for job in (killed, resumed, whole))
        assert sorted(second) == [last + 1, last + 2, last + 3]  # nothing was trained twice
        assert {**first, **second}.items() >= uncut.items()
    assert all(losses(whole.log("worker0"))[n] != losses(whole.log("worker1"))[n] for n in (1, 2))
