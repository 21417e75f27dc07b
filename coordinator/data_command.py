"""`headwater data`: prepare data sets for trials."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from headwater.partitioning.split import PartReport, SplitReport, SplitRequest, split

_MOST_LABELS = 20


@click.group("data")
def data_group() -> None:
    """Prepare data sets for trials."""


@data_group.command("split")
@click.argument("source")
@click.option("--parts", type=click.IntRange(1), help="How many parts (not with --by column).")
@click.option(
    "--by",
    "rule",
    type=click.Choice(["iid", "dirichlet", "shards", "column"]),
    default="iid",
    show_default=True,
    help="How examples are dealt.",
)
@click.option(
    "--alpha",
    type=float,
    default=0.5,
    show_default=True,
    help="Dirichlet concentration: small gives each part few labels, large is close to IID.",
)
@click.option(
    "--shards-per-part",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Runs of examples sorted by label that each part is dealt (--by shards).",
)
@click.option("--column", help="The column that --by column makes one part a value of.")
@click.option("--target", help="The column of labels, where it is not y, target or label.")
@click.option("--holdout", type=float, help="Fraction set aside first, by label: holdout.*")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same parts.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder that gets part-00000.* and so on.",
)
@click.option("--force", is_flag=True, help="Remove part-* and holdout.* files there first.")
@click.option("--json", "as_json", is_flag=True, help="Print the histogram as JSON.")
def split_command(as_json: bool, **options: Any) -> None:
    """Split SOURCE into parts, one for each client of a trial.

    SOURCE is a .parquet file or a folder of them, an .npz or .csv file, or digits:
    (digits:?split=train for the training images alone). Parts are files of the same kind; every
    example goes to exactly one.
    """
    report = split(SplitRequest(**options))
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    for line in histogram(report):
        click.echo(line)


def histogram(report: SplitReport) -> list[str]:
    """The parts as lines of a table: file, examples, examples of each label.

    With more than 20 labels, only the number of labels in each part.
    """
    parts = [*report.parts, *([report.holdout] if report.holdout else [])]
    labels = _ordered({label for part in parts for label in part.labels})
    if len(labels) > _MOST_LABELS:
        header, cells = ["file", "examples", "labels"], [_counted(part) for part in parts]
    else:
        header = ["file", "examples", *labels]
        cells = [_row(part, labels) for part in parts]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    return [_aligned(row, widths) for row in [header, *cells]]


def _ordered(labels: set[str]) -> list[str]:
    if all(label.removeprefix("-").isdigit() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels)


def _row(part: PartReport, labels: Sequence[str]) -> list[str]:
    return [part.file, str(part.examples), *(str(part.labels.get(name, 0)) for name in labels)]


def _counted(part: PartReport) -> list[str]:
    return [part.file, str(part.examples), str(len(part.labels))]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join([row[0].ljust(widths[0]), *numbers]).rstrip()
