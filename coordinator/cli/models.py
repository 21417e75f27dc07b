"""`headwater models`: the versions that rounds produced."""

from pathlib import Path

import click

from coordinator.cli import show
from coordinator.cli.options import coordinator_option, open_reader, reading
from coordinator.control_client import ControlClient
from headwater.errors import UsageError


@click.group()
def models() -> None:
    """List a job's model versions, and pull one."""


@models.command("list")
@click.argument("job")
@click.option("--best", metavar="METRIC", default="", help="Rank by this metric, best first.")
@reading
def list_models(job: str, best: str, coordinator: str, database: str | None, as_json: bool) -> None:
    """A job's model versions: by number, or best first."""
    with open_reader(coordinator, database) as reader:
        found = reader.list_models(job, best)
    if as_json:
        show.print_json([show.plain(one) for one in found.models])
        return
    columns = (
        ("version", "left"),
        ("round", "right"),
        ("held-out", "left"),
        ("clients", "left"),
        ("size", "right"),
        ("from", "left"),
        ("weights", "left"),
    )
    rows = (
        (
            f"{one.job}@{one.version}",
            one.round_number or "",
            show.metrics_text(one.metrics_coordinator),
            show.metrics_text(one.metrics_clients),
            show.size(one.size_bytes),
            "" if one.parent.startswith(f"{one.job}@") else one.parent,
            one.weights_digest[:12],
        )
        for one in found.models
    )
    show.print_table(columns, rows, f"job {job} has no version")


@models.command("pull")
@click.argument("model", metavar="JOB[@VERSION]")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; JOB-VERSION.safetensors by default.",
)
@coordinator_option
def pull(model: str, output: Path | None, coordinator: str) -> None:
    """Write a version's weights (the latest by default) to a safetensors file."""
    job, at, text = model.partition("@")
    if at and text != "latest" and not text.isdigit():
        raise UsageError(f"{model!r}: write JOB, JOB@latest or JOB@NUMBER")
    version = int(text) if text.isdigit() else -1
    part = Path(f"{(output or Path(job)).name}.part")
    part = (output.parent if output else Path()) / part
    try:
        with ControlClient(coordinator) as control, part.open("wb") as file:
            pulled = control.pull(job, version, file)
        path = output or Path(f"{job}-{pulled.version}.safetensors")
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{part}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    click.echo(f"{path}: version {pulled.version}, {show.size(pulled.size_bytes)}")
