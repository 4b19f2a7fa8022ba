"""The global options, what a command makes of them, and how errors leave the process."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import click

from holdfast_cli.aws import Aws, Cluster, find_cluster, use_local_environment
from holdfast_cli.aws_errors import explain
from holdfast_cli.errors import CliError
from holdfast_cli.terminal import safe
from holdfast_node.contract.errors import HoldfastError

EXIT_INTERRUPTED = 130
POLL_SECONDS = 3.0
LOCAL_POLL_SECONDS = 1.0

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Options:
    """The global options of one invocation. The cluster is looked up on first use, after local validation."""

    cluster_name: str | None = None
    region: str | None = None
    local: bool = False
    output: str = "text"
    resume_hint: str = field(default="", init=False)

    @cached_property
    def cluster(self) -> Cluster:
        """The cluster that the command works on."""
        if self.local:
            use_local_environment()
        # The embedded AWS has one region, which the line above has set.
        return find_cluster(Aws(None if self.local else self.region), self.cluster_name)

    @property
    def json(self) -> bool:
        """Whether standard output is one JSON document."""
        return self.output == "json"

    @property
    def poll_seconds(self) -> float:
        """How often to ask for a job's state."""
        return LOCAL_POLL_SECONDS if self.local else POLL_SECONDS


pass_options = click.make_pass_decorator(Options, ensure=True)


def output_option(command: F) -> F:
    """Accept `--output` after the command's name too, where most people write it."""

    def remember(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value:
            context.ensure_object(Options).output = value

    return click.option(
        "--output",
        type=click.Choice(["text", "json"]),
        expose_value=False,
        callback=remember,
        help="Text, or one JSON document on standard output.",
    )(command)


class Failure(click.ClickException):
    """An error on its way out: one line on standard error, or a JSON object with --output json."""

    def __init__(self, message: str, exit_code: int, kind: str, *, as_json: bool) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc] # click's type says class; its code reads the instance
        self.kind = kind
        self.as_json = as_json

    def show(self, file: Any = None) -> None:
        """Write the error on standard error."""
        if self.as_json:
            text = json.dumps({"error": self.message, "kind": self.kind, "exit_code": self.exit_code})
        else:
            text = f"error: {safe(self.message)}"
        click.echo(text, file=file or sys.stderr)


class Commands(click.Group):
    """A group whose commands never end in a traceback for what a user or AWS can cause."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command; turn known errors into `Failure`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            options = ctx.ensure_object(Options)
            message = f"interrupted; {options.resume_hint}" if options.resume_hint else "interrupted"
            raise Failure(message, EXIT_INTERRUPTED, "Interrupted", as_json=options.json) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            known = _known(error)
            if known is None:
                raise
            as_json = ctx.ensure_object(Options).json
            raise Failure(str(known), getattr(known, "exit_code", 1), type(known).__name__, as_json=as_json) from None


def _known(error: Exception) -> HoldfastError | None:
    if isinstance(error, HoldfastError):
        return error
    if isinstance(error, OSError) and error.filename is not None:
        return CliError(f"cannot use {error.filename}: {error.strerror}; check the path and its permissions")
    return explain(error)
