"""What a coordinator does with what its former process left, before it listens."""

import logging
from functools import partial

from coordinator.engine import closing
from coordinator.engine.engine import Engine
from coordinator.services import submission
from coordinator.services.spool import clear_spool
from storage import blobs as blob_repository

_log = logging.getLogger("headwater.recovery")


async def recover(engine: Engine) -> list[str]:
    """Take everything up where it was; returns, and logs, what was found and done.

    All of it comes from the database and the blobs, so it may be cut short and repeated: pins of
    blobs that were being written end, jobs that had not ended go on in their rounds, and parts of
    uploads that nobody will finish are removed.

    Raises:
        StorageError: the database or the disk failed.
    """
    world, found = engine.world, []
    pins = 0
    for holder in (submission.PIN_HOLDER, closing.PIN_HOLDER):
        pins += await world.database.write(partial(blob_repository.unpin_all, holder=holder))
    if pins:
        found.append(f"{pins} blobs that were being written may be collected")
    found += await engine.start()
    if parts := await clear_spool(world):
        found.append(f"{parts} parts of uploads that nobody will finish were removed")
    for one in found:
        _log.info("%s", one)
    return found
