"""`headwater models`: the versions that rounds produced."""

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from coordinator.cli import show
from coordinator.cli.options import coordinator_option, open_reader, reading
from coordinator.control_client import ControlClient
from coordinator.model_file import ENDINGS, Format, is_weights_file, write_model
from coordinator.prediction_model import Origin
from headwater.errors import UsageError
from headwater.safetensors import read_tensors
from headwater.v1 import control_pb2


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
    "--format",
    "kind",
    type=click.Choice(list(ENDINGS)),
    default="safetensors",
    show_default=True,
    help="onnx: a model for any onnxruntime, weights and preprocessing inside. safetensors, torch: "
    "the state_dict of your module.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; JOB-VERSION.safetensors, .onnx or .pt by default.",
)
@coordinator_option
def pull(model: str, kind: Format, output: Path | None, coordinator: str) -> None:
    """Write a model version (the latest by default) to a file for other programs."""
    job, at, text = model.partition("@")
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    if not job or (at and text != "latest" and not is_number):
        raise UsageError(f"{model!r}: write JOB, JOB@latest or JOB@NUMBER")
    version = int(text) if is_number else -1
    folder = output.parent if output else Path()
    try:
        with (
            ControlClient(coordinator) as control,
            TemporaryDirectory(prefix=".headwater-pull-", dir=folder) as place,
        ):
            pulled, made = _pulled(control, job, version, kind, Path(place))
            path = output or Path(f"{job}-{pulled.version}{ENDINGS[kind]}")
            size_bytes = made.stat().st_size
            made.replace(path)
    except OSError as error:
        raise UsageError(f"{output or folder}: {error.strerror}") from error
    click.echo(f"{path}: version {pulled.version}, {show.size(size_bytes)}")


def _pulled(
    control: ControlClient, job: str, version: int, kind: Format, place: Path
) -> tuple[control_pb2.ModelVersion, Path]:
    """The version's record and its file in the format, somewhere in a folder."""
    weights, made = place / "weights", place / "made"
    with weights.open("wb") as file:
        pulled = control.pull(job, version, file)
    plan = control.plan(job)
    if kind == "safetensors" and is_weights_file(plan.manifest):
        return pulled, weights
    origin = Origin(pulled.job, pulled.version)
    with made.open("wb") as file:
        write_model(file, kind, plan, read_tensors(weights), origin)
    return pulled, made
