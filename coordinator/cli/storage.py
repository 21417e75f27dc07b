"""`headwater storage`: a coordinator's data directory and database, checked, measured and kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from coordinator.cli import show
from coordinator.cli.options import Command, json_option
from headwater.errors import StorageError, UsageError
from storage.blob_checks import missing_blobs
from storage.blob_directory import BlobDirectory
from storage.collect import collect as collect_garbage
from storage.database import Database, open_database, shown
from storage.usage import Amount, KeptUpdates, Usage, usage
from storage.verify import Verification
from storage.verify import verify as verify_storage

_AMOUNTS = (("what", "left"), ("files", "right"), ("size", "right"))
_KEPT = (
    ("job", "left"),
    ("keeps updates of", "left"),
    ("rounds", "right"),
    ("updates", "right"),
    ("size", "right"),
)


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


@storage.command()
@stored
def status(directory: Path, database: str | None, as_json: bool) -> None:
    """Show what takes how much of the disk, and whose updates are kept."""
    with opened(directory, database) as (held, blobs):
        found = usage(held, blobs, directory)
    if as_json:
        show.print_json(asdict(found))
        return
    show.print_table(_AMOUNTS, _amounts(found), "nothing")
    show.print_fields(
        (("database", show.size(found.database_bytes)), ("free disk", show.size(found.free_bytes)))
    )
    show.print_table(_KEPT, map(_kept_row, found.kept), "no update is kept")


def _amounts(found: Usage) -> Iterator[tuple[str, int, str]]:
    amounts: dict[str, Amount] = {
        **found.blobs,
        "unreferenced": found.unreferenced,
        "temporary": found.temporary,
        "parts of uploads": found.spool,
    }
    for name, amount in amounts.items():
        yield name, amount.count, show.size(amount.bytes)


def _kept_row(kept: KeptUpdates) -> tuple[object, ...]:
    policy = kept.policy or "as the coordinator says"
    return kept.job, policy, kept.rounds, kept.updates.count, show.size(kept.updates.bytes)


@storage.command()
@click.option(
    "--keep-update-rounds",
    type=click.IntRange(0),
    help="For jobs whose file says nothing of retention; all their updates are kept by default.",
)
@stored
def collect(
    keep_update_rounds: int | None, directory: Path, database: str | None, as_json: bool
) -> None:
    """Remove now what nothing needs any more; the coordinator does so by itself while it runs.

    It may run beside the coordinator: a file goes in the same database write that finds it free.
    """
    with opened(directory, database) as (held, blobs):
        if missing := missing_blobs(held, blobs):
            raise StorageError(
                f"{len(missing)} blobs that {shown(database or 'the database')} needs are missing "
                f"from {blobs.root}, so it may be another's directory: nothing was removed; "
                "`headwater storage verify --quick` names them"
            )
        report = collect_garbage(
            held, blobs, now=datetime.now(UTC), keep_update_rounds=keep_update_rounds
        )
    if as_json:
        show.print_json(asdict(report))
        return
    click.echo(
        f"{report.updates_released} updates are kept no longer; removed {report.blobs_removed} "
        f"blobs of {show.size(report.bytes_removed)}, and {report.strays_removed} stray files"
    )
