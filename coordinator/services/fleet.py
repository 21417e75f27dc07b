"""The Fleet service: devices attend, fetch, offer and submit."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from io import SEEK_END
from typing import Any, BinaryIO

import grpc.aio

from coordinator import VERSION
from coordinator.engine.attendance import Attendee
from coordinator.engine.candidates import profile_of
from coordinator.engine.directives import cancel_message, fate_message
from coordinator.engine.engine import Engine
from coordinator.engine.live import JobRun, LiveAssignment
from coordinator.engine.rounds import send_assignment
from coordinator.services.checks import checked_digest, checked_hello, printable
from coordinator.services.pace import watched
from coordinator.services.uploads import Uploads, is_late, wanted
from headwater.errors import (
    BlobError,
    ConflictError,
    DisplacedError,
    HeadwaterError,
    NotFoundError,
    UsageError,
)
from headwater.steps import reach
from headwater.v1 import fleet_pb2, fleet_pb2_grpc
from storage import clients as client_repository
from storage import rounds as round_repository
from storage.blob_store import BlobStore
from storage.records import AssignmentRecord, AssignmentState
from storage.transitions import UNFINISHED_ASSIGNMENTS

_log = logging.getLogger("headwater.fleet")

Context = grpc.aio.ServicerContext[Any, Any]
HEARTBEAT_SECONDS = 20
_ENDED_BY_THEIR_CLIENT = (
    AssignmentState.ACCEPTED,
    AssignmentState.LATE,
    AssignmentState.REJECTED,
    AssignmentState.FAILED,
    AssignmentState.DECLINED,
)
CHUNK_BYTES = 2**20


class FleetService(fleet_pb2_grpc.FleetServicer):
    """Decodes what devices say, calls the engine, encodes what they hear."""

    def __init__(self, engine: Engine, uploads: Uploads, *, insecure: bool) -> None:
        self._engine = engine
        self._world = engine.world
        self._uploads = uploads
        self._insecure = insecure

    async def Attend(  # noqa: N802
        self, request_iterator: AsyncIterator[fleet_pb2.AttendRequest], context: Context
    ) -> AsyncIterator[fleet_pb2.AttendResponse]:
        """One stream of one device, from Hello to its end."""
        requests = aiter(request_iterator)
        attendee = await self._admit(await _first(requests))
        reader = asyncio.create_task(self._read(attendee, requests))
        try:
            yield _welcome(attendee)
            await self._send_awaited(attendee)  # before work that would take what they decide
            await self._send_owed(attendee)
            self._engine.wake()
            while (message := await attendee.outbox.get()) is not None:
                reach("send", message.WhichOneof("message"))
                yield message
            if reader.done() and (error := reader.result()) is not None:
                raise error
        finally:
            reader.cancel()
            if self._world.attendance.leave(attendee):
                _log.info("client %s left", attendee.name, extra={"client": attendee.name})

    async def Fetch(  # noqa: N802
        self, request: fleet_pb2.FetchRequest, context: Context
    ) -> AsyncIterator[fleet_pb2.FetchResponse]:
        """Stream a blob from an offset; its bytes count for the assignment that it is for.

        A client that takes too few bytes in a minute is cut; it may fetch the rest.
        """
        found = self._engine.find(request.assignment_id, request.client_id)
        with await self._world.work(_opened, self._world.blobs, request.digest) as file:
            size_bytes = file.seek(0, SEEK_END)
            if not 0 <= request.offset_bytes <= size_bytes:
                raise UsageError(
                    f"offset {request.offset_bytes} lies outside of {size_bytes} bytes"
                )
            file.seek(request.offset_bytes)
            sent = request.offset_bytes
            pace = self._world.minimum_bytes_per_second
            cut = partial(_abort_slow, context, pace)
            async with watched(self._world.clock, pace, lambda: sent, cut):
                yield fleet_pb2.FetchResponse(size_bytes=size_bytes)
                while data := await self._world.work(file.read, CHUNK_BYTES):
                    reach("send", "part of a blob")
                    yield fleet_pb2.FetchResponse(data=data)
                    sent += len(data)
                    if found is not None:
                        found[1].bytes_down += len(data)
                        self._renew(found[1])

    async def Offer(  # noqa: N802
        self, request: fleet_pb2.OfferRequest, context: Context
    ) -> fleet_pb2.OfferResponse:
        """Say what to do with a finished update; take an evaluation's metrics at once."""
        found = self._engine.find(request.assignment_id, request.client_id)
        if found is None:
            answer = await self._uploads.after_the_round(request)
        else:
            self._renew(found[1])
            answer = await self._uploads.offered(*found, request)
        reach("send", "answer to an offer")
        return answer

    async def Submit(  # noqa: N802
        self, request_iterator: AsyncIterator[fleet_pb2.SubmitRequest], context: Context
    ) -> fleet_pb2.SubmitResponse:
        """Receive an update and answer once it is durable."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "header":
            raise UsageError("an upload begins with its header")
        receipt = await self._uploads.received(first.header, requests)
        reach("send", "receipt")
        return fleet_pb2.SubmitResponse(receipt=receipt)

    async def _admit(self, hello: fleet_pb2.Hello) -> Attendee:
        checked_hello(hello)
        attendance = self._world.attendance
        rival = attendance.rival(hello.client_id, hello.instance_id)
        if rival is not None:
            await self._report_shared_identity(hello, rival)
        record = await self._world.database.write(
            partial(
                client_repository.register,
                client_id=hello.client_id,
                name=hello.name,
                tags=dict(hello.tags),
                profile=profile_of(hello),
                hostname=hello.hostname,
                instance_id=hello.instance_id,
                insecure=self._insecure,
                now=self._world.clock.now(),
            )
        )
        attendee = Attendee(hello.client_id, hello.instance_id, record.name, hello.hostname, hello)
        await self._take_up(hello)
        attendance.enter(attendee)
        _log.info("client %s attends", record.name, extra={"client": record.name})
        return attendee

    async def _take_up(self, hello: fleet_pb2.Hello) -> None:
        """Await the late update that a client holds, before it attends and can be drawn anew."""
        if not hello.held_assignment_id:
            return
        read = partial(round_repository.assignment, assignment_id=hello.held_assignment_id)
        with suppress(NotFoundError):
            record = await self._world.database.read(read)
            if record.client_id == hello.client_id:
                await self._engine.rejoin(record)

    async def _report_shared_identity(self, hello: fleet_pb2.Hello, rival: Attendee) -> None:
        message = (
            f"two devices share the identity of client {rival.name}: hosts {rival.hostname} and "
            f"{hello.hostname}; delete the state directory on one of them"
        )
        await self._world.database.write(
            partial(
                client_repository.record_shared_identity,
                client_id=hello.client_id,
                instance_id=hello.instance_id,
                hostname=hello.hostname,
                now=self._world.clock.now(),
            )
        )
        raise DisplacedError(message)

    async def _read(
        self, attendee: Attendee, requests: AsyncIterator[fleet_pb2.AttendRequest]
    ) -> HeadwaterError | None:
        """Hear a client out; returns why its stream must end, None where it ended it itself."""
        try:
            async for request in requests:
                await self._hear(attendee, request)
        except HeadwaterError as error:
            _log.warning("client %s: %s", attendee.name, error, extra={"client": attendee.name})
            return error
        finally:
            attendee.push(None)
        return None

    async def _hear(self, attendee: Attendee, request: fleet_pb2.AttendRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "heartbeat":
            return
        if kind not in ("progress", "decline", "failure"):
            raise UsageError(f"a {kind or 'empty'} message does not belong here")
        said = getattr(request, kind)
        found = self._engine.find(said.assignment_id, attendee.client_id)
        if found is None or not (found[1].pending or is_late(*found)):
            return
        try:
            if kind == "progress":
                await self._hear_progress(found[1], said)
            else:
                # One cannot decline what one has trained.
                declined = kind == "decline" and found[1].state is not AssignmentState.UPLOADING
                state = AssignmentState.DECLINED if declined else AssignmentState.FAILED
                await self._hear_end(attendee, *found, said.reason, state)
        except ConflictError:
            # The round may end while what is said of it is being written: that is nobody's mistake.
            if found[1].pending and wanted(*found):
                raise

    async def _hear_progress(self, live: LiveAssignment, progress: fleet_pb2.Progress) -> None:
        self._renew(live)
        if not live.pending:  # its ledger row has ended
            return
        uploading = progress.phase == fleet_pb2.PHASE_UPLOADING
        state = AssignmentState.UPLOADING if uploading else AssignmentState.TRAINING
        if live.state is AssignmentState.OFFERED or uploading > (
            live.state is AssignmentState.UPLOADING
        ):
            live.state = state
            await self._world.database.write(
                partial(
                    round_repository.advance_assignment,
                    assignment_id=progress.assignment_id,
                    state=state,
                    now=self._world.clock.now(),
                )
            )

    async def _hear_end(
        self,
        attendee: Attendee,
        run: JobRun,
        live: LiveAssignment,
        said: str,
        state: AssignmentState,
    ) -> None:
        reason = printable(said)[:2000]
        why = f"it {state} its last assignment: {reason}"
        run.bar(attendee.instance_id, why, self._world.clock)
        _log.warning(
            "client %s %s: %s",
            attendee.name,
            state,
            reason,
            extra={"client": attendee.name, "job": run.record.reference},
        )
        await self._engine.end_assignment(run, live, state, reason)

    async def _send_owed(self, attendee: Attendee) -> None:
        """Push what the client should work on and, by its Hello, does not know of; and how what it
        holds ended, where it did not hear of that."""
        held = attendee.hello.held_assignment_id
        self._engine.forget_late(attendee.client_id, held)
        owed = self._engine.assignments_of(attendee.client_id)
        for run, live in owed:
            if live.record.id != held:
                send_assignment(self._world, run, live)
        known = [live.record.id for _, live in owed]
        if not held or held in known:
            return
        if (outcome := await self._outcome(attendee.client_id, held)) is not None:
            attendee.push(outcome)

    async def _send_awaited(self, attendee: Attendee) -> None:
        """Push the fates that it awaits, where they are known: those of ended rounds."""
        hello = attendee.hello
        for assignment_id in hello.awaited_assignment_ids:
            if assignment_id == hello.held_assignment_id:
                continue
            try:
                read = partial(round_repository.assignment, assignment_id=assignment_id)
                record = await self._world.database.read(read)
            except NotFoundError:
                continue
            if record.client_id != attendee.client_id or record.state in UNFINISHED_ASSIGNMENTS:
                continue
            if await self._awaits_fold(record):
                continue
            # A late one that is held counts as folded from its receipt on.
            is_late = record.state is AssignmentState.LATE and record.is_held
            folded = is_late or record.weight is not None
            attendee.push(fate_message(record.id, record.state, record.reason, folded=folded))

    async def _awaits_fold(self, record: AssignmentRecord) -> bool:
        """Whether its update is accepted and its round goes on: its fate is told when that ends.

        Where memory does not know the round its ledger does: it has not ended either while its job
        cannot be taken up.
        """
        if record.state is not AssignmentState.ACCEPTED or record.weight is not None:
            return False
        if self._engine.find(record.id, record.client_id) is not None:
            return True
        read = partial(round_repository.get, round_id=record.round_id)
        return (await self._world.database.read(read)).ended_at is None

    async def _outcome(self, client_id: str, assignment_id: int) -> fleet_pb2.AttendResponse | None:
        """What ends a client's work on an assignment that is not pending; None where it goes on."""
        read = partial(round_repository.assignment, assignment_id=assignment_id)
        try:
            record = await self._world.database.read(read)
        except NotFoundError:
            record = None
        if record is None or record.client_id != client_id:
            reason = "this coordinator has no such assignment of this client"
            return cancel_message(assignment_id, reason)
        if record.state is AssignmentState.LATE and record.is_held:
            return None  # it offers the update again, and learns then that it is held
        if await self._awaits_fold(record):
            return None
        if record.state in _ENDED_BY_THEIR_CLIENT:
            folded = record.weight is not None
            return fate_message(record.id, record.state, record.reason, folded=folded)
        if await self._engine.rejoin(record) is not None:
            return None
        return cancel_message(record.id, f"it is {record.state}: {record.reason}")

    def _renew(self, live: LiveAssignment) -> None:
        live.lease_ends = self._world.clock.monotonic() + self._world.lease_seconds


async def _abort_slow(context: Context, bytes_per_second: float) -> None:
    """End a call from beside it: what waits for room in its client's window is gRPC, not we."""
    with suppress(grpc.aio.AbortError):  # raised to end a handler, which this is not
        await context.abort(
            grpc.StatusCode.UNAVAILABLE,
            f"fewer than {bytes_per_second:g} bytes a second were taken: fetch the rest",
        )


def _opened(blobs: BlobStore, digest: str) -> BinaryIO:
    """A blob to read; raises NotFoundError where there is none."""
    try:
        return blobs.open(checked_digest(digest))
    except BlobError:
        if blobs.exists(digest):
            raise
        raise NotFoundError(f"there is no blob {digest}") from None


async def _first(requests: AsyncIterator[fleet_pb2.AttendRequest]) -> fleet_pb2.Hello:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "hello":
        raise UsageError("a stream begins with Hello")
    return first.hello


def _welcome(attendee: Attendee) -> fleet_pb2.AttendResponse:
    welcome = fleet_pb2.Welcome(
        client_name=attendee.name,
        heartbeat_seconds=HEARTBEAT_SECONDS,
        program_version=VERSION,
    )
    return fleet_pb2.AttendResponse(welcome=welcome)
