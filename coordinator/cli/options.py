"""What several commands take, once."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from coordinator.control_client import ControlClient
from headwater.errors import UsageError

if TYPE_CHECKING:
    from coordinator.database_reader import DatabaseReader

DEFAULT_ADDRESS = "127.0.0.1:7070"

Command = Callable[..., Any]


def _address(context: click.Context, parameter: click.Parameter, value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise UsageError(f"--coordinator {value!r}: write HOST:PORT, such as {DEFAULT_ADDRESS}")
    return value


coordinator_option = click.option(
    "--coordinator",
    metavar="HOST:PORT",
    callback=_address,
    envvar="HEADWATER_COORDINATOR",
    default=DEFAULT_ADDRESS,
    show_default=True,
    show_envvar=True,
    help="The coordinator to speak to.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def reading(command: Command) -> Command:
    """Add --coordinator, --database and --json to a command that only reads."""
    database = click.option(
        "--database",
        metavar="URL",
        envvar="HEADWATER_DATABASE",
        show_envvar=True,
        help="Read this database itself; no coordinator needs to run.",
    )
    return json_option(database(coordinator_option(command)))


def open_reader(coordinator: str, database: str | None) -> "ControlClient | DatabaseReader":
    """The running coordinator, or the database where one is named."""
    if not database:
        return ControlClient(coordinator)
    from coordinator.database_reader import DatabaseReader  # SQLAlchemy: half a second to import

    return DatabaseReader(database)
