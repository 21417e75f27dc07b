"""What a coordinator does beside rounds: collects garbage and notes who was seen."""

import asyncio
import logging
from functools import partial

from coordinator.engine.world import World
from headwater.errors import HeadwaterError
from storage import clients as client_repository
from storage.collect import collect

_log = logging.getLogger("headwater.housekeeping")

INTERVAL_SECONDS = 15.0
"""Between two looks: what a job leaves behind in that time must fit on the disk."""


async def housekeeping(world: World, keep_update_rounds: int) -> None:
    """Run until cancelled; a failure is logged and tried again at the next interval."""
    while True:
        await world.clock.wait(asyncio.Event(), INTERVAL_SECONDS)
        try:
            now = world.clock.now()
            seen = {one.client_id: now for one in world.attendance}
            await world.database.write(partial(client_repository.seen, client_ids=seen))
            report = await world.work(
                collect, world.database, world.blobs, now=now, keep_update_rounds=keep_update_rounds
            )
            if report.blobs_removed:
                _log.info(
                    "collected %d blobs, %d bytes", report.blobs_removed, report.bytes_removed
                )
        except HeadwaterError as error:
            _log.warning("housekeeping failed, and is tried again: %s", error)
