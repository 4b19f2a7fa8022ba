"""Synthesizes each settings file once per session, with the real CDK command line, all at the same time."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.kit.support import ROOT, Deployment

if TYPE_CHECKING:
    from tests.kit.deployed import Account

# Before anything imports the CDK, which would warn of a distribution's Node.js.
os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "18,20")

SYNTH_LIMIT_SECONDS = 300
_RUNS = {"local": "local", "dev": "dev", "prod": "prod", "local-again": "local"}


def synth_command(settings: str, output: Path) -> list[str]:
    context = ["-c", f"settings={settings}"]
    return [
        str(ROOT / "node_modules/.bin/cdk"),
        "synth",
        "--no-lookups",
        "--strict",
        "--quiet",
        *context,
        "-o",
        str(output),
    ]


def synth_environment() -> dict[str, str]:
    """A home without CDK settings, and no credentials: synthesis needs neither."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))}
    return {**kept, "CI": "1", "NODE_NO_WARNINGS": "1"}


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Deployment]]:
    folder = tmp_path_factory.mktemp("assemblies")
    processes = {
        run: subprocess.Popen(
            synth_command(settings, folder / run),
            cwd=ROOT,
            env=synth_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for run, settings in _RUNS.items()
    }

    def get(run: str) -> Deployment:
        output, _ = processes[run].communicate(timeout=SYNTH_LIMIT_SECONDS)
        assert processes[run].returncode == 0, output
        return Deployment(folder / run, _RUNS[run])

    cache: dict[str, Deployment] = {}
    yield lambda run: cache.setdefault(run, cache[run] if run in cache else get(run))
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def dev(synthesized: Callable[[str], Deployment]) -> Deployment:
    return synthesized("dev")


@pytest.fixture(scope="session")
def prod(synthesized: Callable[[str], Deployment]) -> Deployment:
    return synthesized("prod")


@pytest.fixture(scope="session")
def local(synthesized: Callable[[str], Deployment]) -> Deployment:
    return synthesized("local")


@pytest.fixture(scope="session")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Account"]:
    from tests.kit.deployed import CLUSTER, Account

    from holdfast_local.emulator.deploy import bootstrap_and_deploy
    from holdfast_local.emulator.process import Emulator

    state = tmp_path_factory.mktemp("aws")
    emulator = Emulator(state, ROOT / ".venv-aws/bin/python", port=0)
    emulator.start()
    try:
        environment = emulator.environment()
        bootstrap_and_deploy(ROOT, environment, "local", state / "outputs.json", lambda line: None)
        outputs = json.loads((state / "outputs.json").read_text())[f"Holdfast-{CLUSTER}-Training"]
        yield Account(environment, outputs)
    finally:
        emulator.stop()
