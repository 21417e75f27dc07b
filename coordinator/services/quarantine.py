"""Updates that were refused for what they hold, kept as evidence for those who look into it."""

import json
import logging
from datetime import datetime
from pathlib import Path

from headwater import durable_files
from headwater.errors import StorageError

KEPT = 16
"""The newest so many: a client that sends poison for ever fills no disk."""

_log = logging.getLogger("headwater.quarantine")


def quarantine(
    folder: Path, part: Path, *, assignment_id: int, client: str, reason: str, now: datetime
) -> str:
    """Move a refused update's file aside, with a note; returns where it lies, empty if nowhere.

    `<assignment>.update` has what came of it, as `headwater.updates` frames it, and
    `<assignment>.json` says whose it is and why it was refused. A disk that fails costs the
    evidence and not the refusal.
    """
    kept = folder / f"{assignment_id}.update"
    note = {"assignment_id": assignment_id, "client": client, "reason": reason}
    try:
        durable_files.make_folder(folder)
        durable_files.move(part, kept)
        text = json.dumps({**note, "refused_at": now.isoformat()}, indent=2)
        durable_files.write(kept.with_suffix(".json"), [text.encode()])
        _forget_oldest(folder)
    except StorageError as error:
        _log.warning("the evidence of a refused update is lost: %s", error)
        return ""
    return str(kept)


def _age(path: Path) -> float:
    """When it was kept; one that another thread has just removed is the oldest."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _forget_oldest(folder: Path) -> None:
    with durable_files.disk_errors(folder):
        kept = sorted(folder.glob("*.update"), key=_age)
    for old in kept[:-KEPT]:
        durable_files.remove(old)
        durable_files.remove(old.with_suffix(".json"))
