"""The `holdfast` command."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast_cli import __version__
from holdfast_cli.options import Commands, Options, output_option, pass_options
from holdfast_cli.terminal import print_json, safe
from holdfast_cli.views import show_job, show_jobs, show_line

if TYPE_CHECKING:
    from holdfast_cli.status import JobView

EPILOG = """\b
Examples:
  holdfast submit examples/digits --entry train.py --workers 2 --wait
  holdfast status                      the latest jobs
  holdfast nodes                       how the latest job's instances booted
  holdfast logs --role worker --follow the latest job's workers, live
  holdfast fetch JOB --to digits-model verified, or nothing is written
  holdfast revoke INSTANCE_ID          cut a node off, for ever
  holdfast verify                      read the deployed cluster's posture back from AWS
  holdfast --local status              the same, on the embedded AWS of this machine

\b
Exit codes:
  0    done
  1    refused or failed; one line says why and what to do
  2    wrong usage
  3    the job that was waited for failed
  4    the deployed cluster's posture is not as it must be (verify)
  130  interrupted
"""

_ROLES = click.Choice(["scheduler", "server", "worker"])


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cluster", metavar="NAME", envvar="HOLDFAST_CLUSTER", help="Cluster. Default: the only one there is.")
@click.option("--region", metavar="REGION", envvar="AWS_REGION", help="AWS region. Default: that of the AWS profile.")
@click.option("--local", is_flag=True, envvar="HOLDFAST_LOCAL", help="Use the embedded AWS of this machine.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", help="Text, or one JSON document.")
@click.version_option(__version__, prog_name="holdfast")
@click.pass_context
def cli(context: click.Context, cluster: str | None, region: str | None, local: bool, output: str) -> None:
    """Run training jobs on a Holdfast cluster.

    A job is a directory with a training script. It is packed, signed and started; its nodes verify the signature
    before they run anything; the model that comes back is signed, and `fetch` verifies it before writing a byte.
    """
    context.obj = Options(cluster_name=cluster, region=region, local=local, output=output)


@cli.command(epilog="\b\nArguments after -- go to the script:\n  holdfast submit DIR --entry train.py -- --epochs 5")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("args", metavar="[-- ARGS...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--entry", metavar="FILE", required=True, help="The script to run, relative to DIR.")
@click.option("--workers", metavar="N", type=int, help="Workers. Default: all that the cluster allows.")
@click.option("--servers", metavar="N", type=int, help="Servers. Default: all that the cluster allows.")
@click.option("--model-dir", default="model", show_default=True, help="What the script exports, relative to its cwd.")
@click.option("--timeout", metavar="TIME", help="Deadline, as 90s, 30m or 1h30m. Default: 1h, or less if limited.")
@click.option("--seed", metavar="SEED", help="Repeat a run: the seed that `status` shows, or any text. Default: fresh.")
@click.option("--max-restarts", metavar="N", type=int, help="Restarts after failures. Default: 2, or less if limited.")
@click.option("--wait", is_flag=True, help="Show progress until the job has ended; exit 3 if it failed.")
@output_option
@pass_options
def submit(
    options: Options,
    directory: Path,
    args: tuple[str, ...],
    entry: str,
    workers: int | None,
    servers: int | None,
    model_dir: str,
    timeout: str | None,
    seed: str | None,
    max_restarts: int | None,
    wait: bool,
) -> None:
    """Pack DIR, sign it and start it as a job.

    Everything is validated before anything is uploaded. Left out of the archive: .git, .venv, __pycache__ and caches.
    Symbolic links are refused. The cluster runs one job at a time.
    """
    from holdfast_cli import jobs
    from holdfast_cli.progress import Progress
    from holdfast_node.contract.seeds import parse_seed

    request = jobs.Request(
        directory=directory,
        entry=entry,
        args=args,
        workers=workers,
        servers=servers,
        model_dir=model_dir,
        timeout_seconds=jobs.parse_timeout(timeout) if timeout is not None else None,
        seed=parse_seed(seed) if seed is not None else None,
        max_restarts=max_restarts,
    )
    request = jobs.check_request(request)  # before the cluster is looked up: it needs no AWS
    with Progress(plain=options.json) as progress:
        submission = jobs.submit(options.cluster, request, progress.report)
    if wait:
        if not options.json:
            click.echo(f"job {submission.job_id} started")
        _wait(options, submission.job_id)
    elif options.json:
        print_json(submission.to_dict())
    else:
        click.echo(f"job {submission.job_id} started")
        click.echo(f"next: holdfast status {submission.job_id}")
        click.echo(f"      holdfast logs {submission.job_id} --follow")
        click.echo(f"      holdfast fetch {submission.job_id} --to DIR   (when it has succeeded)")


@cli.command()
@click.argument("job", metavar="[JOB]", required=False)
@click.option("--wait", is_flag=True, help="Show progress until the job has ended; exit 3 if it failed.")
@output_option
@pass_options
def status(options: Options, job: str | None, wait: bool) -> None:
    """Show a job and its nodes, or the latest jobs."""
    from holdfast_cli import status as views

    if wait:
        _wait(options, job or views.latest_job_id(options.cluster))
    elif job:
        _show(options, views.job(options.cluster, job))
    else:
        latest = views.latest(options.cluster)
        if options.json:
            print_json({"jobs": [view.to_dict() for view in latest]})
        elif latest:
            show_jobs(latest)
        else:
            click.echo(f"cluster {options.cluster.name} has run no job yet; start one with `holdfast submit`")


@cli.command()
@click.argument("job", metavar="[JOB]", required=False)
@output_option
@pass_options
def nodes(options: Options, job: str | None) -> None:
    """Show how the instances of JOB (default: the latest) booted: each phase with its seconds, and why one failed.

    An instance is listed once it has become a node, or has given up: it records its boot then.
    """
    from holdfast_cli import boots
    from holdfast_cli import status as views
    from holdfast_cli.views import show_boots

    job_id = job or views.latest_job_id(options.cluster)
    found = boots.of_job(options.cluster, views.job(options.cluster, job_id))
    if options.json:
        print_json({"job_id": job_id, "nodes": [boot.to_dict() for boot in found]})
    else:
        show_boots(found, job_id)


@cli.command()
@click.argument("job", metavar="[JOB]", required=False)
@click.option("--role", type=_ROLES, help="Only the nodes of this role.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@click.option("--tail", metavar="N", type=click.IntRange(min=0), help="Only the last N lines so far.")
@output_option
@pass_options
def logs(options: Options, job: str | None, role: str | None, follow: bool, tail: int | None) -> None:
    """Print the log lines of JOB (default: the latest), each with its role, instance and service."""
    from holdfast_cli import logs as log
    from holdfast_cli import status as views
    from holdfast_node.contract.roles import Role

    if follow and options.json:
        raise click.UsageError("--follow does not go with --output json, which is one document; leave out one of them")
    job_id = job or views.latest_job_id(options.cluster)
    chosen = Role(role) if role else None
    if follow:
        for line in log.follow(options.cluster, job_id, chosen, tail, poll_seconds=options.poll_seconds):
            show_line(line)
        return
    lines = log.read(options.cluster, job_id, chosen, tail)
    if options.json:
        print_json({"job_id": job_id, "lines": [line.to_dict() for line in lines]})
        return
    for line in lines:
        show_line(line)
    if not lines:
        click.echo(f"job {job_id} has logged nothing yet; --follow waits for it", err=True)


@cli.command()
@click.argument("job", metavar="JOB")
@click.option(
    "--to", "destination", metavar="DIR", type=click.Path(path_type=Path), required=True, help="New or empty."
)
@output_option
@pass_options
def fetch(options: Options, job: str, destination: Path) -> None:
    """Download the model of JOB into DIR, verified.

    DIR gets the model's files and, beside them, model.sig: the signature, which `holdfast verify-model DIR` checks
    again at any time. Until everything matches (the signature by the cluster's key, every file, and the job and cluster
    in the signed holdfast-model.json) nothing is written to DIR.
    """
    from holdfast_cli import models
    from holdfast_cli.progress import Progress

    with Progress(plain=options.json) as progress:
        model = models.fetch(options.cluster, job, destination, progress.report)
    if options.json:
        print_json(model.to_dict())
    else:
        click.echo(
            f"verified: the model of job {job}, {len(model.files)} files, signed by cluster {model.record.cluster}"
        )
        click.echo(f"written to {safe(model.directory)}")


@cli.command()
@click.option("--policy", is_flag=True, help="Print the IAM policy that this command needs, and read nothing.")
@output_option
@pass_options
def verify(options: Options, policy: bool) -> None:
    """Read the deployed cluster's posture back through AWS's APIs, and hold it against the threat table.

    Each check says which row it proves, what it read, and what to do if it did not pass. A check that cannot read what
    it needs is unknown, which counts as failed. Nothing is changed: the policy that --policy prints only reads.
    `holdfast verify-model` is another command: it verifies a fetched model.
    """
    from holdfast_cli.errors import PostureFailed
    from holdfast_cli.posture import calls, checks
    from holdfast_cli.posture.views import show_report

    if policy:
        print_json(calls.policy())
        return
    report = checks.verify(options.cluster)
    if options.json:
        print_json(report.to_dict())
    else:
        show_report(report)
    if report.failed:
        names = ", ".join(finding.check.name for finding in report.failed)
        raise PostureFailed(f"{len(report.failed)} of {len(report.findings)} checks did not pass: {names}")


@cli.command("verify-model")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--signature", metavar="FILE", type=click.Path(path_type=Path), help="Default: DIR/model.sig.")
@click.option("--public-key", metavar="PEM", type=click.Path(path_type=Path), help="Verify offline with this key.")
@click.option("--job", metavar="JOB", help="Also require that this job made the model.")
@output_option
@pass_options
def verify_model(
    options: Options, directory: Path, signature: Path | None, public_key: Path | None, job: str | None
) -> None:
    """Verify a fetched model: every file, its signature, and which job made it.

    The key comes from the cluster (KMS), or from --public-key, which needs no AWS; `holdfast public-key` prints it.
    """
    from holdfast_cli import models, verification
    from holdfast_node.models import SIGNATURE_NAME, check_record, load_public_key

    signature = signature or directory / SIGNATURE_NAME
    if public_key:
        pem, cluster = load_public_key(public_key.read_bytes(), str(public_key)), options.cluster_name
    else:
        pem, cluster = models.public_key(options.cluster), options.cluster.name
    record = verification.verify_model(directory, signature, pem).record
    check_record(record, job_id=job, cluster=cluster)
    if options.json:
        print_json({"directory": str(directory), "verified": True, "record": record.details})
    else:
        click.echo(f"verified: {safe(directory)} is the model of job {record.job_id} of cluster {record.cluster}")


@cli.command("public-key")
@pass_options
def public_key_command(options: Options) -> None:
    """Print the key (PEM) that verifies this cluster's models, for use where there is no AWS."""
    from holdfast_cli import models

    pem = models.public_key(options.cluster).decode()
    if options.json:
        print_json({"cluster": options.cluster.name, "public_key": pem})
    else:
        click.echo(pem, nl=False)


@cli.command()
@click.argument("instance", metavar="[INSTANCE_ID]", required=False)
@click.option("--reason", metavar="TEXT", default="", help="Why, in one line; it is kept with the denial.")
@click.option("--list", "list_all", is_flag=True, help="Show the instances that are revoked, and revoke none.")
@output_option
@pass_options
def revoke(options: Options, instance: str | None, reason: str, list_all: bool) -> None:
    """Cut INSTANCE_ID off from the cluster, for ever.

    It gets no certificate any more, at once; within a minute its peers end their connections to it, and the job goes on
    without it or fails. The instance itself is not stopped. There is no way back: replace the instance. An id that no
    instance of the cluster has is denied too, and said to be none with exit code 1.
    """
    from holdfast_cli import revocation
    from holdfast_cli.views import show_revocation, show_revocations

    if list_all == (instance is not None):
        raise click.UsageError("name one instance to revoke, or use --list to see which are")
    if instance is None:
        found = revocation.revoked(options.cluster)
        if options.json:
            print_json({"revoked": [one.to_dict() for one in found]})
        else:
            show_revocations(found, options.cluster.name)
        return
    denial = revocation.check(instance, reason)  # before the cluster is looked up: it needs no AWS
    done = revocation.revoke(options.cluster, denial)
    if done.new:
        revocation.require_member(options.cluster, instance)
    if options.json:
        print_json(done.to_dict())
    else:
        show_revocation(done, options.cluster.name)


def _wait(options: Options, job_id: str) -> None:
    from holdfast_cli import status as views
    from holdfast_cli.progress import Progress

    options.resume_hint = f"the job goes on: `holdfast status {job_id} --wait` watches it again"
    with Progress(plain=options.json) as progress:
        for view in views.watch(options.cluster, job_id, options.poll_seconds):
            progress.report_job(view)
    _show(options, view)
    views.require_success(view)


def _show(options: Options, view: "JobView") -> None:
    from holdfast_cli import boots

    show_job(view, boots.of_job(options.cluster, view), as_json=options.json)


def _add_local_commands() -> None:
    """Add `holdfast local` where the local hosts are installed; a node or an operator's wheel may lack them."""
    try:
        from holdfast_local.commands import local
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "holdfast_local":
            raise
        return
    cli.add_command(local)


def main() -> None:
    """Run the command line and exit."""
    # A terminated command, or one whose terminal closed, must remove its private files like an interrupted one.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup(1) goes on being obeyed
            signal.signal(number, signal.default_int_handler)
    _add_local_commands()
    cli(prog_name="holdfast")
