"""`headwater compile` and `headwater submit`: from a job file to a running job."""

import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import click

from coordinator.author import compile_job
from coordinator.cli import show
from coordinator.cli.explain import print_explanation
from coordinator.cli.options import coordinator_option, json_option
from coordinator.cli.rounds import ROUND_COLUMNS, round_row
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.compiler.plan_cache import PlanCache, default_folder
from coordinator.control_client import ControlClient
from coordinator.explanation import explain
from headwater.errors import UnavailableError, UsageError
from headwater.plan import MANIFEST, Plan, ReadablePlan
from headwater.v1 import control_pb2

_JOB_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FAILED = ("failed", "cancelled", "paused")
RETRY_SECONDS = 2.0


_cache_option = click.option(
    "--cache/--no-cache",
    "use_cache",
    default=True,
    help="Take the plan of an unchanged job from the cache, and keep it there. [cache]",
)


@click.command("compile")
@click.argument("job_file", type=_JOB_FILE)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The .plan file to write. [none: see whether it compiles]",
)
@click.option(
    "--explain",
    "explained",
    is_flag=True,
    help="Print operators, members, tensors, memory and operations by batch size, and parity.",
)
@_cache_option
@json_option
def compile_command(
    job_file: Path, output: Path | None, explained: bool, use_cache: bool, as_json: bool
) -> None:
    """Compile a job's model, loss and optimizer to a plan that any client can run.

    With --explain, JOB_FILE may also be a .plan file: it is explained as it is.
    """
    plan: ReadablePlan
    if job_file.suffix == ".plan":
        if output is not None or not explained:
            raise UsageError(f"{job_file} is compiled already: only --explain takes a .plan file")
        plan = Plan.open(job_file)
    else:
        if output is not None:
            _check_output(output)
        plan = _compiled(job_file, output, use_cache)
    manifest = plan.manifest
    tables = explain(plan) if explained else {}
    if as_json:
        show.print_json(
            {
                "plan": None if output is None else str(output),
                "digest": plan.digest,
                "parity": dict(manifest.parity),
                "size_bytes": sum(one.size_bytes for one in manifest.members.values()),
                "parameters": manifest.layout.trainable_count,
            }
            | ({"explanation": tables} if explained else {})
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
    if explained:
        print_explanation(tables)


def _check_output(path: Path) -> None:
    """Refuse to write over what is no plan, before the work is done.

    Raises:
        UsageError: it has another ending, or is a folder with other files.
    """
    is_file = path.suffix in (".plan", ".zip")
    if (path.is_dir() is is_file and path.exists()) or (path.suffix and not is_file):
        raise UsageError(f"-o {path}: name a file that ends in .plan, such as {path.stem}.plan")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).exists():
        raise UsageError(f"-o {path}: this folder has other files: name a .plan file")


def _compiled(job_file: Path, output: Path | None, use_cache: bool) -> CompiledPlan:
    """Compile; what the author's code prints is no part of what this command prints."""
    cache = PlanCache(default_folder()) if use_cache else None
    with redirect_stdout(sys.stderr):
        return compile_job(job_file, output, progress=_progress, cache=cache)


@click.command()
@click.argument("job_file", type=_JOB_FILE)
@click.option("--follow", is_flag=True, help="Print every round until the job ends or is paused.")
@_cache_option
@coordinator_option
@json_option
def submit(job_file: Path, follow: bool, use_cache: bool, coordinator: str, as_json: bool) -> None:
    """Compile a job and send it to a coordinator.

    With --follow the exit code is 1 when the job fails, is cancelled or is paused.
    """
    with ControlClient(coordinator) as control:
        control.list_jobs()  # a coordinator that is not there is told before the work is done
        plan = _compiled(job_file, None, use_cache)
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
    try:
        return _followed(control, reference, as_json)
    except KeyboardInterrupt:
        click.echo(
            f"job {reference} goes on: headwater jobs show {reference}, "
            f"headwater jobs cancel {reference}",
            err=True,
        )
        raise


def _followed(control: ControlClient, reference: str, as_json: bool) -> control_pb2.Job:
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
