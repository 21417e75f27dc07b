"""Garbage collection: removes blobs that nothing needs any more.

A blob goes when no pin, model version, plan or kept update refers to it. Its file is deleted inside
the write that finds it free, and writes are serial: a writer's pin comes before that, and keeps the
file, or after it, and then the writer sees that the file is gone and writes it. After a crash
between the two a row without a file can be left, that nothing refers to; the next collection
removes it.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import chain, islice

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from headwater.errors import StorageError
from storage.blob_store import BlobStore
from storage.blobs import is_referenced, references
from storage.database import Database
from storage.records import CollectionReport
from storage.retention import release
from storage.schema import Blob

STRAY_GRACE = timedelta(hours=1)
"""How old a file without a row must be: longer than any write between its file and its row."""
BATCH = 16
"""Files deleted in one write, which other writes wait for."""


def collect(
    database: Database, store: BlobStore, *, now: datetime, keep_update_rounds: int | None = 2
) -> CollectionReport:
    """Remove what nothing needs; blocking, and safe beside running jobs.

    Each job keeps the updates of as many of its last training rounds as its job file says, or
    `keep_update_rounds` (None: all) where it says nothing, and of any round that has not ended; the
    ledger keeps the digests of the others. States of a server optimizer go with the updates that a
    replay needs them for, but for that of the newest version.

    Raises:
        StorageError: the database or the store failed, or they do not belong together; what was
            removed until then stays removed.
    """
    released = database.write_now(lambda s: release(s, keep_update_rounds))
    removed = list(_remove_unreferenced(database, store))
    strays = _remove_strays(database, store, now - STRAY_GRACE)
    return CollectionReport(
        updates_released=released,
        blobs_removed=len(removed),
        bytes_removed=sum(removed),
        strays_removed=strays + store.remove_temporary(now - STRAY_GRACE),
    )


def _remove_unreferenced(database: Database, store: BlobStore) -> Iterator[int]:
    """Remove blobs with a row that nothing refers to; yields the size of each."""
    query = select(Blob.digest).where(~references(Blob.digest)).order_by(Blob.digest)
    for batch in _batches(database.read_now(lambda s: s.scalars(query).all())):
        yield from database.write_now(partial(_remove_rows, store=store, digests=batch))


def _remove_rows(session: Session, *, store: BlobStore, digests: Sequence[str]) -> list[int]:
    # Asked again: something may have come to refer to them since they were listed.
    query = select(Blob).where(Blob.digest.in_(digests), ~references(Blob.digest))
    blobs = session.scalars(query).all()
    session.execute(delete(Blob).where(Blob.digest.in_([blob.digest for blob in blobs])))
    for blob in blobs:
        store.delete(blob.digest)
    return [blob.size_bytes for blob in blobs]


def _remove_strays(database: Database, store: BlobStore, before: datetime) -> int:
    """Remove old files without a row, and return how many."""
    strays = _old_strays(database, store, before)
    first = next(strays, None)
    if first is None:
        return 0
    _check_belonging(database, store)
    return sum(
        database.write_now(partial(_remove_files, store=store, digests=batch, before=before))
        for batch in _batches(chain([first], strays))
    )


def _check_belonging(database: Database, store: BlobStore) -> None:
    """Refuse to take a whole store for strays: it is another database's.

    Raises:
        StorageError: the database has no row for any file of the store, and refers to none.
    """
    for batch in _batches(store.digests(), 256):
        if database.read_now(partial(_knows_any, digests=batch)):
            return
    raise StorageError(
        "the database knows none of the blobs in the data directory, which belong to another "
        "one: no file was removed; use the database that was used with this directory before"
    )


def _old_strays(database: Database, store: BlobStore, before: datetime) -> Iterator[str]:
    for batch in _batches(store.digests(), 256):
        known = database.read_now(partial(_known, digests=batch))
        yield from (digest for digest in batch if _is_old(store, digest, before, known))


def _remove_files(
    session: Session, *, store: BlobStore, digests: Sequence[str], before: datetime
) -> int:
    kept = _known(session, digests=digests)
    free = [d for d in digests if not is_referenced(session, digest=d)]
    strays = [digest for digest in free if _is_old(store, digest, before, kept)]
    for digest in strays:
        store.delete(digest)
    return len(strays)


def _knows_any(session: Session, *, digests: Sequence[str]) -> bool:
    known = _known(session, digests=digests)
    return bool(known) or any(is_referenced(session, digest=digest) for digest in digests)


def _known(session: Session, *, digests: Sequence[str]) -> set[str]:
    return set(session.scalars(select(Blob.digest).where(Blob.digest.in_(digests))))


def _is_old(store: BlobStore, digest: str, before: datetime, known: set[str]) -> bool:
    modified = None if digest in known else store.modified_at(digest)
    return modified is not None and modified < before


def _batches(digests: Iterable[str], size: int = BATCH) -> Iterator[list[str]]:
    remaining = iter(digests)
    while batch := list(islice(remaining, size)):
        yield batch
