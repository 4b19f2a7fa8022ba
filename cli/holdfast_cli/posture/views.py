"""The posture as a person reads it: a line for each check, and below them what is wrong with what to do."""

import click

from holdfast_cli.posture.report import NOT_SHOWN, ROWS, Finding, Report, Status
from holdfast_cli.terminal import safe

_COLOURS = {Status.PASS: "green", Status.FAIL: "red", Status.UNKNOWN: "yellow"}


def show_report(report: Report) -> None:
    """Print the report; colours only on a terminal."""
    width = max(len(finding.check.name) for finding in report.findings)
    shown = set()
    for finding in report.findings:
        row = finding.check.row
        if row not in shown:
            click.secho(f"{row}  {ROWS[row]}", bold=True)
            shown.add(row)
        status = click.style(f"{finding.status.value:<7}", fg=_COLOURS[finding.status])
        click.echo(f"    {status}  {finding.check.name:<{width}}  {safe(_summary(finding))}".rstrip())
    for row, why in NOT_SHOWN.items():
        click.secho(f"{row}  {ROWS[row]}", bold=True)
        click.echo(f"    not shown: {why}")
    for finding in report.failed:
        click.echo()
        click.secho(f"{finding.check.name} ({finding.check.row}): {finding.status.value}", fg=_COLOURS[finding.status])
        click.echo(f"  must hold: {finding.check.claim}")
        for problem in finding.problems:
            click.echo(f"  found:     {safe(problem)}")
        click.echo(f"  remedy:    {finding.check.remedy}")
    click.echo()
    passed = len(report.findings) - len(report.failed)
    click.echo(f"{passed} of {len(report.findings)} checks of cluster {report.cluster} ({report.region}) passed")


def _summary(finding: Finding) -> str:
    if finding.status is Status.PASS:
        return finding.seen
    more = f" (and {len(finding.problems) - 1} more)" if len(finding.problems) > 1 else ""
    return f"{finding.problems[0]}{more}"
