"""`headwater jobs`: what was submitted, and its control."""

import click

from coordinator.cli import show
from coordinator.cli.options import coordinator_option, open_reader, reading
from coordinator.control_client import ControlClient


@click.group()
def jobs() -> None:
    """List, show, pause, resume and cancel jobs."""


@jobs.command("list")
@reading
def list_jobs(coordinator: str, database: str | None, as_json: bool) -> None:
    """The jobs, newest first."""
    with open_reader(coordinator, database) as reader:
        found = reader.list_jobs()
    if as_json:
        show.print_json([show.plain(one) for one in found.jobs])
        return
    columns = (
        ("job", "left"),
        ("state", "left"),
        ("rounds", "right"),
        ("dataset", "left"),
        ("held-out", "left"),
        ("submitted", "left"),
    )
    rows = (
        (
            one.reference,
            one.state,
            f"{one.rounds_done}/{one.rounds_planned}",
            one.dataset,
            show.metrics_text(one.metrics),
            show.moment(one.created_at, known=True),
        )
        for one in found.jobs
    )
    show.print_table(columns, rows, "no job was submitted yet: headwater submit job.toml")


@jobs.command("show")
@click.argument("job")
@reading
def show_job(job: str, coordinator: str, database: str | None, as_json: bool) -> None:
    """One job, and what it waits for."""
    with open_reader(coordinator, database) as reader:
        found = reader.show_job(job)
    if as_json:
        show.print_json(show.plain(found.job) | {"waiting_for": found.waiting_for})
        return
    one = found.job
    show.print_fields(
        (
            ("job", one.reference),
            ("state", f"{one.state} ({one.state_reason})"),
            ("waiting", found.waiting_for),
            ("rounds", f"{one.rounds_done} of {one.rounds_planned}"),
            ("held-out", show.metrics_text(one.metrics)),
            ("latest version", one.latest_version),
            ("dataset", one.dataset),
            ("plan", one.plan_digest),
            ("submitted", show.moment(one.created_at, known=one.HasField("created_at"))),
            ("started", show.moment(one.started_at, known=one.HasField("started_at"))),
            ("ended", show.moment(one.ended_at, known=one.HasField("ended_at"))),
        )
    )


def _change(action: str, meaning: str) -> click.Command:
    @click.command(action, help=meaning)
    @click.argument("job")
    @coordinator_option
    def change(job: str, coordinator: str) -> None:
        with ControlClient(coordinator) as control:
            changed = control.change(job, action)
        click.echo(f"job {changed.reference} is {changed.state}: {changed.state_reason}")

    return change


jobs.add_command(_change("pause", "End the open round, then open no further one."))
jobs.add_command(_change("resume", "Go on with a paused job."))
jobs.add_command(_change("cancel", "End a job for good; its open round is abandoned."))
