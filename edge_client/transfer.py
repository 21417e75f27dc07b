"""Blobs down and updates up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import grpc

from edge_client.cache import BlobCache, Download
from edge_client.connection import Connection
from headwater import durable_files
from headwater.errors import PlanError, UnavailableError, UpdateError, WorldError
from headwater.status import translated
from headwater.steps import reach
from headwater.updates import FRAME_HEADER
from headwater.v1.fleet_pb2 import (
    FetchRequest,
    Frame,
    OfferRequest,
    OfferResponse,
    Receipt,
    SubmitHeader,
    SubmitRequest,
)

_OFFER_SECONDS = 30.0
_FETCH_ATTEMPTS = 2

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in all; must not raise."""


class Transfer:
    """The unary and bulk calls of one client."""

    def __init__(self, connection: Connection, cache: BlobCache, client_id: str) -> None:
        self._connection = connection
        self._cache = cache
        self._client_id = client_id

    async def fetch(self, digest: str, assignment_id: int, report: Report) -> None:
        """Bring a blob into the cache, unless it is there.

        Raises:
            UnavailableError: the connection broke; what arrived is kept for the next attempt.
            DiskFullError: it does not fit this device.
            PlanError: twice the bytes received were not those of the digest.
            NotFoundError: the coordinator does not have it.
        """
        if await self._holds(digest):
            return
        for attempt in range(1, _FETCH_ATTEMPTS + 1):
            try:
                with self._cache.download(digest) as download:
                    await self._receive(digest, assignment_id, download, report)
                    download.finish()
                return
            except UpdateError as error:
                if attempt == _FETCH_ATTEMPTS:
                    raise PlanError(f"{error}, again") from error

    async def offer(self, request: OfferRequest) -> OfferResponse:
        """Announce an update.

        Raises:
            UnavailableError: no answer; offer again.
            UserError: the coordinator refuses it for good.
        """
        reach("send", "offer")
        with _remote():
            answer = await self._connection.control.Offer(request, timeout=_OFFER_SECONDS)
        reach("received", "answer to an offer")
        return answer

    async def submit(
        self, offer: OfferRequest, path: Path, from_byte: int, report: Report
    ) -> Receipt:
        """Send an update from a byte on.

        Raises:
            UnavailableError: the connection broke; offer again to learn where to go on.
            UserError: the coordinator refuses it for good.
            StorageError: the stored update cannot be read.
        """
        header = SubmitHeader(
            assignment_id=offer.assignment_id,
            client_id=self._client_id,
            digest=offer.digest,
            from_byte=from_byte,
        )
        with durable_files.disk_errors(path):
            file = path.open("rb")
        with file, _remote():
            file.seek(from_byte)
            # An iterator and not `write`: the coordinator may answer before it has read all.
            messages = _messages(header, file, offer.size_bytes, report)
            response = await self._connection.bulk.Submit(messages)
        reach("received", "receipt")
        return response.receipt

    async def _holds(self, digest: str) -> bool:
        if self._cache.is_verified(digest):
            return self._cache.holds(digest)
        return await asyncio.to_thread(self._cache.holds, digest)

    async def _receive(
        self, digest: str, assignment_id: int, download: Download, report: Report
    ) -> None:
        request = FetchRequest(
            digest=digest,
            offset_bytes=download.offset_bytes,
            client_id=self._client_id,
            assignment_id=assignment_id,
        )
        size_bytes = None
        reach("send", "fetch")
        with _remote():
            call = self._connection.bulk.Fetch(request)
            try:
                async for response in call:
                    if size_bytes is None:
                        size_bytes = response.size_bytes
                        self._cache.make_room(digest, size_bytes)
                    if download.offset_bytes + len(response.data) > size_bytes:
                        download.discard()
                        raise UpdateError(f"blob {digest[:12]}… has more bytes than announced")
                    download.write(response.data)
                    report(download.offset_bytes, size_bytes)
            finally:
                call.cancel()
        if size_bytes is not None and download.offset_bytes < size_bytes:
            raise UnavailableError(f"the coordinator stopped in the middle of blob {digest[:12]}…")


@contextmanager
def _remote() -> Iterator[None]:
    """Failed calls as our errors; whatever the world does on the other side can be retried."""
    try:
        with translated():
            yield
    except WorldError as error:
        if isinstance(error.__cause__, grpc.RpcError):
            raise UnavailableError(str(error)) from error
        raise  # this device's own disk
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise UnavailableError("the call was broken off") from error


async def _messages(
    header: SubmitHeader, file: BinaryIO, size_bytes: int, report: Report
) -> AsyncIterator[SubmitRequest]:
    yield SubmitRequest(header=header)
    while stored := file.read(FRAME_HEADER.size):
        length, checksum = FRAME_HEADER.unpack(stored)
        reach("send", "frame")
        yield SubmitRequest(frame=Frame(checksum=checksum, payload=file.read(length)))
        report(file.tell(), size_bytes)
