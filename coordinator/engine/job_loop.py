"""One task a job: it looks at the job's state, lets `policy` decide, and carries that out."""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from itertools import count

from coordinator.engine.closing import (
    abandon_round,
    close_round,
    extend_round,
    finish_round,
    round_progress,
)
from coordinator.engine.live import JobRun, LiveAssignment
from coordinator.engine.measures import metric_series
from coordinator.engine.opening import open_round, survey
from coordinator.engine.policy import ABANDONED_IN_A_ROW, Action, closing, stopping
from coordinator.engine.rounds import catch_up, wait_for
from coordinator.engine.world import World
from headwater.errors import ConflictError, HeadwaterError, HeldError, WorldError
from storage import history
from storage import jobs as job_repository
from storage import rounds as round_repository
from storage.records import AssignmentFacts, AssignmentState, JobState, RoundPurpose, RoundState

_log = logging.getLogger("headwater.engine")

RETRY_SECONDS = 2.0
"""After the disk or the database failed."""


class JobLoop:
    """Drives the jobs in `runs`, each in its own task. Used on the event loop only.

    `displaced` is set when another process has taken this coordinator's database over: nothing
    that it does can be kept any more.
    """

    def __init__(self, world: World, runs: Mapping[str, JobRun]) -> None:
        self.world = world
        self.displaced = asyncio.Event()
        self._runs = runs
        self._opening = asyncio.Lock()
        self._turns = count(1)

    async def drive(self, run: JobRun) -> None:
        """Go on until the job has ended or pauses."""
        goes_on = True
        while run.active and goes_on:
            run.changed.clear()
            try:
                goes_on = await self._step(run)
            except WorldError as error:
                await self._wait_for_the_world(run, error)
        run.turn = None
        self.world.eligibility.forget(run.record.reference)
        self.wake()

    def wake(self) -> None:
        """Clients came or went: jobs that wait for a quorum look again."""
        for run in self._runs.values():
            run.changed.set()

    async def _step(self, run: JobRun) -> bool:
        """Advance, and wait until there is more to do; False when the job had to pause.

        Raises:
            WorldError: the disk or the database failed; the step can be tried again.
        """
        try:
            if run.must_pause and run.record.state in (JobState.QUEUED, JobState.RUNNING):
                return await self._pause(run, run.must_pause)
            run.must_pause = ""
            seconds = await self._advance(run)
            if seconds is None or seconds > 0:
                await self.world.clock.wait(run.changed, seconds)
            return True
        except WorldError:
            raise
        except ConflictError as error:  # an operator changed the job meanwhile
            before = run.record.state
            await catch_up(self.world, run)
            if run.record.state is not before:
                return True
            return await self._pause(run, str(error))
        except HeadwaterError as error:
            return await self._pause(run, str(error))
        except Exception as error:
            _log.exception("a defect stopped job %s", run.record.reference)
            return await self._pause(run, f"a defect in the coordinator: {error!r}; see its log")

    async def _wait_for_the_world(self, run: JobRun, error: WorldError) -> None:
        """A full disk or a lost database ends no job: it goes on when they are back."""
        run.turn = None
        failure: WorldError | None = error
        while failure is not None:
            if isinstance(failure, HeldError):
                self.displaced.set()
            _log.error("job %s waits, and tries again: %s", run.record.reference, failure)
            await wait_for(run, f"waits for the coordinator's storage: {failure}")
            await self.world.clock.wait(asyncio.Event(), RETRY_SECONDS)
            try:
                await catch_up(self.world, run)
                failure = None
            except WorldError as again:
                failure = again

    async def _advance(self, run: JobRun) -> float | None:
        """One decision and its action; the seconds after which to look again, None for never."""
        if run.round is None:
            return await self._begin(run)
        if run.record.state is JobState.CANCELLED:
            await abandon_round(self.world, run, run.record.state_reason)
            return await self._after_round(run)
        if run.round.record.state is RoundState.CLOSING:
            await finish_round(self.world, run, run.round.record)
            return await self._after_round(run)
        await self._expire_leases(run)
        policy, progress = run.spec.rounds, round_progress(self.world, run)
        decision = closing(policy, progress)
        match decision.action:
            case Action.WAIT:
                leases = min(one.lease_ends for one in run.round.pending)
                left = (0 if progress.past < 0 else policy.grace_seconds) - progress.past
                return max(0.001, min(leases - self.world.clock.monotonic(), left))
            case Action.EXTEND:
                await extend_round(self.world, run, decision.reason)
                return 0
            case Action.CLOSE:
                await close_round(self.world, run, decision.reason)
            case Action.ABANDON:
                await abandon_round(self.world, run, decision.reason)
        return await self._after_round(run)

    async def _begin(self, run: JobRun) -> float | None:
        if run.abandoned_in_a_row >= ABANDONED_IN_A_ROW and run.record.state is JobState.RUNNING:
            abandoned, run.abandoned_in_a_row = run.abandoned_in_a_row, 0
            await self._pause(run, f"{abandoned} rounds in a row were abandoned")
            return 0
        if run.record.state is JobState.PAUSED:
            run.turn = None
            return None
        ending = await self._ending(run)
        purpose = RoundPurpose.EVALUATE if ending else RoundPurpose.TRAIN
        wanted = not ending or await self._final_evaluation_due(run)
        if wanted and await self._open(run, purpose):
            return 0
        # Clients that work for another job will be free; those that left may never return.
        if ending and not (wanted and survey(self.world, run, {}).decision.offers):
            await self._set_state(run, JobState.COMPLETED, ending)
            return 0
        free_at = [until for _, until in run.barred.values()]
        free_at += [one.lease_ends for other in self._runs.values() for one in other.late.values()]
        now = self.world.clock.monotonic()
        return min((until - now for until in free_at if until > now), default=None)

    async def _open(self, run: JobRun, purpose: RoundPurpose) -> bool:
        """Open a round, unless a job that has waited longer can open one now."""
        if run.turn is None:
            run.turn = next(self._turns)
        async with self._opening:  # one at a time: two rounds must not choose the same client
            busy = self._busy()
            if any(survey(self.world, one, busy).decision.offers for one in self._before(run)):
                return False
            if not await open_round(self.world, run, busy, purpose):
                return False
        run.turn = None
        self.wake()
        return True

    def _before(self, run: JobRun) -> list[JobRun]:
        """The jobs that have waited longer for clients."""
        waiting = [one for one in self._runs.values() if one.turn and one.active]
        return [one for one in waiting if (one.turn or 0) < (run.turn or 0)]

    async def _ending(self, run: JobRun) -> str:
        """Why the job has no further training round; empty when it has one."""
        policy = run.spec.rounds
        if run.record.rounds_committed >= policy.count:
            return f"all {policy.count} rounds are done"
        if policy.stop is None:
            return ""
        held_out = "coordinator" in policy.evaluate.on and run.spec.dataset in self.world.held_out
        series = await self.world.database.read(
            partial(metric_series, run=run, metric=policy.stop.metric, held_out=held_out)
        )
        return stopping(policy.stop, series)

    async def _final_evaluation_due(self, run: JobRun) -> bool:
        """Clients measure a version in the round that starts from it; none starts from the last."""
        if "clients" not in run.spec.rounds.evaluate.on:
            return False
        evaluations = await self.world.database.read(
            partial(
                history.rounds,
                reference=run.record.reference,
                purpose=RoundPurpose.EVALUATE,
                newest_first=True,
                limit=1,
            )
        )
        return not evaluations or evaluations[0].base_version_id != run.record.latest_version_id

    async def _after_round(self, run: JobRun) -> float:
        self.wake()
        return 0

    def _busy(self) -> dict[str, str]:
        """Who works for which job; those whom a closing round no longer needs are free."""
        for run in self._runs.values():
            run.forget_silent(self.world.clock.monotonic())
        late = {
            live.record.client_id: run.record.reference
            for run in self._runs.values()
            for live in run.late.values()
        }
        rounds = [(run, run.round) for run in self._runs.values() if run.round is not None]
        return late | {
            live.record.client_id: run.record.reference
            for run, round_ in rounds
            if round_.record.state is RoundState.OPEN
            for live in round_.pending
        }

    async def _expire_leases(self, run: JobRun) -> None:
        assert run.round is not None
        now = self.world.clock.monotonic()
        for live in [one for one in run.round.pending if one.lease_ends <= now]:
            reason = f"no sign of life for {self.world.lease_seconds:g} s"
            await self.end_assignment(run, live, AssignmentState.EXPIRED, reason)
            run.bar(live.instance_id, f"it fell silent: {reason}", self.world.clock)

    async def end_assignment(
        self,
        run: JobRun,
        live: LiveAssignment,
        state: AssignmentState,
        reason: str,
        facts: AssignmentFacts | None = None,
    ) -> None:
        """Write how an assignment ended without an update, and let the round decide anew.

        Where it has ended otherwise meanwhile, that stands.
        """
        write = partial(
            round_repository.advance_assignment,
            assignment_id=live.record.id,
            state=state,
            reason=reason,
            now=self.world.clock.now(),
            **({"bytes_down": live.bytes_down} | (facts or AssignmentFacts())),
        )
        try:
            live.record = await self.world.database.write(write)
        except ConflictError:
            read = partial(round_repository.assignment, assignment_id=live.record.id)
            live.record = await self.world.database.read(read)
        live.state = live.record.state
        run.late.pop(live.record.id, None)
        run.changed.set()

    async def _pause(self, run: JobRun, reason: str) -> bool:
        """Pause the job; True where an operator changed it meanwhile, which stands."""
        _log.error("job %s pauses: %s", run.record.reference, reason)
        run.must_pause, changed = reason, False
        if run.record.state in (JobState.QUEUED, JobState.RUNNING):
            try:
                await self._set_state(run, JobState.PAUSED, reason)
            except ConflictError:
                await catch_up(self.world, run)
                changed = True
        run.must_pause = ""
        return changed

    async def _set_state(self, run: JobRun, state: JobState, reason: str) -> None:
        run.record = await self.world.database.write(
            partial(
                job_repository.set_state,
                reference=run.record.reference,
                state=state,
                reason=reason,
                now=self.world.clock.now(),
            )
        )
        await run.announce()
