"""Where a coordinator's data are, for the commands that work on them directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from coordinator.cli.options import Command, json_option
from headwater.errors import UsageError
from storage.blob_directory import BlobDirectory
from storage.database import Database, open_database


def stored(command: Command) -> Command:
    """Add --data-directory, --database and --json to a command."""
    directory = click.option(
        "--data-directory",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("headwater-data"),
        show_default=True,
        envvar="HEADWATER_DATA_DIRECTORY",
        show_envvar=True,
        help="The coordinator's data directory.",
    )
    database = click.option(
        "--database",
        metavar="URL",
        envvar="HEADWATER_DATABASE",
        show_envvar=True,
        help="The coordinator's database; SQLite in the data directory by default.",
    )
    return directory(database(json_option(command)))


@contextmanager
def opened(directory: Path, url: str | None) -> Iterator[tuple[Database, BlobDirectory]]:
    """The database and the blobs of a data directory.

    Raises:
        UsageError: it is no data directory.
        SchemaVersionError, StorageError: the database.
    """
    blobs = directory / "blobs"
    if not blobs.is_dir():
        raise UsageError(
            f"{directory} is no coordinator's data directory (it has no folder blobs): name it "
            "with --data-directory"
        )
    with open_database(url or f"sqlite:///{directory.resolve() / 'headwater.db'}") as database:
        yield database, BlobDirectory(blobs)
