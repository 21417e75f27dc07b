"""The `headwater` command and its parts."""

import click

from coordinator import VERSION
from coordinator.cli.author import compile_command, submit
from coordinator.cli.clients import clients
from coordinator.cli.database import db
from coordinator.cli.demo import demo
from coordinator.cli.jobs import jobs
from coordinator.cli.models import models
from coordinator.cli.rounds import rounds
from coordinator.cli.serve import serve
from coordinator.data_command import data_group


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 a defect of ours, 2 your mistake, 3 the world (try again), "
    "130 interrupted.",
)
@click.version_option(VERSION, prog_name="headwater")
def headwater() -> None:
    """Train one model on devices that keep their data, and remember every round.

    Operators start a coordinator with `serve` and watch `jobs`, `rounds` and `clients`. Authors
    `compile` and `submit` job files. Devices run `headwater-client`.
    """


for command in (
    serve,
    compile_command,
    submit,
    jobs,
    rounds,
    clients,
    models,
    db,
    data_group,
    demo,
):
    headwater.add_command(command)
