"""Takes assignments one after another: prepare, train, journal, deliver."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from edge_client.assignment import AssignmentRunner
from edge_client.checkpoints import DEATHS, Checkpoints
from edge_client.clock import Clock
from edge_client.delivery import Delivery
from edge_client.journal import HeldUpdate, Journal
from edge_client.preparation import Preparation
from edge_client.residuals import Residuals
from edge_client.status_file import StatusFile
from edge_client.training import Cancelled
from edge_client.work import Work
from edge_client.work_thread import WorkThread
from headwater.errors import HeadwaterError, StorageError, UnavailableError, UserError
from headwater.v1.fleet_pb2 import Assignment, AttendRequest, Cancel, Decline, Failure, Fate

_PROGRESS_SECONDS = 2.0
_LATE = "late"
_REPLACED = "a newer assignment came to this device"
_log = logging.getLogger("headwater.client")


class Worker:
    """Holds the one assignment under way and the one that waits for it to end.

    `send` queues a message on the stream, and does nothing where there is none.
    """

    def __init__(
        self,
        *,
        preparation: Preparation,
        runner: AssignmentRunner,
        delivery: Delivery,
        journal: Journal,
        checkpoints: Checkpoints,
        residuals: Residuals,
        status: StatusFile,
        clock: Clock,
        coordinator: str,
        send: Callable[[AttendRequest], None],
    ) -> None:
        self._preparation = preparation
        self._runner = runner
        self._delivery = delivery
        self._journal = journal
        self._checkpoints = checkpoints
        self._residuals = residuals
        self._coordinator = coordinator
        self._status = status
        self._clock = clock
        self._send = send
        self._thread = WorkThread()
        self._work: Work | None = None
        self._next: Assignment | None = None
        self._arrived = asyncio.Event()
        self._last_word: AttendRequest | None = None
        self._recovered = self._recover(coordinator)

    @property
    def held_assignment_id(self) -> int:
        """What a Hello reports as held; 0 for nothing."""
        if self._work is not None:
            return self._work.assignment_id
        if self._recovered is not None:
            return self._recovered.assignment_id
        return _subject(self._last_word)

    def assign(self, assignment: Assignment) -> None:
        """Take an assignment; an older one has become pointless by it."""
        if self._work is not None and self._work.assignment_id == assignment.assignment_id:
            return
        self._last_word = None
        self._next = assignment
        if self._work is not None:
            self._work.supersede(_REPLACED)
        self._arrived.set()

    def cancel(self, cancel: Cancel) -> None:
        """Drop an assignment."""
        if self._next is not None and self._next.assignment_id == cancel.assignment_id:
            self._next = None
        if self._work is not None and self._work.assignment_id == cancel.assignment_id:
            self._work.drop(cancel.reason or "the coordinator cancelled it")

    def settle(self, fate: Fate) -> None:
        """Learn how an assignment ended."""
        if _subject(self._last_word) == fate.assignment_id:
            self._last_word = None
        self._residuals.settle(fate.assignment_id, folded=fate.folded)
        if self._work is not None and self._work.assignment_id == fate.assignment_id:
            self._work.supersede(f"it ended as {fate.state}: {fate.reason}")
        self._status.fate(fate.assignment_id, fate.state, fate.folded, fate.reason)
        _log.info(
            "the coordinator ended it as %s%s", fate.state, f": {fate.reason}" * bool(fate.reason),
            extra={"assignment": fate.assignment_id},
        )  # fmt: skip

    def repeat_last_word(self) -> None:
        """Say again on a new stream what may have been lost with the old one."""
        if self._last_word is not None:
            self._send(self._last_word)

    def stop(self) -> None:
        """Stop training between two steps, because the client is stopping; keep the journal."""
        if self._work is not None:
            self._work.activity.stopping.set()
        self._thread.close()

    async def run(self) -> None:
        """Deliver what an earlier process finished, then work for ever."""
        if (held := self._recovered) is not None:
            work = Work(held.assignment_id, held.job, held.round_number)
            await self._under_way(work, 0.0, self._deliver(work, held))
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            assignment, self._next = self._next, None
            if assignment is not None:
                work = Work(assignment.assignment_id, assignment.job, assignment.round_number)
                await self._under_way(
                    work, assignment.lease_seconds, self._perform(work, assignment)
                )

    async def _under_way(self, work: Work, lease_seconds: float, course: Awaitable[None]) -> None:
        self._work, self._recovered = work, None
        self._status.working(work)
        ticking = asyncio.create_task(self._tick(work, lease_seconds))
        try:
            await course
        except Cancelled:
            if work.reason == _REPLACED:
                self._send(_failure(work, work.reason))
            self._end(work, "dropped", work.reason)
            self._journal.drop(work.assignment_id)
        except StorageError as error:
            # What the journal still holds is offered again by the next process, and refused.
            _log.error("the journal could not be cleared: %s", error, extra=_context(work))
        finally:
            ticking.cancel()
            self._work = None
            self._status.working(None)

    async def _perform(self, work: Work, assignment: Assignment) -> None:
        try:
            with ExitStack() as pins:
                held = await self._compute(work, assignment, pins)
        except BaseException:
            if not work.dropped:  # the client stops: its next process goes on
                self._checkpoints.pause()
                raise
            self._checkpoints.end()
            raise
        self._checkpoints.end()
        if held is not None:
            await self._deliver(work, held)

    async def _compute(
        self, work: Work, assignment: Assignment, pins: ExitStack
    ) -> HeldUpdate | None:
        """The finished update, or None after a Decline or a Failure was sent."""
        started = False
        try:
            deaths = self._checkpoints.begin(self._coordinator, assignment)
            if deaths >= DEATHS:
                started = True
                raise UnavailableError(
                    f"{deaths} processes of this client died in the middle of it: look in the "
                    "device's log for want of memory, or give it another plan"
                )
            seconds = await work.unless_dropped(self._preparation.prepare(work, assignment, pins))
            bench, base = await self._thread.run(self._runner.prepare, assignment)
            started = True
            return await self._thread.run(
                self._runner.carry_out, assignment, bench, base, work.activity, seconds
            )
        except Cancelled:
            raise
        except Exception as error:
            self._give_up(work, started, error)
            return None

    async def _deliver(self, work: Work, held: HeldUpdate) -> None:
        try:
            word = await work.unless_dropped(self._delivery.deliver(work, held))
        except Cancelled:
            raise
        except Exception as error:
            self._journal.drop(held.assignment_id)
            self._give_up(work, True, error)
            if isinstance(error, UserError):
                self._last_word = None  # the coordinator itself said so
        else:
            if word.state == _LATE:  # a later round folds it, and says no more
                self._residuals.settle(work.assignment_id, folded=True)
            self._end(work, word.state, word.reason)

    def _give_up(self, work: Work, started: bool, error: Exception) -> None:
        """Decline what could not begin, report as failed what broke off, and go on."""
        reason = _sentence(error)
        if started:
            self._last_word = _failure(work, reason)
        else:
            decline = Decline(assignment_id=work.assignment_id, reason=reason)
            self._last_word = AttendRequest(decline=decline)
        self._send(self._last_word)
        self._end(work, "failed" if started else "declined", reason)

    def _end(self, work: Work, outcome: str, reason: str) -> None:
        level = logging.WARNING if outcome in ("failed", "declined") else logging.INFO
        _log.log(
            level, "assignment %s%s", outcome, f": {reason}" if reason else "", extra=_context(work)
        )
        self._status.ended(work, outcome, reason)

    async def _tick(self, work: Work, lease_seconds: float) -> None:
        """Renew the lease in time, however long a step takes."""
        seconds = min(lease_seconds / 4, _PROGRESS_SECONDS) if lease_seconds else _PROGRESS_SECONDS
        while True:
            await self._clock.sleep(seconds)
            self._send(work.progress())
            self._status.write()

    def _recover(self, coordinator: str) -> HeldUpdate | None:
        try:
            held = self._journal.load()
        except StorageError as error:
            _log.warning("%s", error)
            return None
        if held is not None and held.coordinator != coordinator:
            _log.warning(
                "a finished update is dropped: it is for %s, not %s", held.coordinator, coordinator
            )
            self._journal.drop(held.assignment_id)
            return None
        return held


def _sentence(error: Exception) -> str:
    if isinstance(error, HeadwaterError):
        return str(error)
    _log.error("unexpected %s: %s", type(error).__name__, error)
    _log.debug("where it happened", exc_info=error)
    return f"unexpected {type(error).__name__}: {error}"


def _context(work: Work) -> dict[str, object]:
    return {"job": work.job, "round": work.round_number, "assignment": work.assignment_id}


def _failure(work: Work, reason: str) -> AttendRequest:
    return AttendRequest(failure=Failure(assignment_id=work.assignment_id, reason=reason))


def _subject(message: AttendRequest | None) -> int:
    """The assignment that a Decline or a Failure is about; 0 for none."""
    if message is None:
        return 0
    kind = message.WhichOneof("message")
    return int((message.failure if kind == "failure" else message.decline).assignment_id)
