"""Deploys the kit to the embedded AWS with the real CDK command line, and reports how it goes."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from holdfast_local.emulator.errors import DeployError, last_lines
from holdfast_local.emulator.process import without_aws

Progress = Callable[[str], None]

DEPLOY_LIMIT_SECONDS = 900.0
#: `Stack | 3/12 | 06:45:48 | CREATE_FAILED | AWS::KMS::Key | Keys/Data (KeysData1234) reason`
_FAILED = re.compile(r"^\s*(?P<stack>[\w-]+)\s*\|[^|]*\|[^|]*\|\s*\w+_FAILED\s*\|(?P<what>.*)$")
#: `Stack: deploying... [2/3]`
_STARTED = re.compile(r"^\s*(?P<stack>[\w-]+): deploying\.\.\.\s*(?P<position>\[\d+/\d+\])?")
#: ` ✅  Stack`, ` ✅  Stack (no changes)`
_DONE = re.compile(r"^\s*✅\s+(?P<stack>[\w-]+)\s*(?P<note>\(.*\))?\s*$")


def bootstrap_and_deploy(
    root: Path, env: Mapping[str, str], settings: str, outputs_file: Path, on_progress: Progress
) -> None:
    """Bootstrap the account and deploy every stack of the app in `root`, with `settings` as its context.

    `env` is `Emulator.environment()`. Stack outputs are written to `outputs_file` as JSON; beside it a folder `cdk`
    holds the CDK's home, its cloud assembly and `deploy.log` with everything that it wrote. `on_progress` is called
    with one readable line per step.

    Raises:
        DeployError: the CDK is not installed, failed, or took too long; the message ends with its last lines.
    """
    work = outputs_file.absolute().parent / "cdk"
    (work / "home").mkdir(parents=True, exist_ok=True)
    variables = _environment(root, env, work)
    log = work / "deploy.log"
    log.unlink(missing_ok=True)
    target = f"aws://{env['CDK_DEFAULT_ACCOUNT']}/{env['CDK_DEFAULT_REGION']}"
    on_progress("bootstrapping the account")
    # From a folder without an app: bootstrapping needs none, and synthesis would run twice.
    run_cdk(root, ("bootstrap", target), variables, log, on_progress, folder=work)
    on_progress("synthesizing and deploying the stacks")
    deploy = ("deploy", "--all", "--require-approval", "never", "--context", f"settings={settings}")
    results = ("--outputs-file", str(outputs_file.absolute()), "--output", str(work / "assembly"))
    run_cdk(root, (*deploy, *results, "--progress", "events"), variables, log, on_progress, folder=root)


def run_cdk(
    root: Path,
    arguments: Sequence[str],
    variables: Mapping[str, str],
    log: Path,
    on_progress: Progress,
    *,
    folder: Path,
) -> None:
    """Run one command of the CDK of `root` in `folder`; append all its output to `log`.

    Raises:
        DeployError: see `bootstrap_and_deploy`.
    """
    cdk = root / "node_modules/.bin/cdk"
    if not cdk.exists():
        raise DeployError(f"deploying needs {cdk}, which does not exist; run `make setup`")
    command = [str(cdk), *arguments, "--ci", "--no-color", "--no-notices"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = threading.Event()

    def give_up() -> None:
        late.set()
        _end(process)

    timer = threading.Timer(DEPLOY_LIMIT_SECONDS, give_up)
    timer.start()
    try:
        _follow(process, log, on_progress)
        code = process.wait()
    finally:
        timer.cancel()
        _end(process)
        process.wait()
    if code != 0:
        got = f"did not end within {DEPLOY_LIMIT_SECONDS:.0f} s" if late.is_set() else f"failed with status {code}"
        raise DeployError(f"`cdk {arguments[0]}` {got}; its log ends with:\n{last_lines(log)}")


def readable(line: str) -> str | None:
    """Return what a line of the CDK's output says about progress, in words, or None if nothing."""
    if failed := _FAILED.match(line):
        return f"{failed['stack']}: FAILED {' '.join(failed['what'].split())}"
    if started := _STARTED.match(line):
        return f"{started['stack']}: deploying {started['position'] or ''}".rstrip()
    if done := _DONE.match(line):
        return f"{done['stack']}: deployed {done['note'] or ''}".rstrip()
    return None


def _follow(process: subprocess.Popen[str], log: Path, on_progress: Progress) -> None:
    if process.stdout is None:
        raise DeployError("the CDK's output is not readable")
    with log.open("a") as file, process.stdout as lines:
        for line in lines:
            file.write(line)
            file.flush()
            if said := readable(line):
                on_progress(said)


def _environment(root: Path, env: Mapping[str, str], work: Path) -> dict[str, str]:
    # No AWS or CDK setting of the user's own: a mistake here must never reach a real account. Proxies stay, because
    # packing a function may need them for pip; `env` exempts the emulator from them.
    inherited = without_aws(os.environ)
    return {
        **inherited,
        **env,
        "PATH": os.pathsep.join([str(root / ".venv/bin"), inherited.get("PATH", os.defpath)]),
        "HOME": str(work / "home"),
        "CI": "1",
        "NO_COLOR": "1",
        "NODE_NO_WARNINGS": "1",
        "JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION": "1",
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "1",
        "JSII_SILENCE_WARNING_DEPRECATED_NODE_VERSION": "1",
    }


def _end(process: subprocess.Popen[str]) -> None:
    """End the CDK with the app and the tools that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
