"""The reference deployment: three stacks, or four, from one settings file, chosen with `-c settings=NAME`."""

import os
import sys
from pathlib import Path

# Distributions keep Node.js 18 and 20 maintained past the date from which jsii warns of them.
os.environ["JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION"] = "18,20"

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from holdfast_node.contract.errors import HoldfastError
from stacks.config import DEFAULT_SETTINGS, load
from stacks.foundation import FoundationStack
from stacks.images import ImagesStack
from stacks.network import NetworkStack
from stacks.settings import Settings
from stacks.training import TrainingStack

ROOT = Path(__file__).resolve().parent


def build(app: cdk.App, settings: Settings) -> None:
    """Add the deployment's stacks to `app`, and the policy pack that judges them at synthesis."""
    foundation = FoundationStack(
        app, settings=settings, node_source=ROOT / "node", cache_directory=ROOT / ".build"
    ).foundation
    network = NetworkStack(app, settings=settings, foundation=foundation).network
    TrainingStack(app, settings=settings, foundation=foundation, network=network)
    if settings.images.pipeline:
        ImagesStack(app, settings=settings, foundation=foundation)
    cluster = settings.cluster
    for key, value in {"cluster": cluster.name, "environment": cluster.environment.value}.items():
        cdk.Tags.of(app).add(f"holdfast:{key}", value)
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))


def main() -> int:
    """Synthesize; return the process's exit status."""
    app = cdk.App()
    try:
        build(app, load(app.node.try_get_context("settings") or DEFAULT_SETTINGS))
    except HoldfastError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    app.synth()
    return 0


if __name__ == "__main__":
    sys.exit(main())
