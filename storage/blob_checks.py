"""The blobs that must be kept, and whether the store has them whole."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from headwater.errors import StorageError
from storage.blob_store import BlobStore
from storage.database import Database
from storage.findings import Finding
from storage.late import HELD
from storage.schema import Assignment, Blob, Job, ModelVersion, Plan, PlanMember, Round

CHUNK_BYTES = 2**20

KEPT = (
    HELD,
    Assignment.update_digest.is_not(None),
    Assignment.update_collected.is_(False),
)
"""An update that is still on its way is named in the ledger too, and need not be there yet."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A row that needs a blob: `what` it is there, and where.

    `said_bytes` is the size that the row tells, None where it tells none; `size_bytes` is what the
    blob's own row says, None where there is no such row.
    """

    digest: str
    what: str
    said_bytes: int | None
    size_bytes: int | None
    job: str | None = None
    round: int | None = None
    purpose: str | None = None
    assignment: int | None = None

    def finding(self, check: str, message: str) -> Finding:
        """A finding here: `message` goes on from what the blob is."""
        return Finding(
            check,
            f"{self.what} {message}",
            self.job,
            self.round,
            self.purpose,
            self.assignment,
            self.digest,
        )


def references(session: Session) -> Iterator[Reference]:
    """Each row that needs a blob: the plans, the model versions, and what retention lets go: the
    server optimizer's states, and the kept updates."""
    members = (
        select(PlanMember, Plan.name, Blob.size_bytes)
        .join(Plan, Plan.digest == PlanMember.plan_digest)
        .outerjoin(Blob, Blob.digest == PlanMember.blob_digest)
        .order_by(PlanMember.plan_digest, PlanMember.name)
    )
    for member, plan, size_bytes in session.execute(members):
        yield Reference(member.blob_digest, f"{member.name} of plan {plan}", None, size_bytes)
    versions = (
        select(ModelVersion, Job.reference, Blob.size_bytes)
        .join(Job, Job.id == ModelVersion.job_id)
        .outerjoin(Blob, Blob.digest == ModelVersion.weights_digest)
        .order_by(ModelVersion.id)
    )
    for version, job, size_bytes in session.execute(versions):
        what = f"the weights of version {version.number}"
        yield Reference(version.weights_digest, what, version.size_bytes, size_bytes, job)
    yield from _states(session)
    updates = (
        select(Assignment, Job.reference, Round.number, Round.purpose, Blob.size_bytes)
        .join(Round, Round.id == Assignment.round_id)
        .join(Job, Job.id == Round.job_id)
        .outerjoin(Blob, Blob.digest == Assignment.update_digest)
        .where(*KEPT)
        .order_by(Assignment.id)
    )
    for row, job, number, purpose, size_bytes in session.execute(updates):
        yield Reference(
            row.update_digest or "",
            "the update",
            row.update_size_bytes,
            size_bytes,
            job,
            number,
            purpose,
            row.id,
        )


def _states(session: Session) -> Iterator[Reference]:
    query = (
        select(
            ModelVersion.optimizer_state_digest, ModelVersion.number, Job.reference, Blob.size_bytes
        )
        .join(Job, Job.id == ModelVersion.job_id)
        .outerjoin(Blob, Blob.digest == ModelVersion.optimizer_state_digest)
        .where(ModelVersion.optimizer_state_digest.is_not(None))
        .order_by(ModelVersion.id)
    )
    for digest, number, job, size_bytes in session.execute(query):
        what = f"the server optimizer's state of version {number}"
        yield Reference(digest or "", what, None, size_bytes, job)


def needed_blobs(session: Session) -> dict[str, Reference]:
    """Each blob that must be in the store, with the first row that needs it, in a stable order."""
    needed: dict[str, Reference] = {}
    for reference in references(session):
        needed.setdefault(reference.digest, reference)
    return needed


def still_needed(session: Session, digest: str) -> bool:
    """Whether a plan, a version or a kept update needs this blob."""
    users = or_(
        exists().where(PlanMember.blob_digest == digest),
        exists().where(ModelVersion.weights_digest == digest),
        exists().where(ModelVersion.optimizer_state_digest == digest),
        exists().where(Assignment.update_digest == digest, *KEPT),
    )
    return bool(session.scalar(select(users)))


def missing_blobs(database: Database, store: BlobStore) -> list[Reference]:
    """The needed blobs that the store does not have; blocking, and safe beside a coordinator.

    Raises:
        StorageError: the database cannot be read.
    """
    needed = database.read_now(needed_blobs).values()
    absent = [one for one in needed if not store.exists(one.digest)]
    return [one for one in absent if database.read_now(partial(still_needed, digest=one.digest))]


def row_fault(reference: Reference) -> str:
    """How a reference disagrees with the blob's own row; empty where it does not."""
    if reference.size_bytes is None:
        return "has no row in blobs"
    if reference.said_bytes not in (None, reference.size_bytes):
        return f"has {reference.said_bytes} bytes, and {reference.size_bytes} in blobs"
    return ""


def file_fault(store: BlobStore, digest: str, size_bytes: int, *, quick: bool) -> str:
    """What is wrong with a blob's file; empty where nothing is. `quick`: its bytes are not read."""
    try:
        found = store.size(digest)
        if found != size_bytes:
            return f"has {found} bytes in its file, not {size_bytes}"
        if not quick and _digest(store, digest) != digest:
            return "is damaged: the bytes in its file have another digest"
    except StorageError as error:
        return f"cannot be read: {error}"
    return ""


def _digest(store: BlobStore, digest: str) -> str:
    hasher = hashlib.sha256()
    with store.open(digest) as file:
        try:
            while chunk := file.read(CHUNK_BYTES):
                hasher.update(chunk)
        except OSError as error:
            raise StorageError(f"blob {digest}: {error.strerror}") from error
    return hasher.hexdigest()
