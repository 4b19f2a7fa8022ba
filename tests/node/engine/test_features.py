"""MXNet's features over real clusters: they train as without servers, or are refused on the worker, at start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "in_node"
MakeCluster = Callable[..., Any]


#: glibc fills memory that it hands out with this byte's complement (mallopt(3), M_PERTURB), but for a thread's cache.
FILLED_MEMORY = {"MALLOC_PERTURB_": "1", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


def run(
    cluster: MakeCluster, feature: str, kvstore: str, *, vanilla: bool = False, memory: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run the script; `memory` is in its servers' environment."""
    job = cluster(code=HERE, entry="features.py", args=(feature, kvstore), workers=1, servers=2)
    for name in job.launches:
        env = (memory or {}) if name.startswith("server") else {}
        if vanilla:
            job.start_vanilla(name, **env)
        else:
            job.start_raw(name, job.launches[name]["argv"], **env)
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


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_weights_are_updated_in_their_own_type_whatever_the_servers_memory_held(
    cluster: MakeCluster, dtype: str
) -> None:
    """Vanilla's server takes a flag from memory that it has not written to, and updates them as float32."""
    assert run(cluster, dtype, "dist_sync", vanilla=True, memory=FILLED_MEMORY) == {"same": False, "moved": True}
    assert run(cluster, dtype, "dist_sync", memory=FILLED_MEMORY) == {"same": True, "moved": True}


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
