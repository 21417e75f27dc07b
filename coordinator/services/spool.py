"""The spool: parts of uploads and of blobs on their way in, and when nobody will finish them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from coordinator.engine.world import World
from headwater import durable_files
from headwater.errors import StorageError
from storage import rounds as round_repository

STORE_GRACE = timedelta(hours=1)
"""How long a blob's part is kept after its last byte came; its sender begins at byte 0 again."""

_STORE = "store-"


def upload_path(spool: Path, assignment_id: int, digest: str) -> Path:
    """Where the part of an update lies that has come so far."""
    return spool / f"{assignment_id}-{digest}.part"


def store_path(spool: Path, digest: str, call: int) -> Path:
    """Where a blob lies while one call brings it."""
    return spool / f"{_STORE}{digest}-{call:x}.part"


async def clear_spool(world: World) -> int:
    """Remove parts that nobody will finish, and return how many. Safe beside running uploads.

    An upload's part goes when its assignment is not pending in a round that has not ended, a
    blob's part an hour after its last byte.

    Raises:
        StorageError: the spool cannot be read or a file not be removed; UnavailableError and
            others of the database.
    """
    # Listed before the database is read: what comes later belongs to an assignment that it has.
    paths = await world.work(_parts, world.spool)
    if not paths:
        return 0
    pending = await world.database.read(round_repository.pending_assignments)
    return await world.work(_remove, paths, pending, world.clock.now() - STORE_GRACE)


def _parts(spool: Path) -> list[Path]:
    try:
        return sorted(spool.glob("*.part")) if spool.stat() else []
    except OSError as error:
        raise StorageError(f"the spool {spool} cannot be read: {error}") from error


def _remove(paths: list[Path], pending: set[int], before: datetime) -> int:
    removed = 0
    for path in paths:
        try:
            if _is_left(path, pending, before):
                durable_files.remove(path)
                removed += 1
        except FileNotFoundError:
            continue  # it became a blob, or its upload was refused
    return removed


def _is_left(path: Path, pending: set[int], before: datetime) -> bool:
    if path.name.startswith(_STORE):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC) < before
    assignment_id = path.name.partition("-")[0]
    return assignment_id.isdecimal() and int(assignment_id) not in pending
