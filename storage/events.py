"""The append-only list of what happened, written in the transaction of what it tells."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from storage.schema import Event


def record(
    session: Session,
    *,
    kind: str,
    message: str,
    now: datetime,
    job_id: int | None = None,
    round_id: int | None = None,
    client_id: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Add one event. `kind` is a dotted noun and verb, such as `round.opened`."""
    session.add(
        Event(
            at=now,
            kind=kind,
            message=message,
            job_id=job_id,
            round_id=round_id,
            client_id=client_id,
            data=dict(data or {}),
        )
    )
