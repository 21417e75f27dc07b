"""Uploads whose streams are cut, doubled, repeated or too many, without a network."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, cast

import pytest

from coordinator.engine.engine import Engine
from coordinator.engine.live import JobRun, LiveAssignment
from coordinator.engine.rounds import live_round
from coordinator.engine.world import World
from coordinator.jobs.job_file import parse_job
from coordinator.services.uploads import Uploads
from coordinator.services.write_behind import WriteBehind
from headwater import steps
from headwater.errors import ConflictError, NotFoundError, UnavailableError
from headwater.layout import Layout, Role, TensorSpec
from headwater.v1 import fleet_pb2 as pb
from storage import clients, jobs, rounds
from storage.database import Database
from storage.records import AssignmentState, RoundPurpose, UpdateFacts
from storage.schema import Assignment
from tests.coordinator.rig import JumpingClock
from tests.storage.world import World as Rows
from tests.system.device import Update, frames_of, make_update
from tests.system.training import job_text

LAYOUT = Layout(
    (
        TensorSpec("w", (4,), "float32", Role.TRAINABLE),
        TensorSpec("n", (1,), "int64", Role.AVERAGED_BUFFER),
    )
)
UPDATE = make_update(LAYOUT)
FIRST_BLOCK_BYTES = 8 + 4 * 4
Stream = asyncio.Queue[pb.SubmitRequest | None]


class GatedDatabase:
    """A database whose writes wait while `gate` is closed; `waiting` tells that one does."""

    def __init__(self, database: Database) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.read = database.read
        self._write = database.write

    async def write(self, work: Callable[[Any], Any]) -> Any:
        if not self.gate.is_set():
            self.waiting.set()
            await self.gate.wait()
        return await self._write(work)


class Desk:
    """A job with an open round for the clients a and b, and the place where uploads arrive."""

    def __init__(self, world: World, rows: Rows, purpose: RoundPurpose, limit: int) -> None:
        self.database = GatedDatabase(world.database)
        world = replace(world, database=cast(Database, self.database))
        self.rows = rows
        self.record = rows.open_round(rows.job(), purpose=purpose)
        self.engine = Engine(world)
        job = rows.read(jobs.unfinished)[0]
        spec = parse_job(job_text(), "job.toml")
        self.run = JobRun(job, spec, cast(Any, None))
        self.run.__dict__["layout"] = LAYOUT
        self.run.round = live_round(world, self.record)
        self.engine.runs[self.run.record.reference] = self.run
        self.uploads = Uploads(self.engine, limit)
        self.a, self.b = self.run.round.assignments.values()

    async def offer(
        self, live: LiveAssignment, update: Update | None = UPDATE, encoding: str = "fp32"
    ) -> pb.OfferResponse:
        request = pb.OfferRequest(
            assignment_id=live.record.id,
            client_id=live.record.client_id,
            digest=update.digest if update else "",
            size_bytes=len(update.encoded) if update else 0,
            encoding=encoding,
            summary=pb.UpdateSummary(examples=10, metrics_after={"loss": 1.0}),
        )
        found = self.engine.find(live.record.id, live.record.client_id)
        assert found is not None
        return await self.uploads.offered(*found, request)

    def submit(
        self, live: LiveAssignment, stream: Stream, from_byte: int = 0, **changed: Any
    ) -> asyncio.Task[pb.Receipt]:
        fields = {
            "assignment_id": live.record.id,
            "client_id": live.record.client_id,
            "digest": UPDATE.digest,
            "from_byte": from_byte,
        }
        header = pb.SubmitHeader(**fields | changed)
        return asyncio.create_task(self.uploads.received(header, messages(stream)))

    def state(self, live: LiveAssignment) -> AssignmentState:
        """What the ledger says."""
        return self.rows.read(lambda s: rounds.assignment(s, assignment_id=live.record.id)).state


async def messages(stream: Stream) -> AsyncIterator[pb.SubmitRequest]:
    while (message := await stream.get()) is not None:
        yield message


async def arrived(live: LiveAssignment) -> None:
    """Wait until a frame is on its way to the disk: it renewed the lease."""
    live.lease_ends = -1
    while live.lease_ends == -1:
        await asyncio.sleep(0)


def sent(update: Update = UPDATE, first: int = 0) -> Stream:
    """A whole stream from a block on."""
    stream: Stream = asyncio.Queue()
    for frame in frames_of(update)[first:]:
        stream.put_nowait(pb.SubmitRequest(frame=frame))
    stream.put_nowait(None)
    return stream


MakeDesk = Callable[..., Desk]


@pytest.fixture
def desk(world: World, rows: Rows) -> MakeDesk:
    """Makes the desk; on the event loop, where it is used."""

    def make(purpose: RoundPurpose = RoundPurpose.TRAIN, limit: int = 16, **changed: Any) -> Desk:
        return Desk(replace(world, **changed), rows, purpose, limit)

    return make


def go(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


def test_memory_follows_an_acceptance_whose_client_is_gone(desk: MakeDesk) -> None:
    async def test() -> None:
        it = desk()
        await it.offer(it.a)
        it.database.gate.clear()
        upload = it.submit(it.a, sent())
        await it.database.waiting.wait()
        it.run.changed.clear()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        it.database.gate.set()
        await it.run.changed.wait()
        assert it.a.state is AssignmentState.ACCEPTED is it.state(it.a)
        assert (await it.offer(it.a)).verdict == pb.OFFER_VERDICT_HAVE_IT

    go(test())


def test_an_offer_of_what_the_ledger_has_accepted_gets_its_receipt(desk: MakeDesk) -> None:
    """A commit may succeed although its answer was lost: memory learns of it at the next offer."""

    async def test() -> None:
        it = desk()
        await it.offer(it.a)
        update = UpdateFacts(UPDATE.digest, len(UPDATE.encoded), "fp32", 10)
        it.rows.write(
            lambda s: rounds.accept_update(
                s, assignment_id=it.a.record.id, update=update, now=it.rows.now
            )
        )
        answer = await it.offer(it.a)
        assert answer.verdict == pb.OFFER_VERDICT_HAVE_IT
        assert (answer.receipt.state, answer.receipt.digest) == ("accepted", UPDATE.digest)
        assert it.a.state is AssignmentState.ACCEPTED

    go(test())


@pytest.mark.parametrize("by", ["an offer", "an upload"])
def test_a_newer_stream_waits_for_the_end_of_the_older(desk: MakeDesk, by: str) -> None:
    async def test() -> None:
        it = desk()
        await it.offer(it.a)
        silent: Stream = asyncio.Queue()
        silent.put_nowait(pb.SubmitRequest(frame=frames_of(UPDATE)[0]))
        older = it.submit(it.a, silent)
        await arrived(it.a)
        if by == "an offer":
            answer = await it.offer(it.a)
            assert answer.verdict == pb.OFFER_VERDICT_SEND
            with pytest.raises(ConflictError, match="a newer stream sends this update"):
                await older
            assert answer.from_byte == len(UPDATE.encoded) - len(frames_of(UPDATE)[1].payload) - 8
            receipt = await it.submit(it.a, sent(first=1), answer.from_byte)
        else:
            newer = it.submit(it.a, sent(), from_byte=0)
            with pytest.raises(ConflictError, match="a newer stream sends this update"):
                await older
            with pytest.raises(ConflictError, match="send the update from byte"):
                await newer
            answer = await it.offer(it.a)
            receipt = await it.submit(it.a, sent(first=1), answer.from_byte)
        assert receipt.state == "accepted"
        assert list(it.uploads._world.spool.iterdir()) == []

    go(test())


def test_more_uploads_than_memory_allows_offer_again(desk: MakeDesk) -> None:
    """Two may be invited before either begins to send."""

    async def test() -> None:
        it = desk(limit=1)
        other = make_update(LAYOUT, 0.5)
        assert (await it.offer(it.a)).verdict == pb.OFFER_VERDICT_SEND
        assert (await it.offer(it.b, other)).verdict == pb.OFFER_VERDICT_SEND
        silent: Stream = asyncio.Queue()
        silent.put_nowait(pb.SubmitRequest(frame=frames_of(UPDATE)[0]))
        first = it.submit(it.a, silent)
        await arrived(it.a)
        with pytest.raises(UnavailableError, match="1 uploads are under way: offer it again"):
            await it.submit(it.b, sent(other), digest=other.digest)
        assert (await it.offer(it.b, other)).verdict == pb.OFFER_VERDICT_COME_AT
        silent.put_nowait(pb.SubmitRequest(frame=frames_of(UPDATE)[1]))
        silent.put_nowait(None)
        await first
        assert (await it.offer(it.b, other)).verdict == pb.OFFER_VERDICT_SEND
        await it.submit(it.b, sent(other), digest=other.digest)

    go(test())


@pytest.mark.parametrize("when", ["while the round is open", "after it"])
def test_an_accepted_update_sent_again_gets_the_same_receipt(desk: MakeDesk, when: str) -> None:
    async def test() -> None:
        it = desk()
        await it.offer(it.a)
        receipt = await it.submit(it.a, sent())
        if when == "after it":
            it.rows.close(it.record)
            it.run.round = None
        assert await it.submit(it.a, sent()) == receipt
        assert (await it.submit(it.a, sent(), digest="0" * 64)).state == "released"
        with pytest.raises(NotFoundError, match="is not this client's"):
            await it.submit(it.a, sent(), client_id="id-b")
        with pytest.raises(NotFoundError, match="no assignment of id 999"):
            await it.submit(it.a, sent(), assignment_id=999)

    go(test())


def test_what_came_in_earlier_streams_makes_a_link_no_faster(desk: MakeDesk) -> None:
    """`auto` chooses by the pace: 24 bytes in ten seconds, and after a break 16 in ten more."""

    async def test() -> None:
        clock = JumpingClock()
        it = desk(clock=clock)

        async def slow(first: int, last: int) -> AsyncIterator[pb.SubmitRequest]:
            for frame in frames_of(UPDATE)[first:last]:
                clock.seconds += 10
                yield pb.SubmitRequest(frame=frame)

        header = pb.SubmitHeader(
            assignment_id=it.a.record.id, client_id=it.a.record.client_id, digest=UPDATE.digest
        )
        await it.offer(it.a)
        with pytest.raises(ConflictError, match="broke off at byte 24"):
            await it.uploads.received(header, slow(0, 1))
        header.from_byte = (await it.offer(it.a)).from_byte
        await it.uploads.received(header, slow(1, 2))
        row = it.rows.read(lambda s: rounds.assignment(s, assignment_id=it.a.record.id))
        assert (row.bytes_up, row.upload_seconds) == (40, 25.0)
        speeds = it.rows.read(lambda s: clients.upload_speeds(s, client_ids=["id-a", "id-b"]))
        assert speeds == {"id-a": 1.6}
        # A link that is slow may bring nothing in time.
        it.rows.write(lambda s: setattr(s.get(Assignment, row.id), "state", AssignmentState.LATE))
        assert speeds == it.rows.read(lambda s: clients.upload_speeds(s, client_ids=["id-a"]))

    go(test())


def test_an_evaluation_says_nothing_of_encodings(desk: MakeDesk) -> None:
    async def test() -> None:
        it = desk(RoundPurpose.EVALUATE)
        await it.offer(it.a, None, encoding="\0" + "x" * 10_000)
        row = it.rows.read(lambda s: rounds.assignment(s, assignment_id=it.a.record.id))
        assert (row.state, row.update_encoding) == (AssignmentState.ACCEPTED, "fp32")

    go(test())


def test_an_evaluation_offered_again_gets_the_same_receipt(desk: MakeDesk) -> None:
    async def test() -> None:
        it = desk(RoundPurpose.EVALUATE)
        answer = await it.offer(it.a, None)
        assert answer.verdict == pb.OFFER_VERDICT_HAVE_IT
        assert await it.offer(it.a, None) == answer
        answer = await it.offer(it.b, UPDATE)
        assert answer.verdict == pb.OFFER_VERDICT_NOT_NEEDED
        assert "an evaluation brings metrics alone" in answer.reason
        assert it.state(it.b) is AssignmentState.REJECTED

    go(test())


def test_the_loop_goes_on_while_a_broken_upload_waits_for_its_flush(
    desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushing, ending, gate = threading.Event(), threading.Event(), threading.Event()

    def held(step: str, _: object) -> None:
        if step == "flush":
            flushing.set()
            assert gate.wait(20)

    class Watched(WriteBehind):
        def end(self) -> None:
            ending.set()
            super().end()

    async def test() -> None:
        it, stream = desk(), sent()
        await it.offer(it.a)
        part: Stream = asyncio.Queue()
        part.put_nowait(stream.get_nowait())
        upload = it.submit(it.a, part)
        assert await asyncio.to_thread(flushing.wait, 20)
        part.put_nowait(None)
        assert await asyncio.to_thread(ending.wait, 20)
        gate.set()
        with pytest.raises(ConflictError, match="broke off"):
            await upload
        assert (await it.offer(it.a)).from_byte == FIRST_BLOCK_BYTES

    monkeypatch.setattr("coordinator.services.write_behind.FLUSH_BYTES", 1)
    monkeypatch.setattr("coordinator.services.upload.WriteBehind", Watched)
    with steps.observed(held):
        go(test())


def test_an_upload_that_did_not_reach_the_disk_begins_again(
    desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(step: str, _: object) -> None:
        if step == "flush":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def test() -> None:
        it, part = desk(), asyncio.Queue[pb.SubmitRequest | None]()
        await it.offer(it.a)
        part.put_nowait(sent().get_nowait())
        part.put_nowait(None)
        with steps.observed(failing), pytest.raises(ConflictError, match="broke off"):
            await it.submit(it.a, part)
        assert (await it.offer(it.a)).from_byte == 0
        assert (await it.submit(it.a, sent())).state == AssignmentState.ACCEPTED

    monkeypatch.setattr("coordinator.services.write_behind.FLUSH_BYTES", 1)
    go(test())
