"""The Control service: operators and authors command and ask."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import grpc.aio
from sqlalchemy.orm import Session

from coordinator.engine.engine import Engine
from coordinator.services import messages, queries
from coordinator.services.checks import checked_digest
from coordinator.services.spool import store_path
from coordinator.services.submission import PIN_HOLDER, submit_job
from headwater import durable_files
from headwater.errors import UpdateError, UsageError
from headwater.v1 import control_pb2, control_pb2_grpc
from storage import blobs as blob_repository
from storage import history
from storage.blob_store import BlobStore
from storage.records import JobState

Context = grpc.aio.ServicerContext[Any, Any]
CHUNK_BYTES = 2**20
MAXIMUM_BLOB_BYTES = 64 * 2**30
_STATES = {
    "pause": (JobState.PAUSED, "paused by the operator"),
    "resume": (JobState.RUNNING, "resumed by the operator"),
    "cancel": (JobState.CANCELLED, "cancelled by the operator"),
}
_FINAL = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.PAUSED)


class ControlService(control_pb2_grpc.ControlServicer):
    """Decodes what operators ask, calls the engine or the history, encodes the answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._world = engine.world
        self._starting: set[asyncio.Task[control_pb2.Job]] = set()

    async def Missing(  # noqa: N802
        self, request: control_pb2.MissingRequest, context: Context
    ) -> control_pb2.MissingResponse:
        """Which blobs are not here; all are pinned until a job refers to them."""
        digests = [checked_digest(digest) for digest in request.digests]
        await self._pin(digests)  # first, so that no collection comes between look and answer
        missing = await self._world.work(_absent, self._world.blobs, digests)
        return control_pb2.MissingResponse(digests=missing)

    async def Store(  # noqa: N802
        self, request_iterator: AsyncIterator[control_pb2.StoreRequest], context: Context
    ) -> control_pb2.StoreResponse:
        """Receive one blob."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        digest = checked_digest(first.digest if first else "")
        await self._pin([digest])
        path = store_path(self._world.spool, digest, id(context))
        try:
            size_bytes = await self._receive(path, digest, first, requests)
            await self._world.work(self._world.blobs.adopt, path, digest)
        finally:
            durable_files.remove(path)
        await self._world.database.write(
            partial(
                blob_repository.register,
                digest=digest,
                size_bytes=size_bytes,
                kind="plan",
                now=self._world.clock.now(),
            )
        )
        return control_pb2.StoreResponse(size_bytes=size_bytes)

    async def SubmitJob(  # noqa: N802
        self, request: control_pb2.SubmitJobRequest, context: Context
    ) -> control_pb2.SubmitJobResponse:
        """Start a job; it is driven even when its author is gone before the answer."""
        start = asyncio.create_task(self._start(request))
        self._starting.add(start)
        start.add_done_callback(self._starting.discard)
        return control_pb2.SubmitJobResponse(job=await asyncio.shield(start))

    async def Change(  # noqa: N802
        self, request: control_pb2.ChangeRequest, context: Context
    ) -> control_pb2.ChangeResponse:
        """Pause, resume or cancel a job."""
        if request.action not in _STATES:
            raise UsageError(f"{request.action!r} is none of {', '.join(_STATES)}")
        record = await self._engine.change(request.job, *_STATES[request.action])
        return control_pb2.ChangeResponse(job=messages.job_message(record))

    async def ListJobs(  # noqa: N802
        self, request: control_pb2.ListJobsRequest, context: Context
    ) -> control_pb2.ListJobsResponse:
        """The jobs."""
        return await self._world.database.read(queries.list_jobs)

    async def ShowJob(  # noqa: N802
        self, request: control_pb2.ShowJobRequest, context: Context
    ) -> control_pb2.ShowJobResponse:
        """One job, and what it waits for."""
        job = await self._world.database.read(partial(queries.show_job, reference=request.job))
        run = self._engine.runs.get(request.job)
        return control_pb2.ShowJobResponse(job=job, waiting_for=run.waiting_for if run else "")

    async def ListRounds(  # noqa: N802
        self, request: control_pb2.ListRoundsRequest, context: Context
    ) -> control_pb2.ListRoundsResponse:
        """A job's rounds."""
        return await self._world.database.read(
            partial(queries.list_rounds, reference=request.job, limit=request.limit)
        )

    async def ShowRound(  # noqa: N802
        self, request: control_pb2.ShowRoundRequest, context: Context
    ) -> control_pb2.ShowRoundResponse:
        """A round with its ledger."""
        return await self._world.database.read(
            partial(queries.show_round, reference=request.job, number=request.number)
        )

    async def ListClients(  # noqa: N802
        self, request: control_pb2.ListClientsRequest, context: Context
    ) -> control_pb2.ListClientsResponse:
        """The clients, and who attends now."""
        return await self._world.database.read(
            partial(queries.list_clients, attending=self._attending())
        )

    async def ShowClient(  # noqa: N802
        self, request: control_pb2.ShowClientRequest, context: Context
    ) -> control_pb2.ShowClientResponse:
        """A client with its latest assignments."""
        return await self._world.database.read(
            partial(queries.show_client, name=request.client, attending=self._attending())
        )

    async def ListModels(  # noqa: N802
        self, request: control_pb2.ListModelsRequest, context: Context
    ) -> control_pb2.ListModelsResponse:
        """A job's model versions."""
        return await self._world.database.read(
            partial(queries.list_models, reference=request.job, best=request.best)
        )

    async def Pull(  # noqa: N802
        self, request: control_pb2.PullRequest, context: Context
    ) -> AsyncIterator[control_pb2.PullResponse]:
        """Stream a version's weights file."""
        name = request.job if request.version < 0 else f"{request.job}@{request.version}"
        record = await self._world.database.read(partial(history.model, name=name))
        yield control_pb2.PullResponse(model=messages.model_message(record))
        async for data in self._content(record.weights_digest):
            yield control_pb2.PullResponse(data=data)

    async def PullPlan(  # noqa: N802
        self, request: control_pb2.PullPlanRequest, context: Context
    ) -> AsyncIterator[control_pb2.PullPlanResponse]:
        """Stream a member of a job's plan."""
        digest = await self._world.database.read(
            partial(queries.plan_member, reference=request.job, member=request.member)
        )
        async for data in self._content(digest):
            yield control_pb2.PullPlanResponse(data=data)

    async def Follow(  # noqa: N802
        self, request: control_pb2.FollowRequest, context: Context
    ) -> AsyncIterator[control_pb2.FollowResponse]:
        """Stream a job's rounds as they end, and what it waits for, until it ends or pauses.

        A round that is open when the job is paused or cancelled is awaited.
        """
        seen, said = request.after_round, ("", "")
        while True:
            run = self._engine.runs.get(request.job)
            news = run.news if run else 0
            # The job first: of one that has ended, every round is in the list that follows.
            job = await self.ShowJob(control_pb2.ShowJobRequest(job=request.job), context)
            rounds = await self._world.database.read(
                partial(queries.list_rounds, reference=request.job)
            )
            for one in rounds.rounds:
                if one.number > seen and one.HasField("ended_at"):
                    seen = one.number
                    yield control_pb2.FollowResponse(round=one)
            if said != (job.job.state, job.waiting_for):
                said = (job.job.state, job.waiting_for)
                yield control_pb2.FollowResponse(job=job)
            if run is None or (run.round is None and job.job.state in _FINAL):
                return
            await run.news_after(news)

    async def _content(self, digest: str) -> AsyncIterator[bytes]:
        with await self._world.work(self._world.blobs.open, digest) as file:
            while data := await self._world.work(file.read, CHUNK_BYTES):
                yield data

    def _attending(self) -> set[str]:
        return {one.client_id for one in self._world.attendance}

    async def _start(self, request: control_pb2.SubmitJobRequest) -> control_pb2.Job:
        record = await submit_job(self._world, request)
        await self._engine.take_up(record)
        return messages.job_message(record)

    async def _pin(self, digests: list[str]) -> None:
        now = self._world.clock.now()

        def write(session: Session) -> None:
            for digest in digests:
                blob_repository.pin(session, digest=digest, holder=PIN_HOLDER, now=now)

        await self._world.database.write(write)

    async def _receive(
        self,
        path: Path,
        digest: str,
        first: control_pb2.StoreRequest | None,
        requests: AsyncIterator[control_pb2.StoreRequest],
    ) -> int:
        """Write a stream to a synced file; returns its size in bytes."""
        hasher, size_bytes, request = hashlib.sha256(), 0, first
        file = await self._world.work(_created, path)
        try:
            while request is not None:
                size_bytes += len(request.data)
                if size_bytes > MAXIMUM_BLOB_BYTES:
                    raise UsageError(f"a blob has at most {MAXIMUM_BLOB_BYTES} bytes")
                hasher.update(request.data)
                await self._world.work(durable_files.append, file, path, request.data)
                request = await anext(requests, None)
            await self._world.work(durable_files.sync, file, path)
        finally:
            with suppress(OSError):  # it flushes again what did not fit; that has been told
                file.close()
        if hasher.hexdigest() != digest:
            raise UpdateError(f"the bytes have the digest {hasher.hexdigest()}, not {digest}")
        return size_bytes


def _absent(blobs: BlobStore, digests: Sequence[str]) -> list[str]:
    return [one for one in digests if not blobs.exists(one)]


def _created(path: Path) -> BinaryIO:
    with durable_files.disk_errors(path):
        return path.open("wb")
