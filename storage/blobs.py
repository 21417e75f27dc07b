"""The rows of blobs, what refers to them, and the pins that keep them before anything does.

To put a blob: pin its digest (committed), then look whether the store has it and write it if not,
then in one transaction register it, refer to it and unpin it. Collection deletes in a write, so it
can come before the pin or after it, and never between the look and the reference.
"""

from datetime import datetime

from sqlalchemy import ColumnElement, SQLColumnExpression, delete, exists, or_, select
from sqlalchemy.orm import Session

from headwater.errors import ConflictError
from storage.schema import Assignment, Blob, BlobPin, ModelVersion, PlanMember


def register(session: Session, *, digest: str, size_bytes: int, kind: str, now: datetime) -> None:
    """Write that the store has a blob, durably. Doing it again changes nothing.

    Raises:
        ConflictError: it is there with another size, which cannot be of one digest.
    """
    blob = session.get(Blob, digest)
    if blob is None:
        session.add(Blob(digest=digest, size_bytes=size_bytes, kind=kind, created_at=now))
        session.flush()
    elif blob.size_bytes != size_bytes:
        raise ConflictError(
            f"blob {digest} has {blob.size_bytes} bytes and was given again with {size_bytes}"
        )


def pin(session: Session, *, digest: str, holder: str, now: datetime) -> None:
    """Keep a blob, there or about to be written, from collection until `holder` unpins it.

    Doing it again begins its time for `expire_pins` anew.
    """
    held = session.get(BlobPin, (digest, holder))
    if held is None:
        session.add(BlobPin(digest=digest, holder=holder, since=now))
    else:
        held.since = now
    session.flush()


def unpin(session: Session, *, digest: str, holder: str) -> None:
    """End one pin. Doing it again changes nothing."""
    session.execute(delete(BlobPin).where(BlobPin.digest == digest, BlobPin.holder == holder))


def expire_pins(session: Session, *, holder: str, before: datetime) -> int:
    """End the pins of a holder that began before a time, and return how many: it gave them up."""
    old = delete(BlobPin).where(BlobPin.holder == holder, BlobPin.since < before)
    return session.connection().execute(old).rowcount


def unpin_all(session: Session, *, holder: str) -> int:
    """End all pins of a holder, such as those that its former process left; how many there were."""
    ended = delete(BlobPin).where(BlobPin.holder == holder)
    return session.connection().execute(ended).rowcount


def is_referenced(session: Session, *, digest: str) -> bool:
    """Whether a pin, a model version, a plan or a kept update refers to the blob."""
    return bool(session.scalar(select(references(digest))))


def references(digest: str | SQLColumnExpression[str]) -> ColumnElement[bool]:
    """SQL that is true where something refers to `digest`, a value or a column."""
    return or_(
        exists().where(BlobPin.digest == digest),
        exists().where(ModelVersion.weights_digest == digest),
        exists().where(ModelVersion.optimizer_state_digest == digest),
        exists().where(PlanMember.blob_digest == digest),
        exists().where(Assignment.update_digest == digest, Assignment.update_collected.is_(False)),
    )
