"""Checkpoints for training scripts: `from holdfast_node.checkpointing import Checkpoints`.

Works in a Holdfast job and on a laptop with plain MXNet alike; docs/checkpoints.md has runnable examples.
"""

from holdfast_node.checkpoints import hold, latest, verify
from holdfast_node.contract.seeds import parse_seed
from holdfast_node.engines.mxnet import randomness
from holdfast_node.engines.mxnet.checkpointing import Checkpoints
from holdfast_node.manifests import CheckpointError

__all__ = ["CheckpointError", "Checkpoints", "apply_seed", "hold", "latest", "verify"]


def apply_seed(text: str) -> None:
    """Seed Python's, NumPy's and MXNet's generators, each differently, from any text.

    A Holdfast job's worker has had this done to it, with its own seed, before the script starts.
    """
    import mxnet  # type: ignore[import-not-found]

    randomness.apply(parse_seed(text), mxnet)
