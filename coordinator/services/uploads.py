"""Updates on their way into the ledger: offered, received, durable, accepted."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from coordinator.engine.engine import Engine
from coordinator.engine.live import JobRun, LiveAssignment
from coordinator.engine.rounds import send_assignment
from coordinator.services.offer_checks import check_norm, evaluates, offer_fault, stale
from coordinator.services.quarantine import quarantine
from coordinator.services.spool import upload_path
from coordinator.services.upload import Upload
from coordinator.services.upload_streams import Stream, UploadStreams
from headwater.encodings.names import EXACT, encoding_named
from headwater.errors import (
    ConflictError,
    NotFoundError,
    StorageError,
    UnavailableError,
    UpdateError,
)
from headwater.updates import maximum_update_bytes
from headwater.v1 import fleet_pb2
from storage import late as late_repository
from storage import rounds as round_repository
from storage.records import (
    AssignmentFacts,
    AssignmentRecord,
    AssignmentState,
    RoundState,
    UpdateFacts,
)

T = TypeVar("T")

_log = logging.getLogger("headwater.uploads")

UPLOAD_MEMORY_BYTES = 32 * 2**20
"""What one upload may hold: 16 MiB that gRPC reads ahead, a message of at most 8 MiB while it is
decoded, and a block's values in double precision."""

UPLOADS_MEMORY_BYTES = 512 * 2**20

CONCURRENT_UPLOADS = UPLOADS_MEMORY_BYTES // UPLOAD_MEMORY_BYTES
"""Uploads received at once; the others are told to come again, and hold no bytes meanwhile."""

QUARANTINE = "quarantine"
"""The folder of refused updates, in the data directory."""

TOO_LATE = "its round has what it needs, or is over"
_WAIT_SECONDS = 0.2


class Uploads:
    """The updates that are arriving. Used on the event loop; disk work goes to worker threads."""

    def __init__(self, engine: Engine, limit: int = CONCURRENT_UPLOADS) -> None:
        self._engine = engine
        self._world = engine.world
        self._limit = limit
        self._streams = UploadStreams()
        self._receiving: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def offered(
        self, run: JobRun, live: LiveAssignment, request: fleet_pb2.OfferRequest
    ) -> fleet_pb2.OfferResponse:
        """Answer an offer for an assignment of an open round, or for a late one that is awaited.

        Raises:
            UpdateError: the announced size, encoding or example count cannot be right; the
                assignment is rejected.
        """
        if live.state in (AssignmentState.ACCEPTED, AssignmentState.LATE):
            return await self.after_the_round(request)
        if not wanted(run, live):
            may_fold = live.state is AssignmentState.EXPIRED and run.spec.rounds.late == "fold"
            return await self.after_the_round(request) if may_fold else _not_needed(TOO_LATE)
        if stale(live, request):
            if run.late.pop(live.record.id, None) is None:
                send_assignment(self._world, run, live)
            return _not_needed("it is a change of other weights than this assignment's")
        fault = offer_fault(run, live, request)
        if fault:
            await self._reject(run, live, fault)
            return _not_needed(fault)
        if evaluates(run, live):
            return await self._to_its_end(self._measured(run, live, request))
        if len(self._receiving - {live.record.id}) >= self._limit:
            return fleet_pb2.OfferResponse(
                verdict=fleet_pb2.OFFER_VERDICT_COME_AT,
                wait_seconds=_WAIT_SECONDS,
                reason=f"{self._limit} uploads are under way",
            )
        return await self._to_its_end(self._invite(run, live, request))

    async def after_the_round(self, request: fleet_pb2.OfferRequest) -> fleet_pb2.OfferResponse:
        """Answer an offer for an assignment that has ended: the receipt, or why it is not needed.

        One that has expired is taken up again where the next round can fold its update.

        Raises:
            NotFoundError: there is no such assignment of this client.
        """
        record = await self._recorded(request.assignment_id, request.client_id)
        if has_accepted(record, request.digest):
            return _have_it(receipt_of(record))
        if (rejoined := await self._engine.rejoin(record)) is not None:
            return await self.offered(*rejoined, request)
        if record.state is AssignmentState.EXPIRED:
            record = await self._note_late(record)
        return _not_needed(f"the assignment is {record.state}: {record.reason}")

    async def received(
        self, header: fleet_pb2.SubmitHeader, requests: AsyncIterator[fleet_pb2.SubmitRequest]
    ) -> fleet_pb2.Receipt:
        """Receive an upload to its end, or until its round needs it no more.

        An upload that was accepted already gets its receipt again.

        Raises:
            ConflictError: it was not offered, or a newer stream sends it.
            NotFoundError: there is no such assignment of this client.
            UnavailableError: too many uploads are under way, or this one is too slow.
            UpdateError: it is damaged or not what was announced; the assignment is rejected.
        """
        found = self._engine.find(header.assignment_id, header.client_id)
        if found is None or not (found[1].pending or is_late(*found)):
            record = await self._recorded(header.assignment_id, header.client_id)
            accepted = has_accepted(record, header.digest)
            return receipt_of(record) if accepted else _turned_away(header)
        stream = Stream()
        try:
            return await self._to_its_end(self._receive(*found, header, requests, stream))
        finally:
            stream.cut()

    async def _receive(
        self,
        run: JobRun,
        live: LiveAssignment,
        header: fleet_pb2.SubmitHeader,
        requests: AsyncIterator[fleet_pb2.SubmitRequest],
        stream: Stream,
    ) -> fleet_pb2.Receipt:
        async with self._streams.turn(header.assignment_id, stream):
            offer = live.offer
            if offer is None or offer.digest != header.digest:
                raise ConflictError(f"offer the update of assignment {header.assignment_id} first")
            if len(self._receiving) >= self._limit:
                raise UnavailableError(f"{self._limit} uploads are under way: offer it again")
            self._receiving.add(header.assignment_id)
            pace = self._world.minimum_bytes_per_second
            watching = asyncio.create_task(stream.cut_when_slow(self._world.clock, pace))
            try:
                async with aclosing(stream.messages(requests, _payload_bytes)) as messages:
                    return await self._take(run, live, offer, header, messages)
            finally:
                watching.cancel()
                self._receiving.discard(header.assignment_id)

    async def _take(
        self,
        run: JobRun,
        live: LiveAssignment,
        offer: fleet_pb2.OfferRequest,
        header: fleet_pb2.SubmitHeader,
        messages: AsyncIterator[fleet_pb2.SubmitRequest],
    ) -> fleet_pb2.Receipt:
        began = self._world.clock.monotonic()
        upload = await self._world.work(self._open, run, header.assignment_id, offer)
        try:
            if upload.offset_bytes != header.from_byte:
                raise ConflictError(f"send the update from byte {upload.offset_bytes}")
            async for request in messages:
                if not wanted(run, live):
                    _check_offers_again(run, live)
                    await self._world.work(upload.discard)
                    return _turned_away(header)
                live.lease_ends = self._world.clock.monotonic() + self._world.lease_seconds
                await self._world.work(upload.append, request.frame.checksum, request.frame.payload)
            if not upload.complete:
                raise ConflictError(f"the upload broke off at byte {upload.offset_bytes}")
            await self._world.work(upload.finish)
            check_norm(run, upload.norm)
            await self._world.work(self._world.blobs.adopt, upload.path, offer.digest)
        except UpdateError as error:
            evidence = await self._world.work(self._quarantine, live, upload, str(error))
            await self._reject(run, live, str(error), evidence, upload.norm)
            raise
        except BaseException:
            with suppress(StorageError):  # the first failure is the one to tell
                await self._world.work(upload.pause)
            raise
        # Of what came in earlier streams the seconds are not known: they count at this one's pace.
        came = upload.offset_bytes - header.from_byte
        seconds = self._world.clock.monotonic() - began
        seconds *= upload.offset_bytes / came if came else 0.0
        accept = partial(self._accept, run, live, offer, upload.norm, upload.offset_bytes, seconds)
        try:
            return await accept()
        except ConflictError:  # the round closed while the update became durable
            if is_late(run, live):
                return await accept()
            if wanted(run, live):
                raise
            return _turned_away(header)

    async def _invite(
        self, run: JobRun, live: LiveAssignment, request: fleet_pb2.OfferRequest
    ) -> fleet_pb2.OfferResponse:
        async with self._streams.turn(live.record.id, Stream()):
            if live.pending or is_late(run, live):  # else the stream before had just ended
                try:
                    return await self._awaited(run, live, request)
                except ConflictError:
                    await self._catch_up(run, live)
        # Outside of the turn: what is taken up again takes one of its own.
        return await self.after_the_round(request)

    async def _awaited(
        self, run: JobRun, live: LiveAssignment, request: fleet_pb2.OfferRequest
    ) -> fleet_pb2.OfferResponse:
        """Write that an update is on its way, and say from which byte on it is wanted.

        Raises:
            ConflictError: its assignment has ended.
        """
        live.offer = request
        await self._world.database.write(
            partial(
                round_repository.advance_assignment,
                assignment_id=live.record.id,
                state=live.state if is_late(run, live) else AssignmentState.UPLOADING,
                update_digest=request.digest,
                now=self._world.clock.now(),
            )
        )
        if not is_late(run, live):
            live.state = AssignmentState.UPLOADING
        from_byte = 0
        if self._path(live.record.id, request.digest).exists():
            upload = await self._world.work(self._open, run, live.record.id, request)
            from_byte = upload.offset_bytes
            upload.pause()
        return fleet_pb2.OfferResponse(verdict=fleet_pb2.OFFER_VERDICT_SEND, from_byte=from_byte)

    async def _measured(
        self, run: JobRun, live: LiveAssignment, request: fleet_pb2.OfferRequest
    ) -> fleet_pb2.OfferResponse:
        """Take an evaluation: its metrics came with the offer."""
        try:
            return _have_it(await self._accept(run, live, request, 0.0, 0))
        except ConflictError:
            await self._catch_up(run, live)
            return await self.after_the_round(request)

    async def _catch_up(self, run: JobRun, live: LiveAssignment) -> None:
        """The assignment has ended in the database and not in memory: that one is right."""
        record = await self._recorded(live.record.id, live.record.client_id)
        live.state = record.state
        run.changed.set()

    async def _recorded(self, assignment_id: int, client_id: str) -> AssignmentRecord:
        """A client's assignment from the ledger; raises NotFoundError."""
        record = await self._world.database.read(
            partial(round_repository.assignment, assignment_id=assignment_id)
        )
        if record.client_id != client_id:
            raise NotFoundError(f"assignment {assignment_id} is not this client's")
        return record

    def _to_its_end(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """What comes of `work`, which goes on when its caller is cut.

        So what is in the hands of the disk or the database is finished, and memory follows.
        """
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("an upload ended: %s", error)  # its caller is told too, if it is still there

    async def _accept(
        self,
        run: JobRun,
        live: LiveAssignment,
        offer: fleet_pb2.OfferRequest,
        norm: float,
        bytes_up: int,
        upload_seconds: float = 0.0,
    ) -> fleet_pb2.Receipt:
        facts = UpdateFacts(
            digest=offer.digest,
            size_bytes=offer.size_bytes,
            encoding=live.record.update_encoding or "fp32",
            examples=offer.summary.examples,
            metrics_before=dict(offer.summary.metrics_before),
            metrics_after=dict(offer.summary.metrics_after),
            update_norm=norm,
            unencoded_size_bytes=maximum_update_bytes(run.layout, EXACT) if offer.digest else None,
            encoding_error=offer.summary.encoding_error if offer.digest else None,
            residual_norm=offer.summary.residual_norm if offer.digest else None,
            residual_age_rounds=offer.summary.residual_age_rounds if offer.digest else None,
            fetch_seconds=offer.summary.fetch_seconds,
            train_seconds=offer.summary.train_seconds,
            upload_seconds=upload_seconds,
            bytes_down=live.bytes_down,
            bytes_up=bytes_up,
        )
        accept = late_repository.accept if is_late(run, live) else round_repository.accept_update
        receipt = await self._world.database.write(
            partial(accept, assignment_id=live.record.id, update=facts, now=self._world.clock.now())
        )
        live.state = receipt.state
        run.late.pop(live.record.id, None)
        run.changed.set()
        self._engine.wake()
        return _receipt(receipt.assignment_id, receipt.digest, receipt.state)

    async def _reject(
        self,
        run: JobRun,
        live: LiveAssignment,
        reason: str,
        evidence: str = "",
        norm: float | None = None,
    ) -> None:
        _log.warning(
            "an update of client %s is rejected: %s%s",
            live.record.client_name,
            reason,
            f" (kept as {evidence})" if evidence else "",
            extra={"job": run.record.reference, "client": live.record.client_name},
        )
        facts: AssignmentFacts = {} if norm is None else {"update_norm": norm}
        if evidence:
            facts["evidence"] = evidence
        await self._engine.end_assignment(run, live, AssignmentState.REJECTED, reason, facts)

    def _quarantine(self, live: LiveAssignment, upload: Upload, reason: str) -> str:
        upload.pause()
        return quarantine(
            self._world.spool.parent / QUARANTINE,
            upload.path,
            assignment_id=live.record.id,
            client=live.record.client_name,
            reason=reason,
            now=self._world.clock.now(),
        )

    async def _note_late(self, record: AssignmentRecord) -> AssignmentRecord:
        write = partial(late_repository.note, assignment_id=record.id, now=self._world.clock.now())
        return await self._world.database.write(write)

    def _open(self, run: JobRun, assignment_id: int, offer: fleet_pb2.OfferRequest) -> Upload:
        path = self._path(assignment_id, offer.digest)
        return Upload(path, run.layout, encoding_named(offer.encoding), offer.digest)

    def _path(self, assignment_id: int, digest: str) -> Path:
        return upload_path(self._world.spool, assignment_id, digest)


def _payload_bytes(request: fleet_pb2.SubmitRequest) -> int:
    return len(request.frame.payload)


def _check_offers_again(run: JobRun, live: LiveAssignment) -> None:
    """Raises ConflictError where its lease ran out, and the next offer takes it up again as late:
    what has come of it is kept for that."""
    if live.state is AssignmentState.EXPIRED and run.spec.rounds.late == "fold":
        raise ConflictError("the assignment expired while its update came: offer it again")


def is_late(run: JobRun, live: LiveAssignment) -> bool:
    """Whether the assignment's round has ended, and the next one takes its update."""
    return live.record.id in run.late


def wanted(run: JobRun, live: LiveAssignment) -> bool:
    """Whether the round still takes this assignment's update, or the next one if it is late."""
    if is_late(run, live):
        return True
    is_open = run.round is not None and run.round.record.state is RoundState.OPEN
    return is_open and live.pending


def has_accepted(record: AssignmentRecord, digest: str) -> bool:
    """Whether this update is the one that is held; an evaluation's digest is empty."""
    return record.is_held and (record.update_digest or "") == digest


def receipt_of(record: AssignmentRecord) -> fleet_pb2.Receipt:
    """The receipt of a held update, again."""
    return _receipt(record.id, record.update_digest or "", record.state)


def _receipt(assignment_id: int, digest: str, state: AssignmentState) -> fleet_pb2.Receipt:
    is_late = state is AssignmentState.LATE
    reason = "it is late, and a later round folds it" if is_late else ""
    return fleet_pb2.Receipt(assignment_id=assignment_id, digest=digest, state=state, reason=reason)


def _turned_away(header: fleet_pb2.SubmitHeader) -> fleet_pb2.Receipt:
    return fleet_pb2.Receipt(
        assignment_id=header.assignment_id,
        digest=header.digest,
        state=AssignmentState.RELEASED,
        reason=TOO_LATE,
    )


def _have_it(receipt: fleet_pb2.Receipt) -> fleet_pb2.OfferResponse:
    return fleet_pb2.OfferResponse(verdict=fleet_pb2.OFFER_VERDICT_HAVE_IT, receipt=receipt)


def _not_needed(reason: str) -> fleet_pb2.OfferResponse:
    return fleet_pb2.OfferResponse(verdict=fleet_pb2.OFFER_VERDICT_NOT_NEEDED, reason=reason)
