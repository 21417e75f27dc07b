"""The `headwater` command and its parts."""

from importlib import import_module

import click

from coordinator import VERSION
from headwater.errors import MissingExtraError

_COMMANDS = {
    "clients": "coordinator.cli.clients:clients",
    "compile": "coordinator.cli.author:compile_command",
    "data": "coordinator.data_command:data_group",
    "db": "coordinator.cli.database:db",
    "demo": "coordinator.cli.demo:demo",
    "jobs": "coordinator.cli.jobs:jobs",
    "models": "coordinator.cli.models:models",
    "replay": "coordinator.cli.replay:replay",
    "rounds": "coordinator.cli.rounds:rounds",
    "serve": "coordinator.cli.serve:serve",
    "storage": "coordinator.cli.storage:storage",
    "submit": "coordinator.cli.author:submit",
}
_EXTRA = "coordinator"


class _Commands(click.Group):
    """Imports a command when it is used: `jobs list` waits for no database driver."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ImportError as error:
            name = (error.name or "").partition(".")[0]
            if name in ("", "coordinator", "storage", "headwater"):
                raise  # a defect of ours, not a package to install
            raise MissingExtraError(
                f"{name} is needed and not installed: pip install 'headwater[{_EXTRA}]'"
            ) from error
        return command


@click.group(
    cls=_Commands,
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
