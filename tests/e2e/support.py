"""Running the installed command from tests, with a state directory of their own."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import boto3
import pytest

from holdfast_local import session
from holdfast_local.emulator.deploy import bootstrap_and_deploy
from holdfast_local.hosts import IsolationError, detect

ROOT = Path(__file__).resolve().parents[2]
HOLDFAST = ROOT / ".venv/bin/holdfast"
SECONDS = 540


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    status: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)


Holdfast = Callable[..., Outcome]


def run_holdfast(state: Path, *arguments: str, seconds: float = SECONDS) -> Outcome:
    """Run the installed `holdfast` to its end."""
    process = subprocess.run(
        [str(HOLDFAST), *arguments],
        env={**os.environ, "HOLDFAST_STATE_DIR": str(state)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Outcome(process.returncode, process.stdout, process.stderr)


def skip(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run; with CI=true that is a failure, so that nothing goes unnoticed."""
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{reason}; CI must be able to run every test", pytrace=False)
    pytest.skip(reason)


def require_isolation(isolation: str) -> None:
    """Skip where hosts cannot be kept apart in this way."""
    try:
        detect(isolation)
    except IsolationError as error:
        skip(str(error))


def client_of(environment: dict[str, str], service: str) -> Any:
    """Return a client of the embedded AWS as its root, from the environment that a session publishes."""
    return boto3.client(
        service,
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        verify=environment["AWS_CA_BUNDLE"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


def deploy_predictor(state: Path, job_id: str) -> None:
    """Deploy to a local cluster again, with up to two predictors of the model that a job has published."""
    settings = ROOT / "settings/e2e-predictor.toml"
    section = f'[predictor]\njob = "{job_id}"\nmax = 2\n'
    settings.write_text((ROOT / "settings/local.toml").read_text() + "\n" + section)
    try:
        bootstrap_and_deploy(ROOT, session.environment(state), settings.stem, state / "outputs.json", lambda line: None)
    finally:
        settings.unlink()
