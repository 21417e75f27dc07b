"""The command `headwater-client`."""

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edge_client.fit import Fit, Work, measure_fit
from edge_client.memory_limit import limit_memory
from edge_client.profile import available_cores, memory_bytes
from edge_client.program import INTERRUPTED, end_process, run_client
from edge_client.ranks.place import rank_place
from edge_client.ranks.program import run_ranks
from edge_client.runtime import choose_backend, choose_device, trainer_opener
from edge_client.settings import (
    DEVICES,
    LOG_FORMATS,
    PRECISIONS,
    TRAINERS,
    check_settings,
    parse_data,
    parse_pairs,
    read_settings,
)
from edge_client.sizes import parse_bytes, show_bytes
from edge_client.state import StateDirectory, default_state_path, running_process
from edge_client.status_file import read_status
from edge_client.status_report import status_lines
from edge_client.trainers import Precision
from headwater.errors import HeadwaterError, NotFoundError, PlanError, UsageError
from headwater.plan import Plan
from headwater.sources import open_source

_DEFECT = 1

_EPILOG = """\b
Exit codes: 0 success, 1 a defect of this program, 2 your mistake (the message says what to change),
3 the world (a disk, a network, another process; trying again can help), 130 stopped by Ctrl-C."""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headwater", prog_name="headwater-client")
def client() -> None:
    """Train models on this device's data, which never leave it."""


@client.command(epilog=_EPILOG)
@click.option("--coordinator", metavar="HOST:PORT", help="The coordinator to attend.")
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=BINDING",
    help="A data set: the name that jobs use, and the file or folder. Repeat for more.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Identity, cache and finished updates. [~/.local/state/headwater-client]",
)
@click.option("--name", help="A name for people. [the host's name]")
@click.option(
    "--tag",
    multiple=True,
    metavar="KEY=VALUE",
    help="A fact about this device that jobs can select by. Repeat for more.",
)
@click.option(
    "--trainer",
    type=click.Choice(TRAINERS),
    help="What trains. [auto: torch where it is installed]",
)
@click.option("--device", type=click.Choice(DEVICES), help="Where torch trains. [auto]")
@click.option("--compile/--no-compile", default=None, help="Let torch compile the step. [no]")
@click.option("--precision", type=click.Choice(PRECISIONS), help="What torch multiplies in. [tf32]")
@click.option("--threads", type=int, help="Processor threads for training. [all cores]")
@click.option(
    "--cache-bytes",
    metavar="SIZE",
    help="Room for plans and weights on disk, such as 500MB. [2GiB]",
)
@click.option(
    "--checkpoint-seconds",
    type=float,
    help="How much training a process that dies may lose. [300]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="A file with the same keys as these options; options win.",
)
@click.option("--log-format", type=click.Choice(LOG_FORMATS), help="Log lines. [text]")
@click.option("--verbose", is_flag=True, help="Log details, with tracebacks.")
def run(config: Path | None, verbose: bool, **options: Any) -> None:
    """Attend a coordinator and work until stopped.

    The client reconnects for ever, and no job's failure ends it. It logs to standard error.
    SIGTERM ends it with exit code 0, Ctrl-C with 130. Started by torchrun or mpirun it is one
    client over several devices of this machine.

    \b
    Example:
      headwater-client run --coordinator localhost:7070 --data digits=/data/digits.npz
    """
    settings = check_settings(_merged(config, options))
    place = rank_place(os.environ)
    if place is None:
        end_process(run_client(settings, verbose=verbose))
    else:
        end_process(run_ranks(settings, place, verbose=verbose))


@client.command(epilog=_EPILOG)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="BINDING",
    help="Data to time steps on, as BINDING or NAME=BINDING. [generated data]",
)
@click.option("--batch-size", type=click.IntRange(1), help="Examples in a step. [the plan's]")
@click.option("--trainer", type=click.Choice(TRAINERS), default="auto", show_default=True)
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Let torch compile the step.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="tf32", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads for training. [all cores]")
@click.option("--epochs", type=click.IntRange(1), help="An assignment's passes over the data.")
@click.option("--steps", type=click.IntRange(1), help="An assignment's steps, instead of --epochs.")
@click.option(
    "--deadline",
    "deadline_seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Say whether --epochs or --steps are done by then.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(
    plan: Path,
    data: str | None,
    batch_size: int | None,
    trainer: str,
    device: str,
    compiled: bool,
    precision: Precision,
    threads: int | None,
    epochs: int | None,
    steps: int | None,
    deadline_seconds: float | None,
    as_json: bool,
) -> None:
    """Say whether PLAN fits this device, how fast it trains here, and whether that is in time.

    Verifies the plan, compares its memory estimate with this device, and times a few steps. The
    exit code is 0 if it fits, and an assignment of --epochs or --steps takes no longer than
    --deadline; otherwise it is 2 and the message says why not.

    \b
    Example:
      headwater-client check job.plan --data digits=/data/digits.npz --epochs 2 --deadline 60
    """
    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps: give one of them")
    if deadline_seconds is not None and epochs is None and steps is None:
        raise UsageError("--deadline needs --epochs or --steps: what is to be done by then")
    backend = choose_backend(trainer)
    place = choose_device(backend, device)
    limit_memory(memory_bytes())
    try:
        opened = Plan.open(plan)
        inputs, targets = opened.manifest.inputs, opened.manifest.targets
        source = open_source(_binding(data), inputs, targets) if data else None
        fit = measure_fit(
            opened,
            trainer_opener(
                backend,
                threads=threads or available_cores(),
                device=device,
                compile=compiled,
                precision=precision,
            )(opened),
            source,
            batch_size=batch_size or opened.manifest.batch_size,
            memory_bytes=memory_bytes(),
            work=Work(epochs, steps),
            deadline_seconds=deadline_seconds,
        )
    except HeadwaterError as error:
        if as_json:
            click.echo(json.dumps({"fits": False, "reason": str(error)}))
        raise
    if as_json:
        click.echo(json.dumps({"fits": True, "trainer": backend, "device": place, **asdict(fit)}))
    else:
        _print_fit(fit, f"{backend} on {place}")
    if fit.in_time is False:
        raise PlanError(
            f"the assignment takes about {fit.assignment_seconds:.1f} s on this device; the "
            f"deadline is {deadline_seconds:g} s: fewer epochs or steps, or a later deadline"
        )


@client.command(epilog=_EPILOG)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The client's state directory. [~/.local/state/headwater-client]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(state: Path | None, as_json: bool) -> None:
    """Show what the client on this device does, and how its last assignments went."""
    path = state or default_state_path()
    document = read_status(StateDirectory(path).status)
    process_id = running_process(path)
    if document is None:
        raise NotFoundError(f"no client has run with the state directory {path}: see --state")
    if as_json:
        click.echo(json.dumps({"running": process_id is not None, **document}))
    else:
        for line in status_lines(document, process_id):
            click.echo(line)


def main() -> None:
    """Run the command; every error ends in one line and a documented exit code."""
    try:
        code = client.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = INTERRUPTED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = UsageError.exit_code
    except HeadwaterError as error:
        click.echo(f"headwater-client: {error}", err=True)
        code = error.exit_code
    except Exception:
        logging.getLogger("headwater.client").exception("a defect of headwater-client")
        code = _DEFECT
    sys.exit(code)


def _merged(config: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """The file's settings, overridden by the options that were given."""
    values = read_settings(config) if config else {}
    given = {key: value for key, value in options.items() if value not in (None, ())}
    if "data" in given:
        given["data"] = parse_data(given["data"])
    if "tag" in given:
        given["tag"] = parse_pairs("tag", given["tag"])
    if "cache_bytes" in given:
        given["cache_bytes"] = parse_bytes(given["cache_bytes"])
    return values | given


def _binding(data: str) -> str:
    """The binding in `NAME=BINDING` or `BINDING`."""
    try:
        return next(iter(parse_data([data]).values()))
    except UsageError:
        return data


def _print_fit(fit: Fit, place: str) -> None:
    click.echo(f"{fit.plan} fits this device ({place})")
    click.echo(f"  parameters  {fit.parameters:,}")
    click.echo(
        f"  memory      {show_bytes(fit.memory_needed_bytes)} of {show_bytes(fit.memory_bytes)}"
        f" with batch size {fit.batch_size}"
    )
    rate = f"{fit.examples_per_second:,.0f} examples/s"
    click.echo(f"  a step      {fit.step_seconds * 1000:.2f} ms ({rate})")
    if fit.peak_memory_bytes is not None:
        click.echo(f"  at most     {show_bytes(fit.peak_memory_bytes)} in use by this process")
    if fit.epoch_seconds is not None:
        click.echo(f"  an epoch    {fit.epoch_seconds:.1f} s over {fit.examples:,} examples")
    if fit.assignment_seconds is not None:
        in_time = {True: ", in time", False: ", too late", None: ""}[fit.in_time]
        click.echo(f"  assignment  {fit.assignment_seconds:.1f} s{in_time}")
