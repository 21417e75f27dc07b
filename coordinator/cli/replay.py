"""`headwater replay`: fold a round again, as it was or as it might have been."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from coordinator.aggregation.rules import RULES
from coordinator.cli import show
from coordinator.cli.data_place import opened, stored
from coordinator.jobs.aggregation_spec import Aggregation
from coordinator.model_file import is_weights_file, write_model
from coordinator.prediction_model import Origin
from coordinator.replay.committed_round import CommittedRound, WhatIf, committed_round
from coordinator.replay.refold import Replayed, replayed
from headwater import durable_files
from headwater.errors import UsageError
from headwater.layout import Weights
from headwater.plan import Plan
from headwater.safetensors import write_weights
from headwater.sources import DataSource, open_source, parse_binding

_SAME = "the same weights, bit for bit"
_OTHER = "other weights than the committed ones"


@click.command()
@click.argument("job")
@click.argument("number", metavar="ROUND", type=click.IntRange(1))
@click.option(
    "--without",
    metavar="CLIENT",
    multiple=True,
    help="Leave out the update of this client, by its name; may be given again.",
)
@click.option("--rule", type=click.Choice(list(RULES)), help="Fold by this rule.")
@click.option(
    "--trim",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    help="For trimmed_mean: the share cut at each end.",
)
@click.option(
    "--data",
    "bindings",
    metavar="NAME=PATH",
    multiple=True,
    help="Held-out data to measure the weights on, as `headwater serve` takes it.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the weights to this safetensors file, as `headwater models pull` does.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="They change the speed and no bit of the weights.",
)
@stored
def replay(
    job: str,
    number: int,
    without: tuple[str, ...],
    rule: str | None,
    trim: float | None,
    bindings: tuple[str, ...],
    output: Path | None,
    directory: Path,
    database: str | None,
    blobs_url: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Fold a committed training round again from its stored updates.

    The weights must have the digest that the database has for the round's version: the exit code is
    0 when they do and 1 when not. With --without, --rule or --trim it shows what would have been
    beside what was, and the exit code is 0. Nothing is changed, and the coordinator may run.
    """
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}")
    what_if = WhatIf(without, rule, trim)
    with opened(directory, database, blobs_url) as (held, blobs):
        step = held.read_now(partial(committed_round, reference=job, number=number))
        plan = Plan.from_blobs(step.plan.manifest.encode(), blobs.read)
        source = _held_out(step, plan, dict(map(parse_binding, bindings)))
        done = replayed(blobs, step, plan, what_if, source, threads)
    if output is not None:
        _write(output, plan, done.weights, Origin(job, step.version.number))
    if as_json:
        show.print_json(_document(step, what_if, done))
    else:
        _print(step, what_if, done)
        if output is not None:
            click.echo(f"{output}: {show.size(output.stat().st_size)}")
    if not what_if and done.digest != step.version.weights_digest:
        raise click.exceptions.Exit(1)


def _held_out(step: CommittedRound, plan: Plan, bindings: Mapping[str, str]) -> DataSource | None:
    if not bindings:
        return None
    dataset = step.job.dataset
    if dataset not in bindings:
        raise UsageError(
            f"--data {', '.join(bindings)}: job {step.job.reference} is of the data set {dataset}: "
            f"--data {dataset}=PATH"
        )
    return open_source(bindings[dataset], plan.manifest.inputs, plan.manifest.targets)


def _write(path: Path, plan: Plan, weights: Weights, origin: Origin) -> None:
    with durable_files.new_file(path) as file:
        if is_weights_file(plan.manifest):
            write_weights(file, plan.layout, weights)
        else:
            write_model(file, "safetensors", plan, plan.layout.unflatten(weights), origin)


def _document(step: CommittedRound, what_if: WhatIf, done: Replayed) -> dict[str, Any]:
    optimizer = done.aggregation.server_optimizer
    return {
        "job": step.job.reference,
        "round": step.record.number,
        "rule": done.aggregation.rule,
        **done.aggregation.settings,
        "server_optimizer": asdict(optimizer) if optimizer else None,
        "without": sorted(set(what_if.without)),
        "shares": done.shares,
        "committed": {
            "version": step.version.model,
            "digest": step.version.weights_digest,
            "metrics": show.json_numbers(done.metrics_before),
        },
        "replayed": {"digest": done.digest, "metrics": show.json_numbers(done.metrics)},
        "equal": done.digest == step.version.weights_digest,
    }


def _print(step: CommittedRound, what_if: WhatIf, done: Replayed) -> None:
    own, committed = step.spec.aggregation, step.version.weights_digest
    other = f", not {_rule(own)}" if done.aggregation.chosen != own.chosen else ""
    unmeasured = f"not measured: --data {step.job.dataset}=PATH" if what_if else ""
    show.print_fields(
        (
            ("round", f"{step.record.number} of {step.job.reference}"),
            ("version", step.version.model),
            ("rule", _rule(done.aggregation) + other),
            ("optimizer", _optimizer(done.aggregation, own)),
            ("updates", f"{len(done.shares)} of {len(step.folded)}"),
            ("without", ", ".join(sorted(set(what_if.without)))),
            ("committed", committed),
            ("replayed", done.digest),
            ("result", _SAME if done.digest == committed else _OTHER),
            ("held-out", "" if done.metrics else unmeasured),
        )
    )
    if done.metrics:
        columns = (("held-out", "left"), ("committed", "right"), ("replayed", "right"))
        rows = (
            (name, show.metric(done.metrics_before, name), show.metric(done.metrics, name))
            for name in sorted(done.metrics)
        )
        show.print_table(columns, rows, "")


def _rule(aggregation: Aggregation) -> str:
    settings = (f" {name} {value:g}" for name, value in aggregation.settings.items())
    return aggregation.rule + "".join(settings)


def _optimizer(aggregation: Aggregation, own: Aggregation) -> str:
    """Empty where the job has no server optimizer."""
    if own.server_optimizer is None:
        return ""
    one = own.server_optimizer
    kind = f"nesterov {one.name}" if one.nesterov else one.name
    words = f"{kind} {one.momentum:g}, learning rate {one.learning_rate:g}"
    return words if aggregation.server_optimizer is not None else f"none, not {words}"
