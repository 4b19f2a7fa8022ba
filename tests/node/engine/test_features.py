"""MXNet's features over real clusters: they train as without servers, or are refused on the worker, at start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "in_node"
MakeCluster = Callable[..., Any]


def run(cluster: MakeCluster, feature: str, kvstore: str, vanilla: bool = False) -> dict[str, Any]:
    job = cluster(code=HERE, entry="features.py", args=(feature, kvstore), workers=1, servers=2)
    if vanilla:
        job.start_vanilla()
    else:
        job.start()
    assert set(job.wait(timeout=120).values()) == {0}, job.logs()
    (line,) = (line for line in job.log("worker0").splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize(
    ("feature", "kvstore"),
    [
        ("gluon_trainer", "dist_device_sync"),
        ("without_update_on_kvstore", "dist_sync"),
        ("half_precision", "dist_async"),
        ("compression", "dist_sync"),
        ("row_sparse", "dist_sync"),
        ("own_optimizer", "dist_async"),
    ],
)
def test_a_feature_trains_on_the_servers_as_it_does_without_them(
    cluster: MakeCluster, feature: str, kvstore: str
) -> None:
    result = run(cluster, feature, kvstore)
    assert result and all(result.values()), result


def test_a_pull_is_not_overtaken_by_a_push_that_follows_it_as_it_is_in_vanilla(cluster: MakeCluster) -> None:
    assert run(cluster, "pulls_before_pushes", "dist_sync", vanilla=True) == {"in order": False, "pushed": True}
    assert run(cluster, "pulls_before_pushes", "dist_sync") == {"in order": True, "pushed": True}


REFUSED = {
    "sparse gradient of a dense weight": "EngineError: the gradient of key 0 must be dense as its weight is, got row_",
    "integers": "EngineError: key i must be of one of the types ['float32', 'float64', 'float16'] on the servers, got ",
    "profiler": "EngineError: profile_process must be 'worker', got 'server': a server writes no files for its peers",
    "second store": "EngineError: a worker must have one distributed KVStore, got a second one (dist_async) beside dis",
    "not shipped": "SpecError: optimizer must be one of [",
}


def test_what_servers_cannot_do_is_refused_before_training(cluster: MakeCluster) -> None:
    result = run(cluster, "refused", "dist_sync")
    assert {name: message[: len(REFUSED[name])] for name, message in result.items()} == REFUSED
    assert "define it in holdfast_optimizers.py at the root of the job's directory" in result["not shipped"]
