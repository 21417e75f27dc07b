"""`headwater compile` and `headwater submit`: from a job file to a running job."""

import time
from collections.abc import Iterator
from pathlib import Path

import click

from coordinator.author import compile_job
from coordinator.cli import show
from coordinator.cli.options import coordinator_option, json_option
from coordinator.cli.rounds import ROUND_COLUMNS, round_row
from coordinator.control_client import ControlClient
from headwater.errors import UnavailableError
from headwater.v1 import control_pb2

_JOB_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FAILED = ("failed", "cancelled", "paused")
RETRY_SECONDS = 2.0


@click.command("compile")
@click.argument("job_file", type=_JOB_FILE)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The .plan file to write.",
)
@json_option
def compile_command(job_file: Path, output: Path, as_json: bool) -> None:
    """Compile a job's model, loss and optimizer to a plan that any client can run."""
    plan = compile_job(job_file, output, progress=_progress)
    manifest = plan.manifest
    if as_json:
        show.print_json(
            {
                "plan": str(output),
                "digest": plan.digest,
                "parity": dict(manifest.parity),
                "size_bytes": sum(one.size_bytes for one in manifest.members.values()),
                "parameters": manifest.layout.trainable_count,
            }
        )
        return
    show.print_fields(
        (
            ("plan", output),
            ("digest", plan.digest),
            ("parameters", f"{manifest.layout.trainable_count:,}"),
            ("size", show.size(sum(one.size_bytes for one in manifest.members.values()))),
        )
    )


@click.command()
@click.argument("job_file", type=_JOB_FILE)
@click.option("--follow", is_flag=True, help="Print every round until the job ends or is paused.")
@coordinator_option
@json_option
def submit(job_file: Path, follow: bool, coordinator: str, as_json: bool) -> None:
    """Compile a job and send it to a coordinator.

    With --follow the exit code is 1 when the job fails, is cancelled or is paused.
    """
    plan = compile_job(job_file, progress=_progress)
    with ControlClient(coordinator) as control:
        job = control.submit(job_file, plan)
        if as_json and not follow:
            show.print_json(job)
            return
        click.echo(f"job {job.reference} is {job.state}", err=as_json)
        if follow:
            job = follow_job(control, job.reference, as_json=as_json)
    if job.state in _FAILED:
        raise click.exceptions.Exit(1)


def follow_job(control: ControlClient, reference: str, *, as_json: bool) -> control_pb2.Job:
    """Print a job's rounds as they end, one a line; the job as it stands at the end."""
    job = control_pb2.Job()
    if not as_json:
        click.echo("  ".join(heading for heading, _ in ROUND_COLUMNS))
    for news in _news(control, reference):
        if news.HasField("round"):
            _print_round(news.round, as_json)
            continue
        job = news.job.job
        if news.job.waiting_for:
            click.echo(f"{reference} {news.job.waiting_for}", err=True)
    click.echo(f"job {reference} is {job.state}: {job.state_reason}", err=as_json)
    return job


def _news(control: ControlClient, reference: str) -> Iterator[control_pb2.FollowResponse]:
    """What happens to a job, also across restarts of the coordinator: the job goes on by itself."""
    seen = 0
    while True:
        try:
            for news in control.follow(reference, seen):
                seen = max(seen, news.round.number)
                yield news
            return
        except UnavailableError as error:
            click.echo(
                f"{error}; job {reference} goes on, and so does this when it is back", err=True
            )
            time.sleep(RETRY_SECONDS)


def _print_round(one: control_pb2.Round, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(show.plain(one)))
        return
    click.echo("  ".join(str(cell) for cell in round_row(one) if cell != ""))


def _progress(text: str) -> None:
    click.echo(text, err=True)
