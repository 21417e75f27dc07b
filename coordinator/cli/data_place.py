"""Where a coordinator's data are, for the commands that work on them directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from coordinator.cli.options import Command, json_option
from headwater.errors import UsageError
from storage.blob_place import BLOBS, CACHE_BYTES, open_blobs
from storage.blob_store import BlobStore
from storage.database import Database, open_database


def stored(command: Command) -> Command:
    """Add --data-directory, --database, --blobs and --json to a command."""
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
    return directory(database(_blobs_option(json_option(command))))


def _blobs_option(command: Command) -> Command:
    """Add --blobs to a command."""
    option = click.option(
        "--blobs",
        "blobs_url",
        metavar="URL",
        envvar="HEADWATER_BLOBS",
        show_envvar=True,
        help="The coordinator's bucket, s3://BUCKET/PREFIX; the data directory by default.",
    )
    return option(command)


@contextmanager
def opened(
    directory: Path, url: str | None, blobs_url: str | None
) -> Iterator[tuple[Database, BlobStore]]:
    """The database and the blobs of a coordinator, which may run meanwhile.

    Raises:
        UsageError: it is no data directory, or --blobs is no bucket.
        SchemaVersionError, StorageError: the database or the bucket.
    """
    url = url or f"sqlite:///{directory.resolve() / 'headwater.db'}"
    with _blobs(directory, blobs_url) as blobs, open_database(url) as database:
        yield database, blobs


@contextmanager
def _blobs(directory: Path, blobs_url: str | None) -> Iterator[BlobStore]:
    """The blobs; copies of a bucket's are this command's own, since a coordinator may run."""
    if not blobs_url and not (directory / BLOBS).is_dir():  # opening would make it
        raise UsageError(
            f"{directory} is no coordinator's data directory (it has no folder blobs): name it "
            "with --data-directory"
        )
    with TemporaryDirectory(prefix="headwater-blobs-") as copies:
        yield open_blobs(blobs_url, directory / BLOBS, Path(copies), CACHE_BYTES)
