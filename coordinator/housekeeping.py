"""What a coordinator does beside rounds: collects garbage and notes who was seen."""

import asyncio
import logging
from datetime import timedelta
from functools import partial

from coordinator.engine.world import World
from coordinator.services.spool import clear_spool
from coordinator.services.submission import PIN_HOLDER
from headwater.errors import HeadwaterError
from storage import blobs as blob_repository
from storage import clients as client_repository
from storage.collect import collect

_log = logging.getLogger("headwater.housekeeping")

INTERVAL_SECONDS = 15.0
"""Between two looks: what a job leaves behind in that time must fit on the disk."""

SUBMISSION_GRACE = timedelta(hours=1)
"""How long the blobs of a plan are kept for a job that was not submitted yet."""


async def housekeeping(world: World, keep_update_rounds: int) -> None:
    """Run until cancelled; a failure is logged and tried again at the next interval."""
    while True:
        try:
            await keep_house(world, keep_update_rounds)
        except HeadwaterError as error:
            _log.warning("housekeeping failed, and is tried again: %s", error)
        except Exception:
            _log.exception("a defect in housekeeping, which is tried again")
        await world.clock.wait(asyncio.Event(), INTERVAL_SECONDS)


async def keep_house(world: World, keep_update_rounds: int) -> None:
    """Once: note who was seen, and remove what nothing needs any more.

    Raises:
        StorageError: the database or the disk failed; the rest is left for the next time.
    """
    now = world.clock.now()
    seen = {one.client_id: now for one in world.attendance}
    await world.database.write(partial(client_repository.seen, client_ids=seen))
    await world.database.write(
        partial(blob_repository.expire_pins, holder=PIN_HOLDER, before=now - SUBMISSION_GRACE)
    )
    parts = await clear_spool(world)
    report = await world.work(
        collect, world.database, world.blobs, now=now, keep_update_rounds=keep_update_rounds
    )
    if report.blobs_removed or parts:
        _log.info(
            "collected %d blobs of %d bytes, and %d parts of broken uploads",
            report.blobs_removed,
            report.bytes_removed,
            parts,
        )
