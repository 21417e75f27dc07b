"""How much of the disk a coordinator's data takes, and for what."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import distinct, func, select, text
from sqlalchemy.orm import Session

from headwater.errors import BlobError
from storage.blob_checks import KEPT
from storage.blob_place import BLOB_CACHE, BLOBS
from storage.blob_store import BlobStore
from storage.blobs import references
from storage.database import Database
from storage.retention import JOB_POLICY
from storage.schema import Assignment, Blob, Job, Round

_SQLITE_SIZE = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
_POSTGRESQL_SIZE = "SELECT pg_database_size(current_database())"


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of files and their bytes."""

    count: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class KeptUpdates:
    """The updates that retention keeps of one job.

    `policy` is what its job file says, None where it says nothing and the coordinator's
    `--keep-update-rounds` counts. Equal updates count each time, though their bytes are kept once.
    """

    job: str
    policy: str | None
    rounds: int
    updates: Amount


@dataclass(frozen=True, slots=True)
class Usage:
    """What lies where. `blobs` are those that something refers to, by what they were kept as.

    `unreferenced` and old `temporary` files go with the next collection; `spool` holds the parts
    of uploads that are under way or can be resumed, `quarantine` the updates that were refused.
    `copies` are those of a bucket's blobs on this machine.
    """

    blobs: dict[str, Amount]
    unreferenced: Amount
    temporary: Amount
    copies: Amount
    spool: Amount
    quarantine: Amount
    database_bytes: int
    free_bytes: int
    kept: list[KeptUpdates]


def usage(database: Database, store: BlobStore, directory: Path) -> Usage:
    """Measure a data directory and its database; blocking, and safe beside a coordinator.

    Raises:
        StorageError: the database cannot be read.
    """
    blobs, unreferenced = database.read_now(_by_kind)
    known = database.read_now(lambda session: set(session.scalars(select(Blob.digest))))
    strays = _amount_of_blobs(store, (one for one in store.digests() if one not in known))
    return Usage(
        blobs=blobs,
        unreferenced=Amount(unreferenced.count + strays.count, unreferenced.bytes + strays.bytes),
        temporary=_amount(
            path for one in (BLOBS, BLOB_CACHE) for path in (directory / one).glob("temporary/*")
        ),
        copies=_amount((directory / BLOB_CACHE).glob("[0-9a-f][0-9a-f]/*")),
        spool=_amount((directory / "spool").glob("*.part")),
        quarantine=_amount((directory / "quarantine").glob("*.update")),
        database_bytes=database.read_now(_database_bytes),
        free_bytes=shutil.disk_usage(directory).free,
        kept=database.read_now(_kept),
    )


def _by_kind(session: Session) -> tuple[dict[str, Amount], Amount]:
    """The blobs that have a row: those that are referred to by kind, and all others."""
    listed = select(
        Blob.kind, Blob.size_bytes, references(Blob.digest).label("is_referenced")
    ).subquery()
    columns = (listed.c.kind, listed.c.is_referenced)
    query = select(*columns, func.count(), func.sum(listed.c.size_bytes)).group_by(*columns)
    kinds: dict[str, Amount] = {}
    unreferenced = Amount()
    for kind, is_referenced, count, size_bytes in session.execute(query.order_by(listed.c.kind)):
        if is_referenced:
            kinds[kind] = Amount(count, int(size_bytes))
        else:
            unreferenced = Amount(unreferenced.count + count, unreferenced.bytes + int(size_bytes))
    return kinds, unreferenced


def _kept(session: Session) -> list[KeptUpdates]:
    query = (
        select(
            Job.reference,
            JOB_POLICY,
            func.count(distinct(Round.id)),
            func.count(),
            func.sum(Assignment.update_size_bytes),
        )
        .select_from(Assignment)
        .join(Round, Round.id == Assignment.round_id)
        .join(Job, Job.id == Round.job_id)
        .where(*KEPT)
        .group_by(Job.id)
        .order_by(Job.id)
    )
    return [
        KeptUpdates(job, policy, rounds, Amount(count, int(size_bytes)))
        for job, policy, rounds, count, size_bytes in session.execute(query)
    ]


def _database_bytes(session: Session) -> int:
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return int(session.scalar(text(_SQLITE_SIZE if is_sqlite else _POSTGRESQL_SIZE)) or 0)


def _amount_of_blobs(store: BlobStore, digests: Iterable[str]) -> Amount:
    """Blobs that may go while they are counted."""
    sizes = []
    for digest in digests:
        try:
            sizes.append(store.size(digest))
        except BlobError:
            continue
    return Amount(len(sizes), sum(sizes))


def _amount(paths: Iterable[Path]) -> Amount:
    """Files that may go while they are counted."""
    sizes = []
    for path in paths:
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return Amount(len(sizes), sum(sizes))
