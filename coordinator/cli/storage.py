"""`headwater storage`: a coordinator's data directory and database, checked, measured and kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from coordinator.cli import show
from coordinator.cli.options import Command, json_option
from headwater.errors import UsageError
from storage.blob_directory import BlobDirectory
from storage.database import Database, open_database
from storage.verify import Verification
from storage.verify import verify as verify_storage


@click.group()
def storage() -> None:
    """Check, measure, clean up and back up a coordinator's data.

    Each command reads the database and the data directory themselves, on the coordinator's machine,
    whether it runs or not.
    """


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


@storage.command()
@click.option("--quick", is_flag=True, help="Look at the blobs' sizes; do not read their bytes.")
@stored
def verify(quick: bool, directory: Path, database: str | None, as_json: bool) -> int:
    """Check that the rows agree with each other and that every needed blob is whole.

    It writes nothing, and may run beside the coordinator. Exit code 0 when nothing is wrong, 1
    with a line for each thing that is.
    """
    with opened(directory, database) as (held, blobs):
        report = verify_storage(held, blobs, quick=quick)
    if as_json:
        show.print_json(asdict(report))
    else:
        for finding in report.findings:
            click.echo(show.printable(str(finding)))
        click.echo(_seen(report, quick=quick))
    return 1 if report.findings else 0


def _seen(report: Verification, *, quick: bool) -> str:
    """`2 jobs, 6 rounds, …: nothing wrong`."""
    seen = (
        f"{report.jobs} jobs, {report.rounds} rounds, {report.assignments} assignments, "
        f"{report.versions} model versions, {report.blobs} blobs of {show.size(report.bytes)}"
        f"{' (sizes only)' if quick else ''}"
    )
    wrong = len(report.findings)
    return f"{seen}: {f'{wrong} findings' if wrong else 'nothing wrong'}"
