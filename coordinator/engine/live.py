"""The part of a job that lives in memory. All of it can be rebuilt from the database."""

import asyncio
from dataclasses import dataclass, field
from functools import cached_property

from coordinator.engine.clock import Clock
from coordinator.jobs.job_spec import JobSpec
from coordinator.jobs.where import Where, parse_where
from headwater.layout import Layout
from headwater.plan import Plan
from headwater.sources import DataSource
from headwater.v1 import fleet_pb2
from storage.records import (
    AssignmentRecord,
    AssignmentState,
    JobRecord,
    JobState,
    RoundRecord,
)
from storage.transitions import UNFINISHED_ASSIGNMENTS

BARRED_SECONDS = 60.0
"""How long a job leaves out a client that did not do its last assignment."""


@dataclass(eq=False)
class LiveAssignment:
    """A ledger row in the making: `lease_ends` is a time of the monotonic clock, `offer` what its
    client announced last, `base_weights_digest` the weights that it trains from, of the job's
    version `base_version`."""

    record: AssignmentRecord
    state: AssignmentState
    lease_ends: float
    base_weights_digest: str
    base_version: int
    instance_id: str = ""
    bytes_down: int = 0
    offer: fleet_pb2.OfferRequest | None = None

    @property
    def pending(self) -> bool:
        """Whether an update may still come of it."""
        return self.state in UNFINISHED_ASSIGNMENTS


@dataclass(eq=False)
class LiveRound:
    """A round that has not ended; `extensions` counts how often its deadline was moved."""

    record: RoundRecord
    assignments: dict[int, LiveAssignment]
    extensions: int = 0

    @property
    def accepted(self) -> int:
        """Updates accepted so far."""
        states = (one.state for one in self.assignments.values())
        return sum(state is AssignmentState.ACCEPTED for state in states)

    @property
    def pending(self) -> list[LiveAssignment]:
        """The assignments that may still bring an update."""
        return [one for one in self.assignments.values() if one.pending]

    def of_client(self, client_id: str) -> LiveAssignment | None:
        """The client's assignment in this round."""
        ours = (one for one in self.assignments.values() if one.record.client_id == client_id)
        return next(ours, None)


@dataclass(eq=False)
class JobRun:
    """A job that has not ended: its record, its plan, its open round, and who waits for what.

    `barred` maps instances of clients that declined, failed or fell silent to the reason and the
    time of the monotonic clock at which they may be asked again; a client that starts anew may at
    once. `late` has the assignments by id whose round has ended, and whose updates are still
    awaited, to be folded by the next one. `unmeasured` is why held-out metrics are missing. `turn`
    orders the jobs that wait for clients: the one that waits longest goes first. `must_pause` is
    why the job pauses, until that is written.
    """

    record: JobRecord
    spec: JobSpec
    plan: Plan
    round: LiveRound | None = None
    held_out: DataSource | None = None
    waiting_for: str = ""
    unmeasured: str = ""
    must_pause: str = ""
    abandoned_in_a_row: int = 0
    barred: dict[str, tuple[str, float]] = field(default_factory=dict)
    late: dict[int, LiveAssignment] = field(default_factory=dict)
    turn: int | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    news: int = 0
    _told: asyncio.Condition = field(default_factory=asyncio.Condition)

    @cached_property
    def layout(self) -> Layout:
        """The order and offsets of the model's tensors."""
        return self.plan.manifest.layout

    @cached_property
    def where(self) -> Where:
        """The parsed client condition."""
        return parse_where(self.spec.clients.where)

    @property
    def active(self) -> bool:
        """Whether the job may still open rounds or has one to end."""
        return self.record.state in (JobState.QUEUED, JobState.RUNNING) or self.round is not None

    def bar(self, instance_id: str, reason: str, clock: Clock) -> None:
        """Leave a client's instance out for a while; those whose time is over are forgotten."""
        now = clock.monotonic()
        self.barred = {one: bar for one, bar in self.barred.items() if bar[1] > now}
        self.barred[instance_id] = (reason, now + BARRED_SECONDS)

    def forget_silent(self, now: float) -> None:
        """Await no late update any more of which nothing was heard for the time of a lease."""
        self.late = {at: one for at, one in self.late.items() if one.lease_ends > now}

    async def announce(self) -> None:
        """Wake those who follow the job: a round ended, or its state or its wait changed."""
        self.news += 1
        async with self._told:
            self._told.notify_all()

    async def news_after(self, news: int) -> None:
        """Return once there is more news than that."""
        async with self._told:
            await self._told.wait_for(lambda: self.news > news)
