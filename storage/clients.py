"""The devices that this coordinator has met."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage import events
from storage.names import free_name, unknown
from storage.records import AssignmentState, ClientRecord
from storage.schema import Assignment, Client
from storage.views import client_record

MEASURED_UPLOADS = 3
"""How many of a client's last uploads its link is judged by."""


def register(
    session: Session,
    *,
    client_id: str,
    name: str,
    tags: Mapping[str, str],
    profile: Mapping[str, Any],
    hostname: str,
    instance_id: str,
    insecure: bool,
    now: datetime,
) -> ClientRecord:
    """Write what a device says of itself when it attends; its first time makes its row.

    A name that another device has becomes NAME-2, NAME-3, …, and stays so while the device asks for
    the same name.
    """
    client = session.get(Client, client_id)
    is_new = client is None
    if client is None:
        client = Client(client_id=client_id, first_seen_at=now, displaced_count=0)
    if client.requested_name != name:
        client.name = _free_name(session, name, client_id)
        client.requested_name = name
    client.tags, client.profile, client.hostname = dict(tags), dict(profile), hostname
    client.instance_id, client.insecure, client.last_seen_at = instance_id, insecure, now
    session.add(client)
    session.flush()
    if is_new:
        events.record(
            session,
            kind="client.registered",
            message=f"client {client.name} attended for the first time",
            now=now,
            client_id=client_id,
        )
    return client_record(client)


def seen(session: Session, *, client_ids: Mapping[str, datetime]) -> None:
    """Write when clients were last heard of; unknown ones are passed over."""
    for client_id, at in sorted(client_ids.items()):
        session.execute(update(Client).where(Client.client_id == client_id).values(last_seen_at=at))


def set_ineligible(
    session: Session, *, reasons: Mapping[str, str | None], now: datetime
) -> list[str]:
    """Write why clients cannot be chosen now; None: they can. Returns those that changed."""
    query = select(Client).where(Client.client_id.in_(reasons)).order_by(Client.client_id)
    changed = []
    for client in session.scalars(query):
        reason = reasons[client.client_id]
        if client.ineligible_reason != reason:
            client.ineligible_reason = reason
            client.ineligible_since = None if reason is None else now
            changed.append(client.client_id)
    return changed


def upload_speeds(session: Session, *, client_ids: Iterable[str]) -> dict[str, float]:
    """The bytes a second of each client's last uploads, where it had any.

    Late ones count too: a link that is slow shows by them alone.
    """
    speeds = {}
    for client_id in client_ids:
        query = (
            select(Assignment.bytes_up, Assignment.upload_seconds)
            .where(
                Assignment.client_id == client_id,
                Assignment.bytes_up > 0,
                Assignment.upload_seconds > 0,
            )
            .order_by(Assignment.id.desc())
            .limit(MEASURED_UPLOADS)
        )
        rows = session.execute(query).all()
        if rows:
            speeds[client_id] = sum(row[0] for row in rows) / sum(row[1] or 0.0 for row in rows)
    return speeds


def slow_encodings(session: Session, *, client_ids: Iterable[str]) -> dict[str, str]:
    """The encoding of each client's last update, where that was under way and did not come."""
    encodings = {}
    for client_id in client_ids:
        query = select(Assignment).where(Assignment.client_id == client_id)
        last = session.scalar(query.order_by(Assignment.id.desc()).limit(1))
        if last is not None and last.state == AssignmentState.EXPIRED and last.uploading_at:
            encodings[client_id] = last.update_encoding or ""
    return encodings


def record_shared_identity(
    session: Session, *, client_id: str, instance_id: str, hostname: str, now: datetime
) -> ClientRecord:
    """Note that a displaced instance of a client came back: two devices use its identity.

    `instance_id` and `hostname` are those of the one that came back.

    Raises:
        NotFoundError: there is no such client.
    """
    client = session.get(Client, client_id)
    if client is None:
        raise unknown("client", client_id, session.scalars(select(Client.client_id)))
    client.displaced_count += 1
    events.record(
        session,
        kind="client.shared_identity",
        message=(
            f"two devices share the identity of client {client.name}: {client.hostname} and "
            f"{hostname}; give one of them a state directory of its own"
        ),
        now=now,
        client_id=client_id,
        data={"instance_id": instance_id, "hostname": hostname},
    )
    session.flush()
    return client_record(client)


def _free_name(session: Session, name: str, client_id: str) -> str:
    others = select(Client.name).where(
        Client.client_id != client_id, Client.name.startswith(name, autoescape=True)
    )
    return free_name(name, set(session.scalars(others)))
