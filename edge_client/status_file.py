"""What the running client does, in a small file that `headwater-client status` reads."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_client.cache import BlobCache
from edge_client.work import Work
from headwater import durable_files
from headwater.errors import StorageError

_RECENT = 20
_log = logging.getLogger("headwater.client")


class StatusFile:
    """Rewrites the file at every change of note; a full disk only costs the news."""

    def __init__(self, path: Path, facts: dict[str, Any], cache: BlobCache) -> None:
        self._cache = cache
        self._path = path
        self._facts = facts
        self._connected_since: str | None = None
        self._work: Work | None = None
        self._recent: dict[int, dict[str, Any]] = {}
        self._fates: dict[int, dict[str, Any]] = {}

    def connected(self, yes: bool) -> None:
        """The stream was welcomed, or ended."""
        self._connected_since = _now() if yes else None
        self.write()

    def working(self, work: Work | None) -> None:
        """An assignment began, or none is under way."""
        self._work = work
        self.write()

    def ended(self, work: Work, outcome: str, reason: str) -> None:
        """How an assignment went here."""
        self._recent[work.assignment_id] = {
            "assignment_id": work.assignment_id,
            "job": work.job,
            "round": work.round_number,
            "outcome": outcome,
            "reason": reason,
            "ended_at": _now(),
        }
        _forget_oldest(self._recent)

    def fate(self, assignment_id: int, state: str, folded: bool, reason: str) -> None:
        """What the coordinator made of an assignment; may come before `ended`."""
        self._fates[assignment_id] = {"state": state, "folded": folded, "reason": reason}
        _forget_oldest(self._fates)

    def write(self) -> None:
        """Write the file."""
        work = self._work
        current = work and {
            "assignment_id": work.assignment_id,
            "job": work.job,
            "round": work.round_number,
            "phase": work.phase_name,
            "fraction": round(work.activity.fraction, 4),
        }
        document = {
            **self._facts,
            "written_at": _now(),
            "connected_since": self._connected_since,
            "assignment": current,
            "cache": {
                "used_bytes": self._cache.used_bytes,
                "budget_bytes": self._cache.budget_bytes,
            },
            "recent": [
                {**entry, "fate": self._fates.get(assignment_id)}
                for assignment_id, entry in self._recent.items()
            ],
        }
        try:
            durable_files.replace(self._path, f"{json.dumps(document)}\n".encode())
        except StorageError as error:
            _log.debug("the status file is not written: %s", error)


def read_status(path: Path) -> dict[str, Any] | None:
    """The last status that a client wrote, or None.

    Raises:
        StorageError: the file is damaged or cannot be read.
    """
    with durable_files.disk_errors(path):
        if not path.exists():
            return None
        text = path.read_text()
    try:
        document = json.loads(text)
    except ValueError as error:
        raise StorageError(f"{path} is damaged: {error}") from error
    return dict(document)


def _forget_oldest(entries: dict[int, dict[str, Any]]) -> None:
    while len(entries) > _RECENT:
        entries.pop(next(iter(entries)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
