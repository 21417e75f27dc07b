"""The compiled plans that jobs run."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from headwater.errors import ConflictError
from storage.names import unknown
from storage.records import PlanRecord
from storage.schema import Blob, Plan, PlanMember


def add(
    session: Session,
    *,
    digest: str,
    name: str,
    manifest: str,
    members: Mapping[str, str],
    now: datetime,
) -> PlanRecord:
    """Write a plan whose members' blobs are registered. Doing it again changes nothing.

    `manifest` is the exact text of which `digest` is the SHA-256; `members` maps names to digests,
    and their sizes add up to the plan's.

    Raises:
        ConflictError: a member's blob is not registered.
    """
    if session.get(Plan, digest) is None:
        sizes = _member_sizes(session, digest, members)
        size_bytes = sum(sizes.values())
        session.add(
            Plan(digest=digest, name=name, manifest=manifest, size_bytes=size_bytes, created_at=now)
        )
        session.flush()
        session.add_all(
            PlanMember(plan_digest=digest, name=member, blob_digest=members[member])
            for member in sorted(members)
        )
        session.flush()
    return get(session, digest=digest)


def get(session: Session, *, digest: str) -> PlanRecord:
    """The plan of a digest.

    Raises:
        NotFoundError: there is none.
    """
    plan = session.get(Plan, digest)
    if plan is None:
        raise unknown("plan", digest, session.scalars(select(Plan.digest)))
    members = select(PlanMember).where(PlanMember.plan_digest == digest).order_by(PlanMember.name)
    return PlanRecord(
        digest=plan.digest,
        name=plan.name,
        manifest=plan.manifest,
        size_bytes=plan.size_bytes,
        created_at=plan.created_at,
        members={member.name: member.blob_digest for member in session.scalars(members)},
    )


def _member_sizes(session: Session, digest: str, members: Mapping[str, str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, blob_digest in members.items():
        blob = session.get(Blob, blob_digest)
        if blob is None:
            raise ConflictError(
                f"plan {digest} names blob {blob_digest} as {name}, which was not sent: send it, "
                "then the plan"
            )
        sizes[name] = blob.size_bytes
    return sizes
