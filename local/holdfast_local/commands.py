"""`holdfast local`: the whole kit on one machine, without an AWS account."""

import json
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from holdfast_local import session
from holdfast_local.errors import LocalError
from holdfast_local.hosts.isolation import CHOICES, Mode
from holdfast_node.contract.errors import HoldfastError

T = TypeVar("T")

HOSTS = click.option(
    "--hosts",
    "--isolation",
    "hosts",
    type=click.Choice([*CHOICES, *(mode.value for mode in Mode)]),
    default="auto",
    show_default=True,
    metavar="KIND",
    help="What an instance is here. boot: a booted system (systemd, cloud-init, the user data of its template), for "
    "root, from an image that is made at first (a minute or more). process: the processes of a node, in namespaces of "
    "their own (as root, or userns for a user). loopback: plain processes, not kept apart. auto: the strongest that "
    "works.",
)


EPILOG = """\b
Examples:
  holdfast local up       deploy the kit here
  holdfast --local submit examples/digits --entry train.py --wait
  holdfast local down     leave nothing
"""


@click.group(epilog=EPILOG)
def local() -> None:
    """Run an embedded AWS and its hosts on this machine."""
    session.interrupt_once()


def progress(text: str) -> None:
    """Print one line of progress with the seconds since the command's start."""
    click.echo(f"[{time.monotonic() - _STARTED:5.1f} s] {text}", err=True)


_STARTED = time.monotonic()


@local.command()
@HOSTS
@click.option("--settings", default="local", show_default=True, help="Which settings/NAME.toml to deploy.")
def up(hosts: str, settings: str) -> None:
    """Start the embedded AWS, deploy all stacks with the real CDK CLI, and act as EC2."""
    _run(lambda: session.up(isolation=hosts, settings=settings, progress=progress))
    _describe(session.hosts())
    click.echo("submit a job with: holdfast --local submit examples/digits --entry train.py --wait")


@local.command()
def down() -> None:
    """End the local cluster: no process, namespace, mount or file is left."""
    ended = _run(session.down)
    click.echo("the local cluster has ended, nothing is left" if ended else "no local cluster is running")


@local.command()
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(output: str) -> None:
    """Show the hosts that act as EC2 instances, and what this machine does not enforce."""
    _run(session.environment)  # says so where none is running
    state = _run(session.hosts)
    if output == "json":
        click.echo(json.dumps(state, indent=2))
        return
    _describe(state)
    for host in state["hosts"]:
        click.echo(f"{host['instance_id']}  {host['role']:9}  {host['address']:15}  {host['phase']}")
    if not state["hosts"]:
        click.echo("no hosts: the groups are at zero until a job runs")


def _describe(state: dict[str, Any]) -> None:
    click.echo(f"hosts: {state['mode']}")
    for line in state["not_enforced"]:
        click.echo(f"  not enforced here: {line}")
    for line in state["not_stronger"]:
        click.echo(f"  not stronger, {line}")


@local.command()
def env() -> None:
    """Print shell exports that point AWS tools here: eval "$(holdfast local env)"."""
    variables = _run(session.environment)
    # A profile or token of a real account does not go with the embedded AWS's credentials.
    click.echo("unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    for name, value in sorted(variables.items()):
        click.echo(f"export {name}={shlex.quote(value)}")


@local.command()
@HOSTS
@click.option("--keep", is_flag=True, help="Leave the cluster running after the report.")
def demo(hosts: str, keep: bool) -> None:
    """Deploy, train the digits example, verify its model, print a report, and tear everything down."""
    from holdfast_local.demo import run_demo

    sys.exit(_run(lambda: run_demo(isolation=hosts, keep=keep, progress=progress)))


def _run(action: Callable[[], T]) -> T:
    try:
        return action()
    except KeyboardInterrupt:
        click.echo(f"interrupted; {_what_is_left()}", err=True)
        sys.exit(130)
    except (HoldfastError, LocalError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _what_is_left() -> str:
    left = session.leftovers()
    if not left:
        return "nothing was left running"
    if session.is_running(session.state_dir()):
        return "the local cluster runs; end it with `holdfast local down`"
    return f"this was left: {'; '.join(left)}; remove it with `holdfast local down`"
