"""`headwater storage`: a coordinator's data directory and database, checked, measured and kept."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from coordinator.cli import show
from coordinator.cli.data_place import opened, stored
from headwater.errors import StorageError
from storage.backup import back_up
from storage.blob_checks import missing_blobs
from storage.collect import collect as collect_garbage
from storage.database import shown
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


@storage.command()
@click.option("--quick", is_flag=True, help="Look at the blobs' sizes; do not read their bytes.")
@stored
def verify(
    quick: bool, directory: Path, database: str | None, blobs_url: str | None, as_json: bool
) -> int:
    """Check that the rows agree with each other and that every needed blob is whole.

    It writes nothing, and may run beside the coordinator. Exit code 0 when nothing is wrong, 1
    with a line for each thing that is.
    """
    with opened(directory, database, blobs_url) as (held, blobs):
        report = verify_storage(held, blobs, quick=quick)
    return _told(report, as_json=as_json, note=" (sizes only)" if quick else "")


def _told(report: Verification, *, as_json: bool, note: str = "") -> int:
    """Print each finding and what was looked at; the exit code."""
    if as_json:
        show.print_json(asdict(report))
        return 1 if report.findings else 0
    for finding in report.findings:
        click.echo(show.printable(str(finding)))
    result = f"{len(report.findings)} findings" if report.findings else "nothing wrong"
    click.echo(
        f"{report.rounds} rounds of {report.jobs} jobs, {report.assignments} assignments, "
        f"{report.versions} model versions, {report.blobs} blobs of {show.size(report.bytes)}"
        f"{note}: {result}"
    )
    return 1 if report.findings else 0


@storage.command()
@stored
def status(directory: Path, database: str | None, blobs_url: str | None, as_json: bool) -> None:
    """Show what takes how much of the disk, and whose updates are kept."""
    with opened(directory, database, blobs_url) as (held, blobs):
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
        "copies of a bucket's": found.copies,
        "parts of uploads": found.spool,
        "refused updates": found.quarantine,
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
    keep_update_rounds: int | None,
    directory: Path,
    database: str | None,
    blobs_url: str | None,
    as_json: bool,
) -> None:
    """Remove now what nothing needs any more; the coordinator does so by itself while it runs.

    It may run beside the coordinator: a file goes in the same database write that finds it free.
    """
    with opened(directory, database, blobs_url) as (held, blobs):
        if missing := missing_blobs(held, blobs):
            raise StorageError(
                f"{len(missing)} blobs that {shown(database or 'the database')} needs are missing "
                f"from {blobs.place}, so it may be another's directory: nothing was removed; "
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


@storage.command()
@click.argument("destination", type=click.Path(path_type=Path))
@stored
def backup(
    destination: Path, directory: Path, database: str | None, blobs_url: str | None, as_json: bool
) -> int:
    """Make a backup in the new folder DESTINATION, and verify it.

    The coordinator may run meanwhile. A backup is a data directory with an SQLite database, also
    of PostgreSQL: to restore it, copy it and start a coordinator on the copy. Exit code 1, with a
    line for each thing, when the backup is kept and something in it is wrong.
    """
    with opened(directory, database, blobs_url) as (held, blobs):
        report = back_up(held, blobs, destination.resolve())
    return _told(report, as_json=as_json, note=f" in {destination}")
