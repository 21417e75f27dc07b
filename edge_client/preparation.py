"""What an assignment needs, brought here: the plan's members and the weights."""

import time
from contextlib import ExitStack
from dataclasses import dataclass

from edge_client.assignment import check_assignment
from edge_client.cache import BlobCache
from edge_client.patience import Patience
from edge_client.transfer import Transfer
from edge_client.work import Work
from edge_client.workbench import Workbench, members_of
from headwater.manifest import Manifest
from headwater.plan_checks import check_memory
from headwater.v1 import fleet_pb2
from headwater.v1.fleet_pb2 import Assignment


@dataclass(frozen=True)
class Capability:
    """What this device computes with."""

    runtime: str
    memory_bytes: int


class Preparation:
    """Fetches what is not cached, after checking that fetching makes sense."""

    def __init__(
        self,
        transfer: Transfer,
        cache: BlobCache,
        workbench: Workbench,
        patience: Patience,
        capability: Capability,
    ) -> None:
        self._transfer = transfer
        self._cache = cache
        self._workbench = workbench
        self._patience = patience
        self._capability = capability

    async def prepare(self, work: Work, assignment: Assignment, pins: ExitStack) -> float:
        """Bring every blob into the cache, pinned in `pins`; the seconds that it took.

        Raises:
            HeadwaterError: the device cannot do this assignment: decline.
        """
        started = time.perf_counter()
        work.activity.enter(fleet_pb2.PHASE_FETCHING)
        check_assignment(assignment)
        self._workbench.check_dataset(assignment.dataset)
        if not self._workbench.has_plan(assignment.plan_digest):
            await self._fetch_plan(work, assignment, pins)
        await self._fetch(work, assignment.weights_digest, pins)
        return time.perf_counter() - started

    async def _fetch_plan(self, work: Work, assignment: Assignment, pins: ExitStack) -> None:
        await self._fetch(work, assignment.plan_digest, pins)
        manifest = Manifest.from_bytes(self._cache.read(assignment.plan_digest))
        check_memory(manifest, assignment.batch_size, self._capability.memory_bytes)
        for member in members_of(manifest, self._capability.runtime):
            await self._fetch(work, member.digest, pins)

    async def _fetch(self, work: Work, digest: str, pins: ExitStack) -> None:
        pins.enter_context(self._cache.pinned([digest]))
        await self._patience.call(
            "fetching",
            lambda: self._transfer.fetch(digest, work.assignment_id, work.report_transfer),
        )
