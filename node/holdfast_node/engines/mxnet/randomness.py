"""The generators that a training script draws from: seeded before it starts, saved and restored with a checkpoint.

Python's `random` and NumPy's legacy generator have a state that can be saved. MXNet 1.9.1's cannot be read, so a
checkpoint seeds it anew, from the job's seed and the step: the run that goes on and the run that resumes then draw the
same numbers. Nothing of security draws from any of these.
"""

import random
from collections.abc import Mapping
from typing import Any

from holdfast_node.contract.seeds import derive, whole_number
from holdfast_node.manifests import CheckpointError

#: What `mx.random.seed` takes: a C int (mxnet/random.py).
_MXNET_BITS = 31


def apply(seed: str, mx: Any) -> None:
    """Seed Python's, NumPy's and MXNet's generators from a process's seed (64 hex digits), each differently."""
    import numpy as np

    random.seed(int(derive(seed, "random"), 16))
    words = derive(seed, "numpy")
    np.random.seed([int(words[start : start + 8], 16) for start in range(0, 64, 8)])
    mx.random.seed(whole_number(derive(seed, "mxnet"), _MXNET_BITS))


def reseed(seed: str, step: int, mx: Any) -> None:
    """Seed MXNet's generator for what comes after `step`."""
    mx.random.seed(whole_number(derive(seed, "mxnet after step", step), _MXNET_BITS))


def capture(generators: Mapping[str, Any]) -> dict[str, Any]:
    """Return, as JSON, the states of Python's and NumPy's generators and of these `numpy.random.Generator`s."""
    import numpy as np

    version, state, gauss = random.getstate()
    return {
        "random": [version, list(state), gauss],
        "numpy": _to_json(np.random.get_state(legacy=False)),
        "generators": {name: _to_json(generator.bit_generator.state) for name, generator in generators.items()},
    }


def restore(states: dict[str, Any], generators: Mapping[str, Any]) -> None:
    """Set the generators to what `capture` returned.

    Raises:
        CheckpointError: the generators are others than those that were saved, or of another kind.
    """
    import numpy as np

    saved = states["generators"]
    if saved.keys() != generators.keys():
        raise CheckpointError(
            f"generators must be {sorted(saved)}, as when the checkpoint was written, got {sorted(generators)}"
        )
    version, state, gauss = states["random"]
    try:
        random.setstate((version, tuple(state), gauss))
        np.random.set_state(_from_json(states["numpy"]))
        for name, generator in generators.items():
            generator.bit_generator.state = _from_json(saved[name])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the saved state of a generator does not fit: {error}") from None


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if hasattr(value, "dtype") and getattr(value, "shape", None):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    return value.item() if hasattr(value, "dtype") else value


def _from_json(value: Any) -> Any:
    import numpy as np

    if isinstance(value, dict) and value.keys() == {"array", "dtype"}:
        return np.array(value["array"], dtype=value["dtype"])
    return {key: _from_json(item) for key, item in value.items()} if isinstance(value, dict) else value
