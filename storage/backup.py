"""A backup of a live coordinator: a data directory of its own, that a coordinator can start on.

First a snapshot of the database, then the blobs that it needs. Retention may remove an update, or
a server optimizer's state, in between; a newer snapshot then no longer needs it, because collection
writes that before it removes the file. The snapshot gets its name last, so that a backup with a
database is a whole one.
"""

import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from sqlalchemy.exc import OperationalError

from headwater import durable_files
from headwater.errors import BlobError, UsageError
from storage.blob_checks import CHUNK_BYTES, needed_blobs
from storage.blob_directory import BlobDirectory
from storage.blob_store import BlobStore
from storage.copying import copy_database
from storage.database import Database, open_database
from storage.failures import translate
from storage.sqlite import SqliteDatabase
from storage.verify import Verification, verify

DATABASE = "headwater.db"
"""The database's name in a data directory, and so in a backup."""
UNFINISHED = f"{DATABASE}.part"

MAXIMUM_SNAPSHOTS = 10
"""Each next one has only the blobs of the time since the last to copy."""


def back_up(database: Database, store: BlobStore, destination: Path) -> Verification:
    """Make a backup, and say what verifying it found; blocking, and safe beside a coordinator.

    Blobs are linked where the destination is on their file system, else copied; a bucket's are
    fetched. The backup of a PostgreSQL database is an SQLite one. What is wrong with the original
    is wrong with its backup, which is kept.

    Raises:
        UsageError: the destination is not empty, or is no folder.
        DiskFullError, StorageError: the database or a disk failed; nothing is left behind.
    """
    _check_empty(destination)
    durable_files.make_folder(destination)
    try:
        copies = BlobDirectory(destination / "blobs")
        _gather(database, store, copies, destination / UNFINISHED)
        with open_database(f"sqlite:///{destination / UNFINISHED}") as snapshot:
            report = verify(snapshot, copies)
        durable_files.adopt(destination / UNFINISHED, destination / DATABASE)
    except BaseException:
        _empty(destination)
        raise
    return report


def _gather(database: Database, store: BlobStore, copies: BlobDirectory, path: Path) -> None:
    """Snapshot the database and get the blobs that it needs, until both agree.

    A blob that was missing before the snapshot that needs it is lost, and verifying tells.
    """
    absent: set[str] = set()
    for _ in range(MAXIMUM_SNAPSHOTS):
        durable_files.remove(path)
        take_snapshot(database, path)
        with open_database(f"sqlite:///{path}") as snapshot:
            needed = snapshot.read_now(needed_blobs)
        lost = absent & needed.keys()
        # Updates and states come last in the list, and first here: they can be collected meanwhile.
        absent |= set(_missing_after_copying(reversed(needed), store, copies))
        if absent & needed.keys() == lost:
            break
    for digest in copies.digests():
        if digest not in needed:
            copies.delete(digest)
    for folder in (path for path in copies.root.iterdir() if path.is_dir()):
        durable_files.sync_folder(folder)


def take_snapshot(database: Database, path: Path) -> None:
    """Write all that a live database holds at one moment to a new, synced SQLite file.

    Raises:
        DiskFullError, StorageError: the database or the disk failed.
    """
    if isinstance(database, SqliteDatabase):
        _copy_pages(database.path, path)
    else:
        copy_database(database, f"sqlite:///{path}")
    with durable_files.disk_errors(path), path.open("rb+") as file:
        durable_files.sync(file, path)


def _copy_pages(source: Path, path: Path) -> None:
    try:
        with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(path)) as copy:
            live.backup(copy)
    except sqlite3.Error as error:
        raise translate(OperationalError(None, None, error), f"the backup {path}") from error


def _missing_after_copying(
    digests: Iterable[str], store: BlobStore, copies: BlobDirectory
) -> list[str]:
    """Get each blob that the copies do not have; those that the store has not either."""
    return [one for one in digests if not copies.exists(one) and not _copied(one, store, copies)]


def _copied(digest: str, store: BlobStore, copies: BlobDirectory) -> bool:
    durable_files.make_folder(copies.path(digest).parent)
    try:
        with store.local(digest) as path:
            _link_or_copy(path, digest, copies)
    except (BlobError, FileNotFoundError):
        return False
    return True


def _link_or_copy(path: Path, digest: str, copies: BlobDirectory) -> None:
    try:
        durable_files.link(path, copies.path(digest))
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        with path.open("rb") as file:
            temporary, _ = copies.prepare(iter(lambda: file.read(CHUNK_BYTES), b""))
        copies.adopt(temporary, digest)


def _check_empty(destination: Path) -> None:
    if destination.exists() and not destination.is_dir():
        raise UsageError(f"{destination} is no folder: name a new one for the backup")
    if destination.is_dir() and any(destination.iterdir()):
        raise UsageError(f"{destination} is not empty: name a new folder for the backup")


def _empty(destination: Path) -> None:
    """Leave nothing of a backup that failed, so that it can be repeated."""
    for path in destination.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            durable_files.remove(path)
