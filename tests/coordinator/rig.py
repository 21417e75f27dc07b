"""A coordinator without a server or a network, under a clock that jumps."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.engine.attendance import Attendance, Attendee
from coordinator.engine.engine import Engine
from coordinator.engine.world import World
from coordinator.services.submission import submit_job
from coordinator.services.uploads import Uploads
from headwater.v1 import control_pb2
from headwater.v1 import fleet_pb2 as pb
from storage import history
from storage.blob_directory import BlobDirectory
from storage.database import Database
from storage.records import RoundRecord
from tests.system.device import Update, frames_of, make_update

LEASE, DEADLINE = 30.0, 100.0
JOB = """
name = "job"
dataset = "data"
seed = 5
[model]
factory = "model:Net"
loss = "cross_entropy"
metrics = ["accuracy"]
input = { name = "features", shape = [20], dtype = "float32" }
target = { name = "label", shape = [], dtype = "int64" }
[train]
optimizer = { name = "sgd", learning_rate = 0.1 }
local_steps = 1
batch_size = 8
optimizer_state = "reset"
[rounds]
count = 2
cohort = 2
quorum = 1
deadline_seconds = 100
evaluate = { on = [] }
"""


class JumpingClock:
    """Time passes only in `jump`, and then all who wait look again."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._jumped = asyncio.Condition()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        end = None if seconds is None else self.seconds + seconds
        woken = asyncio.create_task(event.wait())
        over = asyncio.create_task(self._reach(end))
        try:
            await asyncio.wait({woken, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            over.cancel()

    async def _reach(self, end: float | None) -> None:
        async with self._jumped:
            await self._jumped.wait_for(lambda: end is not None and self.seconds >= end)

    async def jump(self, seconds: float) -> None:
        async with self._jumped:
            self.seconds += seconds
            self._jumped.notify_all()


class Device:
    """A client without a process: its attendance, and what it would send."""

    def __init__(self, rig: "Rig", name: str) -> None:
        hello = pb.Hello(
            client_id=f"{sum(name.encode()):032x}", instance_id=f"{id(self):032x}", name=name,
            datasets=[pb.Dataset(name="data", example_count=8)], encodings=["fp32"],
        )  # fmt: skip
        self.rig = rig
        self.attendee = Attendee(hello.client_id, hello.instance_id, name, "host", hello)

    async def next(self, kind: str) -> pb.AttendResponse:
        """The next directive of a kind; others are passed over."""
        while True:
            message = await asyncio.wait_for(self.attendee.outbox.get(), 20)
            assert message is not None, "the stream ended"
            if message.WhichOneof("message") == kind:
                return message

    async def assigned(self) -> pb.Assignment:
        return (await self.next("assignment")).assignment

    async def deliver(self, assignment: pb.Assignment, update: Update | None = None) -> pb.Receipt:
        """Offer and send an update as a device does, from where the coordinator has it."""
        update = update or make_update(self.rig.plan.manifest.layout)
        answer = await self.offered(assignment, update)
        assert answer.verdict == pb.OFFER_VERDICT_SEND, answer
        header = self.header(assignment, update, answer.from_byte)
        return await self.rig.uploads.received(header, stream(update, answer.from_byte))

    async def offered(self, assignment: pb.Assignment, update: Update) -> pb.OfferResponse:
        """The answer to an offer, as the servicer gives it."""
        offer = self.offer(assignment, update)
        found = self.rig.engine.find(assignment.assignment_id, self.attendee.client_id)
        if found is None:
            return await self.rig.uploads.after_the_round(offer)
        return await self.rig.uploads.offered(*found, offer)

    def offer(self, assignment: pb.Assignment, update: Update) -> pb.OfferRequest:
        return pb.OfferRequest(
            assignment_id=assignment.assignment_id, client_id=self.attendee.client_id,
            digest=update.digest, size_bytes=len(update.encoded), encoding="fp32",
            summary=pb.UpdateSummary(examples=8, metrics_after={"loss": 1.0, "accuracy": 0.5}),
        )  # fmt: skip

    def header(
        self, assignment: pb.Assignment, update: Update, from_byte: int = 0
    ) -> pb.SubmitHeader:
        return pb.SubmitHeader(
            assignment_id=assignment.assignment_id, client_id=self.attendee.client_id,
            digest=update.digest, from_byte=from_byte,
        )  # fmt: skip


async def stream(update: Update, from_byte: int = 0) -> AsyncIterator[pb.SubmitRequest]:
    position = 0
    for one in frames_of(update):
        if position >= from_byte:
            yield pb.SubmitRequest(frame=one)
        position += 8 + len(one.payload)


class Rig:
    """A coordinator without a server, on a real database, under a jumping clock."""

    def __init__(self, folder: Path, database: Database, plan: CompiledPlan) -> None:
        self.plan, self.clock, self.folder = plan, JumpingClock(), folder
        self.held_out: dict[str, str] = {}
        (folder / "spool").mkdir(exist_ok=True)
        self.world = World(
            database=database, blobs=BlobDirectory(folder / "blobs"), spool=folder / "spool",
            clock=self.clock, attendance=Attendance(), held_out=self.held_out, threads=1,
            lease_seconds=LEASE,
        )  # fmt: skip
        self.engine = Engine(self.world)
        self.uploads = Uploads(self.engine)

    async def attend(self, *names: str) -> list[Device]:
        devices = [Device(self, name) for name in names]
        for one in devices:
            await self.world.database.write(lambda s, one=one: _register(s, one.attendee.hello))
            self.world.attendance.enter(one.attendee)
        self.engine.wake()
        return devices

    async def submit(self, **changes: str) -> str:
        text = JOB
        for key, value in changes.items():
            before = next(line for line in JOB.splitlines() if line.startswith(f"{key} ="))
            text = text.replace(before, f"{key} = {value}")
        self.world.blobs.write(self.plan.manifest.to_bytes())
        for member in self.plan.manifest.members:
            self.world.blobs.write(self.plan.read(member))
        request = control_pb2.SubmitJobRequest(job_file=text, plan_digest=self.plan.digest)
        record = await submit_job(self.world, request)
        await self.engine.take_up(record)
        return record.reference

    async def news(self, reference: str, wanted: str) -> None:
        """Wait until the job is in a state, or waits for something that begins like this."""
        run = self.engine.runs.get(reference)
        while run is not None and not (
            run.record.state == wanted or run.waiting_for.startswith(wanted)
        ):
            await asyncio.wait_for(run.news_after(run.news), 20)

    async def round(self, reference: str, number: int) -> RoundRecord:
        return await self.world.database.read(lambda s: history.round(s, reference, number))

    async def ended(self, reference: str, number: int) -> RoundRecord:
        """The round once it has ended."""
        run = self.engine.runs.get(reference)
        while True:
            news = run.news if run else 0
            rounds = await self.world.database.read(lambda s: history.rounds(s, reference))
            found = [one for one in rounds if one.number == number and one.ended_at]
            if found:
                return await self.round(reference, number)
            assert run is not None
            await asyncio.wait_for(run.news_after(news), 20)

    async def told(self, reference: str, text: str) -> None:
        """Wait for an event of the job that says this."""
        run = self.engine.runs[reference]
        while True:
            news = run.news
            events = await self.world.database.read(lambda s: history.events(s, reference))
            if any(text in one.message for one in events):
                return
            await asyncio.wait_for(run.news_after(news), 20)

    async def stop(self) -> None:
        await self.engine.stop()
        # A write under way goes on: the next coordinator on this database begins after it.
        await self.world.database.write(lambda session: None)
        self.world.end()


def _register(session, hello):
    from storage import clients

    return clients.register(
        session, client_id=hello.client_id, name=hello.name, tags={}, profile={}, hostname="host",
        instance_id=hello.instance_id, insecure=False, now=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip


@asynccontextmanager
async def rigged(folder: Path, database: Database, plan: CompiledPlan) -> AsyncIterator[Rig]:
    rig = Rig(folder, database, plan)
    await rig.engine.start()
    yield rig
    await rig.stop()
