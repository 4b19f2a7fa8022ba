"""Jobs and log lines as a person reads them."""

import sys
import time
from collections.abc import Sequence

import click

from holdfast_cli.boots import Boot
from holdfast_cli.logs import LogLine
from holdfast_cli.revocation import Revocation
from holdfast_cli.status import JobView, NodeView, Restart
from holdfast_cli.terminal import duration, moment, print_fields, print_json, print_table, safe, safe_lines


def show_job(view: JobView, boots: Sequence[Boot], *, as_json: bool) -> None:
    """Print a job, its nodes, and the instances that did not become any."""
    if as_json:
        print_json({**view.to_dict(), "boots": [boot.to_dict() for boot in boots]})
        return
    print_fields(
        (
            ("job", view.job_id),
            ("state", view.phase),
            ("cause", view.cause),
            ("generation", _generation(view)),
            *((f"  {r.generation} ended", _restart(r)) for r in view.restarts),
            ("started", moment(view.started_at)),
            ("took" if view.ended else "for", duration(view.seconds)),
            ("seed", view.seed),
            ("first step", None if view.first_step_seconds is None else f"after {duration(view.first_step_seconds)}"),
        )
    )
    if view.nodes:
        click.echo()
        rows = [
            (_name(node), node.address, node.spiffe_id, node.tls_connections, _result(node), node.cause)
            for node in view.nodes
        ]
        print_table(("NODE", "ADDRESS", "IDENTITY", "TLS", "RESULT", "CAUSE"), rows)
    show_failed_boots(boots)


def show_boots(boots: Sequence[Boot], job_id: str) -> None:
    """Print one row for each instance that has booted, and below it what one that has not failed of."""
    if not boots:
        click.echo(f"no instance of job {job_id} has recorded its boot yet")
        return
    rows = [(boot.role, boot.instance_id, _boot_state(boot), duration(boot.seconds), _phases(boot)) for boot in boots]
    print_table(("ROLE", "INSTANCE", "BOOT", "TOOK", "PHASES (SECONDS)"), rows)
    show_failed_boots(boots)


def show_failed_boots(boots: Sequence[Boot]) -> None:
    """Print cause and remedy of the instances that did not boot; nothing where all did."""
    for boot in boots:
        if boot.failed:
            click.echo()
            click.echo(safe(f"{boot.role} ({boot.instance_id}) did not boot: {_boot_state(boot)}"))
            print_fields((("  cause", boot.cause), ("  remedy", boot.remedy)))


def show_jobs(views: Sequence[JobView]) -> None:
    """Print one row for each job."""
    rows = [(view.job_id, view.phase, moment(view.started_at), duration(view.seconds)) for view in views]
    print_table(("JOB", "STATE", "STARTED", "TOOK"), rows)


def show_line(line: LogLine) -> None:
    """Print a log event, one prefixed line for each line in it, and flush: it may be followed live."""
    prefix = click.style(safe(f"{line.role}/{line.instance_id}/{line.service}"), dim=True)
    for text in safe_lines(line.message):
        click.echo(f"{prefix} | {text}")
    sys.stdout.flush()


def show_revocation(revocation: Revocation, cluster: str) -> None:
    """Print what revoking an instance did, and what follows by itself."""
    instance_id = safe(revocation.instance_id)
    if not revocation.new:
        why = f": {revocation.reason}" if revocation.reason else ""
        click.echo(safe(f"{instance_id} was revoked already, at {revocation.revoked_at}{why}"))
        return
    click.echo(f"revoked: {instance_id} of cluster {cluster}")
    click.echo("now:     it gets no certificate any more")
    click.echo("soon:    its peers end their connections to it, within a minute; the job goes on without it, or fails")
    click.echo("next:    terminate the instance: until then its AWS credentials still work")


def show_revocations(revocations: Sequence[Revocation], cluster: str) -> None:
    """Print one row for each revoked instance."""
    if not revocations:
        click.echo(f"cluster {cluster} has revoked no instance")
        return
    print_table(
        ("INSTANCE", "REVOKED", "REASON"), [(one.instance_id, one.revoked_at, one.reason) for one in revocations]
    )


def _boot_state(boot: Boot) -> str:
    if not boot.failed:
        return "ok"
    return f"{boot.phases[-1].phase} {boot.status}" if boot.phases else boot.status


def _phases(boot: Boot) -> str:
    return ", ".join(f"{phase.phase} {phase.seconds:g}" for phase in boot.phases)


def _generation(view: JobView) -> str | None:
    """Say which generation it is where there was more than one, and how many there may be."""
    if not view.restarts:
        return None
    most = "" if view.max_restarts is None else f" of at most {view.max_restarts + 1}"
    return f"{view.generation}{most}"


def _restart(restart: Restart) -> str:
    after = "" if restart.seconds is None else f"after {duration(restart.seconds)}: "
    return f"{after}{restart.cause}"


def _name(node: NodeView) -> str:
    return node.role if node.rank is None else f"{node.role} {node.rank}"


def _result(node: NodeView) -> str:
    if node.status is not None:
        return "ok" if node.status == 0 else f"failed ({node.status})"
    return "running" if node.late_since is None else f"slow for {duration(max(0.0, time.time() - node.late_since))}"
