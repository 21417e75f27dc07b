"""All jobs of a coordinator: taken up, driven, changed by operators, and found by devices."""

import asyncio
import logging
from functools import partial

from coordinator.engine.job_loop import JobLoop
from coordinator.engine.late import part_from_all, rejoin
from coordinator.engine.live import JobRun, LiveAssignment
from coordinator.engine.recovery import described, recover_run
from coordinator.engine.world import World
from headwater.errors import HeadwaterError, NotFoundError, WorldError
from storage import jobs as job_repository
from storage.records import (
    AssignmentFacts,
    AssignmentRecord,
    AssignmentState,
    JobRecord,
    JobState,
)
from storage.transitions import UNFINISHED_JOBS

_log = logging.getLogger("headwater.engine")


class Engine:
    """All jobs that have not ended. Used on the event loop only; state lives in the database."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runs: dict[str, JobRun] = {}
        self._loop = JobLoop(world, self.runs)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def displaced(self) -> asyncio.Event:
        """Set when another process has taken the database over."""
        return self._loop.displaced

    async def start(self) -> list[str]:
        """Take up every job that had not ended, where it was; one that cannot be pauses.

        Returns what was found of each.
        """
        found = []
        for record in await self.world.database.read(job_repository.unfinished):
            try:
                found.append(described(await self.take_up(record)))
            except WorldError:
                raise
            except HeadwaterError as error:
                found.append(f"job {record.reference} cannot go on, and pauses: {error}")
                if record.state in (JobState.QUEUED, JobState.RUNNING):
                    await self._set_state(record.reference, JobState.PAUSED, str(error))
        return found

    async def stop(self) -> None:
        """End the loops. Nothing is written: a job continues from the database."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def take_up(self, record: JobRecord) -> JobRun:
        """Drive a job from its record: a new one, or one that a restart found.

        Raises:
            PlanError: its plan is damaged, or of a newer schema.
        """
        run = await recover_run(self.world, record)
        self.runs[record.reference] = run
        self._drive(run)
        return run

    async def change(self, reference: str, state: JobState, reason: str) -> JobRecord:
        """Pause, resume or cancel a job.

        A paused job ends its open round first; a cancelled one abandons it.

        Raises:
            NotFoundError: no such job.
            ConflictError: its state forbids this.
        """
        record = await self._set_state(reference, state, reason)
        run = self.runs.get(reference)
        if run is None:
            if state in UNFINISHED_JOBS:
                await self.take_up(record)
            return record
        run.record, run.abandoned_in_a_row = record, 0
        await run.announce()
        self._drive(run)
        self.wake()
        return record

    def find(self, assignment_id: int, client_id: str) -> tuple[JobRun, LiveAssignment] | None:
        """A client's assignment in an open round, or one that is late and still awaited; else None.

        Raises:
            NotFoundError: the assignment is another client's.
        """
        for run in self.runs.values():
            live = run.late.get(assignment_id)
            if live is None and run.round is not None:
                live = run.round.assignments.get(assignment_id)
            if live is None:
                continue
            if live.record.client_id != client_id:
                raise NotFoundError(f"assignment {assignment_id} is not this client's")
            return run, live
        return None

    def assignments_of(self, client_id: str) -> list[tuple[JobRun, LiveAssignment]]:
        """What the client still owes to open rounds."""
        rounds = ((run, run.round) for run in self.runs.values() if run.round is not None)
        found = ((run, round_.of_client(client_id)) for run, round_ in rounds)
        return [(run, live) for run, live in found if live is not None and live.pending]

    async def rejoin(self, record: AssignmentRecord) -> tuple[JobRun, LiveAssignment] | None:
        """Await the update of an assignment that had expired; None where it can not be folded."""
        return await rejoin(self.world, self.runs, record)

    def forget_late(self, client_id: str, held_assignment_id: int) -> None:
        """Await no late update of a client but that which it says that it holds."""
        for run in self.runs.values():
            run.late = {
                at: one
                for at, one in run.late.items()
                if one.record.client_id != client_id or at == held_assignment_id
            }

    def wake(self) -> None:
        """Clients came or went: jobs that wait for a quorum look again."""
        self._loop.wake()

    async def end_assignment(
        self,
        run: JobRun,
        live: LiveAssignment,
        state: AssignmentState,
        reason: str,
        facts: AssignmentFacts | None = None,
    ) -> None:
        """Write how an assignment ended without an update, and let the round decide anew."""
        await self._loop.end_assignment(run, live, state, reason, facts)

    def _drive(self, run: JobRun) -> None:
        reference = run.record.reference
        running = self._tasks.get(reference)
        if running is not None and not running.done():
            run.changed.set()
            return
        self._tasks[reference] = asyncio.create_task(self._to_its_end(run), name=f"job {reference}")

    async def _to_its_end(self, run: JobRun) -> None:
        await self._loop.drive(run)
        if run.record.state not in UNFINISHED_JOBS:
            self.world.eligibility.forget(run.record.reference)  # also where an operator ended it
            part_from_all(self.world, run)
            self.runs.pop(run.record.reference, None)
            self._tasks.pop(run.record.reference, None)

    async def _set_state(self, reference: str, state: JobState, reason: str) -> JobRecord:
        return await self.world.database.write(
            partial(
                job_repository.set_state,
                reference=reference,
                state=state,
                reason=reason,
                now=self.world.clock.now(),
            )
        )
