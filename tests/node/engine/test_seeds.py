"""A job's seed reaches every process, differently, and repeats the job; scripts that seed themselves don't notice."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from tests.node.engine.conftest import ROOT, run_node

from holdfast_node.contract.seeds import derive

SEED, OTHER = "5eed" * 16, "d1ff" * 16
DRAW = """
import json, random, sys
import mxnet as mx, numpy as np
def draw():
    return [random.random(), float(np.random.rand()), float(mx.nd.random.uniform().asscalar())]
drawn = draw()
for generator in (random, np.random, mx.random):
    generator.seed(7)
print("DRAWN", json.dumps([drawn, draw()]), flush=True)
"""

MakeCluster = Callable[..., Any]


def test_every_role_and_rank_gets_its_own_derivation(cluster: MakeCluster) -> None:
    launches = cluster(script=DRAW, seed=SEED).launches
    given = {name: launch["env"]["HOLDFAST_SEED"] for name, launch in launches.items()}
    assert given["worker1"] == derive(SEED, "worker", 1)
    assert len(set(given.values())) == len(given) == 5


def test_a_job_without_a_seed_gets_none(cluster: MakeCluster) -> None:
    assert all("HOLDFAST_SEED" not in launch["env"] for launch in cluster(script=DRAW).launches.values())


def drawn(cluster: MakeCluster, seed: str | None) -> list[list[float]]:
    """What worker 0 draws before and after it has seeded its generators by itself."""
    job = cluster(script=DRAW, workers=1, servers=1, seed=seed)
    job.start("worker0")
    assert job.wait("worker0") == {"worker0": 0}, job.logs()
    (line,) = (line for line in job.log("worker0").splitlines() if line.startswith("DRAWN "))
    return list(json.loads(line.removeprefix("DRAWN ")))


def test_the_seed_is_applied_before_the_script_and_the_scripts_own_seeds_win(cluster: MakeCluster) -> None:
    first, other = drawn(cluster, SEED), drawn(cluster, OTHER)
    assert all(one != two for one, two in zip(first[0], other[0], strict=True))
    plain = run_node(DRAW)  # without Holdfast, with the script's own seeds
    assert first[1] == other[1] == json.loads(plain.stdout.split("DRAWN ")[1])[1]


def trained(cluster: MakeCluster, seed: str) -> str:
    """The digest of what one epoch of the digits makes of a seed."""
    job = cluster(code=ROOT / "examples/digits", args=("--epochs", "1"), workers=1, servers=1, seed=seed)
    job.start()
    assert set(job.wait(timeout=150).values()) == {0}, job.logs()
    return hashlib.sha256((job.root / "checkpoints/test-job/epoch-001.params").read_bytes()).hexdigest()


def test_the_same_seed_repeats_an_unchanged_scripts_parameters_and_another_does_not(cluster: MakeCluster) -> None:
    assert trained(cluster, SEED) == trained(cluster, SEED) != trained(cluster, OTHER)
