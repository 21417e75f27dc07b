"""What the database driver's errors mean to the rest of the program."""

import errno

from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    DisconnectionError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from headwater.errors import DiskFullError, StorageError

_FULL = ("disk is full", "no space left on device", "could not extend file")
_LOCKED = ("database is locked", "database table is locked")


def is_world_failure(error: BaseException) -> bool:
    """Whether the database or its disk failed, rather than the statement that was asked of it."""
    if isinstance(error, DBAPIError):
        # SQLite's driver has no class of its own for a file that is damaged.
        is_failure = isinstance(error, OperationalError) or type(error) is DatabaseError
        return is_failure or error.connection_invalidated
    return isinstance(error, DisconnectionError | PendingRollbackError | PoolTimeoutError | OSError)


def first_failure(error: BaseException) -> BaseException:
    """The failure that came first: a full SQLite drops its savepoints, and undoing them fails."""
    earlier = error.__context__
    while earlier is not None:
        if isinstance(earlier, DBAPIError) and is_world_failure(earlier):
            error = earlier
        earlier = earlier.__context__
    return error


def translate(error: BaseException, database: str) -> BaseException:
    """The error to raise for `error`: of `headwater.errors` when the world failed, else itself."""
    if not is_world_failure(error):
        return error
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = " ".join(str(cause).split())
    return _storage_error(cause, text, database).with_traceback(error.__traceback__)


def _storage_error(cause: BaseException, text: str, database: str) -> StorageError:
    full_code = getattr(cause, "sqlstate", None) == "53100"
    full_disk = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    if full_code or full_disk or any(word in text.lower() for word in _FULL):
        return DiskFullError(f"no space is left for {database}: free some, then repeat ({text})")
    if any(word in text.lower() for word in _LOCKED):
        return StorageError(
            f"{database} is locked by another process for too long: end it, then repeat ({text})"
        )
    return StorageError(f"{database} failed or cannot be reached: {text}")
